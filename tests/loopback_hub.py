"""A Hub on this machine for the real client: `with LoopbackHub() as hub:` and `hub.environment` in a subprocess.

Repositories live in memory, a dict of files a commit. Whatever the client asks that is not here is answered with 404.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN, USER, ORGANIZATION = "hf_loopback", "someone", "org"
API = r"/api/(models|datasets)/([^/]+/[^/]+)"
LARGE = (".safetensors", ".parquet")  # uploaded beside the commit, which names them by their SHA-256
RESOLVE = r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)"


class LoopbackHub:
    """`commits["models/org/name"]` are the states of a repository, oldest first: {path: content}.

    Requests whose path holds one of `broken` are answered with 500; `requests` are "METHOD path" in order.
    """

    def __init__(self):
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.large: dict[str, bytes] = {}
        self.broken: set[str] = set()
        self.requests: list[str] = []

    def __enter__(self) -> "LoopbackHub":
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        return {
            "HF_ENDPOINT": self.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }  # fmt: skip

    def files(self, repository: str) -> dict[str, bytes]:
        return self.commits[repository][-1]


def _sha(*parts: str) -> str:
    return hashlib.sha1("\n".join(parts).encode()).hexdigest()


def _blob(path: str, content: bytes) -> str:
    """What the client calls a file of this content."""
    if path.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        address = urlsplit(self.path)
        path, query = unquote(address.path), parse_qs(address.query)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if any(part in path for part in self.hub.broken):
            self.answer({"error": "the server is out of order"}, 500)
        elif path == "/api/whoami-v2":
            who = {"type": "user", "name": USER, "orgs": [{"type": "org", "name": ORGANIZATION}]}
            self.answer(who if allowed else {"error": "Invalid credentials"}, 200 if allowed else 401)
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif self.command == "PUT":
            self.hub.large[path.removeprefix("/large/")] = body
            self.answer({})
        elif self.command == "POST" and "paths-info" not in path and not allowed:
            self.answer({"error": "Invalid credentials"}, 401)
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for entry in objects:
                entry["actions"] = {"upload": {"href": f"{self.hub.url}/large/{entry['oid']}"}}
            self.answer({"transfer": "basic", "objects": objects})
        elif match := re.fullmatch(API + "(?:/([^/]+)/([^/]+)(?:/(.*))?)?", path):
            kind, name, action, _, folder = match.groups()
            self.answer_api(f"{kind}/{name}", action or "revision", folder or "", query, body)
        elif match := re.fullmatch(RESOLVE, path):
            dataset, name, _, file = match.groups()
            self.answer_file(f"{'datasets' if dataset else 'models'}/{name}", file)
        else:
            self.answer({"error": f"no such page: {path}"}, 404)

    do_HEAD = do_POST = do_PUT = do_GET

    def create(self, wanted: dict) -> None:
        repository = f"{wanted.get('type') or 'model'}s/{wanted.get('organization') or USER}/{wanted['name']}"
        known = repository in self.hub.commits
        self.hub.commits.setdefault(repository, [{".gitattributes": b""}])
        self.answer({"url": f"{self.hub.url}/{repository.removeprefix('models/')}"}, 409 if known else 200)

    def answer_api(self, repository: str, action: str, folder: str, query: dict, body: bytes) -> None:
        if repository not in self.hub.commits:
            return self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        files, sha = self.hub.files(repository), _sha(repository, str(len(self.hub.commits[repository])))
        name = repository.partition("/")[2]
        if action == "revision":
            siblings = [{"rfilename": path} for path in sorted(files)]
            return self.answer({"id": name, "sha": sha, "private": False, "tags": [], "siblings": siblings})
        if action == "tree":
            inside = {path: content for path, content in files.items() if path.startswith(folder and f"{folder}/")}
            if not inside:
                return self.answer({"error": "no such folder"}, 404, {"X-Error-Code": "EntryNotFound"})
            return self.answer(_entries(inside, folder, query.get("recursive") == ["true"]))
        if action == "paths-info":
            wanted = parse_qs(body.decode()).get("paths", [])
            return self.answer([entry for entry in _entries(files, "", True) if entry["path"] in wanted])
        if action == "preupload":
            known = {path: _blob(path, content) for path, content in files.items()}
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = {path: "lfs" if path.endswith(LARGE) else "regular" for path in paths}
            told = [{"path": path, "oid": known.get(path), "uploadMode": modes[path]} for path in paths]
            return self.answer({"files": [{"shouldIgnore": False, **file} for file in told]})
        if action == "commit":
            self.hub.commits[repository].append(_changed(files, body, self.hub.large))
            sha = _sha(repository, str(len(self.hub.commits[repository])))
            return self.answer({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}"})
        return self.answer({"error": f"no such action: {action}"}, 404)

    def answer_file(self, repository: str, path: str) -> None:
        if repository not in self.hub.commits:
            return self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        sha = _sha(repository, str(len(self.hub.commits[repository])))
        content = self.hub.files(repository).get(path)
        if content is None:
            missing = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha}
            return self.answer({"error": "Entry not found"}, 404, missing)
        headers = {"ETag": f'"{_blob(path, content)}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, stop = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{stop}/{len(content)}"
            return self.answer(content[start : stop + 1], 206, headers)
        return self.answer(content, 200, headers)

    def answer(self, content: bytes | dict | list, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


def _entries(files: dict[str, bytes], folder: str, recursive: bool) -> list[dict]:
    """The Hub's listing of a folder."""
    entries, skipped = {}, len(folder) + 1 if folder else 0
    for path, content in sorted(files.items()):
        *parents, _ = path[skipped:].split("/")
        if recursive or not parents:
            entries[path] = {"type": "file", "path": path, "size": len(content), "oid": _blob(path, content)}
        for depth in range(len(parents) if recursive else min(1, len(parents))):
            parent = path[:skipped] + "/".join(parents[: depth + 1])
            entries[parent] = {"type": "directory", "path": parent, "size": 0, "oid": _sha(parent)}
    return list(entries.values())


def _changed(files: dict[str, bytes], body: bytes, large: dict[str, bytes]) -> dict[str, bytes]:
    """The files after a commit, given as lines of JSON."""
    files = dict(files)
    for line in map(json.loads, body.splitlines()):
        value = line["value"]
        if line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            files[value["path"]] = large[value["oid"]]
        elif line["key"] == "deletedFile":
            del files[value["path"]]
        elif line["key"] != "header":
            raise NotImplementedError(line["key"])
    return files
