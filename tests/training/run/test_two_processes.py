"""Two processes compute what one does, and what is spread over steps or recomputed equals what is not."""

import json

import pytest
import torch
from safetensors.torch import load_file

from forked import server
from modeling_act import ACTTeacher
from modeling_act.processing_act import to_unit_sphere
from training_runs import RECIPES, RESUME, copy_run, digest, free_port, start

ALIKE = {  # without noise that depends on the process, and as many clouds a step in one process as in two
    "autoencode": {"--code_mode": "soft", "--model": {"prompt_dropout": 0.0}},
    "distill": {"--model": {"drop_path_rate": 0.0}},
}


def flags_alike(script, ranks, **flags):
    """A global batch of eight, ten steps."""
    model = RECIPES[script]["model"] | ALIKE[script]["--model"]
    options = ALIKE[script] | {
        "--model": json.dumps(model), "--per_device_train_batch_size": 8 // ranks, "--max_train_steps": 10,
        "--gradient_accumulation_steps": 1, "--dataloader_num_workers": 0, "--checkpointing_steps": 1000,
    } | {f"--{name}": value for name, value in flags.items()}  # fmt: skip
    return [word for pair in options.items() for word in pair]


def records(output):
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def gradients(output):
    """Adam's averages of the gradients after the last step."""
    state = load_file(sorted(output.glob("checkpoints/step-*/optimizer.safetensors"))[-1])
    return {name: value for name, value in state.items() if name.endswith("/exp_avg")}


def distance(first, second):
    """Distance of all tensors as one vector, relative to its length."""
    assert first.keys() == second.keys()
    first, second = (torch.cat([tensors[name].double().flatten() for name in second]) for tensors in (first, second))
    return ((first - second).norm() / second.norm()).item()


def test_two_processes_resume_exactly(inputs, tmp_path):
    flags = ("--max_train_steps", 12, "--checkpoints_total_limit", 20)
    start(inputs, "distill", tmp_path / "whole", *flags, ranks=2).finish()
    copy_run(tmp_path / "whole", tmp_path / "run", 6)
    start(inputs, "distill", tmp_path / "run", *flags, *RESUME, ranks=2).finish()
    assert digest(tmp_path / "run") == digest(tmp_path / "whole")


def test_gradients_of_two_processes_equal_those_of_one(inputs, tmp_path):
    """Double precision, and the same batch statistics: each process would measure its own."""
    port = free_port()
    arguments = [(rank, port, inputs / "bert", tmp_path / "distance.json") for rank in (0, 1)]
    ranks = [server.Process(target=write_distance, args=words) for words in arguments]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert json.loads((tmp_path / "distance.json").read_text()) < 1e-12


def write_distance(rank, port, backbone, path):
    """Write the distance between gradients of two processes and those of one."""
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    together = teacher_gradients(backbone, rank)
    if rank == 0:
        path.write_text(json.dumps(distance(together, teacher_gradients(backbone, None))))


def teacher_gradients(backbone, rank):
    torch.manual_seed(0)
    fields = RECIPES["autoencode"]["model"] | ALIKE["autoencode"]["--model"]
    model = ACTTeacher.from_backbone(str(backbone), **fields).train().double()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.eval()
    points = to_unit_sphere(torch.randn(8, 128, 3, dtype=torch.float64))
    if rank is not None:
        points = points[4 * rank : 4 * rank + 4]
    wrapped = model if rank is None else torch.nn.parallel.DistributedDataParallel(model)
    wrapped(points, temperature=1.0, kl_weight=0.1, code_mode="soft").loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_synchronized_batch_norm_on_cpus_is_refused(inputs, tmp_path):
    line = start(inputs, "distill", tmp_path / "run", "--sync_batch_norm", "true", ranks=2).fail()
    assert "--sync_batch_norm needs GPUs" in line


@pytest.mark.slow
@pytest.mark.parametrize("script", ALIKE)
@pytest.mark.parametrize("share", [0.12, 0.01])
def test_validation_counts_every_row_once(inputs, tmp_path, script, share):
    """Seven rows, and one row for two processes; before the first step, where both hold the same weights."""
    found = []
    for ranks in (1, 2):
        flags = flags_alike(script, ranks, validation_share=share, max_train_steps=1, per_device_eval_batch_size=2)
        start(inputs, script, tmp_path / f"{ranks}", *flags, ranks=ranks).finish()
        found.append(records(tmp_path / f"{ranks}")[0])
    assert found[0]["step"] == 0 and any(name.startswith("validation/") for name in found[0])
    assert found[1] == pytest.approx(found[0], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("script", ALIKE)
def test_accumulated_gradients_are_means(inputs, tmp_path, script):
    """Batch statistics differ between two batches of four and one of eight, by far less than a factor of two."""
    found = []
    for parts in (1, 2):
        flags = flags_alike(script, 1, per_device_train_batch_size=8 // parts, gradient_accumulation_steps=parts)
        start(inputs, script, tmp_path / f"{parts}", *flags).finish()
        found.append(next(record for record in records(tmp_path / f"{parts}") if "train/loss" in record))
    assert found[1]["train/loss"] == pytest.approx(found[0]["train/loss"], rel=0.1)
    assert found[1]["train/gradient_norm"] == pytest.approx(found[0]["train/gradient_norm"], rel=0.4)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("script", ALIKE)
def test_gradient_checkpointing_changes_nothing(inputs, tmp_path, script, ranks):
    for name, value in (("plain", False), ("recomputed", True)):
        flags = flags_alike(script, ranks, gradient_checkpointing=value)
        start(inputs, script, tmp_path / name, *flags, ranks=ranks).finish()
    assert distance(gradients(tmp_path / "recomputed"), gradients(tmp_path / "plain")) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("script", ALIKE)
def test_compiled_training(inputs, tmp_path, script):
    for name, value in (("plain", False), ("compiled", True)):
        start(inputs, script, tmp_path / name, *flags_alike(script, 1, compile=value, max_train_steps=1)).finish(1500)
    assert distance(gradients(tmp_path / "compiled"), gradients(tmp_path / "plain")) < 1e-2
