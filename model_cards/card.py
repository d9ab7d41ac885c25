"""A model card from facts that someone wrote down and figures that a run left.

A facts file says what a model is and what the paper reports of it. What was reproduced comes from a metrics.json and
from nowhere else: a facts file has no place for it. `render.py` and `publish.py` use this.
"""

import difflib
import json
import math
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, ModelCardData

from modeling_act.errors import InputError
from modeling_act.hub.publishing import without_local_path

HERE = Path(__file__).parent
RECIPES = HERE.parent / "training" / "recipes"
# Keys of a facts file and what they hold; those of a list's entries and of mappings below.
FACTS = {
    "title": str, "about": str, "usage": str, "architecture": str, "backbone": dict, "data": list, "datasets": list,
    "weights_licence": dict, "intended_use": str, "limits": list, "recipe": str, "command": str, "citations": list,
    "sources": dict, "figures": list, "base_model": str,
}  # fmt: skip
PARTS = {
    "backbone": {"name": str, "id": str, "licence": str, "note": str},
    "weights_licence": {"id": str, "name": str, "link": str, "text": str},
    "data": {"name": str, "role": str, "terms": str},
    "figures": {"figure": str, "metric": str, "scale": int, "paper": (int, float, str), "source": str},
}
OPTIONAL = {"base_model", "backbone", "datasets", "sources", "metric", "scale", "paper", "source"}


# Facts ---------------------------------------------------------------------------------------------------------------


def read_facts(path: Path) -> dict:
    """A facts file, of which every key is known and every needed one there."""
    try:
        facts = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from error
    _check(str(path), facts, FACTS)
    for part, known in PARTS.items():
        for number, entry in enumerate(facts[part] if FACTS[part] is list else [facts.get(part)], start=1):
            if entry is not None:
                _check(f"{path}: {part}" + f" {number}" * (FACTS[part] is list), entry, known)
    for number, row in enumerate(facts["figures"], start=1):
        if ("paper" in row) != ("source" in row) or row.get("source", "") not in {"", *facts.get("sources", {})}:
            raise InputError(f"{path}: figures {number}: a number of the paper goes with one of the sources")
        if "paper" not in row and "metric" not in row:
            raise InputError(f"{path}: figures {number}: needs a metric of metrics.json, or a number of the paper")
    if not (RECIPES / f"{facts['recipe']}.yaml").is_file():
        raise InputError(f"{path}: there is no recipe {facts['recipe']} in training/recipes")
    return facts


def _check(where: str, values, known: dict) -> None:
    if not isinstance(values, dict):
        raise InputError(f"{where}: expected a mapping of {', '.join(known)}")
    for key, value in values.items():
        if key in ("reproduced", "value", "ours", "result"):
            raise InputError(f"{where}: {key}: a reproduced number comes from metrics.json, never from a facts file")
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
            raise InputError(f"{where}: unknown key {key!r}{hint}")
        if isinstance(value, bool) or not isinstance(value, known[key]) or value in ("", [], {}):
            raise InputError(f"{where}: {key} is {value!r}, expected {_name_of(known[key])}")
    if missing := [key for key in known if key not in values and key not in OPTIONAL]:
        raise InputError(f"{where}: has no {missing[0]}")


def _name_of(kind) -> str:
    names = {str: "text", list: "a list", dict: "a mapping", int: "a whole number"}
    return names.get(kind, "a number or text")


# Figures -------------------------------------------------------------------------------------------------------------


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from error


def measured(metrics: dict, name: str) -> float | None:
    """The number at a dotted place of metrics.json, such as test.accuracy; None if there is none."""
    value = metrics
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"metrics.json: {name} is {value!r}, expected a finite number")
    return value


def _rows(facts: dict, metrics: dict) -> list[dict[str, str]]:
    rows, numbers = [], list(facts.get("sources", {}))
    for row in facts["figures"]:
        value = measured(metrics, row["metric"]) if "metric" in row else None
        paper = f"{row['paper']} [{numbers.index(row['source']) + 1}]" if "paper" in row else "not given"
        shown = "" if value is None else f"{value * row.get('scale', 1):.4g}"
        rows.append(
            {"figure": row["figure"], "reproduced": shown, "paper": paper, "not_run": "not run" if not shown else ""}
        )
    return rows


def _origin(metrics_path: Path | None, metrics: dict) -> str:
    """What run the reproduced figures are of."""
    if metrics_path is None:
        return "Nothing was reproduced: no run of this recipe has been measured."
    recipe, said = metrics_path.with_name("recipe.yaml"), ""
    if recipe.is_file():
        flags = yaml.safe_load(recipe.read_text(encoding="utf-8"))
        said = f" on `{without_local_path(str(flags.get('dataset_name')))}`, seed {flags.get('seed')}"
    versions = metrics.get("versions", {})
    return (
        f"Reproduced figures are those of `metrics.json`: {metrics.get('steps', 'an unknown number of')} steps{said}; "
        f"torch {versions.get('torch', 'unknown')}, commit {versions.get('commit', 'unknown')}."
    )


# The card ------------------------------------------------------------------------------------------------------------


def render_card(facts_path: Path, metrics_path: Path | None = None, name: str | None = None) -> str:
    """The card of a model; `name` is where it is published, and without it the card says that it is not."""
    facts = read_facts(facts_path)
    metrics = _read_json(metrics_path) if metrics_path else {}
    licence = facts["weights_licence"]
    data = ModelCardData(
        library_name="transformers", license=licence["id"], license_name=licence["name"],
        license_link=licence["link"], tags=["point-cloud", "act"], datasets=facts.get("datasets"),
        base_model=facts.get("base_model"),
    )  # fmt: skip
    card = ModelCard.from_template(
        data, template_path=str(HERE / "template.md"), facts=facts, name=name,
        usage=facts["usage"].strip().replace("NAME", name or f"outputs/{facts_path.stem}"),
        rows=_rows(facts, metrics), origin=_origin(metrics_path, metrics),
        sources=[f"[{number}] {source}" for number, source in enumerate(facts.get("sources", {}).values(), start=1)],
    )  # fmt: skip
    return str(card)
