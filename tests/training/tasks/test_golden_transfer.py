"""Official heads, converted, then loaded as finetune.py and segment.py load a student: the authors' outputs."""

import pytest
import torch
from act_training.tasks.classification import ClassificationArguments, make_classifier
from act_training.tasks.transfer import TransferArguments, make_model

from golden_weights import golden_tensors, save_official
from modeling_act import ACTStudentForPartSegmentation, ACTStudentForSemanticSegmentation
from modeling_act.convert.official_checkpoint import main as convert

GOLDEN = golden_tensors()


def converted(tmp_path, name, *options):
    convert([str(save_official(name, tmp_path / "official.pth")), str(tmp_path / "folder"), *options])
    return str(tmp_path / "folder")


def assert_equal(found, expected):
    assert (found - expected).abs().max() <= 1e-4 * (1 + expected.abs().max())


@pytest.mark.parametrize(("head", "protocol"), [("full", "full"), ("linear", "linear")])
def test_classifiers(tmp_path, head, protocol):
    sizes = ("--num_groups=16", "--num_attention_heads=6", "--num_labels=15")
    student = converted(tmp_path, f"classifier_{head}_state", *sizes)
    options = ClassificationArguments(dataset_name="", output_dir="", student=student, protocol=protocol)
    model = make_classifier(options, {}, [f"class {label}" for label in range(15)]).eval()
    assert_equal(model(GOLDEN["points"]).logits, GOLDEN[f"classifier_{head}.logits"])


@pytest.mark.parametrize("task", ["part", "semantic"])
def test_segmenters(tmp_path, task):
    student = converted(tmp_path, f"{task}_segmentation_state")
    kind = ACTStudentForPartSegmentation if task == "part" else ACTStudentForSemanticSegmentation
    expected = GOLDEN[f"{task}_segmentation.log_probs"]
    names = [f"class {label}" for label in range(expected.shape[-1])]
    categories = {"num_categories": 16, "category_names": [str(kind) for kind in range(16)]} if task == "part" else {}
    options = TransferArguments(dataset_name="", output_dir="", student=student)
    model = make_model(kind, options, {}, names, **categories).eval()
    known = {"category": GOLDEN["part_segmentation.category"]} if task == "part" else {}
    with torch.no_grad():
        logits = model(GOLDEN[f"{task}_segmentation.points"], **known).logits
    assert_equal(logits.log_softmax(-1), expected)
