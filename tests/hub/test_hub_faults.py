"""Publishing to a Hub and loading from it, where the Hub fails on the way: no half model, and a second try succeeds.

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
# Does its steps in order, and prints a line of JSON for each: the digest of the loaded model, an error, the cache.
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
        return {"error": str(error)}
    tensors = sorted(model.state_dict().items())
    digest = hashlib.sha256(b"".join(value.numpy().tobytes() for _, value in tensors)).hexdigest()
    return {"digest": digest, "module": type(model).__module__}

for step, options in steps:
    if step == "load":
        print(json.dumps(load(**options)))
    elif step == "mend":
        urllib.request.urlopen(os.environ["HF_ENDPOINT"] + "/mend").read()
    elif step == "cached":
        print(json.dumps([path.name for path in Path(os.environ["HF_HOME"]).rglob("snapshots/*/*")]))
"""


def digest_of(model) -> str:
    values = [value.numpy().tobytes() for _, value in sorted(model.state_dict().items())]
    return hashlib.sha256(b"".join(values)).hexdigest()


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    """Folders of two students with different weights, and the digests of their weights."""
    saved = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        folder = tmp_path_factory.mktemp("runs") / "student"
        model_class, config, _ = small_models()["student"]
        model = model_class(config)
        model.save_pretrained(folder)
        ACTPointCloudProcessor(num_points=64).save_pretrained(folder)
        (folder / "README.md").write_text(CARD)
        saved.append((folder, digest_of(model)))
    return saved


@pytest.fixture
def client(run_python, tmp_path):
    """Runs steps in a process with this test's cache and returns what they printed."""

    def run(hub, steps, package="with", **environment):
        own = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_DOWNLOAD_TIMEOUT": "2"}
        environment = hub.environment | own | environment
        process = run_python("-c", CLIENT, package, json.dumps(steps), environment=environment, cwd=tmp_path)
        return [json.loads(line) for line in process.stdout.splitlines() if line.startswith(("{", "["))]

    return run


# There and back ------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_versions(own_hub, students):
    """The first student on main, tagged v1, and the second on the branch v2."""
    (first, _), (second, _) = students
    publish(first, NAME)
    publish(second, NAME, revision="v2")
    own_hub.tags[REPOSITORY]["v1"] = own_hub.branches[REPOSITORY]["main"]
    return own_hub


def test_a_branch_a_tag_and_a_commit_load(two_versions, students, client):
    hub, ((_, first), (_, second)) = two_versions, students
    loads = [{}, {"revision": "v2"}, {"revision": "v1"}, {"revision": hub.sha(REPOSITORY, "v2")}, {"revision": "v9"}]
    *loaded, unknown = client(hub, [("load", options) for options in loads])
    assert [result["digest"] for result in loaded] == [first, second, first, second]
    assert {result["module"] for result in loaded} == {"modeling_act.modeling_act_student"}
    assert "v9 is not a valid git identifier" in unknown["error"]


@pytest.mark.slow
def test_without_the_package_and_then_without_the_hub(two_versions, students, client):
    hub, ((_, first), (_, second)) = two_versions, students
    remote = [("load", {"trust_remote_code": True}), ("load", {"trust_remote_code": True, "revision": "v2"})]
    refused, *loaded = client(hub, [("load", {"trust_remote_code": False}), *remote], "without")
    assert "trust_remote_code=True" in refused["error"]
    assert [result["digest"] for result in loaded] == [first, second]
    assert all(result["module"].startswith("transformers_modules.org.act") for result in loaded)
    hub.server.shutdown()
    asked = len(hub.requests)
    assert client(hub, remote, "without", HF_HUB_OFFLINE="1") == loaded
    again = client(hub, [("load", {}), ("load", {"revision": "v1"})], HF_HUB_OFFLINE="1")
    assert again[0]["digest"] == first and "couldn't find them in the cached files" in again[1]["error"]
    assert len(hub.requests) == asked


@pytest.mark.slow
@pytest.mark.parametrize(
    ("restriction", "message"),
    [
        ("private", "is not a local folder and is not a valid model identifier"),
        ("gated", "You are trying to access a gated repo."),
    ],
)
def test_a_private_or_gated_model_opens_to_those_who_may(two_versions, students, client, restriction, message):
    getattr(two_versions, restriction).add(REPOSITORY)
    *closed, opened = client(two_versions, [("load", {"token": token}) for token in (STRANGER, False, None)])
    assert all(message in result["error"] for result in closed)
    assert opened["digest"] == students[0][1]


# Downloads that break off --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ("model.safetensors", "cut"),
        *(
            pytest.param(part, kind, marks=pytest.mark.slow)
            for part, kind in (
                ("model.safetensors", "truncated"),
                ("model.safetensors", "short"),
                ("model.safetensors", "slow"),
                ("model.safetensors", "403"),
                ("config.json", "truncated"),
                ("config.json", "500"),
            )
        ),
    ],
)
def test_a_download_that_breaks_off_leaves_nothing_that_loads(own_hub, students, client, part, kind):
    folder, digest = students[0]
    publish(folder, NAME)
    own_hub.fail(part, kind, method="" if kind.isdecimal() else "GET", seconds=4)
    steps = [("load", {}), ("cached", {}), ("load", {"offline": True}), ("mend", {}), ("load", {}), ("cached", {})]
    broken, cached, offline, loaded, complete = client(own_hub, steps)
    assert "error" in broken and "error" in offline, "half a model was taken for a whole one"
    assert part not in cached and part in complete
    assert loaded["digest"] == digest


@pytest.mark.slow
def test_a_slow_hub_and_one_that_stumbles_once_still_serve(own_hub, students, client):
    folder, digest = students[0]
    publish(folder, NAME)
    own_hub.fail("model.safetensors", "truncated", method="GET", times=1)
    own_hub.fail("/resolve/", "slow", seconds=0.3)
    assert client(own_hub, [("load", {})])[0]["digest"] == digest


# Uploads that break off ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ("/commit/main", "cut"),
        ("/commit/main", "500"),
        pytest.param("/large/", "cut", marks=pytest.mark.slow),  # the client tries for half a minute
        pytest.param("/large/", "500", marks=pytest.mark.slow),
    ],
)
def test_an_upload_that_breaks_off_leaves_no_half_commit(own_hub, students, part, kind):
    folder, _ = students[0]
    own_hub.fail(part, kind)
    with pytest.raises(InputError, match="the upload to org/act-vitb failed .*; the Hub is out of reach") as error:
        publish(folder, NAME)
    assert "\n" not in str(error.value)
    assert len(own_hub.commits[REPOSITORY]) == 1
    own_hub.faults.clear()
    publish(folder, NAME)
    _, commit = own_hub.commits[REPOSITORY]
    assert commit["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_an_upload_that_stumbles_once_goes_on(own_hub, students):
    own_hub.fail("/large/", "cut", times=1)
    publish(students[0][0], NAME)
    assert len(own_hub.commits[REPOSITORY]) == 2
    assert sum(request.startswith("PUT /large/") for request in own_hub.requests) == 2


@pytest.mark.slow
def test_a_client_killed_while_it_uploads_leaves_no_half_commit(students, tmp_path):
    with LoopbackHub() as hub:
        hub.fail("/large/", "slow", seconds=3)
        command = [sys.executable, "model_cards/publish.py", str(students[0][0]), NAME]
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
