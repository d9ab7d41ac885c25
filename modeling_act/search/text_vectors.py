"""Vectors of texts in the space of CLIP or SigLIP, where `encode(space="teacher")` of their students puts clouds."""

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoTokenizer

from ..errors import InputError
from ..modeling_act_view_teacher import load_transformers


@torch.inference_mode()
def encode_texts(texts: list[str], text_model: str, device: str | torch.device | None = None, **hub) -> Tensor:
    """Encode texts into vectors (texts, width) of length one, on the CPU.

    `text_model` is a Hub id or folder, as a student names it in `config.text_model`. `hub`: `revision`, `token` and
    other arguments of `from_pretrained`.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(text_model, trust_remote_code=False, **hub)
        model = load_transformers(text_model, True, trust_remote_code=False, **hub).eval().to(device or "cpu")
    except (OSError, ValueError) as error:
        raise InputError(f"{text_model}: no text model can be read from there ({error})") from error
    if not hasattr(model, "get_text_features"):
        raise InputError(f"{text_model}: must be a model of texts and pictures, got {type(model).__name__}")
    length = min(model.config.text_config.max_position_embeddings, tokenizer.model_max_length)
    # SigLIP was trained on texts padded to this length, and attends to the padding; to CLIP it makes no difference.
    tokens = tokenizer(
        texts,
        padding="max_length",
        max_length=length,
        truncation=True,
        return_attention_mask=not model.config.model_type.startswith("siglip"),
        return_tensors="pt",
    )
    vectors = model.get_text_features(**tokens.to(model.device)).pooler_output
    return normalize(vectors.float(), dim=-1).cpu()
