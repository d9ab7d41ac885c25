"""`transformers.pipeline` with the three tasks: after import, and without the package as remote code."""

import json

import numpy as np
import pytest
import torch
from transformers import pipeline

from modeling_act import (
    ACTPointCloudProcessor,
    ACTStudent,
    ACTStudentForPartSegmentation,
    ACTStudentForPointCloudClassification,
    ACTStudentForSemanticSegmentation,
)
from modeling_act.inference import predict_points
from shape_files import make_shapes
from small_models import small_student_config

MODELS = {
    "student": (ACTStudent, {}),
    "classifier": (ACTStudentForPointCloudClassification, {"id2label": dict(enumerate("abcde"))}),
    "parts": (
        ACTStudentForPartSegmentation,
        {"num_categories": 2, "category_names": ["chair", "car"], "parts_of_category": [[0, 1], [2, 3, 4]]},
    ),
    "points": (ACTStudentForSemanticSegmentation, {}),
}
CLOUD = np.random.default_rng(0).normal(size=(150, 3))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {}
    for name, (kind, fields) in MODELS.items():
        found[name] = tmp_path_factory.mktemp(name)
        torch.manual_seed(0)
        kind(small_student_config(**fields)).save_pretrained(found[name])
        ACTPointCloudProcessor(64).save_pretrained(found[name])
    return found


def test_classification(folders, tmp_path):
    classify = pipeline("point-cloud-classification", model=str(folders["classifier"]))
    model = ACTStudentForPointCloudClassification.from_pretrained(folders["classifier"]).eval()
    with torch.no_grad():
        expected = model(**ACTPointCloudProcessor(64)(CLOUD)).logits.softmax(-1)[0]
    found = classify(CLOUD, top_k=5)
    assert [entry["label"] for entry in found] == ["abcde"[place] for place in expected.argsort(descending=True)]
    assert [entry["score"] for entry in found] == pytest.approx(sorted(expected.tolist(), reverse=True), abs=1e-6)
    files = sorted(str(path) for path in make_shapes(tmp_path).rglob("*.*"))
    alone = [classify(file, top_k=1) for file in files]
    for answers in (classify(files, top_k=1, batch_size=2), list(classify((file for file in files), top_k=1))):
        assert [answer[0]["label"] for answer in answers] == [answer[0]["label"] for answer in alone]
    assert len(classify(CLOUD.tolist())) == 5
    assert len(classify(np.stack([CLOUD, CLOUD]))) == 2


def test_feature_extraction(folders):
    extract = pipeline("point-cloud-feature-extraction", model=str(folders["student"]))
    student = ACTStudent.from_pretrained(folders["student"])
    expected = student.encode(CLOUD, normalize=False, show_progress=False)
    assert extract(CLOUD) == pytest.approx(expected.tolist(), abs=1e-6)
    assert extract(CLOUD, pool=False, return_tensors=True).shape == (17, 24)
    of_head = pipeline("point-cloud-feature-extraction", model=str(folders["classifier"]))
    assert type(of_head.model).__name__ == "ACTStudent" and len(of_head(CLOUD)) == 48


def test_segmentation(folders):
    segment = pipeline("point-cloud-segmentation", model=str(folders["points"]))
    found = segment(CLOUD)
    logits = predict_points(segment.model, torch.from_numpy(CLOUD), ACTPointCloudProcessor(64))
    assert torch.equal(found["labels"], logits.argmax(1))
    assert torch.allclose(found["scores"], logits.softmax(1).amax(1))
    assert sum(entry["points"] for entry in found["segments"]) == len(CLOUD) == len(found["points"])
    assert [len(answer["labels"]) for answer in segment([CLOUD, CLOUD[:7]])] == [150, 7]
    with pytest.raises(ValueError, match="knows no categories"):
        segment(CLOUD, category="car")


def test_segmentation_of_parts_stays_in_the_category(folders):
    segment = pipeline("point-cloud-segmentation", model=str(folders["parts"]))
    assert set(segment(CLOUD, category="chair")["labels"].tolist()) <= {0, 1}
    assert set(segment(CLOUD, category=1, votes=2)["labels"].tolist()) <= {2, 3, 4}
    for category in (None, "boat", 2):
        with pytest.raises(ValueError, match="must be what the object is, one of chair, car"):
            segment(CLOUD, category=category)


def test_a_model_itself_and_another_processor(folders):
    model = ACTStudentForPointCloudClassification.from_pretrained(folders["classifier"])
    classify = pipeline("point-cloud-classification", model=model)
    assert classify.feature_extractor.num_points == 64
    other = pipeline("point-cloud-classification", model=model, feature_extractor=ACTPointCloudProcessor(32))
    assert other.feature_extractor.num_points == 32


def test_a_model_without_that_head_is_refused(folders):
    """`from_pretrained` would draw the head at random, and the pipeline would answer."""
    with pytest.raises(ValueError, match="holds ACTStudent, where ACTStudentForPointCloudClassification is needed"):
        pipeline("point-cloud-classification", model=str(folders["student"]))
    with pytest.raises(ValueError, match="missing_keys: cls_position, cls_token"):
        pipeline("point-cloud-feature-extraction", model=str(folders["parts"]))


def test_unknown_words_are_refused(folders):
    with pytest.raises(ValueError, match="takes seed, up_axis, unit, top_k, got topk"):
        pipeline("point-cloud-classification", model=str(folders["classifier"]), topk=3)


WITHOUT_PACKAGE = """
import json, sys
sys.modules["modeling_act"] = None
import numpy, torch
from transformers import pipeline
torch.set_num_threads(1)
cloud = numpy.random.default_rng(0).normal(size=(150, 3))
folders = json.loads(sys.argv[1])
for folder in folders.values():
    try:
        pipeline("point-cloud-classification", model=folder, trust_remote_code=False)
    except Exception as error:
        assert "trust_remote_code" in str(error), error
    else:
        raise AssertionError("code of the folder ran without leave")
run = lambda task, name: pipeline("point-cloud-" + task, model=folders[name], trust_remote_code=True)
classify = run("classification", "classifier")
assert type(classify).__module__.startswith("transformers_modules.")
parts, extract = run("segmentation", "parts"), run("feature-extraction", "student")
print(json.dumps([classify(cloud), extract(cloud), parts(cloud, category="car")["segments"]]))
parts.save_pretrained(sys.argv[2])
"""


def test_a_folder_carries_its_pipeline(folders, run_python, tmp_path):
    named = json.dumps({name: str(folder) for name, folder in folders.items()})
    process = run_python("-c", WITHOUT_PACKAGE, named, tmp_path / "again", cwd=tmp_path)
    classes, vector, segments = json.loads(process.stdout.splitlines()[-1])
    assert classes == pipeline("point-cloud-classification", model=str(folders["classifier"]))(CLOUD)
    assert vector == pipeline("point-cloud-feature-extraction", model=str(folders["student"]))(CLOUD)
    again = pipeline("point-cloud-segmentation", model=str(tmp_path / "again"))
    assert again(CLOUD, category="car")["segments"] == segments


def test_errors_name_the_place_of_a_cloud(folders):
    for task, name in (("classification", "classifier"), ("segmentation", "points")):
        apply = pipeline(f"point-cloud-{task}", model=str(folders[name]))
        for clouds in ([CLOUD, CLOUD, CLOUD * np.nan], iter([CLOUD, CLOUD, CLOUD * np.nan])):
            with pytest.raises(ValueError, match="^cloud 2 must be finite"):
                list(apply(clouds))


def test_lists_and_iterators_of_every_kind(folders):
    classify = pipeline("point-cloud-classification", model=str(folders["classifier"]))
    ragged = np.empty(2, dtype=object)
    ragged[:] = [CLOUD, CLOUD[:70]]
    expected = [classify(cloud) for cloud in ragged]
    for clouds in (ragged, tuple(ragged), iter(ragged), map(np.asarray, ragged), (cloud for cloud in ragged)):
        assert list(classify(clouds)) == expected
    far = CLOUD + np.array([5e6, 6e5, 100.0])  # float32 rounds there to half a metre
    assert classify(far.tolist()) == classify(far)


def test_the_seed_deals_the_points_that_are_segmented(folders):
    segment = pipeline("point-cloud-segmentation", model=str(folders["points"]))
    first, again, other = (segment(CLOUD, seed=seed)["scores"] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    with pytest.raises(ValueError, match="`votes` must be at least 1, got 0"):
        segment(CLOUD, votes=0)
