"""A Hub on this machine for the real client: `with LoopbackHub() as hub:` and `hub.environment` in a subprocess.

Repositories are in memory, as branches of commits, each a dict of files. Requests that are not implemented get a 404.
`hub.fail` breaks the requests that follow, and GET /mend repairs them.
"""

import base64
import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN, USER, ORGANIZATION = "hf_loopback", "someone", "org"
STRANGER = "hf_stranger"  # the token of a user who may read public repositories and write to none
API = r"/api/(models|datasets)/([^/]+/[^/]+)(?:/([^/]+)(?:/([^/]+)(?:/(.*))?)?)?"
LARGE = (".safetensors", ".parquet")  # uploaded before the commit, which names them by their SHA-256
RESOLVE = r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)"


@dataclass
class Fault:
    """A failure of the next `times` requests whose path contains `part`.

    `kind` is an HTTP status, or says how the body of a request (PUT, POST) or an answer (GET) fails. cut: the
    connection is reset after half of it. truncated: the second half is missing. short: the same, with a Content-Length
    of the half. slow: all of it comes, after `seconds`.
    """

    part: str
    kind: str = "500"
    method: str = ""  # any
    times: int = 1000
    seconds: float = 0


class LoopbackHub:
    """HTTP server with the state of every repository.

    `commits["models/org/name"]` lists the states of a repository, {path: content}, oldest first; `branches` and `tags`
    map names to indices of that list. `requests` lists "METHOD path" of every request.
    """

    def __init__(self):
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.branches: dict[str, dict[str, int]] = defaultdict(dict)
        self.tags: dict[str, dict[str, int]] = defaultdict(dict)
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.large: dict[str, bytes] = {}
        self.faults: list[Fault] = []
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

    def fail(self, part: str, *values, **named) -> None:
        """Add a `Fault`."""
        self.faults.append(Fault(part, *values, **named))

    def take_fault(self, method: str, path: str) -> Fault | None:
        """Return the first fault that applies to a request, and count it."""
        for fault in self.faults:
            if fault.times > 0 and fault.part in path and fault.method in ("", method):
                fault.times -= 1
                return fault
        return None

    def create(self, repository: str) -> None:
        self.commits[repository], self.branches[repository]["main"] = [{".gitattributes": b""}], 0

    def files(self, repository: str, revision: str = "main") -> dict[str, bytes]:
        return self.commits[repository][self.place(repository, revision)]

    def sha(self, repository: str, revision: str = "main") -> str:
        return _sha(repository, str(self.place(repository, revision)))

    def place(self, repository: str, revision: str) -> int | None:
        """Index of the commit that a branch, a tag or a SHA names; without branches, main is the last commit."""
        last = len(self.commits[repository]) - 1
        named = {"main": last} | self.branches[repository] | self.tags[repository]
        hashes = {_sha(repository, str(place)): place for place in range(last + 1)}
        return (named | hashes).get(revision)


def _sha(*parts: str) -> str:
    return hashlib.sha1("\n".join(parts).encode()).hexdigest()


def _blob(path: str, content: bytes) -> str:
    """Hash of a file as the client computes it."""
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
        length = int(self.headers.get("Content-Length") or 0)
        if path == "/mend":
            self.hub.faults.clear()
        self.fault = self.hub.take_fault(self.command, path)
        if self.fault and self.fault.kind == "slow":
            time.sleep(self.fault.seconds)
        elif self.fault and self.fault.kind.isdecimal():
            self.rfile.read(length)
            return self.answer({"error": "the server is out of order"}, int(self.fault.kind))
        elif self.fault and length:
            self.rfile.read(length // 2)
            return self.reset()
        self.route(path, query, self.rfile.read(length))

    do_HEAD = do_POST = do_PUT = do_GET

    def route(self, path: str, query: dict, body: bytes) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.owner, self.known = token == TOKEN, token in (TOKEN, STRANGER)
        if path == "/api/whoami-v2":
            who = {"type": "user", "name": USER, "orgs": [{"type": "org", "name": ORGANIZATION}] * self.owner}
            self.answer(who if self.known else {"error": "Invalid credentials"}, 200 if self.known else 401)
        elif path in ("/api/validate-yaml", "/mend"):
            self.answer({"errors": [], "warnings": []})
        elif self.command == "PUT":
            self.hub.large[path.removeprefix("/large/")] = body
            self.answer({})
        elif self.command == "POST" and "paths-info" not in path and not self.owner:
            self.answer({"error": "Forbidden" if self.known else "Invalid credentials"}, 403 if self.known else 401)
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for entry in objects:
                entry["actions"] = {"upload": {"href": f"{self.hub.url}/large/{entry['oid']}"}}
            self.answer({"transfer": "basic", "objects": objects})
        elif match := re.fullmatch(API, path):
            kind, name, action, revision, folder = match.groups()
            if self.may_read(f"{kind}/{name}"):
                self.answer_api(f"{kind}/{name}", action or "revision", revision or "main", folder or "", query, body)
        elif match := re.fullmatch(RESOLVE, path):
            dataset, name, revision, file = match.groups()
            repository = f"{'datasets' if dataset else 'models'}/{name}"
            if self.may_read(repository, file=True):
                self.answer_file(repository, revision, file)
        else:
            self.answer({"error": f"no such page: {path}"}, 404)

    def may_read(self, repository: str, file: bool = False) -> bool:
        """Check access, and answer as the Hub does if there is none: private repositories seem not to exist."""
        if repository not in self.hub.commits or (repository in self.hub.private and not self.owner):
            self.answer(
                {"error": "Repository not found"}, 404 if self.known else 401, {"X-Error-Code": "RepoNotFound"}
            )
            return False
        if file and repository in self.hub.gated and not self.owner:
            message = f"Access to {repository} is restricted. {'Ask for access' if self.known else 'Log in'}."
            headers = {"X-Error-Code": "GatedRepo", "X-Error-Message": message}
            self.answer({"error": message}, 403 if self.known else 401, headers)
            return False
        return True

    def create(self, wanted: dict) -> None:
        repository = f"{wanted.get('type') or 'model'}s/{wanted.get('organization') or USER}/{wanted['name']}"
        known = repository in self.hub.commits
        if not known:
            self.hub.create(repository)
            if wanted.get("visibility") == "private" or wanted.get("private"):
                self.hub.private.add(repository)
        self.answer({"url": f"{self.hub.url}/{repository.removeprefix('models/')}"}, 409 if known else 200)

    def answer_api(self, repository: str, action: str, revision: str, folder: str, query: dict, body: bytes) -> None:
        if action == "branch":
            branches = self.hub.branches[repository]
            status = 409 if revision in branches else 200
            branches.setdefault(revision, branches["main"])
            return self.answer({}, status)
        if self.hub.place(repository, revision) is None:
            return self.answer({"error": "no such revision"}, 404, {"X-Error-Code": "RevisionNotFound"})
        files, sha = self.hub.files(repository, revision), self.hub.sha(repository, revision)
        name = repository.partition("/")[2]
        if action == "revision":
            about = {"id": name, "sha": sha, "private": repository in self.hub.private, "tags": []}
            return self.answer(about | {"siblings": [{"rfilename": path} for path in sorted(files)]})
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
            entries = [{"path": path, "oid": known.get(path), "uploadMode": modes[path]} for path in paths]
            return self.answer({"files": [{"shouldIgnore": False, **entry} for entry in entries]})
        if action == "commit":
            self.hub.commits[repository].append(_changed(files, body, self.hub.large))
            self.hub.branches[repository][revision] = len(self.hub.commits[repository]) - 1
            sha = self.hub.sha(repository, revision)
            return self.answer({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}"})
        return self.answer({"error": f"no such action: {action}"}, 404)

    def answer_file(self, repository: str, revision: str, path: str) -> None:
        if self.hub.place(repository, revision) is None:
            return self.answer({"error": "no such revision"}, 404, {"X-Error-Code": "RevisionNotFound"})
        sha, content = self.hub.sha(repository, revision), self.hub.files(repository, revision).get(path)
        if content is None:
            missing = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha}
            return self.answer({"error": "Entry not found"}, 404, missing)
        headers = {"ETag": f'"{_blob(path, content)}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, stop = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{stop}/{len(content)}"
            return self.answer(content[start : stop + 1], 206, headers, start)
        return self.answer(content, 200, headers)

    def answer(
        self, content: bytes | dict | list, status: int = 200, headers: dict | None = None, start: int = 0
    ) -> None:
        """Send an answer, or half of it if a fault says so; `start` is the offset of the content in its file."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        kind = self.fault.kind if self.fault and self.command == "GET" else "whole"
        half = max(0, (start + len(body)) // 2 - start)
        sent = body[:half] if kind in ("cut", "truncated", "short") else body
        self.send_response(status)
        length = len(sent) if kind == "short" else len(body)
        for name, value in {"Content-Length": str(length), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(sent if self.command != "HEAD" else b"")
        except ConnectionError:  # the client did not wait for a slow answer
            self.close_connection = True
        if kind == "cut":
            self.reset()
        self.close_connection |= kind == "truncated"

    def reset(self) -> None:
        """Break off the connection, as a network does."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.rfile.close()
        self.connection.close()

    def log_message(self, *_) -> None:
        pass


def _entries(files: dict[str, bytes], folder: str, recursive: bool) -> list[dict]:
    """List a folder as the Hub does."""
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
    """Apply a commit, which comes as lines of JSON, to the files."""
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
