"""Models in the hands of other libraries: Trainer, torch.compile and peft."""

import copy

import pytest
import torch
from transformers import Trainer, TrainingArguments

from modeling_act import ACTStudentForPointCloudClassification
from small_models import small_models

CASES = small_models()
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["qkv"]}


@pytest.fixture(params=[name for name in CASES if name != "views"])  # how far its splats reach depends on the cloud
def case(request):
    model_class, config, inputs = CASES[request.param]
    return model_class(copy.deepcopy(config)), {"points": torch.randn(2, 64, 3), **inputs}


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(0)
    return [{"points": torch.randn(64, 3, generator=generator), "labels": number % 5} for number in range(12)]


def make_classifier():
    config = copy.deepcopy(CASES["classification"][1])
    config.num_labels = 5
    return ACTStudentForPointCloudClassification(config)


def make_trainer(model, rows, folder):
    settings = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 12, "num_train_epochs": 2}
    settings |= {"learning_rate": 1e-3, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    return Trainer(model, TrainingArguments(str(folder), **settings), train_dataset=rows, eval_dataset=rows)


def test_a_trainer_trains_evaluates_and_saves(rows, tmp_path):
    model = make_classifier()
    before = {name: value.clone() for name, value in model.named_parameters()}
    trainer = make_trainer(model, rows, tmp_path)
    assert trainer.train().global_step == 6
    moved = [name for name, value in model.named_parameters() if not torch.equal(value, before[name])]
    assert {name.partition(".")[0] for name in moved} == {"student", "classifier"}
    trainer.save_model(tmp_path / "saved")
    loaded = ACTStudentForPointCloudClassification.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        points, labels = torch.stack([row["points"] for row in rows]), torch.tensor([row["labels"] for row in rows])
        expected = loaded(points, labels=labels).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_the_whole_model_is_one_graph(case):
    model, inputs = case
    model.eval()
    expected = model(**inputs, return_dict=False)
    made = torch.compile(model, fullgraph=True, backend="eager")(**inputs, return_dict=False)
    for value, other in zip(expected, made, strict=True):
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(other, value)


def test_lora_trains_qkv_alone_and_merges(rows, tmp_path):
    """The example of docs/transfer.md."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = peft.get_peft_model(make_classifier(), peft.LoraConfig(**LORA, modules_to_save=["classifier"]))
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trained and all("qkv.lora_" in name or "classifier" in name for name in trained)
    make_trainer(model, rows, tmp_path).train()
    model.save_pretrained(tmp_path / "adapter")
    merged = model.merge_and_unload().eval()
    assert type(merged) is ACTStudentForPointCloudClassification
    assert not any("lora" in name for name in merged.state_dict())
