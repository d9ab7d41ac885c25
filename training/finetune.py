"""Stage 3, classification: a student finetuned or probed on a labelled set, chosen on a part of train, tested once.

accelerate launch training/finetune.py --config training/recipes/finetune_scanobjectnn_pb_t50_rs.yaml \\
    --student outputs/student --output_dir outputs/classifier
python training/finetune.py ... --protocol linear --learning_rate 1e-3    a probe of the frozen student; also mlp3
python training/finetune.py ...                                           without --student: from scratch
... --seeds 0 1 2                          a run of each, and mean and deviation of all
... --resume_from_checkpoint latest        goes on after any interruption, bit for bit
"""

from act_training.data.splits import LabelColumn, hold_out_by_class
from act_training.measure.frozen_features import embed
from act_training.measure.metrics import class_table
from act_training.report.pictures import save_confusion_matrix, save_feature_map
from act_training.report.run_folder import finish_run, load_final_weights
from act_training.run.arguments import parse_arguments, parse_mapping
from act_training.run.checkpoints import digest_of
from act_training.run.process import run_script
from act_training.run.training_run import TrainingRun
from act_training.tasks.classification import (
    ClassificationArguments,
    begin,
    classification_loss,
    make_classifier,
    measure,
    predict,
)
from act_training.tasks.transfer import fewest_points, kept_figures, read_config, run_seeds

from modeling_act import ACTStudentConfig, ACTStudentForPointCloudClassification

USAGE = """from modeling_act import ACTPointCloudProcessor, ACTStudentForPointCloudClassification

processor = ACTPointCloudProcessor.from_pretrained("{name}")
model = ACTStudentForPointCloudClassification.from_pretrained("{name}").eval()
logits = model(**processor(clouds)).logits  # clouds: a list of arrays (points, 3)
names = [model.config.id2label[label] for label in logits.argmax(1).tolist()]"""


def test_classifier(run: TrainingRun, model: ACTStudentForPointCloudClassification, features) -> dict:
    """What `finish_run` shows of the test split, which is read here and nowhere else."""
    if run.data.test is None:
        return {}
    test, confusion = measure(predict(run, model, run.data.test, features), run.data.test.labels())
    if not run.accelerator.is_main_process:
        return {"test": test}
    pictures = run.folder / "pictures"
    pictures.mkdir(exist_ok=True)
    save_confusion_matrix(pictures / "confusion_matrix.png", confusion, run.data.names)
    seen = embed(model.student, run.data.test, run.sampling, run.options.per_device_eval_batch_size)
    save_feature_map(pictures / "features.png", seen, run.data.test.labels(), run.data.names)
    return {
        "test": test,
        "tables": {"classes of the test split": class_table(confusion, run.data.names)},
        "images": {name: pictures / f"{name}.png" for name in ("confusion_matrix", "features")},
    }


def finetune(options: ClassificationArguments) -> dict[str, float]:
    """One run; returns the figures of the test split, or of validation where there is no test."""
    fields = parse_mapping("--model", options.model, set(ACTStudentConfig.__dataclass_fields__))
    run = TrainingRun(options)
    points = fewest_points(read_config(options, fields))
    data = run.open_data(points, target=LabelColumn("label", hold_out_by_class), test_split=options.test_split)
    made = make_classifier(options, fields, data.names)
    model = run.prepare(lambda: made, student=digest_of(made))
    features = begin(run, model)
    metrics: dict[str, float] = {}

    def validate() -> None:
        found, _ = measure(predict(run, model, data.validation, features), data.validation.labels())
        run.log_validation("validation", found, best_by="accuracy", highest=True)
        metrics.update(found)

    if run.step == 0 or run.finished:
        validate()
    for _, parts in run.steps(sampled=features is None):
        for batch in parts:
            loss, logits = classification_loss(run, batch, features)
            run.backward(loss)
        run.update()

        if run.is_log_due():
            run.log_training(accuracy=(logits.argmax(1) == batch["label"]).float().mean().item())
        if run.is_due(options.validation_epochs):
            validate()
        run.save_or_stop()

    load_final_weights(run)
    tested = test_classifier(run, model, features)
    finish_run(
        run,
        title="ACT point-cloud classifier",
        text=f"An ACT student from `{options.student}`, protocol {options.protocol}, on `{options.dataset_name}`."
        if options.student
        else f"A 3D Transformer from scratch, protocol {options.protocol}, on `{options.dataset_name}`.",
        usage=USAGE.format(name=options.hub_model_id or run.folder.name),
        metrics=metrics,
        clouds=[],
        **tested,
    )
    return tested.get("test") or kept_figures(run, metrics)


def main(arguments: list[str]) -> None:
    options = parse_arguments(ClassificationArguments, __doc__, arguments)
    run_seeds(options, finetune, "ACT point-cloud classifiers")


if __name__ == "__main__":
    run_script(main)
