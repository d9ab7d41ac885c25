"""Requests that no button of the page sends."""

import http.server
import json
import threading
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from urllib.parse import quote

import pytest
from app_server import CLASSES

SECRET = "root:"  # the beginning of /etc/passwd


def fetch(address: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, str]:
    request = urllib.request.Request(address, body, headers or {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")


def upload(address: str, name: str, content: bytes) -> tuple[int, str]:
    boundary = uuid.uuid4().hex
    body = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    body += content + f"\r\n--{boundary}--\r\n".encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    return fetch(f"{address}/gradio_api/upload", body, kind)


class Visitor:
    """Fires the page's events as its script does."""

    def __init__(self, address: str):
        self.address, self.session = address, uuid.uuid4().hex
        config = json.loads(fetch(f"{address}/config")[1])
        self.ids = {block["props"].get("elem_id"): block["id"] for block in config["components"]}
        self.events = {}
        for number, event in enumerate(config["dependencies"]):
            for target, kind in event["targets"]:
                self.events.setdefault((target, kind), (event.get("id", number), event))
        self.names = {block["id"]: block["props"].get("elem_id") for block in config["components"]}

    def fire(self, elem_id: str, kind: str, data: dict | None = None, event_data=None) -> dict:
        """The last message of the event; outputs by the elem_id of their component."""
        number, event = self.events[self.ids[elem_id], kind]
        defaults = {"coloring": "Shape", "category": "chair", "z-up": False}
        values = defaults | (data or {})
        body = {
            "data": [values.get(self.names[place]) for place in event["inputs"]],
            "event_data": event_data,
            "fn_index": number,
            "session_hash": self.session,
            "trigger_id": self.ids[elem_id],
        }
        kind = {"Content-Type": "application/json"}
        status, text = fetch(f"{self.address}/gradio_api/queue/join", json.dumps(body).encode(), kind)
        if status != 200:
            return {"refused": status, "text": text}
        _, stream = fetch(f"{self.address}/gradio_api/queue/data?session_hash={self.session}")
        messages = [json.loads(line[5:]) for line in stream.splitlines() if line.startswith("data:")]
        done = next(message for message in messages if message["msg"] == "process_completed")
        if done["success"]:
            names = [self.names[place] for place in event["outputs"]]
            done["outputs"] = dict(zip(names, done["output"]["data"], strict=True))
        return done


def file_data(path: str, **fields) -> dict:
    return {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "a.ply", **fields}


@pytest.fixture
def visitor(address):
    return Visitor(address)


def test_an_honest_upload_is_answered(visitor, address, cloud_file):
    status, text = upload(address, "cube.xyz", cloud_file.read_bytes())
    done = visitor.fire("upload", "upload", {"upload": file_data(json.loads(text)[0])})
    assert status == 200 and done["success"], done
    assert done["outputs"]["viewer"]["clouds"][0]["name"] == "cube.xyz"
    assert done["outputs"]["viewer"]["clouds"][0]["total"] == 600
    assert {row["label"] for row in done["outputs"]["classes"]["confidences"]} == set(CLASSES)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd", "../../../../../../etc/passwd", "..%2f..%2f..%2f..%2fetc%2fpasswd", "%2fetc%2fpasswd",
        "app/app.py",
        f"{Path(__file__).resolve()}", "README.md", "C:/windows/win.ini", "//etc/passwd", "file:///etc/passwd",
    ],
)  # fmt: skip
@pytest.mark.parametrize("route", ["gradio_api/file=", "file=", "static/", "assets/", "gradio_api/file/"])
def test_no_file_is_served(address, route, path):
    status, text = fetch(f"{address}/{route}{path}")
    assert status in (403, 404) and SECRET not in text and "def " not in text


@pytest.fixture
def target():
    """Address of a server on this machine, and the paths that it was asked for."""
    requests = []

    class Target(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_error(404)  # as the page answers, so that only `requests` tell them apart

        do_HEAD = do_GET

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Target) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}/a.ply", requests
        server.shutdown()


@pytest.mark.parametrize("scheme", ["http://", "HTTP://", "http%3A%2F%2F"])
@pytest.mark.parametrize("route", ["gradio_api/file=", "file=", "gradio_api/proxy=", "proxy="])
def test_the_server_fetches_no_address(address, target, route, scheme):
    place, requests = target
    fetch(f"{address}/{route}{scheme}{place}")
    assert requests == []
    fetch(f"http://{place}")
    assert requests == ["/a.ply"]  # it can be asked


@pytest.mark.parametrize("scheme", ["http://", "HTTP://"])
@pytest.mark.parametrize("fields", [{"path": "{}"}, {"path": "a.ply", "url": "{}"}], ids=["path", "url"])
def test_a_forged_address_is_not_fetched(visitor, target, fields, scheme):
    place, requests = target
    forged = {name: value.format(scheme + place) for name, value in fields.items()}
    done = visitor.fire("upload", "upload", {"upload": file_data(**forged)})
    assert "refused" in done or not done["success"], done
    assert requests == []


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../../../../etc/passwd", str(Path(__file__).resolve()), "", ".", "/"]
)
def test_a_forged_path_opens_nothing(visitor, path):
    done = visitor.fire("upload", "upload", {"upload": file_data(path)})
    text = json.dumps(done)
    assert SECRET not in text and "Traceback" not in text
    assert "refused" in done or not done["success"] or "clouds" not in (done["outputs"]["viewer"] or {})


@pytest.mark.parametrize(
    "index", [-1, 10**12, 1.5, True, "0", None, [1], {"a": 1}, "../../etc/passwd", float("1e308")], ids=repr
)
def test_a_forged_click_changes_nothing(visitor, index):
    visitor.fire("samples", "select", event_data={"index": 1})
    for elem_id in ("viewer", "hits"):
        done = visitor.fire(elem_id, "select", event_data={"index": index})
        assert done["success"] and "clouds" not in (done["outputs"]["viewer"] or {}), done
    done = visitor.fire("viewer", "select", event_data={"index": 5})
    assert done["outputs"]["viewer"]["clouds"][0]["picked"] == 5 and done["outputs"]["coloring"] == "Similarity"


@pytest.mark.parametrize("coloring", ["Nothing", None, 3, ["Shape"]])
def test_a_forged_choice_changes_nothing(visitor, coloring):
    visitor.fire("samples", "select", event_data={"index": 1})
    done = visitor.fire("coloring", "input", {"coloring": coloring})
    assert not done["success"] or "clouds" not in (done["outputs"]["viewer"] or {}), done


def test_events_without_a_cloud_change_nothing(visitor):
    for elem_id, kind in (("viewer", "select"), ("hits", "select"), ("coloring", "input")):
        done = visitor.fire(elem_id, kind, event_data={"index": 0})
        assert done["success"] and "clouds" not in (done["outputs"]["viewer"] or {})


def test_a_giant_upload_is_refused(address):
    status, _ = upload(address, "giant.xyz", bytes(21 * 2**20))
    assert status == 413


@pytest.mark.parametrize(
    "name", ["../../../x.xyz", "/etc/x.xyz", "<img src=x onerror=alert(1)>.xyz", "a\\..\\x.xyz", "%2e%2e%2fx.xyz"]
)
def test_a_hostile_name_stays_in_its_place(visitor, address, cloud_file, name):
    status, text = upload(address, name, cloud_file.read_bytes())
    assert status == 200, text
    path = Path(json.loads(text)[0])
    assert path.resolve() == path and path.parent.parent.name == "uploads" and path.is_file()
    done = visitor.fire("upload", "upload", {"upload": file_data(str(path), orig_name=name)})
    assert done["success"] and done["outputs"]["viewer"]["clouds"][0]["total"] == 600


def test_a_broken_file_is_named_as_text(visitor, address):
    _, text = upload(address, "<b>broken</b>&.ply", b"ply\nnothing")
    done = visitor.fire("upload", "upload", {"upload": file_data(json.loads(text)[0])})
    line = done["outputs"]["message"]["value"]
    assert done["success"] and line.startswith('<div class="message bad"') and "<b>" not in line
    assert ".ply:</span> " in line
    assert "uploads" not in line and "\n" not in line


def test_the_page_names_no_folder_of_the_machine(address):
    status, text = fetch(f"{address}/config")
    assert status == 200 and str(Path.home()) not in text and "app/samples" not in text
    assert json.loads(fetch(f"{address}/gradio_api/info")[1])["named_endpoints"] == {}
    assert fetch(f"{address}/monitoring")[0] in (403, 404)
    assert quote("models") not in text or "/models" not in text
