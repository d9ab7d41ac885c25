"""Stage 3, segmentation: a student finetuned to label points, of objects' parts, of clouds, or of whole rooms.

accelerate launch training/segment.py --config training/recipes/segment_shapenetpart.yaml \\
    --dataset_name PREPARED_SHAPENETPART --student outputs/student --output_dir outputs/parts
accelerate launch training/segment.py --config training/recipes/segment_s3dis.yaml \\
    --dataset_name PREPARED_S3DIS --student outputs/student --output_dir outputs/rooms
python training/segment.py ... --task points --ignored stock    clouds without a category; a class that is not judged
python training/segment.py ...                                  without --student: from scratch
... --seeds 0 1 2                          a run of each, and mean and deviation of all
... --resume_from_checkpoint latest        goes on after any interruption, bit for bit
"""

from dataclasses import dataclass, field

from act_training.data.splits import LabelColumn
from act_training.report.run_folder import finish_run, load_final_weights
from act_training.run.arguments import check_choice, parse_arguments, parse_mapping
from act_training.run.checkpoints import digest_of
from act_training.run.process import run_script
from act_training.run.run_data import TrainingData
from act_training.run.training_run import TrainingRun
from act_training.tasks.segmentation import (
    Judge,
    category_column,
    class_weights_of,
    hold_out_by_category,
    hold_out_scenes,
    judge_all_points,
    judge_samples,
    known_of,
    parts_of_categories,
)
from act_training.tasks.transfer import (
    TransferArguments,
    fewest_points,
    kept_figures,
    make_model,
    read_config,
    run_seeds,
)
from transformers import PreTrainedModel

from modeling_act import (
    ACTStudentConfig,
    ACTStudentForPartSegmentation,
    ACTStudentForSemanticSegmentation,
)
from modeling_act.errors import InputError
from modeling_act.modeling_act_student import prediction_loss

TASKS = ("parts", "points", "scenes")
USAGE = """from modeling_act import ACTPointCloudProcessor, {kind}
from modeling_act.point_prediction import {function}

processor = ACTPointCloudProcessor.from_pretrained("{name}")
model = {kind}.from_pretrained("{name}").eval()
logits = {function}(model, points, processor{category})  # points (any number, 3), a row for each{parts}"""
PARTS = """
parts = model.config.parts_of_category[0]
labels = [parts[place] for place in logits[:, parts].argmax(1).tolist()]"""


@dataclass
class SegmentArguments(TransferArguments):
    task: str = field(
        default="parts",
        metadata={"help": "parts: of objects of known category; points: of any clouds; scenes: rooms in blocks"},
    )
    class_weights: bool = field(default=False, metadata={"help": "weigh rare classes more in the loss"})
    ignored: list[str] = field(default_factory=list, metadata={"help": "classes that are learned but not judged"})
    votes: int = field(default=1, metadata={"help": "how often every point of the test split is seen"})
    stride: float = field(
        default=0.5, metadata={"help": "of scenes: step in metres of the blocks that slide over a test room"}
    )
    num_points: int = field(default=2048, metadata={"help": "points taken from each cloud each time"})
    learning_rate: float = 2e-4
    min_learning_rate: float = 1e-6
    per_device_train_batch_size: int = 16

    def check(self) -> None:
        super().check()
        check_choice("--task", self.task, TASKS)
        if self.votes < 1:
            raise InputError(f"--votes must be at least 1, got {self.votes}")
        if not 0 < self.stride <= 1:
            raise InputError(f"--stride must lie between 0 and the blocks' size of 1, got {self.stride}")
        if self.task == "parts" and self.ignored:
            raise InputError("--ignored goes with --task points and scenes: parts are judged category by category")
        if self.task == "scenes" and self.normalize:
            raise InputError("--task scenes needs --normalize false: the height in a room must stay what it is")


def read_task(options: SegmentArguments, data: TrainingData) -> tuple[type, dict, str | None]:
    """The kind of model, what its configuration says of categories, and the column these are in."""
    if options.task != "parts":
        return ACTStudentForSemanticSegmentation, {}, None
    opened = [data.train, data.validation, *([data.test] if data.test else [])]
    names, parts = parts_of_categories(opened)
    settings = {"num_categories": len(names), "category_names": names, "parts_of_category": parts}
    return ACTStudentForPartSegmentation, settings, category_column(data.train)


def numbers_of(ignored: list[str], names: list[str]) -> list[int]:
    if unknown := [name for name in ignored if name not in names]:
        raise InputError(f"--ignored {' '.join(unknown)}: the classes are {', '.join(names)}")
    return [names.index(name) for name in ignored]


def test_segmenter(run: TrainingRun, model: PreTrainedModel, judge: Judge, column: str | None) -> dict:
    """What `finish_run` shows of the test split, which is read here and nowhere else."""
    if run.data.test is None:
        return {}
    stride = run.options.stride if run.options.task == "scenes" else None
    judge_all_points(run, model, judge, column, run.options.votes, stride)
    figures, table = judge.figures()
    return {"test": figures, "tables": {"classes of the test split": table}}


def segment(options: SegmentArguments) -> dict[str, float]:
    """One run; returns the figures of the test split, or of validation where there is no test."""
    fields = parse_mapping("--model", options.model, set(ACTStudentConfig.__dataclass_fields__))
    run = TrainingRun(options)
    hold_out = hold_out_scenes if options.task == "scenes" else hold_out_by_category
    target = LabelColumn("point_labels", hold_out, repeats_points=True)
    data = run.open_data(fewest_points(read_config(options, fields)), target=target, test_split=options.test_split)
    kind, settings, column = read_task(options, data)
    ignored = numbers_of(options.ignored, data.names)
    made = make_model(kind, options, fields, data.names, **settings)
    model = run.prepare(lambda: made, student=digest_of(made))
    run.settle_batch_norm(lambda batch: model(batch["points"], **known_of(batch, column)))
    weights = class_weights_of(data.train, len(data.names)).to(run.device) if options.class_weights else None
    parts_of = settings.get("parts_of_category")
    metrics: dict[str, float] = {}

    def validate() -> None:
        judge = Judge(data.names, ignored, parts_of)
        judge_samples(run, model, judge, column)
        found, _ = judge.figures()
        run.log_validation("validation", found, best_by="instance_miou" if column else "miou", highest=True)
        metrics.update(found)

    if run.step == 0 or run.finished:
        validate()
    for _, parts in run.steps():
        for batch in parts:
            with run.autocast():
                logits = run.model(batch["points"], **known_of(batch, column)).logits
            run.backward(prediction_loss(logits, batch["point_labels"], weights))
        run.update()

        if run.is_log_due():
            run.log_training()
        if run.is_due(options.validation_epochs):
            validate()
        run.save_or_stop()

    load_final_weights(run)
    tested = test_segmenter(run, model, Judge(data.names, ignored, parts_of), column)
    function = "predict_scene" if options.task == "scenes" else "predict_points"
    finish_run(
        run,
        title=f"ACT segmentation of {options.task}",
        text=f"An ACT student from `{options.student}`, finetuned to segment `{options.dataset_name}`."
        if options.student
        else f"A 3D Transformer from scratch, trained to segment `{options.dataset_name}`.",
        usage=USAGE.format(
            kind=kind.__name__, name=options.hub_model_id or run.folder.name, function=function,
            category=", category=0" if column else "", parts=PARTS if column else "",
        ),
        metrics=metrics,
        clouds=[],
        **tested,
    )  # fmt: skip
    return tested.get("test") or kept_figures(run, metrics)


def main(arguments: list[str]) -> None:
    options = parse_arguments(SegmentArguments, __doc__, arguments)
    run_seeds(options, segment, f"ACT segmentation of {options.task}")


if __name__ == "__main__":
    run_script(main)
