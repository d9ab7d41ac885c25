"""Stage 3, detection: boxes around the objects of scenes, by a 3DETR-style decoder on a student; tested once.

accelerate launch training/detect.py --config training/recipes/detect_scannet.yaml \\
    --dataset_name PREPARED_SCANNET --student outputs/student --output_dir outputs/detector
python training/detect.py --config training/recipes/detect_rooms.yaml --output_dir outputs/rooms    in minutes
... --seeds 0 1 2                          a run of each, and mean and standard deviation of all
... --resume_from_checkpoint latest        continues after any interruption, bit for bit

A set has columns points, boxes and box_labels; z is up. Metrics are the mean over classes of average precision
at overlaps (IoU) of 0.25 and 0.5.
"""

from dataclasses import dataclass

from act_training.report.pictures import save_scenes
from act_training.report.run_folder import finish_run
from act_training.run.run_data import LabelColumn, hold_out_any
from act_training.run.script import parse_arguments, parse_mapping, run_script
from act_training.run.training_run import TrainingRun
from act_training.run.training_state import digest_of
from act_training.tasks.detection import (
    AUGMENTATIONS,
    augment_scenes,
    boxes_to_learn,
    check_boxes,
    detect,
    measure,
)
from act_training.tasks.transfer import (
    TransferArguments,
    describe_student,
    make_model,
    read_config,
    required_points,
    run_seeds,
)
from transformers.hf_argparser import HfArg

from modeling_act import ACTStudentConfig, ACTStudentForObjectDetection
from modeling_act.errors import InputError

USAGE = """from modeling_act import ACTPointCloudProcessor, ACTStudentForObjectDetection

processor = ACTPointCloudProcessor.from_pretrained("{name}")
model = ACTStudentForObjectDetection.from_pretrained("{name}").eval()
points = processor(scenes)["points"]  # scenes: a list of arrays (points, 3), in metres, z up
detections = model.post_process(model(points), points)  # for each scene scores, labels and boxes (n, 7)
names = [model.config.id2label[label] for label in detections[0]["labels"].tolist()]"""


@dataclass
class DetectArguments(TransferArguments):
    normalize: bool = HfArg(default=False, help="must be false: sizes count")
    scene_augmentation: list[str] = HfArg(
        default_factory=list, help=f"any of {', '.join(AUGMENTATIONS)}; moves boxes with their scenes"
    )

    def __post_init__(self):
        super().__post_init__()
        if self.normalize:
            raise InputError("--normalize must be false: it would scale scenes and leave their boxes as they are")
        if self.augmentation:
            raise InputError("--augmentation moves points and leaves boxes where they are; use --scene_augmentation")
        if unknown := [name for name in self.scene_augmentation if name not in AUGMENTATIONS]:
            raise InputError(f"--scene_augmentation must be among {', '.join(AUGMENTATIONS)}, got {unknown[0]!r}")


def evaluate(run: TrainingRun, model: ACTStudentForObjectDetection) -> dict:
    """Measure validation, and the test split, which is read here and nowhere else, and draw some scenes; return
    arguments of `finish_run`."""
    results, split = {}, "validation"
    results["metrics"], table = measure(run, model, run.data.validation)
    if run.data.test is not None:
        split = "the test split"
        results["test"], table = measure(run, model, run.data.test)
    results["tables"] = {f"classes of {split}": table}
    if run.accelerator.is_main_process:
        batch, picture = run.data.sample_clouds(3), run.folder / "pictures" / "boxes.png"
        scenes = detect(run, model, batch, every_class=False)
        save_scenes(picture, batch["points"].cpu().numpy(), scenes, run.data.class_names)
        results["images"] = {"scenes of validation": picture}
    return results


def train(options: DetectArguments) -> dict[str, float]:
    """Train once; return the metrics of the test split, or of validation without a test."""
    fields = parse_mapping("--model", options.model, set(ACTStudentConfig.__dataclass_fields__))
    config = read_config(options, fields)
    queries, groups = config.num_queries, config.num_groups
    if queries > groups:
        raise InputError(f"--model: num_queries must not exceed num_groups, got {queries} and {groups}")
    run = TrainingRun(options)
    target = LabelColumn("box_labels", hold_out_any)
    data = run.open_data(required_points(config), target=target, test_split=options.test_split)
    boxes = check_boxes(*filter(None, (data.train, data.validation, data.test)))
    model = make_model(ACTStudentForObjectDetection, options, fields, data.class_names)
    run.prepare(model, student=digest_of(model), boxes=boxes)
    run.calibrate_batch_norm(lambda batch: model(batch["points"]))

    def validate() -> None:
        values, _ = measure(run, model, data.validation)
        run.log_validation("validation", values, best_by="map_25", highest=True)

    if run.global_step == 0 or run.finished:
        validate()
    for batch in run.batches():
        batch = augment_scenes(batch, options.seed, options.scene_augmentation)
        with run.autocast():
            output = run.model(batch["points"], boxes_to_learn(batch, model), batch["box_labels"])
        run.step(output.loss)

        if run.is_log_due():
            run.log_training(**{f"{name}_loss": part.item() for name, part in output.losses.items()})
        if run.is_due(options.validation_epochs):
            validate()

    run.load_final_weights()
    results = evaluate(run, model)
    text = f"{describe_student(options)} with a 3DETR-style decoder, trained on `{options.dataset_name}`."
    usage = USAGE.format(name=options.hub_model_id or run.folder.name)
    finish_run(run, "ACT object detector", text, usage, **results)
    return results.get("test") or results["metrics"]


def main(arguments: list[str]) -> None:
    options = parse_arguments(DetectArguments, __doc__, arguments)
    run_seeds(options, train, "ACT object detectors")


if __name__ == "__main__":
    run_script(main)
