"""Effect of two speed-ups on results: bf16, and embedding visible groups only (`embed_visible_only`).

    python benchmarks/precision.py features          # bf16 and fp32 at paper sizes; --teacher adds a trained one
    python benchmarks/precision.py training          # 200 steps of both stages, bf16 and fp32
    python benchmarks/precision.py visible_only      # loss, probe and cost, compared with the default

One thread; 3, 10 and 10 minutes. Writes results/precision.jsonl, precision_training.jsonl and visible_only.jsonl.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel

from measure import ResultFile, argument_parser, interleave, output_path
from modeling_act import ACTStudent, ACTStudentConfig, ACTStudentForPreTraining, ACTTeacher, ACTTeacherConfig
from modeling_act.point_ops import PointGroups

TRAINING = Path(__file__).resolve().parents[1] / "training"
sys.path.append(str(TRAINING))
from act_training.synthetic.everyday_shapes import generate_shapes  # noqa: E402

FILES = {"features": "precision", "training": "precision_training", "visible_only": "visible_only"}
TINY = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96, "num_groups": 16,
    "group_size": 16,
}  # fmt: skip
TINY_TEACHER = TINY | {"num_prompts": 4, "codebook_size": 32}
# Both stages at a width at which bf16 takes a few times as long as fp32 on a CPU without bf16 instructions.
GROUPS = {"num_groups": 16, "group_size": 16, "pointnet_dims": [16, 32, 64], "embedding_dim": 48}
SMALL_TEACHER = GROUPS | {
    "dgcnn_dims": [32, 32, 48, 48, 64], "code_dim": 48, "feature_dim": 48, "codebook_size": 128, "decoder_dim": 64,
    "folding_dim": 48, "num_prompts": 4,
}  # fmt: skip
SMALL_STUDENT = GROUPS | {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128,
    "drop_path_rate": 0.0,
}  # fmt: skip
DEMO_STUDENT = {
    "num_groups": 32, "group_size": 16, "pointnet_dims": [32, 64, 128], "embedding_dim": 96, "hidden_size": 96,
    "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 192, "drop_path_rate": 0.0,
}  # fmt: skip
SMALL_BACKBONE = {
    "vocab_size": 64, "hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 192,
}  # fmt: skip
SMOOTHED = 10  # steps per point of a stored loss curve


# Features ------------------------------------------------------------------------------------------------------------


def agreement(rounded: Tensor, exact: Tensor) -> dict[str, float]:
    """Compare features (..., channels): the difference's norm relative to that in fp32, and cosines of single rows.

    The rows have much in common, which raises the cosine; `centered` is the cosine after subtracting their mean.
    """
    rounded, exact = rounded.double().flatten(0, -2), exact.double().flatten(0, -2)
    cosines = cosine_similarity(rounded, exact)
    centered = cosine_similarity(rounded - exact.mean(0), exact - exact.mean(0))
    return {
        "relative_error": ((rounded - exact).norm() / exact.norm()).item(),
        "cosine": cosines.mean().item(),
        "smallest_cosine": cosines.min().item(),
        "below_0.999": (cosines < 0.999).double().mean().item(),
        "centered_cosine": centered.mean().item(),
    }


def in_bfloat16(teacher: ACTTeacher, weights: str) -> ACTTeacher:
    """Copy a model with `weights` ("none", "backbone" or "all") in bf16; all else stays fp32."""
    teacher = deepcopy(teacher)
    if weights == "all":
        teacher.to(torch.bfloat16)
    elif weights == "backbone":
        teacher.backbone.to(torch.bfloat16)
        teacher.backbone.register_forward_pre_hook(_round_inputs)
        teacher.backbone.register_forward_hook(lambda module, inputs, output: output.float())
    return teacher


def _round_inputs(module: nn.Module, inputs: tuple) -> tuple:
    hidden_states, positions, prompts = inputs
    prompts = tuple([part.bfloat16() for part in parts] for parts in prompts)
    return hidden_states.bfloat16(), positions.bfloat16(), prompts


@torch.no_grad()
def outputs_of(model: nn.Module, groups: PointGroups, autocast: bool, **options):
    """Return a model's outputs for groups in the precision of its weights."""
    dtype = next(model.parameters()).dtype
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return model(groups=PointGroups(*(part.to(dtype) for part in groups)), **options)


def compare_teachers(name: str, teacher: ACTTeacher, points: Tensor, results: ResultFile) -> None:
    """Compare arg-max targets with the codes of bf16 and with those of fp32; a changed code is another target."""
    groups = teacher.group(points)
    exact = outputs_of(teacher, groups, autocast=False)
    for weights in ("none", "backbone", "all"):
        model, autocast = in_bfloat16(teacher, weights), weights == "none"
        for codes in ("own", "of fp32"):
            if codes == "of fp32":
                model.code_network.register_forward_hook(lambda *_: exact.logits)
            found = outputs_of(model, groups, autocast)
            changed = (found.code_indices != exact.code_indices).double().mean().item()
            loss = {"loss": found.reconstruction_loss.item(), "loss_in_fp32": exact.reconstruction_loss.item()}
            pooled = agreement(found.teacher_features.mean(1), exact.teacher_features.mean(1))
            report(results, {
                "model": name, "bf16_weights": weights, "autocast": autocast, "codes": codes, "codes_changed": changed,
                "clouds": len(points), **loss, "logits": agreement(found.logits, exact.logits),
                "backbone_features": agreement(found.backbone_features, exact.backbone_features),
                "teacher_features": agreement(found.teacher_features, exact.teacher_features), "pooled": pooled,
            })  # fmt: skip


def compare_features(options, results: ResultFile) -> None:
    torch.manual_seed(0)
    clouds, num_points = (2, 128) if options.quick else (8, 1024)
    points = torch.from_numpy(generate_shapes(clouds, num_points)["points"])
    student = ACTStudent(ACTStudentConfig(**TINY if options.quick else {})).eval()
    groups = student.group(points)
    exact, rounded = (outputs_of(student, groups, autocast) for autocast in (False, True))
    report(results, {
        "model": "student, random weights", "bf16_weights": "none", "autocast": True, "clouds": clouds,
        "tokens": agreement(rounded.last_hidden_state, exact.last_hidden_state),
        "pooled": agreement(rounded.pooler_output, exact.pooler_output),
    })  # fmt: skip
    random = ACTTeacher(ACTTeacherConfig(**TINY_TEACHER if options.quick else {})).eval()
    compare_teachers("teacher, random weights", random, points, results)
    if options.teacher:
        trained = ACTTeacher.from_pretrained(options.teacher).eval()
        points = torch.from_numpy(generate_shapes(8 if options.quick else 64, 512, start=6000)["points"])
        compare_teachers("teacher, trained", trained, points, results)


# Training ------------------------------------------------------------------------------------------------------------


def train(results: ResultFile, script: str, recipe: str, folder: Path, variant: dict, **flags) -> dict:
    """Run a training script; the record holds the flags that differ from the recipe, the loss curve and the last
    validation. `variant` distinguishes the record from those it is compared with."""
    config = TRAINING / "recipes" / recipe
    words = [f"--{name}={json.dumps(value) if isinstance(value, dict) else value}" for name, value in flags.items()]
    call(script, f"--config={config}", f"--output_dir={folder}", "--logging_steps=1", *words)
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    curve = [record["train/loss"] for record in log if "train/loss" in record]
    shown = {name: Path(value).name if isinstance(value, Path) else value for name, value in flags.items()}
    record = {
        "script": script, "recipe": recipe, "flags": shown, **variant, "seed": flags["seed"],
        "loss_curve": smooth(curve), "validation": json.loads((folder / "metrics.json").read_text())["metrics"],
    }  # fmt: skip
    report(results, record, hidden=("flags", "loss_curve"))
    return record


def write_backbone(folder: Path) -> None:
    """Save a BERT with random weights, small enough for bf16 on any CPU."""
    torch.manual_seed(0)
    BertModel(BertConfig(**SMALL_BACKBONE)).save_pretrained(folder)


def call(script: str, *words: str) -> None:
    process = subprocess.run(
        [sys.executable, str(TRAINING / script), *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    if process.returncode:
        sys.exit(f"precision.py: error: {script} ended with exit code {process.returncode}\n{process.stderr[-2000:]}")


def smooth(curve: list[float]) -> list[float]:
    """Average consecutive steps; the last mean may cover fewer."""
    return [statistics.fmean(curve[start : start + SMOOTHED]) for start in range(0, len(curve), SMOOTHED)]


def distance(left: list[float], right: list[float]) -> float:
    return statistics.fmean(abs(a - b) for a, b in zip(left, right, strict=True))


def summarize(records: list[dict], key: str, base: str, other: str, value: Callable[[dict], list[float]]) -> dict:
    """Summarize the mean distance of the `other` runs from the `base` run of the same seed, and that of base runs of
    different seeds; and the mean signed difference of the last value, with the base's std over seeds."""
    of = {(record[key], record["seed"]): value(record) for record in records}
    seeds = sorted(seed for kind, seed in of if kind == base)
    changes = [of[other, seed][-1] - of[base, seed][-1] for seed in seeds]
    pairs = list(itertools.combinations(seeds, 2))
    return {
        "distance_same_seed": statistics.fmean(distance(of[other, seed], of[base, seed]) for seed in seeds),
        "distance_between_seeds": statistics.fmean(distance(of[base, a], of[base, b]) for a, b in pairs),
        f"{base}_mean": statistics.fmean(of[base, seed][-1] for seed in seeds),
        f"{other}_mean": statistics.fmean(of[other, seed][-1] for seed in seeds),
        "changes": changes,
        "deviation_over_seeds": statistics.stdev(of[base, seed][-1] for seed in seeds),
    }


def probe(folders: list[Path], num_points: int, shapes_per_class: int, results: ResultFile) -> dict[str, float]:
    """Accuracy of a linear probe on everyday_shapes' test split: the students by folder name, and one untrained."""
    output_dir = folders[0].parent / "probe"
    call(
        "evaluate.py", "--student", *map(str, folders), "--untrained=true", "--tasks=probe",
        f"--output_dir={output_dir}", "--dataset_name=everyday_shapes", f"--num_points={num_points}",
        f"--shapes_per_class={shapes_per_class}",
    )  # fmt: skip
    record = json.loads((output_dir / "metrics.json").read_text())
    accuracies = {row["student"]: row["probe"] for row in record["results"]}
    report(results, {"probe": accuracies, "fitted": record["fitted"], "scored": record["rows"]})
    return accuracies


def compare_training(options, results: ResultFile) -> None:
    """Train both stages in fp32 and bf16 from the same seeds; all students learn from one teacher, in fp32."""
    seeds, steps, samples = (2, 3, 64) if options.quick else (3, 200, 2000)
    common = {"num_points": 256, "per_device_train_batch_size": 16, "max_train_steps": steps}
    common |= {"max_train_samples": samples}
    records, folders = {"autoencode.py": [], "distill.py": []}, []
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        write_backbone(scratch / "random_bert")
        for script, kind, seed in itertools.product(records, ("fp32", "bf16"), range(seeds)):
            folder = scratch / f"{script.removesuffix('.py')}_{kind}_{seed}"
            if script == "autoencode.py":
                recipe, flags = "autoencode_tiny.yaml", {"backbone": scratch / "random_bert", "model": SMALL_TEACHER}
            else:
                recipe, flags = "distill_tiny.yaml", {"teacher": scratch / "autoencode_fp32_0", "model": SMALL_STUDENT}
                flags |= {"cache_targets": True}
                folders.append(folder)
            flags |= {"mixed_precision": "bf16" if kind == "bf16" else "no", "seed": seed}
            record = train(results, script, recipe, folder, {"precision": kind}, **common, **flags)
            records[script].append(record)
        accuracies = probe(folders, 256, 2 if options.quick else 100, results)
    for record, folder in zip(records["distill.py"], folders, strict=True):
        record["accuracy"] = accuracies[folder.name]
    for script, figure, value in (
        ("autoencode.py", "train/loss", lambda record: record["loss_curve"]),
        ("autoencode.py", "reconstruction_loss", lambda record: [record["validation"]["reconstruction_loss"]]),
        ("distill.py", "train/loss", lambda record: record["loss_curve"]),
        ("distill.py", "loss", lambda record: [record["validation"]["loss"]]),
        ("distill.py", "probe", lambda record: [record["accuracy"]]),
    ):
        summary = summarize(records[script], "precision", "fp32", "bf16", value)
        report(results, {"summary": script, "figure": figure, **summary})


# Visible groups only -------------------------------------------------------------------------------------------------


def measure_cost(quick: bool, results: ResultFile) -> None:
    """Measure GFLOP per cloud and seconds of the student's training step, and of the teacher's forward before it."""
    torch.manual_seed(0)
    batch_size, num_points, rounds = (2, 128, 1) if quick else (16, 1024, 5)
    points = torch.randn(batch_size, num_points, 3)
    teacher = ACTTeacher(ACTTeacherConfig(**TINY_TEACHER if quick else {})).eval()
    groups = teacher.group(points)
    features = torch.randn(batch_size, teacher.config.num_groups, teacher.config.feature_dim)
    runs = {"teacher": torch.no_grad()(lambda: teacher.get_teacher_features(groups=groups))}
    for only in (False, True):
        config = ACTStudentConfig(**TINY if quick else {}, embed_visible_only=only)
        runs[f"student, embed_visible_only {only}"] = training_step(config, groups, features)
    timings = interleave(runs, rounds)
    for name, run in runs.items():
        with FlopCounterMode(display=False) as counter:
            run()
        gflop = counter.get_total_flops() / batch_size / 1e9
        seconds = {"median_seconds_cpu": timings[name].median_cpu, **timings[name].record()}
        report(results, {"cost_of": name, "batch": batch_size, "threads": 1, "gflop_per_cloud": gflop, **seconds})


def training_step(config: ACTStudentConfig, groups: PointGroups, features: Tensor) -> Callable[[], None]:
    """Make a step of forward, backward and AdamW, with a learning rate too small to change the result."""
    model = ACTStudentForPreTraining(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9, fused=True)

    def run() -> None:
        model(groups=groups, teacher_features=features).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def compare_visible_only(options, results: ResultFile) -> None:
    """Train the student of distill_tiny.yaml with and without it, from the same seeds and one teacher."""
    measure_cost(options.quick, results)
    seeds, steps, samples = (2, 3, 64) if options.quick else (3, 500, 2000)
    common = {"num_points": 512, "max_train_samples": samples}
    records, folders = [], []
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        write_backbone(scratch / "random_bert")
        train(
            results, "autoencode.py", "autoencode_tiny.yaml", scratch / "teacher", {"role": "teacher"}, **common,
            backbone=scratch / "random_bert", model=SMALL_TEACHER | {"num_groups": 32},
            per_device_train_batch_size=16, max_train_steps=min(steps, 200), seed=0,
        )  # fmt: skip
        for seed, only in itertools.product(range(seeds), (False, True)):
            folders.append(scratch / f"{'visible_only' if only else 'default'}_{seed}")
            record = train(
                results, "distill.py", "distill_tiny.yaml", folders[-1], {"embed": folders[-1].name[:-2]}, **common,
                teacher=scratch / "teacher", model=DEMO_STUDENT | {"embed_visible_only": only}, cache_targets=True,
                max_train_steps=steps, seed=seed,
            )  # fmt: skip
            records.append(record)
        accuracies = probe(folders, 512, 2 if options.quick else 100, results)
    for record, folder in zip(records, folders, strict=True):
        record["accuracy"] = accuracies[folder.name]
    for figure, value in (
        ("train/loss", lambda record: record["loss_curve"]),
        ("loss", lambda record: [record["validation"]["loss"]]),
        ("probe", lambda record: [record["accuracy"]]),
    ):
        summary = summarize(records, "embed", "default", "visible_only", value)
        report(results, {"summary": "distill.py", "figure": figure, **summary})


def report(results: ResultFile, record: dict, hidden: tuple[str, ...] = ()) -> None:
    results.append(record)
    print(json.dumps({name: value for name, value in record.items() if name not in hidden}), flush=True)


def main() -> None:
    parser = argument_parser("precision", __doc__)
    parser.add_argument("section", choices=FILES)
    parser.add_argument("--teacher", type=Path, help="features: the folder of one, as of autoencode_tiny.yaml")
    options = parser.parse_args()
    if options.teacher and options.section != "features":
        parser.error("--teacher goes with features")
    torch.set_num_threads(1)
    results = ResultFile(output_path(FILES[options.section], options), FILES[options.section])
    if options.section == "features":
        compare_features(options, results)
    elif options.section == "training":
        compare_training(options, results)
    else:
        compare_visible_only(options, results)


if __name__ == "__main__":
    main()
