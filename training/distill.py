"""Stage 2, the student: a 3D Transformer that sees a fifth of a cloud and predicts a teacher's features of the rest.

accelerate launch training/distill.py --config training/recipes/distill_shapenet55.yaml \\
    --dataset_name PREPARED_SHAPENET55 --teacher outputs/teacher --output_dir outputs/student
torchrun --nproc_per_node 8 training/distill.py ...               several processes
python training/distill.py ... --target coordinates               without a teacher: Point-MAE's own task
... --resume_from_checkpoint latest                               continues after any interruption, bit for bit
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from act_training.data.batches import keyed_mask
from act_training.data.point_sets import open_point_set
from act_training.data.schema import check_point_set
from act_training.measure.frozen_features import embed, probe_accuracy
from act_training.report.run_folder import finish_run, save_pictures
from act_training.run.run_data import report_skipped, split_rows
from act_training.run.script import (
    ACTTrainingArguments,
    errors_of,
    on_main_process,
    parse_arguments,
    parse_mapping,
    run_script,
)
from act_training.run.training_run import TrainingRun
from act_training.run.training_state import digest_of
from act_training.tasks.pretraining import TeacherTargets, evaluate_distillation, load_teacher
from torch import Tensor

from modeling_act import ACTStudentConfig, ACTStudentForPreTraining, ACTTeacher
from modeling_act.errors import InputError
from modeling_act.point_ops import PointGroups

USAGE = """from modeling_act import ACTStudent

student = ACTStudent.from_pretrained("{name}").eval()
embeddings = student(points).pooler_output  # points (batch, {num_points}, 3) -> (batch, {width})"""


@dataclass
class DistillArguments(ACTTrainingArguments):
    teacher: str | None = field(default=None, metadata={"help": "folder or Hub id of an ACTTeacher"})
    target: Literal["teacher", "standardized", "backbone", "coordinates"] = field(
        default="teacher",
        metadata={
            "help": "teacher: its features; standardized: the same per dimension; backbone: those before its second "
            "DGCNN, standardized; coordinates: no teacher"
        },
    )
    teacher_precision: Literal["no", "bf16"] = field(default="no", metadata={"help": "precision of the teacher alone"})
    teacher_code_mode: Literal["argmax", "gumbel"] = field(
        default="argmax", metadata={"help": "gumbel: noisy targets"}
    )
    cache_targets: bool = field(
        default=False, metadata={"help": "compute the teacher's features once; needs fixed_points, no augmentation"}
    )
    probe_dataset: str | None = field(default=None, metadata={"help": "a labelled set, for a linear probe"})
    probe_split: str = field(default="train", metadata={"help": "its split, divided into rows to fit and to score on"})
    probe_epochs: float = field(default=10, metadata={"help": "epochs between probes"})

    def __post_init__(self):
        super().__post_init__()
        if (self.teacher is None) != (self.target == "coordinates"):
            raise InputError("--teacher is needed, except with --target coordinates, which takes none")
        clouds_change = not self.fixed_points or self.augmentation or self.streaming
        if self.cache_targets and (clouds_change or self.teacher is None or self.teacher_code_mode != "argmax"):
            raise InputError(
                "--cache_targets needs a --teacher, and clouds and targets that never change: --fixed_points, and no "
                "--augmentation, --streaming or --teacher_code_mode gumbel"
            )
        if self.probe_epochs <= 0:
            raise InputError(f"--probe_epochs must be positive, got {self.probe_epochs}")


def make_student(fields: dict, teacher: ACTTeacher | None, target: str) -> ACTStudentForPreTraining:
    """Make a student of the teacher's groups; one that predicts coordinates is as wide as a group's points."""
    if teacher is None:
        sizes = {"teacher_dim": 3 * fields.get("group_size", ACTStudentConfig.group_size)}
    else:
        sizes = {name: getattr(teacher.config, name) for name in ("num_groups", "group_size", "skip_near_origin")}
        sizes["teacher_dim"] = teacher.config.code_dim if target == "backbone" else teacher.config.feature_dim
    with errors_of("--model"):
        if clash := [name for name in sizes if name in fields and fields[name] != sizes[name]]:
            raise ValueError(f"{', '.join(clash)} must be the teacher's, {[sizes[name] for name in clash]}")
        return ACTStudentForPreTraining(ACTStudentConfig(**sizes | fields | {"target": target}))


class Probe:
    """Linear probe of the frozen student: fitted to part of a labelled split, scored on the rest."""

    def __init__(self, run: TrainingRun, min_points: int):
        self.run, options = run, run.options
        self.point_set = open_point_set(options.probe_dataset, options.probe_split)
        num_classes = int(self.point_set.labels().max()) + 1

        def check() -> np.ndarray:
            checked, problems, _ = check_point_set(self.point_set, min_points, num_classes, options.skip_bad)
            report_skipped(problems, run.folder / "skipped_probe.txt")
            return checked.rows

        self.point_set = self.point_set.select(on_main_process(run.accelerator, check))
        self.rows = split_rows(self.point_set.labels(), 0.2, options.seed)

    def __call__(self, student: ACTStudentForPreTraining) -> dict[str, float]:
        options = self.run.options
        with self.run.autocast():
            features = embed(
                student.student, self.point_set, self.run.data.sampling, options.per_device_eval_batch_size
            )
        return probe_accuracy(features, self.point_set.labels(), *self.rows, options.seed)


def main(arguments: list[str]) -> None:
    options = parse_arguments(DistillArguments, __doc__, arguments)
    fields = parse_mapping("--model", options.model, set(ACTStudentConfig.__dataclass_fields__))
    run = TrainingRun(options)
    teacher = load_teacher(options.teacher).to(run.device) if options.teacher else None
    groups_from = teacher.config if teacher else ACTStudentConfig
    min_points = max(fields.get(name, getattr(groups_from, name)) for name in ("num_groups", "group_size"))
    run.open_data(min_points)
    probe = Probe(run, min_points) if options.probe_dataset else None
    student = make_student(fields, teacher, options.target)
    run.prepare(student, teacher=digest_of(teacher) if teacher else "none")
    run.calibrate_batch_norm(lambda batch: student.student(batch["points"]))
    bf16 = "bf16" in (options.mixed_precision, options.teacher_precision)
    targets = TeacherTargets(teacher, options.teacher_code_mode, bf16, options.target == "backbone")
    if options.target in ("standardized", "backbone"):
        targets.standardize(run, student.config)
    if options.cache_targets:
        targets.cache(run)
    num_masked = int(student.config.mask_ratio * student.config.num_groups)
    samples = run.data.sample_clouds(4)
    metrics: dict[str, float] = {}

    def make_mask(keys: Tensor, groups: PointGroups) -> Tensor:
        return keyed_mask(keys, groups.centers, num_masked, student.config.mask_type, options.seed)

    def validate() -> None:
        with run.autocast():
            values = evaluate_distillation(student, targets, make_mask, run.validation_batches())
        run.log_validation("validation", values, best_by="loss")
        metrics.update(values)

    def measure_probe() -> None:
        values = on_main_process(run.accelerator, lambda: probe(student))
        run.log_validation("probe", values)
        metrics.update({f"probe_{name}": value for name, value in values.items()})

    def draw_samples() -> list[dict]:
        mask = make_mask(samples["keys"], student.group(samples["points"]))
        return student.reconstruct(samples["points"], teacher, mask)

    if run.global_step == 0 or run.finished:
        validate()
        if probe:
            measure_probe()
    for batch in run.batches():
        groups = student.group(batch["points"])  # computed once, for teacher and student
        with run.autocast():
            features, mask = targets(groups, batch["keys"]), make_mask(batch["keys"], groups)
            output = run.model(groups=groups, teacher_features=features, bool_masked_pos=mask, num_masked=num_masked)
        run.step(output.loss)

        if run.is_log_due():
            run.log_training()
        if run.is_due(options.validation_epochs):
            validate()
        if probe and run.is_due(options.probe_epochs):
            measure_probe()
        if run.is_due(options.picture_epochs):
            save_pictures(run, draw_samples())

    text = "A 3D Transformer pretrained on the coordinates of masked groups."
    if teacher:
        text = f"A 3D Transformer pretrained by masked distillation (ACT, stage 2) from `{options.teacher}`."
    name, width = options.hub_model_id or run.folder.name, 2 * student.config.hidden_size
    usage = USAGE.format(name=name, num_points=options.num_points, width=width)
    finish_run(run, "ACT student", text, usage, metrics, clouds=draw_samples())


if __name__ == "__main__":
    run_script(main)
