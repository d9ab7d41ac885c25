"""Render RESULTS.md and its plots from the JSON lines in results/: `python benchmarks/report.py`.

Each table comes from one run and names its command, machine and versions. Missing measurements are listed. Ratios are
taken within interleaved rounds: the median, with the smallest and the largest in brackets.
"""

import argparse
import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from plots import plot_data, plot_embed, plot_growth

HERE = Path(__file__).parent
COMMON = ("benchmark", "date", "command", "seed", "machine")
INTRODUCTION = """# Benchmark results

Rendered by `python benchmarks/report.py`; do not edit. README.md beside this file says what each benchmark measures.
Times of one thread are CPU times of interleaved rounds, since the machines are shared; those of several threads,
processes or a GPU are by the clock. Ratios are medians over rounds, with the smallest and the largest in brackets."""


@dataclass
class Run:
    """Result file: the machine's line and the records."""

    machine: dict
    records: list[dict]

    @classmethod
    def load(cls, path: Path) -> "Run":
        machine, *records = map(json.loads, path.read_text().splitlines())
        return cls(machine, records)

    @property
    def measured(self) -> list[dict]:
        return [record for record in self.records if "peer" not in record]

    def absent(self) -> list[str]:
        return [f"{record['peer']} ({record['absent']})" for record in self.records if record.get("absent")]


# Markdown ------------------------------------------------------------------------------------------------------------


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = list(header)
    lines = [header, ["---"] * len(header), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float | None, digits: int = 3) -> str:
    """Format with significant digits and without exponents: 0.0123, 1.23, 123, 12,300."""
    if value is None:
        return "-"
    rounded = float(f"{value:.{digits}g}")
    if abs(rounded) >= 100:
        return f"{rounded:,.0f}"
    return f"{rounded:.10f}".rstrip("0").rstrip(".") if abs(rounded) >= 1e-4 or not rounded else f"{rounded:.0e}"


def percent(value: float) -> str:
    return f"{100 * value:.3g} %"


def spread(values: list[float]) -> str:
    middle = number(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({number(min(values))}-{number(max(values))})"


def ratio(slower: dict, faster: dict) -> str:
    """Format how many times as long the first takes, round by round."""
    pairs = zip(seconds(slower), seconds(faster), strict=True)
    return spread([first / second for first, second in pairs])


def seconds(record: dict) -> list[float]:
    return record["seconds_cpu" if record["threads"] == 1 else "seconds_wall"]


def groups_of(records: list[dict], *keys: str) -> dict[tuple, list[dict]]:
    """Group records with the same values of `keys`, in order of first occurrence."""
    found = {}
    for record in records:
        found.setdefault(tuple(record.get(key) for key in keys), []).append(record)
    return found


def provenance(run: Run) -> str:
    machine, record = run.machine, run.records[-1]
    accelerators = f", {', '.join(machine['gpus'])}" if machine["gpus"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"`{record['command']}`, {record['date']}, commit {machine['commit'] or 'unknown'}, seed {record['seed']}, on "
        f"{machine['processor']} ({machine['cores']} cores, {' '.join(machine['instruction_sets'])}{accelerators}), "
        f"{machine['memory_gb']:g} GB, {machine['system']}, Python {machine['python']}, {versions}."
    )


# Subjects ------------------------------------------------------------------------------------------------------------


def render_steps(run: Run, plots: Path) -> str:
    rows = []
    for key, records in groups_of(run.measured, "step", "dtype", "threads", "batch").items():
        textbook = next((record for record in records if record["implementation"] == "textbook"), None)
        for record in records:
            differences = [record.get("output_difference"), record.get("gradient_difference")]
            rows.append([
                *map(str, key), record["implementation"], number(record["clouds_per_second"]),
                ratio(textbook, record) if textbook else "-", number(record.get("gflop_per_cloud")),
                number(record.get("gflops")), percent(record["share_of_peak"]) if "share_of_peak" in record else "-",
                number(record.get("peak_memory_mb")), number(record.get("first_call_seconds")),
                " / ".join(f"{value:.0e}" for value in differences if value is not None) or "-",
            ])  # fmt: skip
    header = (
        "step", "type", "threads", "batch", "form", "clouds/s", "times the textbook's speed", "GFLOP a cloud",
        "GFLOP/s", "of the peak", "memory MB", "first call s", "difference: output / gradient",
    )  # fmt: skip
    peaks = sorted({record["peak_gflops"] for record in run.measured if "peak_gflops" in record})
    if not peaks:
        return table(header, rows)
    ours = [record for record in run.measured if record["implementation"] == "ours"]
    distances = [f"{record['step']} {number(1 / record['share_of_peak'])}" for record in ours]
    return (
        f"{table(header, rows)}\n\nThe peak is that of a matrix product: {', '.join(map(number, peaks))} GFLOP/s. "
        "Matrix products limit every step; were there nothing else, ours would be faster by these factors, the "
        f"distance to the limit: {', '.join(distances)}."
    )


def render_ops(run: Run, plots: Path) -> str:
    parts = []
    timed = [record for record in run.measured if "seconds_cpu" in record]
    kinds = groups_of([record | {"single": record["batch"] == 1} for record in run.measured], "single", "operation")
    for (single, operation), records in kinds.items():
        cases = groups_of(records, "batch", "points", "count", "k", "threads")
        bases = {case: base_of(entries) for case, entries in cases.items()}
        rows = [["milliseconds a call", *(f"{1e3 * median_seconds(base):.3g}" for base in bases.values()), ""]]
        for (name,), entries in groups_of(records, "implementation").items():
            by_case = {case: record for case, group in cases.items() for record in group if record in entries}
            cells = [ratio_cell(by_case.get(case), base) for case, base in bases.items()]
            equal = dict.fromkeys(record["equal"] for record in entries if "equal" in record)
            rows.append([name, *cells, "; ".join(equal)])
        first = next(iter(bases.values()))["implementation"]
        header = [f"times {first}", *map(case_title, cases), "agrees with plain torch in"]
        title = f"{operation}{', one growing cloud' if single else ''}"
        parts.append(f"**{title}**\n\n{table(header, rows)}")
    grown = [record for record in timed if record["batch"] == 1 and record["threads"] == 1]
    for operation in dict.fromkeys(record["operation"] for record in grown):
        chosen = [record for record in grown if record["operation"] == operation]
        if len({record["points"] for record in chosen}) > 1:
            name = plot_growth(operation, chosen, plots)
            parts.append(f"![Seconds a call of {operation} over the number of points](plots/{name})")
    return "\n\n".join(parts)


def base_of(records: list[dict]) -> dict:
    """Return our record: with the kernels if they were installed."""
    names = {record["implementation"]: record for record in records}
    return names.get("ours, kernels") or names["ours, plain torch"]


def median_seconds(record: dict) -> float:
    return statistics.median(seconds(record))


def ratio_cell(record: dict | None, base: dict) -> str:
    if record is None:
        return "-"
    return record["skipped"].partition(":")[0] if "skipped" in record else ratio(record, base)


def case_title(case: tuple) -> str:
    batch, points, count, k, threads = case
    return f"{batch} x {points:,} -> {count:,}{f', k {k}' if k else ''}{f', {threads} threads' if threads > 1 else ''}"


def render_data(run: Run, plots: Path) -> str:
    needed = next(record for record in run.measured if "gpu_clouds_per_second" in record)
    records = [record for record in run.measured if "form" in record]
    parts = [
        f"By estimate one H200 at 40 % of its peak takes {needed['gpu_clouds_per_second']:,} clouds/s, "
        f"{needed['gpu_mb_per_second']} MB/s of points. Rows/s, by order and number of workers:"
    ]
    for (num_points,), of_size in groups_of(records, "points").items():
        columns = list(groups_of(of_size, "order", "workers"))
        rows = []
        for (form,), entries in groups_of(of_size, "form").items():
            rates = {(record["order"], record["workers"]): record["rows_per_second"] for record in entries}
            best = max(entries, key=lambda record: record["megabytes_per_second"])
            rows.append([
                form, spread(entries[0]["opened_rows_per_second"]),
                *(spread(rates[column]) if column in rates else "-" for column in columns),
                number(best["megabytes_per_second"]), number(best["share_of_gpu_clouds"]),
            ])  # fmt: skip
        header = ["form", "opening", *(f"{order}, {workers}" for order, workers in columns)]
        parts.append(
            f"**Rows of {num_points:,} points**\n\n" + table([*header, "best MB/s", "times a GPU's clouds/s"], rows)
        )
    name = plot_data(records, needed["gpu_clouds_per_second"], plots)
    parts.append(f"![Rows/s of each form of storage in random order without workers](plots/{name})")
    return "\n\n".join(parts)


def render_embed(run: Run, plots: Path) -> str:
    rows = []
    for (form,), records in groups_of(run.measured, "form").items():
        ours = next(record for record in records if record["implementation"] == "ours")
        for record in records:
            total = sum(record["stage_seconds_cpu"].values())
            shares = [percent(value / total) for value in record["stage_seconds_cpu"].values()]
            name = f"{record['implementation']} {record['version'] or ''}".strip()
            rows.append([form, name, number(record["clouds_per_second"]), ratio(record, ours), *shares])
    stages = run.measured[0]["stage_seconds_cpu"]
    name = plot_embed(run.measured, plots)
    picture = f"![Milliseconds a cloud by stage](plots/{name})"
    return table(["files", "form", "clouds/s", "times ours", *stages], rows) + f"\n\n{picture}"


def render_export(run: Run, plots: Path) -> str:
    parts = []
    for (groups,), records in groups_of(run.measured, "groups").items():
        files = [record for record in records if record["section"] == "files"]
        rows = []
        for record in files:
            differences = [f"{value:.0e}" for value in record["differences"].values()]
            costs = [number(record["megabytes"]), number(record["export_seconds"]), spread(record["load_seconds"])]
            rows.append([record["form"], *costs, *differences])
        sizes = [f"difference, {int(points):,} points" for points in files[0]["differences"]]
        parts.append(f"**Files, {groups} groups**\n\n{table(['form', 'MB', 'export s', 'load s', *sizes], rows)}")
        timed = groups_of([record for record in records if record["section"] == "latency"], "batch", "points")
        rows = [
            [
                f"{batch} x {points:,}",
                entry["form"],
                spread([1e3 * value for value in seconds(entry)]),
                ratio(entry, entries[0]),
            ]
            for (batch, points), entries in timed.items()
            for entry in entries
        ]
        header = ["clouds", "form", "milliseconds a call", f"times {rows[0][1]}"]
        parts.append(f"**Latency, {groups} groups**\n\n{table(header, rows)}")
    return "\n\n".join(parts)


def render_gpu(run: Run, plots: Path) -> str:
    """Render one table per section, with the columns of its records."""
    parts = []
    done = [record for record in run.measured if "not_run" not in record and "failed" not in record]
    for (section,), records in groups_of(done, "section").items():
        columns = list(dict.fromkeys(key for record in records for key in record if key not in (*COMMON, "section")))
        rows = [[gpu_cell(key, record.get(key)) for key in columns] for record in records]
        header = [key.replace("_", " ") + (", thousandths" if is_seconds(key) else "") for key in columns]
        parts.append(f"**{section.replace('_', ' ')}**\n\n{table(header, rows)}")
    rest = [record for record in run.measured if record not in done]
    lines = [f"- {gpu_label(record)}: {record.get('failed') or record['not_run']}" for record in rest]
    return "\n\n".join([*parts, *(["Not measured:\n\n" + "\n".join(lines)] if lines else [])])


def is_seconds(key: str) -> bool:
    return key == "seconds" or key.endswith("_seconds")


def gpu_cell(key: str, value) -> str:
    scale = 1e3 if is_seconds(key) else 1.0
    if isinstance(value, list) and value and all(isinstance(entry, int | float) for entry in value):
        return spread([scale * entry for entry in value])
    if isinstance(value, list | dict):
        return "; ".join(map(str, value)) or "none"
    if isinstance(value, float) and "share" in key:
        return percent(value)
    return number(scale * value) if isinstance(value, float) else "-" if value is None else str(value)


def gpu_label(record: dict) -> str:
    return ", ".join(str(value) for key, value in record.items() if key not in (*COMMON, "not_run", "failed"))


SUBJECTS = {
    "steps": ("Steps of the models", render_steps),
    "ops": ("Point operations", render_ops),
    "data": ("Reading rows", render_data),
    "embed": ("From files to vectors", render_embed),
    "export": ("Exported models", render_export),
    "gpu": ("On a GPU", render_gpu),
}


def render(results: Path, plots: Path) -> str:
    """Render the text of RESULTS.md. A subject may have several runs: ops.jsonl, ops_two_threads.jsonl."""
    parts = [INTRODUCTION]
    for subject, (title, render_subject) in SUBJECTS.items():
        parts.append(f"## {title}")
        paths = [path for path in sorted(results.glob(f"{subject}*.jsonl")) if path.stem.split("_")[0] == subject]
        if not paths:
            parts.append(f"Not measured yet: there is no results/{subject}.jsonl.")
        for path in paths:
            run = Run.load(path)
            if not run.records:
                parts.append(f"results/{path.name} ends before its first record.")
                continue
            parts += [provenance(run), render_subject(run, plots)]
            if run.absent():
                parts.append(f"Absent: {'; '.join(run.absent())}.")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--output", type=Path, default=HERE / "RESULTS.md")
    options = parser.parse_args()
    plots = options.output.parent / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    options.output.write_text(render(options.results, plots), encoding="utf-8")
    print(f"rendered {options.output}")


if __name__ == "__main__":
    main()
