"""The report of a training run: one HTML file with everything in it, which opens offline."""

import base64
import json
import math
from numbers import Real
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from act_training.report.pictures import curve_svg, finite_panels
from act_training.run.checkpoints import write_text
from act_training.run.process import describe_versions
from modeling_act.viewer.page import VIEWER_SCRIPT, VIEWER_STYLE, ViewerCloud, pack_clouds


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
    environment = Environment(
        autoescape=True, loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True
    )
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
