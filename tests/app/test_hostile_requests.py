"""What somebody can send who does not use the page's buttons. It runs in a process of its own, as a user has it."""

import http.server
import json
import threading
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from urllib.parse import quote

import pytest

SECRET = "root:"  # what /etc/passwd begins with


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
        defaults = {"coloring": "Shape", "category": "as classified", "z-up": False}
        given = defaults | (data or {})
        body = {
            "data": [given.get(self.names[place]) for place in event["inputs"]],
            "event_data": event_data,
            "fn_index": number,
            "session_hash": self.session,
            "trigger_id": self.ids[elem_id],
        }
        kind = {"Content-Type": "application/json"}
        status, told = fetch(f"{self.address}/gradio_api/queue/join", json.dumps(body).encode(), kind)
        if status != 200:
            return {"refused": status, "told": told}
        _, stream = fetch(f"{self.address}/gradio_api/queue/data?session_hash={self.session}")
        messages = [json.loads(line[5:]) for line in stream.splitlines() if line.startswith("data:")]
        done = next(message for message in messages if message["msg"] == "process_completed")
        if done["success"]:
            outputs = [self.names[place] for place in event["outputs"]]
            done["shown"] = dict(zip(outputs, done["output"]["data"], strict=True))
        return done


def file_data(path: str, **fields) -> dict:
    return {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "a.ply", **fields}


@pytest.fixture
def visitor(address):
    return Visitor(address)


def test_an_honest_upload_is_answered(visitor, address, cloud_file):
    status, told = upload(address, "cube.xyz", cloud_file.read_bytes())
    done = visitor.fire("upload", "upload", {"upload": file_data(json.loads(told)[0])})
    assert status == 200 and done["success"], done
    assert done["shown"]["viewer"]["clouds"][0]["name"] == "cube.xyz"
    assert done["shown"]["viewer"]["clouds"][0]["total"] == 600
    assert "&lt;b&gt;lamp&lt;/b&gt;" in done["shown"]["classes"] and "<b>lamp" not in done["shown"]["classes"]


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
    status, told = fetch(f"{address}/{route}{path}")
    assert status in (403, 404) and SECRET not in told and "def " not in told


@pytest.mark.parametrize("route", ["gradio_api/file=", "file=", "gradio_api/proxy=", "proxy="])
def test_the_server_fetches_no_address(address, route):
    assert fetch(f"{address}/{route}http://example.com/x.ply")[0] in (403, 404)
    assert fetch(f"{address}/{route}HTTP%3A%2F%2Fexample.com/x.ply")[0] in (403, 404)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../../../../etc/passwd", str(Path(__file__).resolve()), "", ".", "/"]
)
def test_a_forged_path_opens_nothing(visitor, path):
    done = visitor.fire("upload", "upload", {"upload": file_data(path)})
    told = json.dumps(done)
    assert SECRET not in told and "Traceback" not in told
    assert "refused" in done or not done["success"] or "clouds" not in (done["shown"]["viewer"] or {})


def test_a_forged_address_is_not_fetched(visitor):
    asked = []

    class Target(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

    server = http.server.HTTPServer(("127.0.0.1", 0), Target)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for address in (
        f"http://127.0.0.1:{server.server_port}/a.ply",
        "https://example.com/a.ply",
        "HTTP://example.com/a.ply",
    ):
        for fields in ({"path": address}, {"path": "a.ply", "url": address}):
            done = visitor.fire("upload", "upload", {"upload": file_data(**fields)})
            assert "refused" in done or not done["success"], done
    server.shutdown()
    assert asked == []


@pytest.mark.parametrize(
    "index", [-1, 10**12, 1.5, True, "0", None, [1], {"a": 1}, "../../etc/passwd", float("1e308")], ids=repr
)
def test_a_forged_click_changes_nothing(visitor, index):
    visitor.fire("samples", "select", event_data={"index": 1})
    for elem_id in ("viewer", "hits"):
        done = visitor.fire(elem_id, "select", event_data={"index": index})
        assert done["success"] and "clouds" not in (done["shown"]["viewer"] or {}), done
    done = visitor.fire("viewer", "select", event_data={"index": 5})
    assert done["shown"]["viewer"]["clouds"][0]["picked"] == 5 and done["shown"]["coloring"] == "Similarity"


@pytest.mark.parametrize("coloring", ["Nothing", None, 3, ["Shape"]])
def test_a_forged_choice_changes_nothing(visitor, coloring):
    visitor.fire("samples", "select", event_data={"index": 1})
    done = visitor.fire("coloring", "input", {"coloring": coloring})
    assert not done["success"] or "clouds" not in (done["shown"]["viewer"] or {}), done


def test_events_without_a_cloud_change_nothing(visitor):
    for elem_id, kind in (("viewer", "select"), ("hits", "select"), ("coloring", "input")):
        done = visitor.fire(elem_id, kind, event_data={"index": 0})
        assert done["success"] and "clouds" not in (done["shown"]["viewer"] or {})


def test_a_giant_upload_is_refused(address):
    status, _ = upload(address, "giant.xyz", bytes(21 * 2**20))
    assert status == 413


@pytest.mark.parametrize(
    "name", ["../../../x.xyz", "/etc/x.xyz", "<img src=x onerror=alert(1)>.xyz", "a\\..\\x.xyz", "%2e%2e%2fx.xyz"]
)
def test_a_hostile_name_stays_in_its_place(visitor, address, cloud_file, name):
    status, told = upload(address, name, cloud_file.read_bytes())
    assert status == 200, told
    path = Path(json.loads(told)[0])
    assert path.resolve() == path and path.parent.parent.name == "uploads" and path.is_file()
    done = visitor.fire("upload", "upload", {"upload": file_data(str(path), orig_name=name)})
    assert done["success"] and done["shown"]["viewer"]["clouds"][0]["total"] == 600


def test_a_broken_file_is_named_as_text(visitor, address):
    _, told = upload(address, "<b>broken</b>&.ply", b"ply\nnothing")
    done = visitor.fire("upload", "upload", {"upload": file_data(json.loads(told)[0])})
    line = done["shown"]["message"]["value"]
    assert done["success"] and line.startswith('<div class="message bad"') and "<b>" not in line and ".ply: " in line
    assert "uploads" not in line and "\n" not in line


def test_what_the_page_tells_about_its_server(address):
    """No folder of the machine, beyond the names of models that the flags gave."""
    status, told = fetch(f"{address}/config")
    assert status == 200 and str(Path.home()) not in told and "app/samples" not in told
    assert json.loads(fetch(f"{address}/gradio_api/info")[1])["named_endpoints"] == {}
    assert fetch(f"{address}/monitoring")[0] in (403, 404)
    assert quote("models") not in told or "/models" not in told
