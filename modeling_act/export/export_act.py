"""Files that run a model elsewhere, with its grouping inside: ONNX and torch.export programs, of open batch and size.

The models are named and not imported, so that those that came as remote code are known too. docs/export.md runs them.
"""

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
from ..processing_act import ACTPointCloudProcessor

# Model -> what a file of it gives: name -> field of the model's output.
OUTPUTS = {
    "ACTStudent": {"embedding": "pooler_output", "last_hidden_state": "last_hidden_state", "centers": "centers"},
    "ACTStudentForPointCloudClassification": {"logits": "logits"},
    "ACTStudentForSemanticSegmentation": {"logits": "logits"},
    "ACTStudentForPartSegmentation": {"logits": "logits"},
    "ACTStudentForObjectDetection": {"logits": "logits", "boxes": "boxes"},
    "ACTTeacher": {"teacher_features": "teacher_features", "centers": "centers"},
}


class _TensorsOnly(nn.Module):
    """A model that takes and gives nothing but tensors: clouds (batch, points, 3), and of parts the category (batch,)
    of each, to the tensors of `OUTPUTS` by name."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        self.fields = OUTPUTS[type(model).__name__]

    def forward(self, points: Tensor, category: Tensor | None = None) -> dict[str, Tensor]:
        if "teacher_features" in self.fields:
            groups = self.model.group(points)
            return {"teacher_features": self.model.get_teacher_features(groups=groups), "centers": groups.centers}
        output = self.model(points) if category is None else self.model(points, category)
        return {name: output[field] for name, field in self.fields.items()}


def export_program(
    model: PreTrainedModel,
    path: str | os.PathLike | None = None,
    processor: ACTPointCloudProcessor | None = None,
) -> torch.export.ExportedProgram:
    """The model in evaluation, grouping included, as a program of torch.export that needs no code of this package.

    It takes any number of clouds of any size from `max(num_groups, group_size)` points on, `program.module()(points)`
    (`(points, category)` of parts), and gives a dictionary: see `OUTPUTS`. `path`, say `student.pt2`, stores it, with
    what `describe` says as the extra file `about.json`.
    """
    _check(model, path, ".pt2")
    inputs, shapes = _example(model)
    with _evaluated(model) as module:
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
    """Writes the model in evaluation, grouping included, to an ONNX file (`path`, say `student.onnx`).

    Its inputs are `points` (batch, points, 3), float32, and of parts `category` (batch,), int64; both sizes are open,
    from `max(num_groups, group_size)` points on. Its outputs are those of `OUTPUTS`, its metadata what `describe` says
    (`processor`: how the model's clouds were prepared), each value as JSON.
    """
    _check(model, path, ".onnx")
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f'ONNX files need {error.name}: pip install "modeling_act[export]"') from error
    # It warns of each operator of torchvision where that is not installed; no model here has one.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    inputs, shapes = _example(model)
    with _evaluated(model) as module:
        program = torch.onnx.export(
            module, tuple(inputs.values()), dynamo=True, dynamic_shapes=shapes, verbose=False,
            input_names=list(inputs), output_names=list(module.fields),
        )  # fmt: skip
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # where in torch's graph it came from, with paths of this machine
    program.model.metadata_props.update({k: json.dumps(value) for k, value in describe(model, processor).items()})
    program.save(path)


def describe(model: PreTrainedModel, processor: ACTPointCloudProcessor | None = None) -> dict:
    """What a user of an exported file must know: the model's class, the fewest points it takes, names of what it
    tells apart, and of the processor how clouds are prepared (`num_points`, `point_sampling`, `normalize`)."""
    config = model.config
    about = {"model": type(model).__name__, "min_points": max(config.num_groups, config.group_size)}
    if "logits" in OUTPUTS[about["model"]]:
        about["id2label"] = config.id2label
    if about["model"] == "ACTStudentForPartSegmentation":
        about |= {"num_categories": config.num_categories, "category_names": config.category_names}
    if processor is not None:
        about |= {k: v for k, v in processor.to_dict().items() if k not in ("feature_extractor_type", "auto_map")}
    return about


@contextmanager
def _evaluated(model: PreTrainedModel) -> Iterator[_TensorsOnly]:
    """The model in evaluation without gradients, left as it was before."""
    training = model.training
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporters' own about their insides
            yield _TensorsOnly(model).eval()
    finally:
        model.train(training)


def _check(model: PreTrainedModel, path: str | os.PathLike | None, suffix: str) -> None:
    if type(model).__name__ not in OUTPUTS:
        raise InputError(f"{type(model).__name__} cannot be exported, only {', '.join(OUTPUTS)}")
    if model.dtype != torch.float32:
        raise InputError(f"export needs float32 weights, got {model.dtype}: call model.float() before")
    if path is None:
        return
    path = Path(path)
    if path.suffix != suffix:
        raise InputError(f"{path}: the file's name must end in {suffix}")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")


def _example(model: PreTrainedModel) -> tuple[dict[str, Tensor], dict[str, dict]]:
    """Inputs to trace with, and which of their sizes stay open."""
    fewest = max(model.config.num_groups, model.config.group_size)
    batch, points = torch.export.Dim("batch"), torch.export.Dim("points", min=fewest)
    inputs = {"points": torch.rand(2, 2 * fewest + 1, 3, generator=torch.Generator().manual_seed(0))}
    shapes = {"points": {0: batch, 1: points}}
    if type(model).__name__ == "ACTStudentForPartSegmentation":
        inputs["category"], shapes["category"] = torch.zeros(2, dtype=torch.int64), {0: batch}
    return {name: value.to(model.device) for name, value in inputs.items()}, shapes


__all__ = ["OUTPUTS", "describe", "export_onnx", "export_program"]
