"""Measurements on one CUDA GPU within ten minutes, the most important first; or a dry run on the CPU.

    python benchmarks/gpu.py                          # --budget 200: start nothing after so many seconds
    python benchmarks/gpu.py --device cpu --quick     # the same code at tiny sizes; numbers mean nothing

Measures the machine's peaks; the four steps in bf16, eager, captured in a CUDA graph, compiled, and both, with graph
breaks; the lines that wait for the device; the operators that take its time; point operations and plain torch;
sampling of clouds on the device and through a loader; and projects the time of the paper's pretraining. A measurement
that fails records its error, and the others continue.
"""

import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils.flop_counter import FlopCounterMode

from measure import ResultFile, argument_parser, output_path, peak_memory
from measure_device import Bench, capture, device_time, differences, waits
from modeling_act import (
    ACTStudent,
    ACTStudentConfig,
    ACTStudentForPointCloudClassification,
    ACTStudentForPreTraining,
    ACTTeacher,
    ACTTeacherConfig,
    point_ops,
)

try:
    from point_kernels import is_available
except ImportError:

    def is_available(device_type: str) -> bool:
        return False


sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from act_training.data.batches import Sampling, ShuffledRows, augment, iterate_batches, sample_points  # noqa: E402
from act_training.run.training_state import use_deterministic_algorithms  # noqa: E402

SHAPENET55 = {"autoencode": 41_952, "distill": 52_470}  # shapes of train; of train and test, without labels
EPOCHS = 300  # of either stage
TINY = {
    "hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 96, "num_groups": 16,
    "group_size": 8, "pointnet_dims": [8, 12, 16],
}  # fmt: skip
TINY_TEACHER = TINY | {
    "num_prompts": 4, "codebook_size": 32, "dgcnn_dims": [8, 12, 16, 16, 20], "decoder_dim": 24, "folding_dim": 16,
}  # fmt: skip
SIZES = {  # batch sizes, that of the recipe first, and points
    "autoencode": ((64, 128, 256), 1024),
    "distill": ((128, 256, 512), 1024),
    "finetune": ((32, 128, 256), 2048),
    "embed": ((256, 1, 1024), 1024),
}
# How a step runs: as it is called, captured in a CUDA graph, compiled; with float32 products in TF32.
MODES = ("eager", "eager_without_kernels", "graph", "graph_tf32")
COMPILED_MODES = ("compiled", "compiled_graph", "compiled_graph_tf32")


# The machine ---------------------------------------------------------------------------------------------------------


def measure_peaks(bench: Bench) -> None:
    size, elements = (256, 2**20) if bench.quick else (8192, 2**30)
    with bench.measuring("peaks", matrix_size=size, dtype="bfloat16") as record:
        left, right = torch.randn(2, size, size, device=bench.device, dtype=torch.bfloat16)
        product = torch.empty_like(left)
        seconds = bench.seconds(lambda: torch.mm(left, right, out=product))
        bench.peak_gflops = 2 * size**3 / statistics.median(seconds) / 1e9
        record |= {"gflops": bench.peak_gflops, "seconds": seconds}
    with bench.measuring("bandwidth", copied_bytes=4 * elements) as record:
        source = torch.randn(elements, device=bench.device)
        target = torch.empty_like(source)
        seconds = bench.seconds(lambda: target.copy_(source))
        record |= {"gbytes_per_second": 2 * 4 * elements / statistics.median(seconds) / 1e9, "seconds": seconds}
    with bench.measuring("device", needs_cuda=True) as record:
        if record is not None:
            properties = torch.cuda.get_device_properties(bench.device)
            record |= {
                "name": properties.name, "memory_gb": properties.total_memory / 1e9,
                "multiprocessors": properties.multi_processor_count, "cuda": torch.version.cuda,
                "capability": f"{properties.major}.{properties.minor}", "cudnn": torch.backends.cudnn.version(),
            }  # fmt: skip


# The steps -----------------------------------------------------------------------------------------------------------


@dataclass
class Step:
    """Step as in training/: points (batch, num_points, 3) -> loss, or embeddings."""

    name: str
    batch_sizes: tuple[int, ...]
    num_points: int
    model: nn.Module
    forward: Callable[[Tensor], Tensor]
    trains: bool = True
    compiled: Callable[[Tensor], Tensor] | None = None
    gflop_per_cloud: float | None = None
    clouds_per_second: dict[tuple[str, int], float] = field(default_factory=dict)  # by mode and batch size


def make_step(name: str, bench: Bench) -> Step:
    """Make a step of the paper's models with random weights: ViT-B/16 in the teacher, 12 layers in the student."""
    device = bench.device
    teacher_sizes, student_sizes = (TINY_TEACHER, TINY) if bench.quick else ({}, {})
    batch_sizes, num_points = SIZES[name] if not bench.quick else ((2, 3), 128)
    if name == "autoencode":
        teacher = ACTTeacher(ACTTeacherConfig(**teacher_sizes)).to(device).train()
        return Step(name, batch_sizes, num_points, teacher, lambda points: teacher(points, kl_weight=0.1).loss)
    if name == "distill":
        teacher = ACTTeacher(ACTTeacherConfig(**teacher_sizes)).to(device).eval().requires_grad_(False)
        student = ACTStudentForPreTraining(ACTStudentConfig(**student_sizes)).to(device).train()

        def distill(points: Tensor) -> Tensor:
            groups = student.group(points)
            with torch.no_grad():
                features = teacher.get_teacher_features(groups=groups)
            return student(groups=groups, teacher_features=features.float()).loss

        return Step(name, batch_sizes, num_points, student, distill)
    if name == "finetune":
        config = ACTStudentConfig(**{"num_groups": 128} | student_sizes, num_labels=15)
        classifier = ACTStudentForPointCloudClassification(config).to(device).train()
        labels = torch.arange(max(batch_sizes), device=device) % 15
        return Step(
            name, batch_sizes, num_points, classifier, lambda points: classifier(points, labels[: len(points)]).loss
        )
    if name == "embed":
        encoder = ACTStudent(ACTStudentConfig(**student_sizes)).to(device).eval()
        return Step(name, batch_sizes, num_points, encoder, lambda points: encoder(points).pooler_output, trains=False)
    raise ValueError(f"unknown step {name!r}")


def make_run(step: Step, bench: Bench, batch_size: int, compiled: bool) -> Callable[[], Tensor]:
    """Make a full step on fixed clouds, with a learning rate too small to change the result."""
    points, forward = torch.randn(batch_size, step.num_points, 3, device=bench.device), step.forward
    if compiled:
        backend = "eager" if bench.quick else "inductor"
        forward = step.compiled = step.compiled or torch.compile(step.forward, dynamic=False, backend=backend)

    def embed() -> Tensor:
        with torch.inference_mode(), torch.autocast(bench.device.type, torch.bfloat16):
            return forward(points)

    if not step.trains:
        return embed
    parameters = [parameter for parameter in step.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-9, fused=True, capturable=bench.on_cuda)

    def train() -> Tensor:
        with torch.autocast(bench.device.type, torch.bfloat16):
            loss = forward(points)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return train


def measure_step(bench: Bench, step: Step, mode: str, batch_size: int) -> None:
    compiled, captured = "compiled" in mode, "graph" in mode
    labels = {"step": step.name, "mode": mode, "dtype": "bfloat16", "batch": batch_size}
    with bench.measuring("steps", needs_cuda=captured, **labels) as record:
        if record is None:
            return
        counters.clear()
        torch.manual_seed(0)
        torch.set_float32_matmul_precision("high" if "tf32" in mode else "highest")
        try:
            if bench.on_cuda:
                before = torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            run = make_run(step, bench, batch_size, compiled)
            run = without_kernels(run) if mode == "eager_without_kernels" else run
            run = capture(run) if captured else run
            record["mean_output"] = run().float().mean().item()
            record["first_call_seconds"] = time.perf_counter() - start
            if mode == "compiled":
                record["graphs"] = counters["stats"]["unique_graphs"]
                record["graph_breaks"] = {reason.splitlines()[0]: n for reason, n in counters["graph_break"].items()}
            record["seconds"] = bench.seconds(run)
            peak = (torch.cuda.max_memory_allocated() - before) / 1e6 if bench.on_cuda else peak_memory(run)
            record["peak_memory_mb"] = peak  # beside the weights
        finally:
            torch.set_float32_matmul_precision("highest")
        if step.gflop_per_cloud is None and mode == "eager":
            with FlopCounterMode(display=False) as counter:
                run()
            step.gflop_per_cloud = counter.get_total_flops() / batch_size / 1e9
        rate = batch_size / statistics.median(record["seconds"])
        step.clouds_per_second[mode, batch_size] = record["clouds_per_second"] = rate
        if step.gflop_per_cloud is not None and bench.peak_gflops is not None:
            gflops = rate * step.gflop_per_cloud
            record |= {"gflop_per_cloud": step.gflop_per_cloud, "gflops": gflops}
            record |= {"peak_gflops": bench.peak_gflops, "share_of_peak": gflops / bench.peak_gflops}


def find_waits(bench: Bench, step: Step) -> None:
    """Record the lines of an eager step at which the host waits for the device."""
    with bench.measuring("waits", needs_cuda=True, step=step.name) as record:
        if record is not None:
            record |= waits(make_run(step, bench, step.batch_sizes[0], compiled=False))


def find_operators(bench: Bench, step: Step) -> None:
    """Record the operators of an eager step that take most of the device's time."""
    with bench.measuring("operators", needs_cuda=True, step=step.name, batch=step.batch_sizes[0]) as record:
        if record is not None:
            record |= device_time(make_run(step, bench, step.batch_sizes[0], compiled=False))


# Point operations ----------------------------------------------------------------------------------------------------


def operations(bench: Bench) -> Iterator[tuple[dict, Callable[[], tuple[Tensor, ...]]]]:
    """Return calls with their sizes; each call returns a tuple of tensors."""
    sizes = [(1024, 64, 32), (1024, 64, 128), (1024, 64, 512), (2048, 128, 32), (2048, 128, 128), (8192, 512, 32)]
    for num_points, count, batch_size in [(128, 16, 2)] if bench.quick else sizes:
        labels = {"points": num_points, "centers": count, "batch": batch_size}
        points = torch.randn(batch_size, num_points, 3, device=bench.device)
        sampling, search = (points, count), (points[:, :count].contiguous(), points, 32)
        yield (
            {"operation": "farthest_point_sample", **labels},
            lambda arguments=sampling: (point_ops.farthest_point_sample(*arguments),),
        )
        yield (
            {"operation": "k_nearest_neighbors", **labels, "k": 32},
            lambda arguments=search: point_ops.k_nearest_neighbors(*arguments),
        )
    for batch_size, num_points in [(4, 8)] if bench.quick else [(4096, 32), (16, 2048)]:
        clouds = torch.randn(2, batch_size, num_points, 3, device=bench.device).unbind()
        clouds = [cloud.requires_grad_() for cloud in clouds]
        yield (
            {"operation": "chamfer_l1 and gradients", "points": num_points, "batch": batch_size},
            lambda clouds=clouds: with_gradients(point_ops.chamfer_l1(*clouds, reduction="none"), clouds),
        )


def without_kernels(call: Callable[[], object]) -> Callable[[], object]:
    def plain() -> object:
        with point_ops.without_kernels():
            return call()

    return plain


def with_gradients(loss: Tensor, clouds: list[Tensor]) -> tuple[Tensor, ...]:
    return loss.detach(), *torch.autograd.grad(loss.sum(), clouds)


def measure_operations(bench: Bench) -> None:
    """Compare compiled kernels with plain torch."""
    for labels, call in operations(bench):
        with bench.measuring("operations", **labels) as record:
            if record is None:
                continue
            if not is_available(bench.device.type):
                record["not_run"] = f"no kernels for {bench.device.type} are installed"
                continue
            runs = {"kernels": call, "plain": without_kernels(call)}
            pairs = list(zip(runs["kernels"](), runs["plain"](), strict=True))
            record["equal"] = all(torch.equal(found, expected) for found, expected in pairs)
            record["largest_difference"] = max((found - expected).abs().max().item() for found, expected in pairs)
            for name, run in runs.items():
                record[f"{name}_seconds"] = bench.seconds(run, rounds=10)
                if bench.on_cuda:  # without the host, which takes longer for some calls than the device
                    record[f"{name}_graph_seconds"] = bench.seconds(capture(run), rounds=10)
            kind = "graph_seconds" if bench.on_cuda else "seconds"
            times = {name: statistics.median(record[f"{name}_{kind}"]) for name in runs}
            record |= {"milliseconds": times["kernels"] * 1e3, "speed_up": times["plain"] / times["kernels"]}


# Data ----------------------------------------------------------------------------------------------------------------


class RowsInMemory:
    """The part of a PointSet that a loader uses."""

    def __init__(self, clouds: np.ndarray):
        self.clouds = clouds

    def read(self, rows: list[int]) -> dict:
        values = self.clouds[rows]
        return {"points": (values.reshape(-1, 3), np.full(len(rows), values.shape[1]))}


def measure_data(bench: Bench) -> None:
    """Measure clouds/s sampled, normalized and augmented on the device, from rows stored there or read by a loader."""
    sizes = (64, 256, 8, 128) if bench.quick else (SHAPENET55["autoencode"], 8192, 128, 1024)
    num_rows, stored, batch_size, num_points = sizes

    def draw(batch: dict[str, Tensor]) -> Tensor:
        points = sample_points(batch, Sampling(num_points))["points"]
        return augment(points, batch["keys"], 0, ["scale_shift"])

    with bench.measuring("data", source="resident", rows=num_rows, points=stored, batch=batch_size) as record:
        if record is not None:
            clouds = torch.randn(num_rows, stored, 3, device=bench.device)
            lengths = torch.full((batch_size,), stored, device=bench.device)

            def resident() -> Tensor:
                rows = torch.randint(num_rows, (batch_size,), device=bench.device)
                return draw({"points": clouds[rows], "lengths": lengths, "keys": torch.stack([rows * 0, rows], 1)})

            record["seconds"] = bench.seconds(resident)
            record["clouds_per_second"] = batch_size / statistics.median(record["seconds"])
    num_rows, num_batches = min(num_rows, 4096), 4 if bench.quick else 48
    rows = RowsInMemory(np.random.default_rng(0).standard_normal((num_rows, stored, 3), dtype=np.float32))
    order = ShuffledRows(num_rows, batch_size)
    for workers in (0,) if bench.quick else (0, 4, 12):
        labels = {"rows": num_rows, "points": stored, "batch": batch_size, "workers": workers}
        with bench.measuring("data", source="loader", **labels) as record:
            if record is None:
                continue
            ticks = []
            for batch in iterate_batches(rows, order, 0, num_batches, workers, pin_memory=bench.on_cuda):
                draw({name: value.to(bench.device, non_blocking=True) for name, value in batch.items()}).sum().item()
                ticks.append(time.perf_counter())
            record["seconds"] = differences(ticks)
            record["clouds_per_second"] = batch_size * (len(ticks) - 1) / (ticks[-1] - ticks[0])


# The whole -----------------------------------------------------------------------------------------------------------


def project(bench: Bench, steps: list[Step]) -> None:
    """Project hours of the paper's pretraining from its fastest steps, without data, validation and checkpoints."""
    with bench.measuring("projection", epochs=EPOCHS) as record:
        stages = {step.name: step for step in steps}
        for name, rows in SHAPENET55.items():
            batch_size, rates = stages[name].batch_sizes[0], stages[name].clouds_per_second
            rate, mode = max((rate, mode) for (mode, batch), rate in rates.items() if batch == batch_size)
            record |= {f"{name}_rows": rows, f"{name}_mode": mode, f"{name}_hours": EPOCHS * rows / rate / 3600}
        record["hours"] = record["autoencode_hours"] + record["distill_hours"]


def main() -> None:
    parser = argument_parser("gpu", __doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--budget", type=float, default=500, help="seconds after which nothing more is begun")
    options = parser.parse_args()
    if options.device == "cpu" and not options.quick:
        parser.error("--device cpu goes with --quick: it proves that the script works, and measures nothing")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --device cpu --quick runs the same code without one")
    results, start = ResultFile(output_path("gpu", options), "gpu"), time.monotonic()
    bench = Bench(results, torch.device(options.device), options.quick, start + options.budget)

    if bench.on_cuda:
        use_deterministic_algorithms()  # as training does
    measure_peaks(bench)
    steps = []
    for name in SIZES:
        with bench.measuring("models", step=name) as record:
            if record is not None:
                torch.manual_seed(0)
                steps.append(make_step(name, bench))
                record["parameters"] = sum(parameter.numel() for parameter in steps[-1].model.parameters())
    for mode in MODES:
        for step in steps:
            measure_step(bench, step, mode, step.batch_sizes[0])
    for step in steps:
        find_waits(bench, step)
        find_operators(bench, step)
    measure_operations(bench)
    measure_data(bench)
    for step in steps:
        for batch_size in step.batch_sizes[1:]:
            for mode in ("eager", "graph"):
                measure_step(bench, step, mode, batch_size)
    for step in reversed(steps):  # last, since compiling takes longer than all of the above
        for mode in COMPILED_MODES:
            measure_step(bench, step, mode, step.batch_sizes[0])
    bench.deadline = math.inf  # for what takes no time
    project(bench, steps)
    results.append({"section": "end", "wall_seconds": time.monotonic() - start})
    print(f"results in {results.path}")


if __name__ == "__main__":
    main()
