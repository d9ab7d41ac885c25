"""A Hub on this machine for the real client: `with LoopbackHub() as hub:` and `hub.environment` in a subprocess.

Repositories live in memory: branches of commits, a dict of files each. Whatever the client asks that is not here is
answered with 404; `hub.fail` makes it answer badly, and a GET of /mend well again.
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
STRANGER = "hf_stranger"  # the token of a user who may write nowhere, and read what is public
API = r"/api/(models|datasets)/([^/]+/[^/]+)(?:/([^/]+)(?:/([^/]+)(?:/(.*))?)?)?"
LARGE = (".safetensors", ".parquet")  # uploaded beside the commit, which names them by their SHA-256
RESOLVE = r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)"


@dataclass
class Fault:
    """`kind` is a status, or what happens to the body of a request (PUT, POST) or of an answer (GET):

    cut: half of it, and the connection is reset. truncated: nothing past half of the file, after a Content-Length of
    the whole. short: the same, with a Content-Length of that. slow: whole, after so many `seconds`.
    """

    part: str  # of the path
    kind: str
    method: str
    times: int
    seconds: float


class LoopbackHub:
    """`commits["models/org/name"]` are the states of a repository, oldest first: {path: content}; `branches` and
    `tags` name some of them by their place. `private` and `gated` are repositories that not everyone may read.

    `requests` are "METHOD path" in order.
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

    def fail(self, part: str, kind: str = "500", method: str = "", times: int = 1000, seconds: float = 0) -> None:
        """The next `times` requests whose path holds `part` go wrong."""
        self.faults.append(Fault(part, kind, method, times, seconds))

    def fault_of(self, method: str, path: str) -> Fault | None:
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
        """Of a branch, a tag or a commit; a repository without branches has its last commit on main."""
        last = len(self.commits[repository]) - 1
        named = {"main": last} | self.branches[repository] | self.tags[repository]
        hashes = {_sha(repository, str(place)): place for place in range(last + 1)}
        return (named | hashes).get(revision)


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
        length = int(self.headers.get("Content-Length") or 0)
        if path == "/mend":
            self.hub.faults.clear()
        self.fault = self.hub.fault_of(self.command, path)
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
        """Answers as the Hub does where not: a private repository is not there, of a gated one the files are kept."""
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
        if action == "refs":
            return self.answer_references(repository)
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
            told = [{"path": path, "oid": known.get(path), "uploadMode": modes[path]} for path in paths]
            return self.answer({"files": [{"shouldIgnore": False, **file} for file in told]})
        if action == "commit":
            self.hub.commits[repository].append(_changed(files, body, self.hub.large))
            self.hub.branches[repository][revision] = len(self.hub.commits[repository]) - 1
            sha = self.hub.sha(repository, revision)
            return self.answer({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}"})
        return self.answer({"error": f"no such action: {action}"}, 404)

    def answer_references(self, repository: str) -> None:
        found = {}
        for kind, named in (("branches", self.hub.branches), ("tags", self.hub.tags)):
            found[kind] = [
                {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": self.hub.sha(repository, name)}
                for name in named[repository]
            ]
        self.answer(found | {"converts": []})

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
        """`start` is where in its file the content begins."""
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
        """Breaks the connection off, as a network does."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.rfile.close()
        self.connection.close()

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
