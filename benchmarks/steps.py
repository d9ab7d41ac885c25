"""Whole steps at the paper's sizes compared with the textbook form on the same weights, interleaved.

    python benchmarks/steps.py                             # fp32, one thread
    python benchmarks/steps.py --dtype bfloat16 --threads 2
    python benchmarks/steps.py --compile                   # torch.compile of our models as a third candidate

A training step is grouping, forward, backward and AdamW; `embed` is grouping and forward. Before timing, losses (or
embeddings) and gradients of both forms are compared without dropout and noise.
"""

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import textbook
from measure import ResultFile, argument_parser, gemm_peak, interleave, output_path, peak_memory
from modeling_act import (
    ACTStudent,
    ACTStudentConfig,
    ACTStudentForPointCloudClassification,
    ACTStudentForPreTraining,
    ACTTeacher,
    ACTTeacherConfig,
)
from modeling_act.modeling_act_student import sample_mask

sys.path.append(str(Path(__file__).parents[1] / "training"))
from act_training.run.script import keep_freed_memory  # noqa: E402

TINY_TEACHER = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96, "num_prompts": 4,
    "codebook_size": 32, "num_groups": 16, "group_size": 16,
}  # fmt: skip
TINY_STUDENT = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96, "num_groups": 16,
    "group_size": 16,
}  # fmt: skip


@dataclass
class Step:
    """Step in both forms, each from points to a loss or embeddings. `models` own the optimized parameters."""

    batch_size: int
    num_points: int
    model: nn.Module
    ours: Callable[[Tensor], Tensor]
    textbook: Callable[[dict[str, Tensor], Tensor], Tensor]
    trains: bool = True


def autoencode(quick: bool, noisy: bool) -> Step:
    config = ACTTeacherConfig(**TINY_TEACHER if quick else {}, **{} if noisy else {"prompt_dropout": 0.0})
    model = ACTTeacher(config).train()

    def plain(weights: dict[str, Tensor], points: Tensor) -> Tensor:
        groups = textbook.group(config, points)
        return sum_losses(textbook.teacher(weights, config, groups, 1.0, training=True, noisy=noisy))

    def sum_losses(outputs: tuple) -> Tensor:
        return outputs[0] + 0.1 * outputs[1]

    mode = "gumbel" if noisy else "soft"
    return Step(8, 1024, model, lambda points: model(points, code_mode=mode, kl_weight=0.1).loss, plain)


def distill(quick: bool, noisy: bool) -> Step:
    teacher = ACTTeacher(ACTTeacherConfig(**TINY_TEACHER if quick else {})).eval().requires_grad_(False)
    rates = {} if noisy else {"drop_path_rate": 0.0}
    config = ACTStudentConfig(**TINY_STUDENT if quick else {}, teacher_dim=teacher.config.feature_dim, **rates)
    model = ACTStudentForPreTraining(config).train()
    teacher_weights = dict(teacher.state_dict())

    def mask_of(points: Tensor) -> Tensor:
        return sample_mask(points[:, : config.num_groups], int(0.8 * config.num_groups), "random", generator())

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    def ours(points: Tensor) -> Tensor:
        groups = teacher.group(points)
        with torch.no_grad():
            features = teacher.get_teacher_features(groups=groups)
        return model(groups=groups, teacher_features=features, bool_masked_pos=mask_of(points)).loss

    def plain(weights: dict[str, Tensor], points: Tensor) -> Tensor:
        groups = textbook.group(config, points)
        with torch.no_grad():
            features = textbook.targets(teacher_weights, teacher.config, groups)
        return textbook.pretraining(weights, config, groups, mask_of(points), features, training=True)

    return Step(16, 1024, model, ours, plain)


def finetune(quick: bool, noisy: bool) -> Step:
    rates = {} if noisy else {"drop_path_rate": 0.0, "classifier_dropout": 0.0}
    sizes = TINY_STUDENT if quick else {"num_groups": 128}
    config = ACTStudentConfig(**sizes, num_labels=15, **rates)
    model = ACTStudentForPointCloudClassification(config).train()

    def plain(weights: dict[str, Tensor], points: Tensor) -> Tensor:
        labels = torch.arange(len(points)) % 15
        return textbook.classification(weights, config, textbook.group(config, points), labels, training=True)

    return Step(8, 2048, model, lambda points: model(points, torch.arange(len(points)) % 15).loss, plain)


def embed(quick: bool, noisy: bool) -> Step:
    config = ACTStudentConfig(**TINY_STUDENT if quick else {})
    model = ACTStudent(config).eval()

    def plain(weights: dict[str, Tensor], points: Tensor) -> Tensor:
        groups = textbook.group(config, points)
        return textbook.pool(weights, config, textbook.encoder(weights, config, groups, False, prefix=""), prefix="")

    return Step(32, 1024, model, lambda points: model(points).pooler_output, plain, trains=False)


STEPS = {"autoencode": autoencode, "distill": distill, "finetune": finetune, "embed": embed}


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Copy the weights for the textbook form, trainable where the model's are."""
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        weights[name].requires_grad_(parameter.requires_grad)
    return weights


def optimized(
    loss: Callable[[Tensor], Tensor], parameters: list[Tensor], points: Tensor, dtype: torch.dtype, fused: bool
) -> Callable[[], None]:
    """Make a training step on fixed clouds, with a learning rate too small to change the result."""
    optimizer = torch.optim.AdamW([p for p in parameters if p.requires_grad], lr=1e-9, fused=fused)

    def run() -> None:
        with autocast(dtype):
            value = loss(points)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def embedded(model: Callable[[Tensor], Tensor], points: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    def run() -> None:
        with torch.inference_mode(), autocast(dtype):
            model(points)

    return run


def autocast(dtype: torch.dtype):
    return nullcontext() if dtype == torch.float32 else torch.autocast("cpu", dtype)


def differences(step: Step, points: Tensor, dtype: torch.dtype) -> dict[str, float]:
    """Compute relative differences between both forms, of the output and of all gradients (Euclidean norm)."""
    weights = weights_of(step.model)
    with autocast(dtype):
        ours, plain = step.ours(points), step.textbook(weights, points)
    found = {"output_difference": relative(ours, plain)}
    if step.trains:
        ours.backward()
        plain.backward()
        names = [name for name, parameter in step.model.named_parameters() if parameter.grad is not None]
        gradients = dict(step.model.named_parameters())
        ours = torch.cat([gradients[name].grad.flatten() for name in names])
        plain = torch.cat([weights[name].grad.flatten() for name in names])
        found["gradient_difference"] = relative(ours, plain)
    return found


def relative(ours: Tensor, plain: Tensor) -> float:
    return float((ours.detach().double() - plain.detach().double()).norm() / plain.detach().double().norm())


def count_gflop(run: Callable[[], None], batch_size: int) -> float:
    """Count GFLOP per cloud with torch's counter, which counts attention only if it is written as products."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / batch_size / 1e9


def measure(name: str, options, results: ResultFile, peak: float) -> None:
    dtype = getattr(torch, options.dtype)
    torch.manual_seed(0)
    step = STEPS[name](options.quick, noisy=False)
    batch_size = 2 if options.quick else step.batch_size
    points = torch.randn(batch_size, 128 if options.quick else step.num_points, 3)
    compared = differences(step, points, dtype)

    torch.manual_seed(0)
    step = STEPS[name](options.quick, noisy=True)
    weights = weights_of(step.model)
    candidates = {
        "ours": (step.ours, list(step.model.parameters())),
        "textbook": (lambda points: step.textbook(weights, points), list(weights.values())),
    }
    if options.compile:
        candidates["ours-compiled"] = (torch.compile(step.ours), list(step.model.parameters()))
    runs, first_seconds = {}, {}
    for kind, (function, parameters) in candidates.items():
        if step.trains:
            runs[kind] = optimized(function, parameters, points, dtype, fused=kind != "textbook")
        else:
            runs[kind] = embedded(function, points, dtype)
        start = time.perf_counter()
        runs[kind]()
        first_seconds[kind] = time.perf_counter() - start
    timings = interleave(runs, options.rounds)
    for kind, timing in timings.items():
        seconds = timing.median_cpu if options.threads == 1 else timing.median_wall
        gflop = count_gflop(runs["ours" if "ours" in kind else kind], batch_size)
        results.append({
            "step": name, "implementation": kind, "dtype": options.dtype, "threads": options.threads,
            "batch": batch_size, **timing.record(), "clouds_per_second": batch_size / seconds,
            "gflop_per_cloud": gflop, "gflops": gflop * batch_size / seconds, "peak_gflops": peak,
            "share_of_peak": gflop * batch_size / seconds / peak, "peak_memory_mb": peak_memory(runs[kind]),
            "first_call_seconds": first_seconds[kind], **(compared if kind == "ours" else {}),
        })  # fmt: skip
        print(f"{name:11} {kind:14} {batch_size / seconds:7.2f} clouds/s  {gflop:6.2f} GFLOP a cloud", flush=True)


def main() -> None:
    parser = argument_parser("steps", __doc__)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # for both forms, as the training scripts do
    results = ResultFile(output_path("steps", options), "steps")
    peak = gemm_peak(getattr(torch, options.dtype), options.threads)
    for name in options.steps:
        measure(name, options, results, peak)


if __name__ == "__main__":
    main()
