"""Export models with their grouping inside: ONNX and torch.export programs, for any batch and number of points.
Models are known by the name of their class, so that those loaded as remote code are too. See docs/export.md."""

import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import InputError
from ..inference import in_eval_mode
from ..processing_act import ACTPointCloudProcessor

# Class of the model -> outputs of its file: name -> field of the model's output.
OUTPUTS = {
    "ACTStudent": {"embedding": "pooler_output", "last_hidden_state": "last_hidden_state", "centers": "centers"},
    "ACTStudentForPointCloudClassification": {"logits": "logits"},
    "ACTStudentForSemanticSegmentation": {"logits": "logits"},
    "ACTStudentForPartSegmentation": {"logits": "logits"},
    "ACTStudentForObjectDetection": {"logits": "logits", "boxes": "boxes"},
    "ACTTeacher": {"teacher_features": "teacher_features", "centers": "centers"},
}


class TensorsOnly(nn.Module):
    """A model whose inputs and outputs are tensors: points (batch, points, 3), and for parts category (batch,)."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        self.fields = OUTPUTS[type(model).__name__]

    def forward(self, points: Tensor, category: Tensor | None = None) -> dict[str, Tensor]:
        if "teacher_features" in self.fields:
            groups = self.model.group(points)
            return {"teacher_features": self.model.get_teacher_features(groups=groups), "centers": groups.centers}
        output = self.model(points) if category is None else self.model(points, category)
        values = {name: output[field] for name, field in self.fields.items()}
        if "embedding" in values and self.model.whitening is not None:
            values["embedding"] = self.model.whitening(values["embedding"])  # as `embed` does
        return values


def export_program(
    model: PreTrainedModel, path: str | os.PathLike | None = None, processor: ACTPointCloudProcessor | None = None
) -> torch.export.ExportedProgram:
    """Export a model, in eval mode, as a torch.export program that needs no code of this package.

    `program.module()(points)`, or `(points, category)` for parts, takes any number of clouds and returns a dictionary,
    see `OUTPUTS`. A `path` such as `student.pt2` stores it, with `describe`'s values as the extra file `about.json`.
    """
    check(model, path, ".pt2")
    with traceable(model) as (module, inputs, shapes):
        program = torch.export.export(module, tuple(inputs.values()), dynamic_shapes=shapes, strict=False)
    for graph in program.graph_module.modules():
        for node in graph.graph.nodes if isinstance(graph, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # paths of this machine
    if path is not None:
        torch.export.save(program, path, extra_files={"about.json": json.dumps(describe(model, processor))})
    return program


def export_onnx(
    model: PreTrainedModel, path: str | os.PathLike, processor: ACTPointCloudProcessor | None = None
) -> None:
    """Export a model, in eval mode, to an ONNX file: inputs as of `export_program`, `describe` as JSON metadata."""
    check(model, path, ".onnx")
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f'ONNX files need {error.name}: in the clone, pip install ".[export]"') from error
    # It warns of each torchvision operator if torchvision is not installed; no model here has one.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with traceable(model) as (module, inputs, shapes):
        options = {"input_names": list(inputs), "output_names": list(module.fields), "verbose": False}
        program = torch.onnx.export(module, tuple(inputs.values()), dynamo=True, dynamic_shapes=shapes, **options)
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # paths of this machine
    for key, value in describe(model, processor).items():
        program.model.metadata_props[key] = json.dumps(value)
    program.save(path)


def describe(model: PreTrainedModel, processor: ACTPointCloudProcessor | None = None) -> dict:
    """Metadata of an exported file: class, least number of points, labels, and the processor's settings."""
    config = model.config
    about = {"model": type(model).__name__, "min_points": max(config.num_groups, config.group_size)}
    if "logits" in OUTPUTS[about["model"]]:
        about["id2label"] = config.id2label
    if about["model"] == "ACTStudentForPartSegmentation":
        about |= {"num_categories": config.num_categories, "category_names": config.category_names}
    settings = processor.to_dict() if processor else {}
    return about | {key: settings[key] for key in settings if key not in ("feature_extractor_type", "auto_map")}


@contextmanager
def traceable(model: PreTrainedModel) -> Iterator[tuple[TensorsOnly, dict[str, Tensor], dict[str, dict]]]:
    """Yield the model in eval mode without gradients, inputs to trace it with, and their dynamic sizes."""
    min_points = max(model.config.num_groups, model.config.group_size)
    batch, points = torch.export.Dim("batch"), torch.export.Dim("points", min=min_points)
    cloud = torch.rand(2, 2 * min_points + 1, 3, generator=torch.Generator().manual_seed(0))
    inputs, shapes = {"points": cloud.to(model.device)}, {"points": {0: batch, 1: points}}
    if type(model).__name__ == "ACTStudentForPartSegmentation":
        inputs["category"], shapes["category"] = torch.zeros(2, dtype=torch.int64, device=model.device), {0: batch}
    with in_eval_mode(model), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporters, about themselves
        yield TensorsOnly(model).eval(), inputs, shapes


def check(model: PreTrainedModel, path: str | os.PathLike | None, suffix: str) -> None:
    if type(model).__name__ not in OUTPUTS:
        raise InputError(f"{type(model).__name__} cannot be exported, only {', '.join(OUTPUTS)}")
    if model.dtype != torch.float32:
        raise InputError(f"export needs float32 weights, got {model.dtype}: call model.float() before")
    if path is not None and Path(path).suffix != suffix:
        raise InputError(f"{path}: the file's name must end in {suffix}")
    if path is not None and not Path(path).parent.is_dir():
        raise InputError(f"{path}: there is no folder {Path(path).parent}")
