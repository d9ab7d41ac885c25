"""Plots of RESULTS.md; each function writes one PNG and returns its name."""

import io
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from PIL import Image  # noqa: E402

# One style per library in every plot.
STYLES = {
    "ours, kernels": ("#c0392b", "o", 2.2),
    "ours, plain torch": ("#e08e79", "s", 1.6),
    "naive torch": ("#7f8c8d", "v", 1.2),
    "fpsample": ("#2980b9", "^", 1.2),
    "fpsample, buckets": ("#85c1e9", "^", 1.2),
    "scipy": ("#27ae60", "D", 1.2),
    "faiss-cpu": ("#8e44ad", "P", 1.2),
    "open3d": ("#d4ac0d", "X", 1.2),
    "torch_cluster": ("#34495e", "<", 1.2),
    "pytorch3d": ("#16a085", ">", 1.2),
}
STAGES = {"read": "#85c1e9", "sample": "#2980b9", "normalise": "#34495e", "group": "#e08e79", "encode": "#c0392b"}


def plot_growth(operation: str, records: list[dict], folder: Path) -> str:
    """Plot seconds per call over the points of one cloud, both logarithmic."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for name, (color, marker, width) in STYLES.items():
        chosen = sorted((r for r in records if r["implementation"] == name), key=lambda record: record["points"])
        if chosen:
            medians = [statistics.median(record["seconds_cpu"]) for record in chosen]
            points = [record["points"] for record in chosen]
            inexact = any(record["equal"].startswith("no") for record in chosen)
            label = f"{name} (other result)" if inexact else name
            axes.plot(points, medians, color=color, marker=marker, linewidth=width, markersize=5, label=label)
    axes.set(xscale="log", yscale="log", xlabel="points in the cloud", ylabel="CPU seconds a call, one thread")
    asked = "samples" if operation == "farthest_point_sample" else "queries"
    axes.set_title(f"{operation}: {asked} are points / 16, at most 4,096", fontsize=10)
    axes.grid(which="major", alpha=0.4)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return save(figure, f"{operation}.png", folder)


def plot_data(records: list[dict], needed: float, folder: Path) -> str:
    """Plot rows/s in random order without workers, one bar per row size."""
    chosen = [record for record in records if record["order"] == "random" and record["workers"] == 0]
    forms = list(dict.fromkeys(record["form"] for record in chosen))
    sizes = sorted({record["points"] for record in chosen})
    figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
    height = 0.8 / len(sizes)
    for place, size in enumerate(sizes):
        rates = {r["form"]: statistics.median(r["rows_per_second"]) for r in chosen if r["points"] == size}
        rows = [forms.index(form) + (place - (len(sizes) - 1) / 2) * height for form in rates]
        color = ("#c0392b", "#2980b9", "#7f8c8d")[place % 3]
        axes.barh(rows, list(rates.values()), height, color=color, label=f"{size:,} points")
    axes.axvline(needed, color="black", linestyle="--", linewidth=1, label="one GPU takes")
    axes.set_yticks(range(len(forms)), forms)
    axes.invert_yaxis()
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("rows/s, random order, no workers")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return save(figure, "data.png", folder)


def plot_embed(records: list[dict], folder: Path) -> str:
    """Plot milliseconds per cloud, with stages stacked."""
    figure, axes = plt.subplots(figsize=(7, 0.9 + 0.5 * len(records)), layout="constrained")
    names = [f"{record['implementation']}, {record['form']}" for record in records]
    starts = [0.0] * len(records)
    for stage, color in STAGES.items():
        widths = [1e3 * record["stage_seconds_cpu"][stage] / record["batch"] for record in records]
        axes.barh(names, widths, 0.7, left=starts, color=color, label=stage)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("CPU milliseconds a cloud, one thread")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return save(figure, "embed.png", folder)


def plot_pretraining(records: list[dict], folder: Path) -> str:
    """Plot 1-NN accuracies, means over sets: by row, with deviations over seeds, and by clouds seen."""
    figure, (bars, curves) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained", width_ratios=[3, 2])
    means = {}
    for record in records:
        values = means.setdefault(record["row"], {}).setdefault(record["steps"], {})
        values.setdefault(record["seed"], []).append(record["nearest"])
    means = {
        row: {
            steps: [100 * statistics.mean(values) for values in seeds.values()] for steps, seeds in sorted(own.items())
        }
        for row, own in means.items()
    }
    trained = [set(own) for own in means.values() if max(own)]  # those of length 0 were not trained
    length = max(set.intersection(*trained), default=0) if trained else 0  # the longest that all rows have
    last = {row: own.get(length, list(own.values())[-1]) for row, own in means.items()}
    order = sorted(last, key=lambda row: statistics.mean(last[row]))
    heights, deviations = (
        [statistics.mean(last[row]) for row in order],
        [statistics.pstdev(last[row]) for row in order],
    )
    colors = ["#c0392b" if row.startswith("views") else "#7f8c8d" for row in order]
    bars.barh(order, heights, 0.7, xerr=deviations, color=colors)
    for place, height in enumerate(heights):
        bars.text(1, place, f"{height:.1f}", va="center", color="white", fontsize=8)
    bars.set(xlabel="1-NN accuracy, %, mean over sets", title=f"after {32 * length:,} clouds")
    for row, own in means.items():
        if len(own) > 1:
            clouds = [32 * steps for steps in own]
            curves.plot(clouds, [statistics.mean(values) for values in own.values()], marker="o", label=row)
    if curves.lines:
        curves.legend(fontsize=8, frameon=False)
    curves.set(xscale="log", xlabel="clouds seen", ylabel="1-NN accuracy, %", title="longer training")
    curves.grid(which="major", alpha=0.4)
    curves.xaxis.set_major_formatter("{x:,.0f}")
    curves.set_xticks(sorted({32 * steps for own in means.values() if len(own) > 1 for steps in own}))
    curves.minorticks_off()
    return save(figure, "pretraining.png", folder)


def plot_trade_off(records: list[dict], folder: Path) -> str:
    """Plot 1-NN accuracy on whole clouds, the mean over sets, over clouds/s."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for name in dict.fromkeys(record["row"] for record in records):
        own = [record for record in records if record["row"] == name]
        place = own[0]["clouds_per_second"], 100 * statistics.mean(record["accuracies"]["whole"] for record in own)
        shipped = name.startswith("act-") and "untrained" not in name
        axes.plot(*place, "o", color="#c0392b" if shipped else "#7f8c8d", markersize=8)
        axes.annotate(name, place, xytext=(0, 8), textcoords="offset points", ha="center", fontsize=9)
    axes.set(xscale="log", xlabel="clouds/s, one thread", ylabel="1-NN accuracy, %, mean over sets")
    axes.margins(x=0.15, y=0.15)
    axes.grid(which="major", alpha=0.4)
    return save(figure, "trade-off.png", folder)


def save(figure: Figure, name: str, folder: Path) -> str:
    """Save in 64 colors, for a small file."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110)
    plt.close(figure)
    Image.open(drawn).convert("RGB").quantize(64).save(folder / name, optimize=True)
    return name
