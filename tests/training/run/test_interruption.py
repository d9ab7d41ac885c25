"""Runs that are killed, damaged or changed between two starts: what is resumed equals the uninterrupted run to the
last bit, or is refused in one line."""

import json
import random
import shutil
import time

import numpy as np
import pytest
from act_training.run.training_state import MANIFEST, find_checkpoint, list_checkpoints, write_checkpoint

from training_runs import REFERENCES, RESUME, checkpoints_of, copy_run, digest, start, start_command

FILES = ("model.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json", "config.json", MANIFEST)
DAMAGES = ("truncated", "empty", "deleted", "flipped")


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "deleted":
        path.unlink()
    elif how == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(b"" if how == "empty" else content[:-1])


def kill_again_and_again(inputs, script, output, kills, seed, in_save=False, **options):
    """Starts, kills and resumes until so many kills hit a live run, then lets it end; the places that were hit."""
    dice, places = random.Random(seed), []
    while True:
        run = start(inputs, script, output, *RESUME, **options)
        if len(places) == kills:
            run.finish()
            return places
        began = time.monotonic()
        if in_save:
            newest = list_checkpoints(output / "checkpoints")
            count = int(newest[0].name[-8:]) // 3 if newest else 0
            while run.running and list(output.glob("checkpoints/.*")):  # what the kill before left
                time.sleep(0.001)
            run.wait_for(f"checkpoints/.writing-step-{3 * (count + dice.randint(1, 2)):08d}")
            time.sleep(dice.uniform(0, 0.03))
        else:
            run.wait_for("checkpoints")
            time.sleep(dice.uniform(0, 4 if places else 1))
        if run.running:
            run.kill()
            saving = [path.name for path in (output / "checkpoints").glob(".*")]
            steps = [int(path.name[-8:]) for path in checkpoints_of(output)]
            places.append(f"{time.monotonic() - began:.1f} s, whole {steps}, unfinished {saving}")
        elif (output / "model.safetensors").exists():
            run.finish()
            assert digest(output) == digest(inputs / REFERENCES[script]) or options.get("ranks")
            shutil.rmtree(output)


# In every run of the tests -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", REFERENCES)
def test_killed_inside_a_save(inputs, tmp_path, script):
    run = start(inputs, script, tmp_path / "run", *RESUME)
    run.wait_for("checkpoints/.writing-step-00000012")
    run.kill()
    assert "yet: starting at step 0" in run.text
    assert [path.name for path in checkpoints_of(tmp_path / "run")][-2:] == ["step-00000009", "step-00000006"]
    assert not (tmp_path / "run" / "model.safetensors").exists()
    start(inputs, script, tmp_path / "run", *RESUME).finish()
    assert digest(tmp_path / "run") == digest(inputs / REFERENCES[script])
    assert [path.name for path in checkpoints_of(tmp_path / "run")] == ["step-00000030", "step-00000027"]
    assert not list((tmp_path / "run").rglob(".*step*"))


def test_damage_is_named_and_the_checkpoint_before_it_is_used(inputs, tmp_path):
    newest, _ = copy_run(inputs / "student", tmp_path / "run", 21)
    damage(newest / "optimizer.safetensors", "flipped")
    text = start(inputs, "distill", tmp_path / "run", *RESUME).finish()
    assert f"warning: {newest / 'optimizer.safetensors'} is damaged; trying the checkpoint before it" in text
    assert digest(tmp_path / "run") == digest(inputs / "student")


def test_another_recipe_is_refused(inputs, tmp_path):
    newest, _ = copy_run(inputs / "student", tmp_path / "run", 21)
    flags = ("--learning_rate", 2e-3, "--per_device_train_batch_size", 8)
    line = start(inputs, "distill", tmp_path / "run", *RESUME, *flags).fail()
    assert line == (
        f"distill.py: error: {newest} belongs to another run: recipe.learning_rate was 0.001, now 0.002; "
        "recipe.per_device_train_batch_size was 4, now 8"
    )


def test_a_damaged_checkpoint_never_displaces_a_whole_one(tmp_path):
    def write(folder):
        (folder / "state.json").write_text("{}")

    for step in (3, 9):
        newest = write_checkpoint(tmp_path, step, write, limit=2)
    damage(newest / "state.json", "flipped")
    write_checkpoint(tmp_path, 6, write, limit=1)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000009", "step-00000006"]
    assert find_checkpoint(tmp_path, "latest", lambda message: None).name == "step-00000006"


# In `make test-slow` -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "kills", "in_save"),
    [("autoencode", 10, False), ("distill", 10, False), ("autoencode", 5, True), ("distill", 5, True)],
)
def test_killed_at_random_moments(inputs, tmp_path, script, kills, in_save):
    places = kill_again_and_again(inputs, script, tmp_path / "run", kills, seed=kills, in_save=in_save)
    print(*places, sep="\n")
    assert digest(tmp_path / "run") == digest(inputs / REFERENCES[script])
    if in_save:
        assert sum("writing" in place for place in places) >= kills - 2


@pytest.mark.slow
def test_two_processes_killed_at_random_moments(inputs, tmp_path):
    start(inputs, "distill", tmp_path / "whole", ranks=2).finish()
    print(*kill_again_and_again(inputs, "distill", tmp_path / "run", 5, seed=2, ranks=2), sep="\n")
    assert digest(tmp_path / "run") == digest(tmp_path / "whole")


@pytest.mark.slow
def test_killed_before_the_first_checkpoint(inputs, tmp_path):
    run = start_command(inputs, "distill", tmp_path / "run", *RESUME)
    run.wait_for("log.jsonl")
    run.kill()
    assert not checkpoints_of(tmp_path / "run")
    text = start_command(inputs, "distill", tmp_path / "run", *RESUME).finish()
    assert "yet: starting at step 0" in text
    assert digest(tmp_path / "run") == digest(inputs / "student")


@pytest.mark.slow
@pytest.mark.parametrize("script", REFERENCES)
@pytest.mark.parametrize("step", [6, 27, 30])
def test_resumed_within_and_at_the_end_of_an_epoch_and_after_the_last_step(inputs, tmp_path, script, step):
    """54 rows by 8 a step: the fourth epoch ends with step 27, the last validation belongs to step 30."""
    copy_run(inputs / REFERENCES[script], tmp_path / "run", step)
    start(inputs, script, tmp_path / "run", *RESUME, "--dataloader_num_workers", 2).finish()
    assert digest(tmp_path / "run") == digest(inputs / REFERENCES[script])


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_every_damage_to_every_file(inputs, tmp_path, name):
    for how in DAMAGES:
        newest, _ = copy_run(inputs / "teacher", tmp_path / how, 27)
        damage(newest / name, how)
        text = start(inputs, "autoencode", tmp_path / how, *RESUME).finish()
        reason = "missing" if how == "deleted" else "damaged"
        assert f"warning: {newest / name} is {reason}; trying the checkpoint before it" in text
        assert digest(tmp_path / how) == digest(inputs / "teacher")
        assert [path.name for path in checkpoints_of(tmp_path / how)] == ["step-00000030", "step-00000027"]


@pytest.mark.slow
def test_nothing_starts_anew_where_all_checkpoints_are_damaged(inputs, tmp_path):
    newest, older = copy_run(inputs / "student", tmp_path / "run", 21)
    damage(newest / "state.json", "truncated")
    damage(older / MANIFEST, "deleted")
    line = start(inputs, "distill", tmp_path / "run", *RESUME).fail()
    assert f"no whole checkpoint in {tmp_path / 'run' / 'checkpoints'}" in line
    assert f"{newest / 'state.json'} is damaged; {older / MANIFEST} is missing" in line
    line = start(inputs, "distill", tmp_path / "run", "--resume_from_checkpoint", older).fail()
    assert f"{older / MANIFEST} is missing" in line
    assert len(list_checkpoints(tmp_path / "run" / "checkpoints")) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "ranks", "difference"),
    [
        (("--gradient_accumulation_steps", 1), 1, "recipe.gradient_accumulation_steps was 2, now 1"),
        (("--per_device_train_batch_size", 2), 1, "recipe.per_device_train_batch_size was 4, now 2"),
        (("--ema_decay", 0.99), 1, "recipe.ema_decay was 0.9, now 0.99"),
        (("--max_train_steps", 31), 1, "recipe.max_train_steps was 30, now 31"),
        ((), 2, "processes was 1, now 2"),
    ],
)
def test_other_recipes_are_refused(inputs, tmp_path, flags, ranks, difference):
    newest, _ = copy_run(inputs / "student", tmp_path / "run", 21)
    line = start(inputs, "distill", tmp_path / "run", *RESUME, *flags, ranks=ranks).fail()
    assert line.endswith(f"{newest} belongs to another run: {difference}")


@pytest.mark.slow
@pytest.mark.parametrize(("script", "changed"), [("autoencode", "data"), ("distill", "data"), ("distill", "teacher")])
def test_other_data_and_another_teacher_of_the_same_name_are_refused(inputs, tmp_path, script, changed):
    shutil.copytree(inputs / "teacher", tmp_path / "teacher")
    shutil.copy(inputs / "clouds.npz", tmp_path / "clouds.npz")
    flags = ["--dataset_name", tmp_path / "clouds.npz", "--max_train_steps", 3]
    flags += ["--teacher", tmp_path / "teacher"] if script == "distill" else []
    start(inputs, script, tmp_path / "run", *flags).finish()
    if changed == "data":
        clouds = dict(np.load(tmp_path / "clouds.npz"))
        clouds["points"][59, 159, 2] += 1e-3
        np.savez(tmp_path / "clouds.npz", **clouds)
    else:
        shutil.copy(inputs / "teacher" / "ema" / "model.safetensors", tmp_path / "teacher" / "model.safetensors")
    line = start(inputs, script, tmp_path / "run", *RESUME, *flags).fail()
    state = json.loads((checkpoints_of(tmp_path / "run")[0] / "state.json").read_text())
    assert f"belongs to another run: {changed} was {state['run'][changed]}, now " in line


@pytest.mark.slow
def test_best_weights_survive_a_kill_and_a_named_older_checkpoint(inputs, tmp_path):
    flags = ("--final_weights", "best", "--checkpoints_total_limit", 20)
    start(inputs, "autoencode", tmp_path / "run", *flags).finish()
    expected = digest(tmp_path / "run")
    assert expected["model.safetensors"] == expected["best/model.safetensors"]
    older = tmp_path / "run" / "checkpoints" / "step-00000012"
    start(inputs, "autoencode", tmp_path / "run", *flags, "--resume_from_checkpoint", older).finish()
    assert digest(tmp_path / "run") == expected
