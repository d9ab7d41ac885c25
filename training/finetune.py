"""Stage 3, classification: a student finetuned or probed on a labelled set, chosen on a part of train, tested once.

accelerate launch training/finetune.py --config training/recipes/finetune_scanobjectnn_pb_t50_rs.yaml \\
    --student outputs/student --output_dir outputs/classifier
python training/finetune.py ... --protocol linear --learning_rate 1e-3    a probe of the frozen student; also mlp3
python training/finetune.py ...                                           without --student: from scratch
... --seeds 0 1 2                          a run of each, and mean and standard deviation of all
... --resume_from_checkpoint latest        continues after any interruption, bit for bit
"""

from act_training.measure.frozen_features import embed
from act_training.measure.metrics import class_table, confusion_matrix
from act_training.report.pictures import save_confusion_matrix, save_feature_map
from act_training.report.run_folder import finish_run
from act_training.run.run_data import LabelColumn, hold_out_by_class
from act_training.run.script import parse_arguments, parse_mapping, run_script
from act_training.run.training_run import TrainingRun
from act_training.run.training_state import digest_of
from act_training.tasks.classification import (
    CachedFeatures,
    ClassificationArguments,
    make_classifier,
    measure,
    model_inputs,
    predict,
    prepare_for_protocol,
)
from act_training.tasks.transfer import describe_student, read_config, required_points, run_seeds

from modeling_act import ACTStudentConfig, ACTStudentForPointCloudClassification

USAGE = """from modeling_act import ACTPointCloudProcessor, ACTStudentForPointCloudClassification

processor = ACTPointCloudProcessor.from_pretrained("{name}")
model = ACTStudentForPointCloudClassification.from_pretrained("{name}").eval()
logits = model(**processor(clouds)).logits  # clouds: a list of arrays (points, 3)
names = [model.config.id2label[label] for label in logits.argmax(1).tolist()]"""


def evaluate(run: TrainingRun, model: ACTStudentForPointCloudClassification, features: CachedFeatures | None) -> dict:
    """Measure validation, and the test split, which is read here and nowhere else; return arguments of `finish_run`.
    Table and pictures are of the test split, or of validation without a test."""
    data, names = run.data, run.data.class_names
    results, split, point_set = {}, "validation", data.validation
    labels = point_set.labels()
    results["metrics"], predicted = measure(predict(run, model, point_set, features), labels)
    if data.test is not None:
        split, point_set, labels = "the test split", data.test, data.test.labels()
        results["test"], predicted = measure(predict(run, model, point_set, features), labels)
    if not run.accelerator.is_main_process:
        return results
    pictures = run.folder / "pictures"
    save_confusion_matrix(pictures / "confusion_matrix.png", confusion_matrix(labels, predicted, len(names)), names)
    embedded = embed(model.student, point_set, data.sampling, run.options.per_device_eval_batch_size)
    save_feature_map(pictures / "features.png", embedded, labels, names)
    results["tables"] = {f"classes of {split}": class_table(labels, predicted, names)}
    return results | {"images": {name: pictures / f"{name}.png" for name in ("confusion_matrix", "features")}}


def finetune(options: ClassificationArguments) -> dict[str, float]:
    """Train once; return the metrics of the test split, or of validation without a test."""
    fields = parse_mapping("--model", options.model, set(ACTStudentConfig.__dataclass_fields__))
    run = TrainingRun(options)
    target = LabelColumn("label", hold_out_by_class)
    data = run.open_data(required_points(read_config(options, fields)), target=target, test_split=options.test_split)
    model = make_classifier(options, fields, data.class_names)
    run.prepare(model, student=digest_of(model))
    features = prepare_for_protocol(run, model)

    def validate() -> None:
        values, _ = measure(predict(run, model, data.validation, features), data.validation.labels())
        run.log_validation("validation", values, best_by="accuracy", highest=True)

    if run.global_step == 0 or run.finished:
        validate()
    for batch in run.batches(sampled=features is None):
        with run.autocast():
            output = run.model(**model_inputs(run, batch, features), smoothing=options.label_smoothing)
        run.step(output.loss)

        if run.is_log_due():
            run.log_training(accuracy=(output.logits.argmax(1) == batch["label"]).float().mean().item())
        if run.is_due(options.validation_epochs):
            validate()

    run.load_final_weights()
    results = evaluate(run, model, features)
    text = f"{describe_student(options)}, protocol {options.protocol}, on `{options.dataset_name}`."
    usage = USAGE.format(name=options.hub_model_id or run.folder.name)
    finish_run(run, "ACT point-cloud classifier", text, usage, **results)
    return results.get("test") or results["metrics"]


def main(arguments: list[str]) -> None:
    options = parse_arguments(ClassificationArguments, __doc__, arguments)
    run_seeds(options, finetune, "ACT point-cloud classifiers")


if __name__ == "__main__":
    run_script(main)
