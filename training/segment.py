"""Stage 3, segmentation: a student finetuned to label points, of objects' parts, of clouds, or of whole rooms.

accelerate launch training/segment.py --config training/recipes/segment_shapenetpart.yaml \\
    --dataset_name PREPARED_SHAPENETPART --student outputs/student --output_dir outputs/parts
accelerate launch training/segment.py --config training/recipes/segment_s3dis.yaml \\
    --dataset_name PREPARED_S3DIS --student outputs/student --output_dir outputs/rooms
python training/segment.py ... --task points --ignored stock    clouds without a category; a class left out of metrics
python training/segment.py ...                                  without --student: from scratch
... --seeds 0 1 2                          a run of each, and mean and standard deviation of all
... --resume_from_checkpoint latest        continues after any interruption, bit for bit
"""

from dataclasses import dataclass
from typing import Literal

from act_training.data.schema import BLOCK_SIZE
from act_training.report.run_folder import finish_run
from act_training.run.run_data import LabelColumn, RunData
from act_training.run.script import parse_arguments, parse_mapping, run_script
from act_training.run.training_run import TrainingRun
from act_training.run.training_state import digest_of
from act_training.tasks.segmentation import (
    SegmentationMetrics,
    category_column,
    class_weights_of,
    evaluate_all_points,
    evaluate_samples,
    extra_inputs,
    hold_out_by_category,
    hold_out_scenes,
    parts_of_categories,
)
from act_training.tasks.transfer import (
    TransferArguments,
    describe_student,
    make_model,
    read_config,
    required_points,
    run_seeds,
)
from transformers import PreTrainedModel
from transformers.hf_argparser import HfArg

from modeling_act import ACTStudentConfig, ACTStudentForPartSegmentation, ACTStudentForSemanticSegmentation
from modeling_act.errors import InputError

USAGE = """from modeling_act import ACTPointCloudProcessor, {kind}
from modeling_act.inference import {function}

processor = ACTPointCloudProcessor.from_pretrained("{name}")
model = {kind}.from_pretrained("{name}").eval()
logits = {function}(model, points, processor{category})  # points (any number, 3), a row for each{parts}"""
PARTS = """
parts = model.config.parts_of_category[0]
labels = [parts[place] for place in logits[:, parts].argmax(1).tolist()]"""


@dataclass
class SegmentArguments(TransferArguments):
    task: Literal["parts", "points", "scenes"] = HfArg(
        default="parts", help="parts: of objects of known category; points: of any clouds; scenes: rooms in blocks"
    )
    class_weights: bool = HfArg(default=False, help="weight rare classes more in the loss")
    ignored: list[str] = HfArg(default_factory=list, help="classes that metrics leave out")
    votes: int = HfArg(default=1, help="how often every point of the test split is predicted")
    stride: float = HfArg(default=0.5, help="of scenes: step in metres of the blocks that slide over a test room")
    num_points: int = HfArg(default=2048, help="points sampled from each cloud at every step")
    learning_rate: float = 2e-4
    min_learning_rate: float = 1e-6
    per_device_train_batch_size: int = 16

    def __post_init__(self):
        super().__post_init__()
        if self.votes < 1:
            raise InputError(f"--votes must be at least 1, got {self.votes}")
        if not 0 < self.stride <= 1:
            raise InputError(f"--stride must lie between 0 and the blocks' size of 1, got {self.stride}")
        if self.task == "parts" and self.ignored:
            raise InputError("--ignored goes with --task points and scenes: parts are measured category by category")
        if self.task == "scenes" and self.normalize:
            raise InputError("--task scenes needs --normalize false: the height in a room must stay what it is")


def new_metrics(options: SegmentArguments, data: RunData, model: PreTrainedModel) -> SegmentationMetrics:
    """Make empty metrics, which leave out the classes of --ignored."""
    if unknown := [name for name in options.ignored if name not in data.class_names]:
        raise InputError(f"--ignored {' '.join(unknown)}: the classes are {', '.join(data.class_names)}")
    ignored = [data.class_names.index(name) for name in options.ignored]
    return SegmentationMetrics(data.class_names, ignored, model.config.parts_of_category)


def make_segmenter(options: SegmentArguments, fields: dict, data: RunData) -> tuple[PreTrainedModel, str | None]:
    """Make the model of the task; return it and the column of object categories, for parts."""
    if options.task != "parts":
        return make_model(ACTStudentForSemanticSegmentation, options, fields, data.class_names), None
    names, parts = parts_of_categories([data.train, data.validation, *([data.test] if data.test else [])])
    settings = {"num_categories": len(names), "category_names": names, "parts_of_category": parts}
    model = make_model(ACTStudentForPartSegmentation, options, fields, data.class_names, **settings)
    return model, category_column(data.train)


def segment(options: SegmentArguments) -> dict[str, float]:
    """Train once; return the metrics of the test split, or of validation without a test."""
    fields = parse_mapping("--model", options.model, set(ACTStudentConfig.__dataclass_fields__))
    scenes = options.task == "scenes"
    run = TrainingRun(options)
    target = LabelColumn("point_labels", hold_out_scenes if scenes else hold_out_by_category, repeats_points=True)
    data = run.open_data(required_points(read_config(options, fields)), target=target, test_split=options.test_split)
    model, column = make_segmenter(options, fields, data)
    new_metrics(options, data, model)  # a wrong --ignored ends the run here
    run.prepare(model, student=digest_of(model))
    run.calibrate_batch_norm(lambda batch: model(batch["points"], **extra_inputs(batch, column)))
    weights = class_weights_of(data.train, len(data.class_names)).to(run.device) if options.class_weights else None

    def measure() -> tuple[dict[str, float], list[dict]]:
        values = new_metrics(options, data, model)
        evaluate_samples(run, model, values, column)
        return values.compute()

    def validate() -> None:
        run.log_validation("validation", measure()[0], best_by="instance_miou" if column else "miou", highest=True)

    if run.global_step == 0 or run.finished:
        validate()
    for batch in run.batches():
        with run.autocast():
            targets = {"labels": batch["point_labels"], "class_weights": weights}
            output = run.model(batch["points"], **extra_inputs(batch, column), **targets)
        run.step(output.loss)

        if run.is_log_due():
            run.log_training()
        if run.is_due(options.validation_epochs):
            validate()

    run.load_final_weights()
    results, split = {}, "validation"
    results["metrics"], table = measure()
    if data.test is not None:  # read here and nowhere else
        values, split = new_metrics(options, data, model), "the test split"
        evaluate_all_points(run, model, values, column, rooms=scenes)
        results["test"], table = values.compute()
    results["tables"] = {f"classes of {split}": table}
    names = {"kind": type(model).__name__, "name": options.hub_model_id or run.folder.name}
    names |= {"function": "predict_scene" if scenes else "predict_points"}
    usage = USAGE.format(**names, category=", category=0" if column else "", parts=PARTS if column else "")
    processor = {"up_axis": "z", "block_size": BLOCK_SIZE} if scenes else {}
    text = f"{describe_student(options)}, trained to segment `{options.dataset_name}`."
    finish_run(run, f"ACT segmentation of {options.task}", text, usage, processor=processor, **results)
    return results.get("test") or results["metrics"]


def main(arguments: list[str]) -> None:
    options = parse_arguments(SegmentArguments, __doc__, arguments)
    run_seeds(options, segment, f"ACT segmentation of {options.task}")


if __name__ == "__main__":
    run_script(main)
