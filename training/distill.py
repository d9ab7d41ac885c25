"""Stage 2, the student: a 3D Transformer that sees a fifth of a cloud and predicts a teacher's features of the rest.

accelerate launch training/distill.py --config training/recipes/distill_shapenet55.yaml \\
    --dataset_name PREPARED_SHAPENET55 --teacher outputs/teacher --output_dir outputs/student
torchrun --nproc_per_node 8 training/distill.py ...               several processes
python training/distill.py ... --target coordinates               without a teacher: Point-MAE's own task
... --resume_from_checkpoint latest                               goes on after any interruption, bit for bit
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from act_training.data.batches import validation_batches
from act_training.data.checks import check_point_set
from act_training.data.keyed_random import keyed_mask
from act_training.data.point_sets import PointSet, open_point_set
from act_training.data.splits import split_rows
from act_training.measure.frozen_features import embed, probe_accuracy
from act_training.report.run_folder import finish_run, save_pictures
from act_training.run.arguments import TrainingArguments, check_choice, parse_arguments, parse_mapping
from act_training.run.checkpoints import digest_of
from act_training.run.process import on_main_process, run_script
from act_training.run.run_data import report_skipped
from act_training.run.training_run import TrainingRun
from act_training.tasks.pretraining import evaluate_distillation, pretraining_loss
from torch import Tensor
from tqdm import tqdm

from modeling_act import ACTStudentConfig, ACTStudentForPreTraining, ACTTeacher
from modeling_act.errors import InputError
from modeling_act.point_ops import PointGroups

USAGE = """from modeling_act import ACTStudent

student = ACTStudent.from_pretrained("{name}").eval()
embeddings = student(points).pooler_output  # points (batch, {num_points}, 3) -> (batch, {width})"""


@dataclass
class DistillArguments(TrainingArguments):
    teacher: str | None = field(default=None, metadata={"help": "folder or Hub id of an ACTTeacher"})
    target: str = field(
        default="teacher",
        metadata={
            "help": "teacher: its features; standardized: the same per dimension; backbone: those before its second "
            "DGCNN, standardized; coordinates: no teacher"
        },
    )
    teacher_precision: str = field(default="no", metadata={"help": "no or bf16, for the teacher alone"})
    teacher_code_mode: str = field(default="argmax", metadata={"help": "argmax, or gumbel: noisy targets"})
    cache_targets: bool = field(
        default=False, metadata={"help": "compute the teacher's features once; needs fixed_points, no augmentation"}
    )
    probe_dataset: str | None = field(default=None, metadata={"help": "a labelled set; its train split is cut in two"})
    probe_split: str = field(default="train", metadata={"help": "split of it to fit and to judge the probe on"})
    probe_epochs: float = field(default=10, metadata={"help": "epochs between probes"})

    def check(self) -> None:
        super().check()
        check_choice("--target", self.target, ("teacher", "standardized", "backbone", "coordinates"))
        check_choice("--teacher_precision", self.teacher_precision, ("no", "bf16"))
        check_choice("--teacher_code_mode", self.teacher_code_mode, ("argmax", "gumbel"))
        if (self.teacher is None) != (self.target == "coordinates"):
            raise InputError("--teacher names what to learn from; only --target coordinates goes without, and must")
        clouds_change = not self.fixed_points or self.augmentation or self.streaming
        if self.cache_targets and (clouds_change or self.teacher is None or self.teacher_code_mode != "argmax"):
            raise InputError(
                "--cache_targets needs a --teacher, and clouds and targets that stay the same: --fixed_points, and no "
                "--augmentation, --streaming or --teacher_code_mode gumbel"
            )
        if self.probe_epochs <= 0:
            raise InputError(f"--probe_epochs must be positive, got {self.probe_epochs}")


def load_teacher(name: str) -> ACTTeacher:
    """A frozen teacher in eval mode, of which every tensor was found."""
    try:
        teacher, loading = ACTTeacher.from_pretrained(name, output_loading_info=True)
    except (ValueError, OSError, RuntimeError) as error:
        raise InputError(f"--teacher {name}: {' '.join(str(error).split())}") from error
    if problems := [f"{kind}: {', '.join(sorted(map(str, keys))[:3])}" for kind, keys in loading.items() if keys]:
        raise InputError(f"--teacher {name} is no complete ACTTeacher ({'; '.join(problems)})")
    return teacher.requires_grad_(False).eval()


def make_student(fields: dict, teacher: ACTTeacher | None, target: str) -> ACTStudentForPreTraining:
    """A student of the teacher's groups; one that predicts coordinates is as wide as a group's points."""
    try:
        if teacher is None:
            sizes = {"teacher_dim": 3 * fields.get("group_size", ACTStudentConfig.group_size)}
        else:
            sizes = {name: getattr(teacher.config, name) for name in ("num_groups", "group_size", "skip_near_origin")}
            sizes["teacher_dim"] = teacher.config.code_dim if target == "backbone" else teacher.config.feature_dim
        if clash := [name for name in sizes if name in fields and fields[name] != sizes[name]]:
            raise InputError(f"--model: {', '.join(clash)} must be the teacher's, {[sizes[name] for name in clash]}")
        return ACTStudentForPreTraining(ACTStudentConfig(**sizes | fields | {"target": target}))
    except (ValueError, TypeError) as error:
        raise InputError(f"--model: {error}") from error


class Target:
    """What the student must predict of each group."""

    def __init__(
        self, teacher: ACTTeacher | None, options: DistillArguments, run: TrainingRun, config: ACTStudentConfig
    ):
        self.teacher, self.code_mode, self.device = teacher, options.teacher_code_mode, run.device
        self.of_backbone = options.target == "backbone"
        self.bf16 = "bf16" in (options.mixed_precision, options.teacher_precision)
        self.mean, self.deviation, self.known = 0.0, 1.0, None
        if options.target in ("standardized", "backbone"):
            # The teacher is fixed, and so are these; measured once, on clouds that are always the same.
            clouds = run.sample_clouds(1024)["points"]
            seen = torch.cat([self(teacher.group(points)).flatten(0, 1) for points in clouds.split(64)])
            self.mean, self.deviation = seen.mean(0), seen.std(0).clamp_min(1e-6)
            # Whoever has the finished student can draw what it predicts.
            config.target_mean, config.target_std = self.mean.tolist(), self.deviation.tolist()
        if options.cache_targets:
            batches = validation_batches(run.data.train, 64, run.sampling, run.device)
            batches = tqdm(batches, desc="teacher", total=-(-len(run.data.train) // 64), unit="batch", leave=False)
            self.known = torch.cat([self(teacher.group(batch["points"])) for batch in batches])

    @torch.no_grad()
    def __call__(self, groups: PointGroups, keys: Tensor | None = None) -> Tensor | None:
        """(batch, groups, teacher_dim), or None where the points of the groups themselves are the target. `keys` are
        those of training rows, whose features may be known."""
        if self.teacher is None:
            return None
        if self.known is not None and keys is not None:
            return self.known[keys[:, 1]]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            features = self.teacher.get_teacher_features(
                groups=groups, code_mode=self.code_mode, of_backbone=self.of_backbone
            )
        return (features.float() - self.mean) / self.deviation


def hide(student: ACTStudentForPreTraining, keys: Tensor, groups: PointGroups, seed: int) -> Tensor:
    return keyed_mask(keys, groups.centers, num_hidden(student.config), student.config.mask_type, seed)


def num_hidden(config: ACTStudentConfig) -> int:
    return int(config.mask_ratio * config.num_groups)


def draw(student: ACTStudentForPreTraining, target: Target, batch: dict[str, Tensor], seed: int) -> list[dict]:
    """Panels of a picture for each of a few clouds."""
    mask = hide(student, batch["keys"], student.group(batch["points"]), seed)
    return student.reconstruct(batch["points"], target.teacher, mask)


def open_probe_set(options: DistillArguments, run: TrainingRun, min_points: int) -> PointSet:
    point_set = open_point_set(options.probe_dataset, options.probe_split)
    classes = int(point_set.labels().max()) + 1

    def check() -> np.ndarray:
        checked, problems, _ = check_point_set(point_set, min_points, classes, options.skip_bad)
        report_skipped(problems, run.folder / "skipped_probe.txt")
        return checked.rows

    return point_set.select(on_main_process(run.accelerator, check))


def probe(student: ACTStudentForPreTraining, point_set: PointSet, rows: tuple, run: TrainingRun) -> dict[str, float]:
    """Accuracy of a linear probe of the frozen student on labelled rows that it was not fitted to."""
    options = run.options
    with run.autocast():
        features = embed(student.student, point_set, run.sampling, options.per_device_eval_batch_size)
    return probe_accuracy(features, point_set.labels(), *rows, options.seed)


def main(arguments: list[str]) -> None:
    options = parse_arguments(DistillArguments, __doc__, arguments)
    fields = parse_mapping("--model", options.model, set(ACTStudentConfig.__dataclass_fields__))
    run = TrainingRun(options)
    teacher = load_teacher(options.teacher).to(run.device) if options.teacher else None
    sizes = [
        getattr(teacher.config, name) if teacher else fields.get(name, getattr(ACTStudentConfig, name))
        for name in ("num_groups", "group_size")
    ]
    run.open_data(min_points=max(sizes))
    probe_set = open_probe_set(options, run, max(sizes)) if options.probe_dataset else None
    probe_rows = split_rows(probe_set.labels(), 0.2, options.seed) if probe_set else None
    student = run.prepare(
        lambda: make_student(fields, teacher, options.target), teacher=digest_of(teacher) if teacher else "none"
    )
    run.settle_batch_norm(lambda batch: student.student(batch["points"]))
    target = Target(teacher, options, run, student.config)
    shown = run.sample_clouds(4)
    metrics: dict[str, float] = {}

    def validate() -> None:
        with run.autocast():
            found = evaluate_distillation(student, target, hide, run.validation_batches(), options.seed)
        run.log_validation("validation", found, best_by="loss")
        metrics.update(found)

    def measure_probe() -> None:
        found = on_main_process(run.accelerator, lambda: probe(student, probe_set, probe_rows, run))
        run.log_validation("probe", found)
        metrics.update({f"probe_{name}": value for name, value in found.items()})

    if run.step == 0 or run.finished:
        validate()
        if probe_set:
            measure_probe()
    for _, parts in run.steps():
        for batch in parts:
            groups = student.group(batch["points"])  # once, for both
            mask = hide(student, batch["keys"], groups, options.seed)
            with run.autocast():
                features = target(groups, batch["keys"])
                loss = pretraining_loss(run.model, groups, features, mask, num_hidden(student.config))
            run.backward(loss)
        run.update()

        if run.is_log_due():
            run.log_training()
        if run.is_due(options.validation_epochs):
            validate()
        if probe_set and run.is_due(options.probe_epochs):
            measure_probe()
        if run.is_due(options.picture_epochs):
            save_pictures(run, draw(student, target, shown, options.seed))
        run.save_or_stop()

    finish_run(
        run,
        title="ACT student",
        text=f"A 3D Transformer pretrained by masked distillation (ACT, stage 2) from `{options.teacher}`."
        if teacher
        else "A 3D Transformer pretrained on the coordinates of masked groups.",
        usage=USAGE.format(
            name=options.hub_model_id or run.folder.name,
            num_points=options.num_points,
            width=2 * student.config.hidden_size,
        ),
        metrics=metrics,
        clouds=draw(student, target, shown, options.seed),
    )


if __name__ == "__main__":
    run_script(main)
