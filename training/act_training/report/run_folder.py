"""Folder of a finished run, which `from_pretrained` loads and the Hub takes, and its report, one offline page."""

import base64
import io
import json
import math
import os
import shutil
from dataclasses import asdict, replace
from numbers import Real
from pathlib import Path

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib import rc_context
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d import Axes3D
from torch import Tensor

from act_training.run.script import ACTTrainingArguments, as_recipe, describe_versions
from act_training.run.training_run import TrainingRun
from act_training.run.training_state import name_in_errors, replace_folder, save_weights, write_text
from modeling_act import ACTPointCloudProcessor
from modeling_act.errors import InputError
from modeling_act.hub.publishing import make_card, publish, without_local_paths, write_eval_results
from modeling_act.viewer.page import VALUE_COLORS, VIEWER_SCRIPT, VIEWER_STYLE, ViewerCloud, bounding_ball, pack_clouds

MEASURED = {
    "last": "of the weights after the last step, {step}",
    "best": "of the weights that did best in validation, after step {step}",
    "ema": "of the averaged weights after step {step}",
}
PANEL_SIZE = 320  # pixels of a cloud
TITLE_HEIGHT = 48  # pixels, also of the names above the columns
INK, QUIET, LINE, CURVE, BAD = "#1b2230", "#5d6778", "#dfe3ea", "#3657d6", "#d6336c"
HEIGHT = LinearSegmentedColormap.from_list("height", VALUE_COLORS)
MIN_SMOOTHED = 40  # values of a curve with a moving average; shorter ones have dots


def save_pictures(run: TrainingRun, clouds: list[dict[str, Tensor]]) -> None:
    """Save the panels of a few clouds as of this step, one cloud a row."""
    path = run.folder / "pictures" / f"step-{run.global_step:08d}.png"
    if run.accelerator.is_main_process:
        with name_in_errors(path):
            save_cloud_panels(path, _as_arrays(clouds), title=f"epoch {run.length.epoch(run.global_step):.1f}")


def finish_run(
    run: TrainingRun,
    title: str,
    text: str,
    usage: str,
    metrics: dict,
    clouds: list[dict[str, Tensor]] | tuple = (),
    test: dict[str, float] | None = None,
    tables: dict[str, list[dict]] | None = None,
    images: dict[str, Path] | None = None,
    processor: dict | None = None,
) -> None:
    """Leave a folder that `from_pretrained` loads, with metrics, recipe, card and report; upload it if asked.

    `metrics` are of the validation rows, `test` of the test split, both of the weights that are saved. `processor`
    overrides settings of the saved processor, which otherwise follow from the flags.
    """
    if not run.accelerator.is_main_process:
        return run.log.close()
    options = run.options
    # The recipe repeats the run from step 0, and neither deletes nor publishes anything.
    unset = dict.fromkeys(("resume_from_checkpoint", "hub_model_id", "hub_revision"))
    recipe = replace(options, **unset, overwrite_output_dir=False, push_to_hub=False, hub_private=False)
    public = replace(recipe, **without_local_paths(asdict(recipe)))
    for name, value in asdict(public).items():
        text = text.replace(f"`{getattr(options, name)}`", f"`{value}`")
    kind = run.final_weights
    step = run.best["step"] if kind == "best" else run.global_step
    record = {"metrics": metrics, "split": options.validation_name, "measured_at": step, "test": test}
    measured = f"on {record['split']}, {MEASURED[kind].format(step=step)}"
    card = make_card(title, text, usage, metrics, measured, test, options.license)
    with name_in_errors(run.folder):
        _fill_folder(run, kind, record, recipe, card, processor or {})
    summary = {f"validation {name}": value for name, value in metrics.items()}
    summary |= {f"test {name}": value for name, value in (test or {}).items()}
    images = {path.stem: path for path in sorted((run.folder / "pictures").glob("step-*.png"))[-1:]} | (images or {})
    report, records = run.folder / "report.html", run.log.records()
    with name_in_errors(report):
        content = {"step": step} | summary, records, _as_arrays(clouds), tables, images, as_recipe(public)
        write_report(report, title, *content)
    run.log.close()
    print(json.dumps({"step": step, "weights": kind, "validation split": record["split"]} | summary))
    where = f"; published as {_push(run.folder, options)}" if options.push_to_hub else ""
    print(f"{run.folder}: model, metrics.json, report.html{where}")


def _fill_folder(
    run: TrainingRun, kind: str, record: dict, recipe: ACTTrainingArguments, card: str, processor: dict
) -> None:
    """Write processor, metrics, recipe and card, then the weights: a folder with weights is complete."""
    staged = run.folder / ".final"
    if kind == "best":
        replace_folder(staged, lambda path: shutil.copytree(run.folder / "best", path, dirs_exist_ok=True))
    else:
        save_weights(staged, run.weights, run.average if kind == "ema" else None)
    if run.average is not None:
        save_weights(run.folder / "ema", run.weights, run.average)
    options, sampling = run.options, run.data.sampling
    settings = {"num_points": sampling.num_points, "point_sampling": sampling.method}
    settings["normalize"] = "cloud" if options.already_normalized else sampling.normalize
    settings |= {"up_axis": options.up_axis, "unit": options.unit} | processor
    ACTPointCloudProcessor(**settings).save_pretrained(staged)
    write_text(staged / "recipe.yaml", yaml.safe_dump(as_recipe(recipe), sort_keys=False))
    described = record | {"best": run.best, "steps": run.global_step, "versions": describe_versions()}
    write_text(staged / "metrics.json", json.dumps(described, indent=1))
    write_text(staged / "README.md", card)
    for path in sorted(staged.iterdir(), key=lambda path: path.suffix == ".safetensors"):
        os.replace(path, run.folder / path.name)
    staged.rmdir()
    shutil.rmtree(run.folder / ".eval_results", ignore_errors=True)
    if record["test"]:
        write_eval_results(run.folder)


def _as_arrays(clouds: list[dict[str, Tensor]] | tuple) -> list[dict[str, np.ndarray]]:
    return [{name: points.float().cpu().numpy() for name, points in panels.items()} for panels in clouds]


def _push(folder: Path, options: ACTTrainingArguments) -> str:
    """Publish a finished folder; return the commit's address."""
    try:
        return publish(folder, options.hub_model_id, options.hub_private, options.hub_revision)
    except InputError as error:
        advice = "the same command with --resume_from_checkpoint latest uploads it without training"
        raise InputError(f"{folder} holds the finished model, but {error}; {advice}") from error


def write_report(
    path: str | Path,
    title: str,
    summary: dict[str, object],
    records: list[dict],
    clouds: list[dict[str, np.ndarray]],
    tables: dict[str, list[dict]] | None = None,
    images: dict[str, Path] | None = None,
    recipe: dict | None = None,
) -> None:
    """Write the page: headline figures, curves, interactive clouds, tables, pictures, the recipe.

    `records` are the lines of the log: "step", "epoch" and any "group/name" with its number. A cloud is a dict of its
    panels' points (points, 3) with y up, drawn side by side and rotated together. `images` are PNG files by caption.
    """
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(autoescape=True, loader=loader, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["number"] = format_number
    page = environment.get_template("report_template.html").render(
        title=title,
        summary=summary,
        curves=_draw_curves(records),
        clouds=list(filter(None, map(_pack_panels, clouds))),
        tables=tables or {},
        images={name: base64.b64encode(Path(image).read_bytes()).decode() for name, image in (images or {}).items()},
        recipe=json.dumps({"recipe": recipe or {}, "versions": describe_versions()}, indent=2, default=str),
        style=VIEWER_STYLE,
        script=VIEWER_SCRIPT,
    )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_text(Path(path), page)


def format_number(value: object) -> str:
    """Format a number with four significant digits and all of its whole ones; anything else as text."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return "-" if value is None else str(value)
    if float(value).is_integer() or 1e4 <= abs(value) < 1e7:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def series_of(records: list[dict]) -> dict[str, dict[float, float]]:
    """Map each logged key to its values by step. A resumed run logs some steps twice: the later record counts."""
    series: dict[str, dict[float, float]] = {}
    for index, record in enumerate(records):
        for key, value in record.items():
            if key not in ("step", "epoch") and isinstance(value, Real):
                series.setdefault(key, {})[record.get("step", index)] = float(value)
    return {key: dict(sorted(values.items())) for key, values in series.items()}


def _draw_curves(records: list[dict]) -> dict[str, list[dict[str, str]]]:
    """Chart of each logged key, by group, over the same steps."""
    series, groups = series_of(records), {}
    steps = [step for values in series.values() for step in values]
    for key, values in series.items():
        group, _, name = key.rpartition("/")
        finite = [value for value in values.values() if math.isfinite(value)]
        caption = "no finite values"
        if finite:
            caption = f"{format_number(finite[-1])} ({format_number(min(finite))} to {format_number(max(finite))})"
            caption += f", {len(values) - len(finite)} not finite" * (len(values) > len(finite))
        svg = curve_svg(np.array(list(values)), np.array(list(values.values())), (min(steps), max(steps)))
        groups.setdefault(group or "other", []).append({"name": name, "caption": caption, "svg": svg})
    return groups


def _pack_panels(panels: dict[str, np.ndarray]) -> list[dict]:
    """Panels of one cloud for viewer.js, without points that are not finite: a diverged run gets its report, too."""
    clouds = [ViewerCloud(points, name) for name, points in finite_panels(panels).items()]
    packed = pack_clouds(clouds, same_frame=True) if clouds else []
    for cloud in packed:
        if dropped := len(panels[cloud["name"]]) - cloud["total"]:
            cloud["caption"] = f"{cloud['total']:,} points, {dropped:,} not finite"
    return packed


def finite_panels(panels: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the finite points (points, 3) of each panel, without the panels that have none."""
    arrays = {name: np.asarray(points) for name, points in panels.items()}
    finite = {name: points[np.isfinite(points).all(axis=1)] for name, points in arrays.items()}
    return {name: points for name, points in finite.items() if len(points)}


def save_cloud_panels(path: str | Path, rows: list[dict[str, np.ndarray]], title: str = "") -> None:
    """Save a PNG with a row for each cloud and a column for each of its panels, say "input" and "reconstruction":
    points (points, 3), y up. The panels of a row share limits and colors, which show height; missing ones stay empty.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if not columns:
        raise InputError("`rows` of a picture must hold at least one cloud with one panel, got none")
    header = TITLE_HEIGHT * (2 if title else 1)
    height = PANEL_SIZE * len(rows) + header
    figure = make_figure(PANEL_SIZE * len(columns), height)
    text = {"ha": "center", "va": "center", "color": INK, "parse_math": False}
    figure.text(0.5, 1 - TITLE_HEIGHT / 2 / height, title, size=15, weight="bold", **text)
    for column, name in enumerate(columns):
        figure.text((column + 0.5) / len(columns), 1 - (header - TITLE_HEIGHT / 2) / height, name, size=12, **text)
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1 - header / height, wspace=0, hspace=0)
    for position, row in enumerate(rows):
        panels = finite_panels(row)
        if not panels:
            continue
        every = np.concatenate(list(panels.values()))
        center, radius = bounding_ball(every)
        highest = max(np.abs(every[:, 1] - center[1]).max() / radius, 1e-9)
        dot = float(np.clip(9000 / max(map(len, panels.values())), 2, 16))
        for name, points in panels.items():
            cell = position * len(columns) + columns.index(name) + 1
            axes = figure.add_subplot(len(rows), len(columns), cell, projection="3d")
            x, y, z = ((points - center) / radius).T
            set_camera(axes, np.array([[-1, 1]] * 3), elev=20, azim=-55, zoom=1.5)
            axes.scatter(x, -z, y, c=y, cmap=HEIGHT, vmin=-highest, vmax=highest, s=dot, linewidths=0)
    save_figure(figure, path)


def curve_svg(steps: np.ndarray, values: np.ndarray, limits: tuple[float, float]) -> str:
    """Draw values over steps as an SVG element whose colors are variables of the report's page. The scale is
    logarithmic where the values span a hundredfold. Noisy curves get their moving average."""
    finite = np.isfinite(values)
    x, y = steps[finite], values[finite]
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "curves"}):
        figure = Figure(figsize=(3.8, 1.9), facecolor="none")
        axes = figure.add_axes((0.13, 0.12, 0.84, 0.84), facecolor="none")
        turns = (np.diff(np.sign(np.diff(y))) != 0).sum()
        is_short, is_noisy = len(y) < MIN_SMOOTHED, turns > 0.1 * len(y)  # a schedule is drawn as it is
        if is_noisy and not is_short:
            axes.plot(x, y, color=CURVE, linewidth=0.7, alpha=0.35)
            window = np.ones(2 * -(-len(y) // 40) + 1)
            y = np.convolve(y, window, "same") / np.convolve(np.ones_like(y), window, "same")
        axes.plot(x, y, color=CURVE, linewidth=1.4, marker="o" if is_short else None, markersize=3)
        for step in steps[~finite]:
            axes.plot(step, 0.03, "x", color=BAD, markersize=4, transform=axes.get_xaxis_transform())
        if len(y) and 0 < 100 * y.min() < y.max():
            axes.set_yscale("log")
        margin = 0.02 * (limits[1] - limits[0]) or 1
        axes.set_xlim(limits[0] - margin, limits[1] + margin)
        axes.grid(axis="y", color=LINE, linewidth=0.7)
        axes.tick_params(length=0, labelsize=7, labelcolor=QUIET)
        axes.spines[:].set_visible(False)
        content = io.StringIO()
        figure.savefig(content, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = content.getvalue()
    for color, name in ((CURVE, "curve"), (LINE, "line"), (QUIET, "quiet"), (BAD, "bad")):
        svg = svg.replace(color, f"var(--{name})")
    return svg[svg.index("<svg") :]


def make_figure(width: float, height: float) -> Figure:
    """Figure of this size in pixels, without pyplot and its state."""
    return Figure(figsize=(width / 100, height / 100), dpi=100, facecolor="white")


def set_camera(axes: Axes3D, limits: np.ndarray, elev: float, azim: float, zoom: float = 1.0) -> None:
    """Look at the box of these limits (3, 2)."""
    axes.set_axis_off()
    axes.set(xlim=limits[0], ylim=limits[1], zlim=limits[2])
    axes.set_box_aspect(np.maximum(np.ptp(limits, axis=1), 0.1), zoom=zoom)
    axes.view_init(elev=elev, azim=azim)


def save_figure(figure: Figure, path: str | Path, **options) -> None:
    """Write a PNG, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    figure.savefig(temporary, format="png", **options)
    os.replace(temporary, path)
