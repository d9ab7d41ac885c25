"""Configurations of models that are small in every width, those of the point networks too."""

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from modeling_act import (
    ACTStudent,
    ACTStudentConfig,
    ACTStudentForPartSegmentation,
    ACTStudentForPointCloudClassification,
    ACTStudentForPreTraining,
    ACTStudentForSemanticSegmentation,
    ACTTeacher,
    ACTTeacherConfig,
    ACTViewTeacher,
    ACTViewTeacherConfig,
)


def small_student_config(**overrides) -> ACTStudentConfig:
    fields = {
        "num_groups": 16,
        "group_size": 8,
        "pointnet_dims": [8, 12, 16],
        "position_dim": 8,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "teacher_dim": 20,
        "classifier_dim": 12,
        "propagation_dims": [20, 16],
        "segmentation_dims": [16, 12],
        "num_categories": 4,
        "category_dim": 6,
        "num_labels": 5,
    }
    return ACTStudentConfig(**(fields | overrides))


SMALL_POINT_NETWORKS = {
    "group_size": 8,
    "pointnet_dims": [8, 12, 16],
    "dgcnn_dims": [8, 12, 16, 16, 20],
    "embedding_dim": 16,
    "code_dim": 12,
    "feature_dim": 20,
    "codebook_size": 32,
    "position_dim": 8,
    "decoder_dim": 24,
    "folding_dim": 16,
}


def small_teacher_config(**overrides) -> ACTTeacherConfig:
    fields = {
        "num_groups": 16,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "num_prompts": 5,
    }
    return ACTTeacherConfig(**(SMALL_POINT_NETWORKS | fields | overrides))


def small_view_teacher_config(**overrides) -> ACTViewTeacherConfig:
    backbone = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 8}
    fields = {"num_groups": 16, "group_size": 8, "num_views": 3, "image_size": 32, "patch_size": 8, "hidden_size": 24}
    return ACTViewTeacherConfig(**(fields | {"backbone_config": backbone | {"model_type": "dinov2"}} | overrides))


WORDS = ["[pad]", "[end]", "[unknown]", "a", "chair", "mug", "with", "arms", "round"]  # their places are the tokens


def save_small_text_model(folder, kind: str) -> None:
    """Save a random "clip" or "siglip", of an image and a text half, with a tokenizer of `WORDS`."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
    text = {"vocab_size": 16, "max_position_embeddings": 8, "eos_token_id": 1, "pad_token_id": 0}
    halves = {"text_config": sizes | text, "vision_config": sizes | {"image_size": 32, "patch_size": 8}}
    config = AutoConfig.for_model(kind, **halves, **({"projection_dim": 16} if kind == "clip" else {}))
    AutoModel.from_config(config).save_pretrained(folder)
    words = Tokenizer(WordLevel({word: place for place, word in enumerate(WORDS)}, "[unknown]"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(single="$A [end]", special_tokens=[("[end]", 1)])
    special = {"pad_token": "[pad]", "eos_token": "[end]", "unk_token": "[unknown]"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)


def small_models() -> dict[str, tuple[type, object, dict]]:
    """Classes and configurations by name, and what a loss needs as input besides two clouds of 64 points."""
    student = small_student_config()
    labels = torch.tensor([1, 4])
    point_labels = torch.arange(128).view(2, 64) % 5
    return {
        "teacher": (ACTTeacher, small_teacher_config(), {}),
        "views": (ACTViewTeacher, small_view_teacher_config(), {}),
        "student": (ACTStudent, student, {}),
        "pretraining": (
            ACTStudentForPreTraining,
            student,
            {
                "teacher_features": torch.randn(2, 16, 20),
                "bool_masked_pos": torch.arange(16).ge(4).expand(2, -1),
            },
        ),
        "classification": (ACTStudentForPointCloudClassification, student, {"labels": labels}),
        "linear": (ACTStudentForPointCloudClassification, small_student_config(head="linear"), {"labels": labels}),
        "parts": (
            ACTStudentForPartSegmentation,
            student,
            {"category": torch.tensor([0, 3]), "labels": point_labels},
        ),
        "semantic": (ACTStudentForSemanticSegmentation, student, {"labels": point_labels}),
    }
