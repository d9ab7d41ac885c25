"""The commands of `python -m modeling_act`, whose words stand in __main__.py."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers.utils import logging

from ..errors import InputError
from ..hub.load_model import SEGMENTERS, load_model, read_config
from ..inference import encode, processor_of, run_on_clouds
from ..point_ops import chamfer_l1
from ..point_prediction import label_points, number_of_category
from ..processing_act import to_up_axis
from ..readers.cloud import read_cloud
from ..search.shape_index import ShapeIndex, check_usearch, probe_cloud
from ..viewer.page import ShownCloud, label_colors, viewer_page
from .tables import list_clouds, open_table, path_below, write_ply


def show(**values) -> None:
    """A result, as a line of JSON."""
    print(json.dumps(values))


def on_clouds(model: nn.Module, paths: dict[str, str], read: Callable[[Tensor], Tensor], options: argparse.Namespace):
    """(names, values) of a batch of clouds at a time; those that cannot be read end the command, or are listed."""
    show_bars(options)
    names = list(paths)
    batches = run_on_clouds(
        model, list(paths.values()), read, batch_size=options.batch_size, device=options.device,
        show_progress=not options.quiet, num_workers=options.num_workers, skip_bad=options.skip_bad, **given(options),
    )  # fmt: skip
    for batch in batches:
        for problem in batch.problems.values():
            print(f"skipped: {problem}", file=sys.stderr)
        if batch.places:
            yield [names[place] for place in batch.places], batch.values


def given(options: argparse.Namespace) -> dict:
    """How the clouds are given, for the processor."""
    return {"seed": options.seed, "up_axis": options.up_axis, "unit": options.unit}


def one_by_one(paths: dict[str, str], options: argparse.Namespace, use: Callable[[str, str], None]) -> None:
    """`use(name, path)` of each cloud, with a bar; those that cannot be read end the command, or are listed."""
    show_bars(options)
    for name, path in logging.tqdm(paths.items(), unit="cloud", disable=options.quiet):
        try:
            use(name, path)
        except InputError as error:
            if not options.skip_bad:
                raise
            print(f"skipped: {error}", file=sys.stderr)


def check_device(device: str | None) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # as torch says that there is none
        raise InputError(f"--device {device}: {str(error).splitlines()[0][:200]}") from error


def show_bars(options: argparse.Namespace) -> None:
    """From here on: of loading a model, which takes a moment, none is shown."""
    if not options.quiet:
        logging.enable_progress_bar()


# Commands ------------------------------------------------------------------------------------------------------------


def info(options: argparse.Namespace) -> None:
    config = read_config(options.model, revision=options.revision)
    model = load_model(options.model, config=config, revision=options.revision)
    counts = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
    names = ("num_groups", "group_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    sizes = {name: getattr(config, name) for name in names}
    told = {"model": options.model, "class": type(model).__name__, "dtype": str(model.dtype), **counts, **sizes}
    if type(model).__name__ not in ("ACTStudent", "ACTStudentForPreTraining", "ACTTeacher"):
        told["labels"] = list(config.id2label.values())
    processor = processor_of(model).to_dict()
    told["processor"] = {key: value for key, value in processor.items() if key != "auto_map"}
    print(json.dumps(told, indent=1))


def encode_clouds(options: argparse.Namespace) -> None:
    if options.out is None and options.index is None:
        raise InputError("encode needs --out FILE, --index FOLDER or both")
    if options.index is not None:
        check_usearch()  # before hours of work, as is what can be written
        Path(options.index).mkdir(parents=True, exist_ok=True)
    student, paths = load_model(options.model, "ACTStudent", revision=options.revision), list_clouds(options.inputs)
    names, vectors = [], []

    def read(points: Tensor) -> Tensor:
        return nn.functional.normalize(student(points).pooler_output.float(), dim=-1)

    with open_table(options.out) as table:
        for found, values in on_clouds(student, paths, read, options):
            table.write(name=found, vector=values.numpy())
            names.extend(found)
            if options.index is not None:
                vectors.append(values)
        if not names:
            raise InputError("none of the clouds could be read")
    if options.index is not None:
        about = {
            "model": options.model,
            "revision": options.revision,
            "seed": options.seed,
            "probe": probe(student, options),
        }
        ShapeIndex.build(options.index, names, torch.cat(vectors), about)
    show(clouds=len(names), skipped=len(paths) - len(names), width=2 * student.config.hidden_size)


def probe(student: nn.Module, options: argparse.Namespace) -> list[float]:
    return encode(student, probe_cloud(), show_progress=False, device=options.device).tolist()


def classify(options: argparse.Namespace) -> None:
    model = load_model(options.model, "ACTStudentForPointCloudClassification", revision=options.revision)
    count, labels = min(options.top_k, model.config.num_labels), model.config.id2label
    if count < 1:
        raise InputError(f"--top_k must be at least 1, got {options.top_k}")

    def read(points: Tensor) -> Tensor:
        return model(points).logits.float().softmax(-1)

    with open_table(options.out) as table:
        for names, scores in on_clouds(model, list_clouds(options.inputs), read, options):
            best = scores.topk(count)
            found = [[labels[place] for place in places] for places in best.indices.tolist()]
            for name, words, values in zip(names, found, best.values.tolist(), strict=True):
                show(name=name, labels=words, scores=[round(value, 6) for value in values])
            table.write(name=names, label=[words[0] for words in found], probabilities=scores.numpy())


def segment(options: argparse.Namespace) -> None:
    model = load_model(options.model, *SEGMENTERS, revision=options.revision)
    if options.device:
        model.to(options.device)
    processor, category = processor_of(model), number_of_category(model, options.category)
    colors, names = label_colors(model.config.num_labels), model.config.id2label

    def use(name: str, path: str) -> None:
        points = processor.read(path, name=name, **given(options))
        labels, scores = label_points(model, points, processor, category, options.votes, options.seed)
        write_ply(path_below(options.out, name, ".ply"), points.numpy(), colors[labels.numpy()], labels.numpy())
        if options.npz:
            arrays = {"points": points.float().numpy(), "labels": labels.numpy(), "scores": scores.numpy()}
            np.savez(path_below(options.out, name, ".npz"), **arrays)
        counts = labels.bincount().tolist()
        show(name=name, points=len(points), parts={names[part]: count for part, count in enumerate(counts) if count})

    one_by_one(list_clouds(options.inputs), options, use)


def reconstruct(options: argparse.Namespace) -> None:
    if options.teacher is None and options.student is None:
        raise InputError("reconstruct needs --teacher, --student or both")
    teacher = load_model(options.teacher, "ACTTeacher") if options.teacher else None
    student = load_model(options.student, "ACTStudentForPreTraining") if options.student else None
    models = [model.to(options.device or "cpu") for model in (student, teacher) if model is not None]
    processor = processor_of(models[0])

    def use(name: str, path: str) -> None:
        taken = processor.take(path, name=name, **given(options))
        cloud = taken.points.unsqueeze(0).to(models[0].device)
        (made,) = student.reconstruct(cloud, teacher, seed=options.seed) if student else teacher.reconstruct(cloud)
        for part, points in made.items():
            placed = points.cpu() * taken.scale + taken.center  # where the cloud was
            write_ply(path_below(options.out, name, f".{part}.ply"), placed.numpy())
        distance = chamfer_l1(made["reconstruction"].unsqueeze(0), made["input"].unsqueeze(0)).item()
        show(name=name, chamfer_l1=distance, visible=len(made["visible"]), of=len(made["reconstruction"]))

    one_by_one(list_clouds(options.inputs), options, use)


def similar(options: argparse.Namespace) -> None:
    index = ShapeIndex.load(options.index)
    name = options.model or index.about.get("model")
    made_by = index.about.get("revision") if name == index.about.get("model") else None
    if not isinstance(name, str) or not isinstance(made_by, (str, type(None))):
        raise InputError(f"{options.index}: does not say which model made it; give --model")
    student = load_model(name, "ACTStudent", revision=options.revision or made_by)
    index.check_model(torch.tensor(probe(student, options)))

    def read(points: Tensor) -> Tensor:
        return student(points).pooler_output

    for names, vectors in on_clouds(student, list_clouds(options.inputs), read, options):
        for query, found in zip(names, index.search(vectors, options.count), strict=True):
            show(name=query, nearest=[[shape, round(cosine, 6)] for shape, cosine in found])


def view(options: argparse.Namespace) -> None:
    shown = []

    def use(name: str, path: str) -> None:
        cloud = read_cloud(path, seed=options.seed)
        points = to_up_axis(torch.from_numpy(cloud.points), options.up_axis, "y")
        shown.append(ShownCloud(points.numpy(), name, colors=cloud.colors))

    one_by_one(list_clouds(options.inputs), options, use)
    names = [cloud.name for cloud in shown[:3]] + ["..."] * (len(shown) > 3)
    page = viewer_page(shown, options.title or ", ".join(names))
    Path(options.out).write_text(page, encoding="utf-8")
    show(page=options.out, clouds=len(shown))


def export(options: argparse.Namespace) -> None:
    from ..export.export_act import export_onnx, export_program

    model = load_model(options.model, revision=options.revision)
    if options.out.endswith(".onnx"):
        export_onnx(model, options.out, processor_of(model))
    elif options.out.endswith(".pt2"):
        export_program(model, options.out, processor_of(model))
    else:
        raise InputError(f"{options.out}: must end in .onnx or .pt2")
    show(file=options.out, bytes=Path(options.out).stat().st_size)


COMMANDS = {
    "info": info, "encode": encode_clouds, "classify": classify, "segment": segment, "reconstruct": reconstruct,
    "similar": similar, "view": view, "export": export,
}  # fmt: skip


def run(options: argparse.Namespace) -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    check_device(getattr(options, "device", None))
    COMMANDS[options.command](options)
