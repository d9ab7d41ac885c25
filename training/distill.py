"""Stage 2, the student: a 3D Transformer that sees a fifth of a cloud and predicts a teacher's features of the rest.

accelerate launch training/distill.py --config training/recipes/distill_shapenet55.yaml \\
    --dataset_name PREPARED_SHAPENET55 --teacher outputs/teacher --output_dir outputs/student
torchrun --nproc_per_node 8 training/distill.py ...               several processes
python training/distill.py ... --target coordinates               without a teacher: Point-MAE's own task
... --resume_from_checkpoint latest                               continues after any interruption, bit for bit
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from act_training.data.batches import augment_groups, keyed_mask
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
    warn,
)
from act_training.run.training_run import TrainingRun
from act_training.tasks.pretraining import SelfTeacher, TeacherTargets, evaluate_distillation, identify, load_teacher
from torch import Tensor
from transformers.hf_argparser import HfArg

from modeling_act import ACTStudentConfig, ACTStudentForPreTraining, ACTTeacher, ACTViewTeacher
from modeling_act.errors import InputError
from modeling_act.hub.publishing import without_local_paths
from modeling_act.point_ops import PointGroups

SELF = "self"  # as a teacher
GROUPS = ("num_groups", "group_size", "skip_near_origin")
USAGE = """from modeling_act import ACTStudent

student = ACTStudent.from_pretrained("{name}").eval()
embeddings = student(points).pooler_output  # points (batch, {num_points}, 3) -> (batch, {width})"""


@dataclass
class DistillArguments(ACTTrainingArguments):
    teacher: list[str] = HfArg(
        default_factory=list, help="folders or Hub ids of teachers or image Transformers; self: the student's average"
    )
    teacher_weights: list[float] | None = HfArg(default=None, help="weight of each teacher in the loss; default: 1")
    target: Literal["teacher", "backbone", "coordinates"] = HfArg(
        default="teacher",
        help="teacher: its features; backbone: those before an ACTTeacher's second DGCNN; coordinates: no teacher",
    )
    target_norm: Literal["none", "standardize", "layer_norm", "phi_s"] = HfArg(
        default="none", help="normalization of the features"
    )
    cloud_target: bool = HfArg(default=False, help="the class token also learns features of the whole cloud")
    teacher_points: int | None = HfArg(default=None, help="points that teachers of views see; default: num_points")
    teacher_precision: Literal["no", "bf16"] = HfArg(default="no", help="precision of the teacher alone")
    teacher_code_mode: Literal["argmax", "gumbel"] = HfArg(default="argmax", help="gumbel: noisy targets")
    cache_targets: bool = HfArg(default=False, help="compute the teacher's features once; needs samplings")
    cache_folder: str | None = HfArg(default=None, help="where; runs may share it. Default: output_dir/targets")
    probe_dataset: str | None = HfArg(default=None, help="a labelled set, for a linear probe")
    probe_split: str = HfArg(default="train", help="its split, divided into rows to fit and to score on")
    probe_epochs: float = HfArg(default=10, help="epochs between probes")

    def __post_init__(self):
        super().__post_init__()
        if bool(self.teacher) == (self.target == "coordinates"):
            raise InputError("--teacher is needed, except with --target coordinates, which takes none")
        if self.teacher_weights and len(self.teacher_weights) != len(self.teacher):
            raise InputError(f"--teacher_weights needs {len(self.teacher)} numbers, got {len(self.teacher_weights)}")
        if SELF in self.teacher[:-1] or (SELF in self.teacher and self.ema_decay is None):
            raise InputError("--teacher self comes last, and needs --ema_decay, such as 0.996")
        if self.teacher == [SELF] and self.target_norm in ("standardize", "phi_s"):
            raise InputError("--teacher self alone has no statistics to measure: use --target_norm layer_norm or none")
        if self.target == "backbone" and len(self.teacher) > 1:
            raise InputError("--target backbone takes one --teacher")
        fixed = self.samplings and not self.streaming and self.teacher_code_mode == "argmax"
        if self.cache_targets and not (fixed and set(self.teacher) - {SELF}):
            raise InputError(
                "--cache_targets needs a --teacher, --samplings, and no --streaming or --teacher_code_mode gumbel"
            )
        if self.teacher_points is not None and self.teacher_points < self.num_points:
            raise InputError(f"--teacher_points must be at least --num_points, got {self.teacher_points}")
        if self.teacher_points is not None and self.point_sampling != "random":
            raise InputError("--teacher_points needs --point_sampling random")
        if self.probe_epochs <= 0:
            raise InputError(f"--probe_epochs must be positive, got {self.probe_epochs}")


def make_student(
    fields: dict, teachers: list[ACTTeacher | ACTViewTeacher], options: DistillArguments
) -> ACTStudentForPreTraining:
    """Make a student of the teachers' groups; one that predicts coordinates is as wide as a group's points."""
    own = {"target": options.target, "target_norm": options.target_norm}
    needed, sizes_of_views = {}, {}
    for teacher in teachers:
        sizes = {name: getattr(teacher.config, name) for name in GROUPS}
        if isinstance(teacher, ACTTeacher):
            needed |= sizes
        else:  # views show groups of any size
            sizes_of_views |= sizes
    with errors_of("--model"):
        if flags := sorted({"teacher_dim", "teacher_dims", "teacher_weights", "cloud_dims", *own} & set(fields)):
            raise ValueError(f"{', '.join(flags)} follow from the teachers and from flags; leave them out")
        if clash := [name for name in needed if name in fields and fields[name] != needed[name]]:
            raise ValueError(f"{', '.join(clash)} must be the teacher's, {[needed[name] for name in clash]}")
        fields = own | sizes_of_views | fields | needed
        if not options.teacher:
            width = 3 * fields.get("group_size", ACTStudentConfig.group_size)
            fields |= {"teacher_dim": width, "target_norm": "none"}
            return ACTStudentForPreTraining(ACTStudentConfig(**fields))
        widths = [(teacher.config.feature_dim, teacher.config.cloud_dim) for teacher in teachers]
        if options.target == "backbone":
            widths = [(teacher.config.code_dim, teacher.config.code_dim) for teacher in teachers]
        if SELF in options.teacher:
            width = fields.get("hidden_size", ACTStudentConfig.hidden_size)
            widths.append((width, width))
        dims, cloud_dims = map(list, zip(*widths, strict=True))
        fields |= {"teacher_dim": sum(dims), "teacher_weights": options.teacher_weights}
        fields |= {"teacher_dims": dims if len(dims) > 1 else None}
        fields |= {"cloud_dims": cloud_dims if options.cloud_target else None}
        text_model = getattr(teachers[0].config, "text_model", None) if teachers else None
        return ACTStudentForPreTraining(ACTStudentConfig(**{"text_model": text_model} | fields))


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
    names = [name for name in options.teacher if name != SELF]
    teachers = [load_teacher(name, options.up_axis).to(run.device) for name in names]
    student = make_student(fields, teachers, options)
    config = student.config
    run.open_data(max(config.num_groups, config.group_size))
    if any(isinstance(teacher, ACTViewTeacher) for teacher in teachers):
        run.data.sampling = replace(run.data.sampling, teacher_points=options.teacher_points or options.num_points)
    elif options.teacher_points:
        warn("--teacher_points has no effect without a teacher of views")
    probe = Probe(run, max(config.num_groups, config.group_size)) if options.probe_dataset else None
    bf16 = "bf16" in (options.mixed_precision, options.teacher_precision)
    targets = TeacherTargets(teachers, options.teacher_code_mode, bf16, options.target == "backbone")
    targets.learns_cloud = options.cloud_target
    student.to(run.device)
    if options.cache_targets:
        targets.cache(run, student, Path(options.cache_folder or run.folder / "targets"))
        run.data.augmentation = []  # of points; the groups are augmented instead
    if teachers:
        targets.measure(run, student)
    run.prepare(student, teacher=", ".join(map(identify, teachers)) or "none")
    run.calibrate_batch_norm(lambda batch: student.student(batch["points"]))
    if SELF in options.teacher:
        targets.self_teacher = SelfTeacher(student)
        targets.self_teacher.update(run.average)
    num_masked = int(config.mask_ratio * config.num_groups)
    samples = run.data.sample_clouds(4)
    metrics: dict[str, float] = {}

    def make_mask(keys: Tensor, groups: PointGroups) -> Tensor:
        return keyed_mask(keys, groups.centers, num_masked, config.mask_type, options.seed)

    def validate(log: bool = True) -> None:
        with run.autocast():
            values = evaluate_distillation(student, targets, make_mask, run.validation_batches())
        if log:
            run.log_validation("validation", values, best_by="loss")
        metrics.update(values)

    def measure_probe(log: bool = True) -> None:
        values = on_main_process(run.accelerator, lambda: probe(student))
        if log:
            run.log_validation("probe", values)
        metrics.update({f"probe_{name}": value for name, value in values.items()})

    def draw_samples() -> list[dict]:
        """Reconstructions, if the student learns what can be decoded to points."""
        decoder = teachers[0] if len(options.teacher) == 1 and teachers else None
        if decoder is None and options.teacher or isinstance(decoder, ACTViewTeacher):
            return []
        mask = make_mask(samples["keys"], student.group(samples["points"]))
        return student.reconstruct(samples["points"], decoder, mask)

    if run.global_step == 0 or run.finished:
        validate()
        if probe:
            measure_probe()
    for batch in run.batches():
        groups = student.group(batch["points"])  # computed once, for teachers and student
        number = batch["keys"][:, 0] % options.samplings if options.cache_targets else None
        with run.autocast():
            features = targets(groups, batch, number)
            if options.cache_targets:
                groups = augment_groups(groups, batch["keys"], options.seed, options.augmentation)
            mask = make_mask(batch["keys"], groups)
            output = run.model(groups=groups, bool_masked_pos=mask, num_masked=num_masked, **features)
        run.step(output.loss)
        if targets.self_teacher:
            targets.self_teacher.update(run.average)

        if run.is_log_due():
            run.log_training()
        if run.is_due(options.validation_epochs):
            validate()
        if probe and run.is_due(options.probe_epochs):
            measure_probe()
        if run.is_due(options.picture_epochs) and (clouds := draw_samples()):
            save_pictures(run, clouds)

    if run.load_final_weights():
        validate(log=False)
        if probe:
            measure_probe(log=False)
    text = "A 3D Transformer pretrained on the coordinates of masked groups."
    if options.teacher:
        names = ", ".join(f"`{name}`" for name in without_local_paths(options.teacher))
        text = f"A 3D Transformer pretrained by masked distillation (ACT, stage 2) from {names}."
    name, width = options.hub_model_id or run.folder.name, config.pooled_dim
    usage = USAGE.format(name=name, num_points=options.num_points, width=width)
    finish_run(run, "ACT student", text, usage, metrics, clouds=draw_samples())


if __name__ == "__main__":
    run_script(main)
