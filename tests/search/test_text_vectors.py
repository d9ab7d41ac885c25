"""Texts in the space that a CLIP or SigLIP shares with pictures, and with the clouds of its students."""

import pytest
import torch
from torch.nn.functional import normalize
from transformers import AutoModel

from modeling_act import ACTViewTeacher
from modeling_act.errors import InputError
from modeling_act.search.text_vectors import encode_texts
from small_models import WORDS, save_small_text_model, small_view_teacher_config


def by_hand(folder, kind, text):
    """The vector of a text, whose words and end CLIP reads; SigLIP reads the padding up to its 8 tokens too."""
    model = AutoModel.from_pretrained(folder).eval()
    tokens = [WORDS.index(word) for word in text.split()][:7] + [1]
    tokens += [0] * (8 - len(tokens)) if kind == "siglip" else []
    with torch.no_grad():
        return normalize(model.get_text_features(input_ids=torch.tensor([tokens])).pooler_output, dim=-1)[0]


@pytest.mark.parametrize(("kind", "width"), [("clip", 16), ("siglip", 24)])
def test_vectors_are_those_of_the_text_half(kind, width, tmp_path):
    save_small_text_model(tmp_path, kind)
    texts = ["a chair with arms", "mug", "a round mug with a round chair with round arms"]
    vectors = encode_texts(texts, str(tmp_path))
    assert vectors.shape == (3, width)
    torch.testing.assert_close(vectors, torch.stack([by_hand(tmp_path, kind, text) for text in texts]))
    assert not torch.allclose(vectors[0], vectors[1], atol=1e-3)
    teacher = ACTViewTeacher.from_backbone(str(tmp_path), num_views=2, image_size=32)
    assert teacher.config.cloud_dim == width and teacher.config.text_model == tmp_path.name


def test_what_is_no_text_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="none: no text model can be read from there"):
        encode_texts(["a mug"], str(tmp_path / "none"))
    save_small_text_model(tmp_path, "clip")
    AutoModel.from_config(small_view_teacher_config().backbone_config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="must be a model of texts and pictures, got Dinov2Model"):
        encode_texts(["a mug"], str(tmp_path))
