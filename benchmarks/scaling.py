"""Cost estimates of pretraining and embedding, from thousands of clouds to a billion: `python benchmarks/scaling.py`.

Prints the tables of docs/scaling.md. Speeds are from gpu.py, in results/gpu.jsonl. Change whatever is marked "assumed"
below if you have better values.
"""

import json
from pathlib import Path

from report import number, table

RESULTS = Path(__file__).parent / "results" / "gpu.jsonl"
SETS = {  # clouds, and epochs of either stage: the paper's for ShapeNet55, assumed for the others
    "ShapeNet55": (52_470, 300),
    "Objaverse": (800_000, 50),
    "Objaverse-XL": (10_000_000, 10),
    "a billion": (1_000_000_000, 1),
}
EFFICIENCY = {1: 1.0, 8: 0.95, 64: 0.9, 512: 0.8}  # assumed: speed of one of so many GPUs, relative to a single GPU
GFLOP = {"autoencode": 41.7, "distill": 20.6, "embed": 4.01}  # a cloud, of tests/models/test_cost.py
TRAINED = {"autoencode": 31_129_883, "distill": 25_571_456}  # parameters with a gradient
STORED = {"autoencode": 116_185_883, "distill": 25_571_456}  # parameters of a checkpoint; ViT-B is frozen
POINTS = (1024, 8192)  # of a stored cloud
BYTES = {"fp32": 4, "fp16": 2}
VECTOR = 768  # numbers of an embedding
NETWORK = 50e9  # bytes/s of network per GPU, assumed: 400 Gbit/s


def measured_rates(path: Path = RESULTS) -> dict[str, tuple[float, int]]:
    """Read clouds/s of each eager step, and its fastest batch size."""
    rates = {}
    for record in map(json.loads, path.read_text().splitlines()):
        if record.get("section") == "steps" and record["mode"] == "eager" and "clouds_per_second" in record:
            found = record["clouds_per_second"], record["batch"]
            rates[record["step"]] = max(rates.get(record["step"], found), found)
    return rates


def size(num_bytes: float) -> str:
    for unit, scale in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9)):
        if num_bytes >= scale:
            return f"{number(num_bytes / scale)} {unit}"
    return f"{number(num_bytes / 1e6)} MB"


def pretraining(rates: dict) -> str:
    """Estimate both stages on every cloud: FLOP, and hours on several numbers of GPUs."""
    rows = []
    for name, (clouds, epochs) in SETS.items():
        exaflop = clouds * epochs * (GFLOP["autoencode"] + GFLOP["distill"]) / 1e9
        hours = clouds * epochs * sum(1 / rates[stage][0] for stage in ("autoencode", "distill")) / 3600
        spent = [number(hours / (gpus * efficiency)) for gpus, efficiency in EFFICIENCY.items()]
        rows.append([name, f"{clouds:,}", str(epochs), number(exaflop), *spent])
    gpus = [f"hours on {count} GPU{'s' if count > 1 else ''}" for count in EFFICIENCY]
    return table(["set", "clouds", "epochs a stage", "EFLOP", *gpus], rows)


def storage() -> str:
    kinds = [(points, kind) for points in POINTS for kind in BYTES]
    rows = [
        [name, *(size(clouds * points * 3 * BYTES[kind]) for points, kind in kinds)]
        for name, (clouds, _) in SETS.items()
    ]
    return table(["set", *(f"{points:,} points, {kind}" for points, kind in kinds)], rows)


def reading(rates: dict) -> str:
    """Estimate bytes/s that keep GPUs busy, if every cloud is read whole in every epoch."""
    rows = []
    for step in GFLOP:
        rate, batch = rates[step]
        one = [rate * points * 3 * BYTES["fp32"] for points in POINTS]
        many = [512 * EFFICIENCY[512] * value for value in one]
        rows.append([step, str(batch), f"{rate:,.0f}", *(f"{size(value)}/s" for value in (*one, *many))])
    header = [f"{count}, {points:,} points" for count in ("a GPU", "512 GPUs") for points in POINTS]
    return table(["step", "batch", "clouds/s of a GPU", *header], rows)


def exchange(rates: dict) -> str:
    """Estimate gradients that data-parallel GPUs exchange per step, the time of both, and checkpoint sizes."""
    rows = []
    for step, parameters in TRAINED.items():
        rate, batch = rates[step]
        traffic = 2 * 4 * parameters  # a ring sends and receives each gradient about twice
        checkpoint = 4 * STORED[step] + 8 * parameters  # weights, and AdamW's two averages
        milliseconds = 1e3 * traffic / NETWORK, 1e3 * batch / rate
        rows.append([step, size(traffic), *map(number, milliseconds), size(checkpoint)])
    return table(["step", "exchanged a step", "ms of network", "ms of step", "checkpoint"], rows)


def embedding(rates: dict) -> str:
    rows = []
    for name, (clouds, _) in SETS.items():
        exaflop, hours = clouds * GFLOP["embed"] / 1e9, clouds / rates["embed"][0] / 3600
        vectors = [size(clouds * VECTOR * width) for width in BYTES.values()]
        rows.append([name, number(exaflop), number(hours), *vectors])
    return table(["set", "EFLOP", "GPU-hours", *(f"vectors, {kind}" for kind in BYTES)], rows)


def render(rates: dict) -> str:
    parts = {
        "Pretraining": pretraining(rates), "Storage": storage(), "Reading": reading(rates),
        "Exchange and checkpoints": exchange(rates), "Embedding": embedding(rates),
    }  # fmt: skip
    return "\n\n".join(f"**{title}**\n\n{part}" for title, part in parts.items())


if __name__ == "__main__":
    print(render(measured_rates()))
