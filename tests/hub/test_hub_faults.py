"""The way to a Hub and back, and Hubs that break down on it: nothing half is left, and a second try succeeds.

The real client runs in processes of its own, against a Hub on this machine.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from loopback_hub import STRANGER, LoopbackHub
from modeling_act import ACTPointCloudProcessor
from modeling_act.errors import InputError
from modeling_act.hub.publishing import publish
from small_models import small_models

ROOT = Path(__file__).resolve().parents[2]
NAME, REPOSITORY = "org/act-vitb", "models/org/act-vitb"
CARD = '# A student\n\n```python\nstudent = ACTStudent.from_pretrained("student")\n```\n'
# Does one step after the other, and prints a line of JSON on each: what it loaded, or why it could not.
CLIENT = """
import hashlib, json, os, sys, urllib.request
from pathlib import Path

package, steps = sys.argv[1], json.loads(sys.argv[2])
if package == "without":
    sys.modules["modeling_act"] = None
else:
    import modeling_act
import huggingface_hub
from transformers import AutoModel

def load(offline=False, **options):
    huggingface_hub.constants.HF_HUB_OFFLINE = offline or os.environ["HF_HUB_OFFLINE"] == "1"
    try:
        model = AutoModel.from_pretrained("org/act-vitb", **options)
    except Exception as error:
        return {"error": " ".join(str(error).split()), "kind": [kind.__name__ for kind in type(error).__mro__]}
    tensors = sorted(model.state_dict().items())
    digest = hashlib.sha256(b"".join(value.numpy().tobytes() for _, value in tensors)).hexdigest()
    return {"digest": digest, "module": type(model).__module__}

for step, options in steps:
    if step == "load":
        print(json.dumps(load(**options)))
    elif step == "mend":
        urllib.request.urlopen(os.environ["HF_ENDPOINT"] + "/mend").read()
    elif step == "cached":
        cache = Path(os.environ["HF_HOME"]).rglob("snapshots/*/*")
        print(json.dumps({path.name: path.stat().st_size for path in cache}))
"""


def digest_of(model) -> str:
    values = [value.numpy().tobytes() for _, value in sorted(model.state_dict().items())]
    return hashlib.sha256(b"".join(values)).hexdigest()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two students with different weights, and what their encoders' weights amount to."""
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        folder = tmp_path_factory.mktemp("runs") / "student"
        model_class, config, _ = small_models()["student"]
        model = model_class(config)
        model.save_pretrained(folder)
        ACTPointCloudProcessor(num_points=64).save_pretrained(folder)
        (folder / "README.md").write_text(CARD)
        found.append((folder, digest_of(model)))
    return found


@pytest.fixture
def client(run_python, tmp_path):
    """Runs the steps in a process with this test's cache; returns what they printed."""

    def run(hub, steps, package="with", **environment):
        environment = (
            hub.environment | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_DOWNLOAD_TIMEOUT": "2"} | environment
        )
        process = run_python("-c", CLIENT, package, json.dumps(steps), environment=environment, cwd=tmp_path)
        return [json.loads(line) for line in process.stdout.splitlines() if line.startswith("{")]

    return run


# There and back ------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_versions(own_hub, folders):
    """The first student on main, tagged v1, and the second on the branch v2."""
    (first, _), (second, _) = folders
    publish(first, NAME)
    publish(second, NAME, revision="v2")
    own_hub.tags[REPOSITORY]["v1"] = own_hub.branches[REPOSITORY]["main"]
    return own_hub


def test_a_branch_a_tag_and_a_commit_load_and_closed_doors_say_so(two_versions, folders, client):
    hub, ((_, first), (_, second)) = two_versions, folders
    loads = [{}, {"revision": "v2"}, {"revision": "v1"}, {"revision": hub.sha(REPOSITORY, "v2")}, {"revision": "v9"}]
    *loaded, unknown = client(hub, [("load", options) for options in loads])
    assert [result["digest"] for result in loaded] == [first, second, first, second]
    assert {result["module"] for result in loaded} == {"modeling_act.modeling_act_student"}
    assert "v9 is not a valid git identifier" in unknown["error"]


@pytest.mark.slow
def test_without_the_package_and_then_without_the_hub(two_versions, folders, client):
    hub, ((_, first), (_, second)) = two_versions, folders
    remote = [("load", {"trust_remote_code": True}), ("load", {"trust_remote_code": True, "revision": "v2"})]
    refused, *loaded = client(hub, [("load", {"trust_remote_code": False}), *remote], "without")
    assert "trust_remote_code=True" in refused["error"]
    assert [result["digest"] for result in loaded] == [first, second]
    assert all(result["module"].startswith("transformers_modules.org.act") for result in loaded)
    hub.server.shutdown()
    asked = len(hub.requests)
    assert client(hub, remote, "without", HF_HUB_OFFLINE="1") == loaded
    again = client(hub, [("load", {}), ("load", {"revision": "v2"}), ("load", {"revision": "v1"})], HF_HUB_OFFLINE="1")
    assert [result.get("digest") for result in again] == [first, second, None]
    assert "couldn't find them in the cached files" in again[2]["error"]
    assert len(hub.requests) == asked


@pytest.mark.slow
def test_private_and_gated_models_open_to_those_who_may(two_versions, folders, client):
    hub, ((_, first), _) = two_versions, folders
    steps = [("load", {"token": token}) for token in (STRANGER, False, None)]
    hub.private.add(REPOSITORY)
    *closed, opened = client(hub, steps)
    assert all("is not a local folder and is not a valid model identifier" in result["error"] for result in closed)
    assert opened["digest"] == first
    hub.private.clear()
    hub.gated.add(REPOSITORY)
    *closed, opened = client(hub, steps, HF_HOME=os.environ["HF_HOME"] + "/gated")
    assert all("You are trying to access a gated repo." in result["error"] for result in closed)
    assert opened["digest"] == first


# Downloads that break off --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "kind", "method", "seconds", "message"),
    [
        ("model.safetensors", "cut", "GET", 0, "org/act-vitb: model.safetensors could not be downloaded whole ("),
        *(
            pytest.param(*values, marks=pytest.mark.slow)
            for values in (
                ("model.safetensors", "truncated", "GET", 0, "downloaded whole (peer closed connection without"),
                ("model.safetensors", "short", "GET", 0, "Consistency check failed: file should be of size"),
                ("model.safetensors", "slow", "GET", 4, "downloaded whole (timed out); nothing of it was kept"),
                ("model.safetensors", "403", "", 0, "org/act-vitb does not appear to have a file named"),
                ("config.json", "truncated", "GET", 0, "Can't load the configuration of 'org/act-vitb'"),
                ("config.json", "404", "", 0, "couldn't find them in the cached files"),
                ("config.json", "401", "", 0, "Client error '401 Unauthorized'"),
                ("config.json", "500", "", 0, "couldn't find them in the cached files"),
            )
        ),
    ],
)
def test_a_download_that_breaks_off_leaves_nothing_that_loads(
    own_hub, folders, client, part, kind, method, seconds, message
):
    (folder, digest), _ = folders
    publish(folder, NAME)
    own_hub.fail(part, kind, method, seconds=seconds)
    steps = [("load", {}), ("cached", {}), ("load", {"offline": True}), ("mend", {}), ("load", {}), ("cached", {})]
    broken, cached, offline, loaded, complete = client(own_hub, steps)
    assert message in broken["error"] and {"OSError", "InputError"} & set(broken["kind"])
    assert part not in cached
    assert "error" in offline, "half a model was taken for a whole one"
    assert loaded["digest"] == digest
    assert complete[part] == (folder / part).stat().st_size


@pytest.mark.slow
def test_a_slow_hub_and_one_that_stumbles_once_still_serve(own_hub, folders, client):
    (folder, digest), _ = folders
    publish(folder, NAME)
    own_hub.fail("/resolve/", "slow", times=1000, seconds=0.3)
    own_hub.faults.insert(0, own_hub.faults[0].__class__("model.safetensors", "truncated", "GET", 1, 0))
    assert client(own_hub, [("load", {})])[0]["digest"] == digest


# Uploads that break off ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "kind", "times"),
    [
        ("/commit/main", "cut", 1000),
        ("/commit/main", "500", 1000),
        pytest.param("/large/", "cut", 1000, marks=pytest.mark.slow),  # the client tries for half a minute
        pytest.param("/large/", "500", 1000, marks=pytest.mark.slow),
    ],
)
def test_an_upload_that_breaks_off_leaves_no_half_commit(own_hub, folders, part, kind, times):
    (folder, _), _ = folders
    own_hub.fail(part, kind, times=times)
    with pytest.raises(InputError, match="the upload to org/act-vitb failed .*; the Hub ") as error:
        publish(folder, NAME)
    assert "\n" not in str(error.value)
    assert len(own_hub.commits[REPOSITORY]) == 1
    own_hub.faults.clear()
    publish(folder, NAME)
    _, commit = own_hub.commits[REPOSITORY]
    assert commit["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_an_upload_that_stumbles_once_goes_on(own_hub, folders):
    (folder, _), _ = folders
    own_hub.fail("/large/", "cut", times=1)
    publish(folder, NAME)
    assert len(own_hub.commits[REPOSITORY]) == 2
    assert sum(request.startswith("PUT /large/") for request in own_hub.requests) == 2


@pytest.mark.slow
def test_a_client_killed_while_it_uploads_leaves_no_half_commit(folders, tmp_path):
    (folder, _), _ = folders
    with LoopbackHub() as hub:
        hub.fail("/large/", "slow", seconds=3)
        command = [sys.executable, "model_cards/publish.py", str(folder), NAME]
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | hub.environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not any(request.startswith("PUT ") for request in hub.requests):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        hub.faults.clear()
        assert len(hub.commits[REPOSITORY]) == 1
        finished = subprocess.run(command, cwd=ROOT, env=os.environ | hub.environment, capture_output=True, text=True)
        assert f"published as {hub.url}/{NAME}/commit/{hub.sha(REPOSITORY)}" in finished.stdout, finished.stderr
        assert len(hub.commits[REPOSITORY]) == 2
