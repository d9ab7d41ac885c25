"""Tensors of the authors' implementation, and the official state dicts behind them, rebuilt from key, shape and seed.

`golden/act_vit_tiny.safetensors` was computed by the authors' released code (commit d580115) with these weights, in
eval mode and float32, with distances of FPS and kNN in float64 and `gumbel_softmax` in its noise-free form.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

GOLDEN = Path(__file__).parent / "golden"
SPECIFICATION = json.loads((GOLDEN / "act_vit_tiny.json").read_text())
SEED_OFFSETS = {
    "teacher_state": 0,
    "student_state": 1,
    "classifier_full_state": 2,
    "classifier_linear_state": 2,
    "part_segmentation_state": 3,
    "semantic_segmentation_state": 3,
}


def golden_tensors() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "act_vit_tiny.safetensors")


def official_state(name: str) -> dict[str, torch.Tensor]:
    """Rebuild one of the state dicts of `SEED_OFFSETS`, with official keys."""
    seed = SPECIFICATION["seed"] + SEED_OFFSETS[name]
    return {key: fill(key, shape, seed) for key, shape in SPECIFICATION[name].items()}


def fill(key: str, shape: list[int], seed: int) -> torch.Tensor:
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    random = np.random.RandomState(zlib.crc32(f"{seed}:{key}".encode()) & 0xFFFFFFFF)
    x = random.standard_normal(shape if shape else (1,)).astype(np.float32)
    last = key.split(".")[-1]
    if key.endswith("running_var"):
        x = 1 + 0.2 * np.abs(x)
    elif key.endswith("running_mean"):
        x = 0.1 * x
    elif len(shape) >= 2 and ("token" in key or "pos" in last or key.endswith("codebook")):
        x = 0.5 * x
    elif len(shape) >= 2:
        x = x / np.sqrt(np.prod(shape[1:]))
    elif key.endswith("weight"):
        x = 1 + 0.1 * x
    else:
        x = 0.05 * x
    return torch.from_numpy(x.reshape(shape).astype(np.float32))


def save_official(name: str, path: Path, teacher: bool = False) -> Path:
    """Write a checkpoint file in the layout of the authors' code; `teacher` adds one, as in a stage-2 file."""
    state = official_state(name)
    if teacher:
        state |= {f"dvae_tokenizer.{key}": tensor for key, tensor in official_state("teacher_state").items()}
    if "segmentation" in name:
        content = {"model_state_dict": state, "epoch": 3, "class_avg_iou": np.float64(0.5)}
    elif "classifier" in name:
        content = {"base_model": state, "epoch": 3, "metrics": {"acc": np.float64(93.5)}}
    else:
        content = {"base_model": {f"module.{key}": tensor for key, tensor in state.items()}, "epoch": 3}
    torch.save(content, path)
    return path
