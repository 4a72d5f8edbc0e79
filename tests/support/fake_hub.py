"""A stand-in for the Hugging Face hub on a loopback socket: the part of its HTTP API that a push uses.

What huggingface_hub 2.4 calls, in order: create the repository, validate the card's metadata, ask how each
file is to be sent (``preupload``), the Git LFS batch API for the large ones, a PUT of each, its verification,
and one commit as lines of JSON.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_" + "a" * 34
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """The server; use as a context manager.

    Attributes
    ----------
    answers : dict of (str, int)
        Path → status to answer with instead, with a reason as the hub sends one.
    repositories : dict of str to bool
        Name → whether it is private.
    files : dict of str to bytes
        What the commits put into the repository.
    commits : list of str
        Their first lines.
    requests : list of str
        Method and path of everything that was asked.
    """

    answers: dict[str, int] = field(default_factory=dict)
    repositories: dict[str, bool] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    large: dict[str, bytes] = field(default_factory=dict)

    def __enter__(self) -> FakeHub:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_POST(self) -> None:
                self._answer(hub._post)

            def do_PUT(self) -> None:
                self._answer(hub._put)

            def do_GET(self) -> None:
                self._answer(hub._get)

            def _answer(self, how: Any) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                hub.requests.append(f"{self.command} {self.path}")
                if self.command == "GET" and hub._repository(self.path) not in hub.repositories:
                    hub.answers.setdefault(self.path, 404)
                authorized = self.headers.get("authorization") == f"Bearer {TOKEN}"
                status = hub.answers.get(self.path, 200)
                if status == 200 and not authorized and not self.path.startswith("/storage/"):
                    status = 401
                reply = how(self.path, body) if status == 200 else hub._refusal(status, body)
                raw = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _refusal(self, status: int, body: bytes) -> Any:
        said: dict[str, str] = {"error": f"because of {status}"}
        if status == 409:  # the hub says where the repository is that exists already
            asked = json.loads(body)
            said["url"] = f"{self.url}/{asked['organization']}/{asked['name']}"
        return said

    def _post(self, path: str, body: bytes) -> Any:
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.repositories[name] = asked.get("visibility") == "private" or bool(asked.get("private"))
            return {"url": f"{self.url}/{name}"}
        if path == "/api/validate-yaml":
            return {"warnings": [], "errors": []}
        if "/preupload/" in path:
            modes = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(body)["files"]
            ]
            return {"files": modes}
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {
                    **one,
                    "actions": {
                        "upload": {"href": f"{self.url}/storage/{one['oid']}", "header": {}},
                        "verify": {"href": f"{self.url}/verify", "header": {}},
                    },
                }
                for one in json.loads(body)["objects"]
            ]
            return {"transfer": "basic", "objects": objects}
        if path == "/verify":
            asked = json.loads(body)
            assert len(self.large[asked["oid"]]) == asked["size"]
            return {}
        if "/commit/" in path:
            return self._commit(path, [json.loads(line) for line in body.splitlines()])
        raise AssertionError(f"the hub has no POST {path}")

    def _commit(self, path: str, lines: list[dict[str, Any]]) -> Any:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.commits.append(value["summary"])
            elif line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[value["path"]] = self.large[value["oid"]]
            else:
                raise AssertionError(f"the hub knows no {line['key']}")
        name = path.removeprefix("/api/models/").partition("/commit/")[0]
        return {"commitUrl": f"{self.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT}

    def _put(self, path: str, body: bytes) -> Any:
        oid = path.rpartition("/")[2]
        assert hashlib.sha256(body).hexdigest() == oid, "the bytes are not those of the checksum"
        self.large[oid] = body
        return {}

    def _get(self, path: str, _body: bytes) -> Any:
        return {"id": self._repository(path)}

    @staticmethod
    def _repository(path: str) -> str:
        return path.removeprefix("/api/models/")
