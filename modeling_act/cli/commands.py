"""The commands of `python -m modeling_act`; `main.py` defines their flags."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers.utils import logging

from ..errors import InputError
from ..hub.load_model import SEGMENTERS, load_model
from ..inference import encode, label_points, number_of_category, processor_of, run_on_clouds
from ..point_ops import chamfer_l1
from ..processing_act import to_up_axis
from ..readers.cloud import read_cloud
from ..search.shape_index import ShapeIndex, check_usearch, probe_cloud
from ..search.text_vectors import encode_texts
from ..viewer.page import ViewerCloud, label_colors, viewer_page
from .tables import check_table, list_clouds, path_below, write_ply, write_table

MODEL_OF_SPACE = {"student": "ACTStudent", "teacher": "ACTStudentForPreTraining"}


def print_json(**values) -> None:
    print(json.dumps(values))


def processor_options(options: argparse.Namespace) -> dict:
    return {"seed": options.seed, "up_axis": options.up_axis, "unit": options.unit}


def note_problem(problem: str, num_clouds: int, options: argparse.Namespace) -> None:
    """Keep the error of a cloud for the summary at the end. It ends the command with --strict, if there is no other
    cloud, or if another cloud had the very same one: that lies in a flag."""
    if options.strict or num_clouds == 1 or problem in options.problems:
        options.problems.clear()
        raise InputError(problem)
    options.problems.append(problem)


def predict(
    model: nn.Module,
    paths: dict[str, str],
    predict_batch: Callable[[Tensor], Tensor],
    options: argparse.Namespace,
    samples: int = 1,
) -> Iterator[tuple[list[str], Tensor]]:
    """Yield (names, values) for each batch of clouds. One that cannot be read is skipped, with --strict an error."""
    logging.enable_progress_bar()
    names, flags = list(paths), ("batch_size", "device", "num_workers", "seed", "up_axis", "unit")
    settings = {flag: getattr(options, flag) for flag in flags} | {"show_progress": not options.quiet}
    for batch in run_on_clouds(model, list(paths.values()), predict_batch, skip_bad=True, samples=samples, **settings):
        for problem in batch.problems.values():
            note_problem(problem, len(paths), options)
        if batch.places:
            yield [names[place] for place in batch.places], batch.values


def one_by_one(options: argparse.Namespace, use: Callable[[str, str], None]) -> None:
    """Call `use(name, path)` for each cloud. One that cannot be read is skipped, or with --strict an error."""
    logging.enable_progress_bar()
    paths = list_clouds(options.inputs)
    for name, path in logging.tqdm(paths.items(), unit="cloud", disable=options.quiet):
        try:
            use(name, path)
        except InputError as error:
            note_problem(str(error), len(paths), options)


def info(options: argparse.Namespace) -> None:
    model = load_model(options.model, revision=options.revision)
    summary = {"model": options.model, "class": type(model).__name__, "dtype": str(model.dtype)}
    summary["parameters"] = model.num_parameters()
    sizes = ("num_groups", "group_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_views")
    summary |= {name: getattr(model.config, name) for name in sizes if hasattr(model.config, name)}
    if summary["class"] not in ("ACTStudent", "ACTStudentForPreTraining", "ACTTeacher", "ACTViewTeacher"):
        summary["labels"] = list(model.config.id2label.values())
    summary["processor"] = processor_of(model).to_dict()
    summary["processor"].pop("auto_map", None)
    print(json.dumps(summary, indent=1))


def encode_clouds(options: argparse.Namespace) -> None:
    if not options.out and not options.index:
        raise InputError("encode needs --out FILE, --index FOLDER or both")
    if options.out:
        check_table(options.out)
    if options.index:
        check_usearch()
        Path(options.index).mkdir(parents=True, exist_ok=True)
    student = load_model(options.model, MODEL_OF_SPACE[options.space], revision=options.revision)
    student.vector_dim(options.space)  # raises, before hours of work
    paths = list_clouds(options.inputs)
    samples = processor_of(student).samples if options.samples is None else options.samples
    batches = list(predict(student, paths, lambda points: student.embed(points, options.space), options, samples))
    if not batches:
        raise InputError("none of the clouds could be read")
    names = [name for batch_names, _ in batches for name in batch_names]
    vectors = nn.functional.normalize(torch.cat([values for _, values in batches]), dim=-1)
    if options.out:
        write_table(options.out, {"name": names, "vector": vectors.numpy()})
    if options.index:
        about = {"model": options.model, "revision": options.revision, "seed": options.seed, "space": options.space}
        about |= {
            "samples": samples,
            "text_model": student.config.text_model,
            "probe": embed_probe(student, options.space, options),
        }
        ShapeIndex.build(options.index, names, vectors, about)
    print_json(clouds=len(names), skipped=len(paths) - len(names), width=vectors.shape[1])


def embed_probe(student: nn.Module, space: str, options: argparse.Namespace) -> list[float]:
    return encode(student, probe_cloud(), show_progress=False, device=options.device, space=space).tolist()


def classify(options: argparse.Namespace) -> None:
    model = load_model(options.model, "ACTStudentForPointCloudClassification", revision=options.revision)
    labels = model.config.id2label
    if options.top_k < 1:
        raise InputError(f"--top_k must be at least 1, got {options.top_k}")
    if options.out:
        check_table(options.out)
    table, paths = {"name": [], "label": [], "probabilities": []}, list_clouds(options.inputs)
    for names, logits in predict(model, paths, lambda points: model(points).logits, options):
        for name, probabilities in zip(names, logits.softmax(-1), strict=True):
            scores, classes = probabilities.topk(min(options.top_k, len(labels)))
            likely = [labels[index] for index in classes.tolist()]
            print_json(name=name, labels=likely, scores=[round(score, 6) for score in scores.tolist()])
            for column, value in zip(table.values(), (name, likely[0], probabilities.numpy()), strict=True):
                column.append(value)
    if options.out and table["name"]:
        probabilities = np.stack(table["probabilities"])
        if options.out.endswith(".json"):  # an array of the other formats follows the order of `info`
            digits = probabilities.astype(str).astype(float).tolist()  # the fewest that identify a float32
            probabilities = [{labels[place]: value for place, value in enumerate(row)} for row in digits]
        write_table(options.out, table | {"probabilities": probabilities})


def segment(options: argparse.Namespace) -> None:
    model = load_model(options.model, *SEGMENTERS, revision=options.revision).to(options.device or "cpu")
    processor, category = processor_of(model), number_of_category(model, options.category)
    colors, names = label_colors(model.config.num_labels), model.config.id2label

    def use(name: str, path: str) -> None:
        points = processor.read(path, name=name, **processor_options(options))
        labels, scores = label_points(model, points, processor, category, options.votes, options.seed)
        write_ply(path_below(options.out, name, ".ply"), points.numpy(), colors[labels.numpy()], labels.numpy())
        if options.npz:
            arrays = {"points": points.float().numpy(), "labels": labels.numpy(), "scores": scores.numpy()}
            np.savez(path_below(options.out, name, ".npz"), **arrays)
        counts = {names[label]: count for label, count in enumerate(labels.bincount().tolist()) if count}
        print_json(name=name, points=len(points), parts=counts)

    one_by_one(options, use)


def reconstruct(options: argparse.Namespace) -> None:
    if options.teacher is None and options.student is None:
        raise InputError("reconstruct needs --teacher, --student or both")
    teacher = load_model(options.teacher, "ACTTeacher") if options.teacher else None
    student = load_model(options.student, "ACTStudentForPreTraining") if options.student else None
    models = [model.to(options.device or "cpu") for model in (student, teacher) if model is not None]
    processor = processor_of(models[0])

    def use(name: str, path: str) -> None:
        taken = processor.take(path, name=name, **processor_options(options))
        cloud = taken.points.unsqueeze(0).to(models[0].device)
        (made,) = student.reconstruct(cloud, teacher, seed=options.seed) if student else teacher.reconstruct(cloud)
        for part, points in made.items():
            placed = points.cpu() * taken.scale + taken.center  # where the cloud was
            write_ply(path_below(options.out, name, f".{part}.ply"), placed.numpy())
        distance = chamfer_l1(made["reconstruction"].unsqueeze(0), made["input"].unsqueeze(0)).item()
        print_json(name=name, chamfer_l1=distance, visible=len(made["visible"]), of=len(made["reconstruction"]))

    one_by_one(options, use)


def similar(options: argparse.Namespace) -> None:
    if bool(options.inputs) == bool(options.text) or (options.text_model and not options.text):
        raise InputError("similar needs clouds, or --text in their place; --text_model goes with --text")
    index = ShapeIndex.load(options.index)
    space = index.about.get("space", "student")
    if space not in list(MODEL_OF_SPACE):
        raise InputError(f"{options.index}: its space must be student or teacher, got {space!r:.100}")
    embed = embed_text if options.text else embed_clouds
    for names, vectors in embed(index, space, options):
        for name, neighbors in zip(names, index.search(vectors, options.count), strict=True):
            print_json(name=name, nearest=[[shape, round(cosine, 6)] for shape, cosine in neighbors])


def embed_text(index: ShapeIndex, space: str, options: argparse.Namespace) -> Iterator[tuple[list[str], Tensor]]:
    """Yield the text and its vector, for an index of the space that a teacher shares with text."""
    if space == "student":
        raise InputError(f"{options.index}: is of the student's own space, without text; use encode --space teacher")
    name = options.text_model or index.about.get("text_model")
    if not name or not isinstance(name, str):
        raise InputError(f"{options.index}: its student names no text model; give --text_model")
    yield [options.text], encode_texts([options.text], name, options.device)


def embed_clouds(index: ShapeIndex, space: str, options: argparse.Namespace) -> Iterator[tuple[list[str], Tensor]]:
    """Yield names and vectors of clouds, a batch at a time, as the model that made the index embeds them."""
    name, revision = options.model or index.about.get("model"), options.revision
    if name == index.about.get("model"):
        revision = revision or index.about.get("revision")
    if not isinstance(name, str) or not isinstance(revision, str | None):
        raise InputError(f"{options.index}: does not say which model made it; give --model")
    student = load_model(name, MODEL_OF_SPACE[space], revision=revision)
    index.check_model(torch.tensor(embed_probe(student, space, options)))
    samples = index.about.get("samples", 1)
    if not isinstance(samples, int) or samples < 1:
        raise InputError(f"{options.index}: its samples must be a positive number, got {samples!r:.100}")
    paths = list_clouds(options.inputs)
    yield from predict(student, paths, lambda points: student.embed(points, space), options, samples)


def view(options: argparse.Namespace) -> None:
    clouds = []

    def use(name: str, path: str) -> None:
        cloud = read_cloud(path, seed=options.seed)
        points = to_up_axis(torch.from_numpy(cloud.points), options.up_axis, "y")
        clouds.append(ViewerCloud(points.numpy(), name, colors=cloud.colors))

    one_by_one(options, use)
    names = [Path(cloud.name).name for cloud in clouds[:3]] + ["..."] * (len(clouds) > 3)
    page = viewer_page(clouds, options.title or ", ".join(names))
    Path(options.out).write_text(page, encoding="utf-8")
    print_json(page=options.out, clouds=len(clouds))


def export(options: argparse.Namespace) -> None:
    from ..export.export_act import export_onnx, export_program

    export_file = {".onnx": export_onnx, ".pt2": export_program}.get(Path(options.out).suffix)
    if export_file is None:
        raise InputError(f"{options.out}: must end in .onnx or .pt2")
    model = load_model(options.model, revision=options.revision)
    export_file(model, options.out, processor_of(model))
    print_json(file=options.out, bytes=Path(options.out).stat().st_size)


COMMANDS = {function.__name__: function for function in (info, classify, segment, reconstruct, similar, view, export)}
COMMANDS["encode"] = encode_clouds  # `encode` is the function that it calls


def run(options: argparse.Namespace) -> int:
    """Run a command, then list all clouds that could not be read; return the exit code."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # of loading a model
    device = getattr(options, "device", None)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either for a device that is not there
        raise InputError(f"--device {device}: {str(error).splitlines()[0][:200]}") from error
    options.problems = []
    try:
        COMMANDS[options.command](options)
    finally:
        if options.problems:
            print(
                f"skipped {len(options.problems)} clouds that cannot be read:",
                *options.problems,
                sep="\n  ",
                file=sys.stderr,
            )
    return int(bool(options.problems) and not options.skip_bad)
