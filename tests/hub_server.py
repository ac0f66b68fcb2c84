"""Hubs for tests, on loopback only: olah, a real one over plain git repositories, and a small stub for the rest.

The stub takes uploads (what huggingface_hub's create_repo and create_commit call) and answers as a gated, forbidding,
broken or cut-off Hub does. Calls under test run in a child process, because huggingface_hub reads its environment when
it is imported.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CHILD_SECONDS = 90

_CHILD = """
import json, sys, time
time.sleep = lambda seconds: None  # huggingface_hub waits up to half a minute between its attempts
from refine_wrap import hub
from refine_wrap.errors import RefineWrapError
results = []
for name, args, options in json.load(sys.stdin):
    try:
        results.append({"value": str(getattr(hub, name)(*args, **options))})
    except RefineWrapError as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        results.append({"kinds": kinds, "text": str(error), "exit_code": error.exit_code})
sys.stdout.write("RESULT" + json.dumps(results))
"""


def call(name: str, *args: str, **options: Any) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    """A call of a function of refine_wrap.hub, for `call_hub`."""
    return name, args, options


def call_hub(endpoint: str, home: Path, calls: Sequence[Any], **env: str) -> list[dict[str, Any]]:
    """Make the calls one after the other in a fresh process: `{"value"}` or `{"kinds", "text", "exit_code"}` each."""
    clean = {
        key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()
    }
    clean |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    clean |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1", **env}
    done = subprocess.run(
        [sys.executable, "-c", _CHILD],
        input=json.dumps(list(calls)),
        env=clean,
        cwd=home.parent,
        capture_output=True,
        text=True,
        timeout=CHILD_SECONDS,
    )
    assert "RESULT" in done.stdout, done.stderr[-3000:]
    results: list[dict[str, Any]] = json.loads(done.stdout.split("RESULT")[1])
    return results


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class GitHub:
    """A folder of plain git repositories, `models/org/name`, as olah serves them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def commit(self, repo: str, files: Mapping[str, bytes], tag: str | None = None) -> str:
        place = self.root / "models" / repo
        place.mkdir(parents=True, exist_ok=True)
        if not (place / ".git").exists():
            self._git(place, "init", "-q", "-b", "main")
        for name, content in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
        self._git(place, "add", "-f", *files)
        self._git(place, "commit", "-q", "-m", "files")
        if tag:
            self._git(place, "tag", tag)
        return self._git(place, "rev-parse", "HEAD").strip()

    def _git(self, place: Path, *args: str) -> str:
        who = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"]
        env = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
        done = subprocess.run(
            ["git", *who, *args], cwd=place, env=env, check=True, capture_output=True, text=True, timeout=30
        )
        return done.stdout


class Olah(GitHub):
    """olah in a child process, offline, over the repositories of `GitHub`."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        root = self.root.as_posix()
        config = self.root / "olah.toml"
        config.write_text(
            f'[basic]\nhost = "127.0.0.1"\nport = {self.port}\nrepos-path = "{root}/repos"\nmirrors-path = ["{root}"]\n'
            "[accessibility]\noffline = true\n"
        )
        run = "from olah.server import cli; cli()"
        with open(self.root / "olah.log", "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", run, "--config", str(config), "--log-path", f"{root}/logs"],
                cwd=self.root,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 60
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError("olah does not start: " + (self.root / "olah.log").read_text()[-2000:])
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{self.endpoint}/api/models", timeout=5)
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)
            self._process = None


def why_no_olah() -> str | None:
    """Why olah cannot run here, None if it can."""
    import importlib.util

    if importlib.util.find_spec("olah") is None:
        return "needs olah, a local Hub server (pip install refine-wrap[test])"
    if shutil.which("git") is None:
        return "needs git, for the repositories of the local Hub"
    return None


class StubHub:
    """A Hub in a thread. Files by `files[repo][path]`; `moods[repo]` is how it misbehaves:

    `gated`, `forbidden` (HTTP 403), `unauthorised` (401), `ill` (500), `foreign` (200 without a Hub's headers),
    `cut` (the connection ends at half of the body), `short` (HEAD promises twice what GET has).
    Uploads are taken and recorded in `commits`, each as a mapping of path to bytes; `rights[org]` is an HTTP status to
    answer uploads of an organisation with instead.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.moods: dict[str, str] = {}
        self.rights: dict[str, int] = {}
        self.commits: list[dict[str, bytes]] = []
        self.requests: list[tuple[str, str]] = []
        self.created: list[dict[str, Any]] = []
        self.messages: list[str] = []
        self.tokens: set[str] = set()
        self.blobs: dict[str, bytes] = {}
        stub = self

        class Handler(_Handler):
            hub = stub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


class _Handler(BaseHTTPRequestHandler):
    hub: StubHub
    timeout = 20

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, status: int, value: Any, **headers: str) -> None:
        self._answer(status, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def _note(self) -> bytes:
        self.hub.requests.append((self.command, self.path))
        self.hub.tokens.add(self.headers.get("Authorization", ""))
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_HEAD(self) -> None:
        self._note()
        self._file()

    def do_GET(self) -> None:
        self._note()
        self._file()

    def _file(self) -> None:
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        repo = match.group(1) if match else ""
        if not match or repo not in self.hub.files:
            return self._json(401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        mood, body = self.hub.moods.get(repo), self.hub.files[repo].get(match.group(3))
        if mood == "gated":
            return self._json(403, {"error": "gated"}, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
        if mood in ("forbidden", "unauthorised", "ill"):
            return self._json({"forbidden": 403, "unauthorised": 401, "ill": 500}[mood], {"error": mood})
        if mood == "foreign":
            return self._answer(200, b"<html>a portal</html>")
        if body is None:
            return self._answer(404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found")
        facts = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X_Repo_Commit": "c" * 40}
        if self.command == "GET" and mood == "cut":
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return None
        if self.command == "GET" and mood == "short":
            body = body[: len(body) // 2]
        return self._answer(200, body, **facts)

    def do_PUT(self) -> None:
        body = self._note()
        self.hub.blobs[self.path.rsplit("/", 1)[-1]] = body
        self._answer(200)

    def do_POST(self) -> None:
        body = self._note()
        if self.path == "/api/repos/create":
            status = self.hub.rights.get(json.loads(body)["organization"])
            if status is not None:
                return self._json(status, {"error": "no"})
            self.hub.created.append(json.loads(body))
            name = f"{self.hub.created[-1]['organization']}/{self.hub.created[-1]['name']}"
            return self._json(200, {"url": f"{self.hub.endpoint}/{name}", "name": name})
        if self.path == "/api/validate-yaml":
            return self._json(200, {"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = [
                {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular"}
                for file in files
            ]
            return self._json(200, {"files": [{**mode, "shouldIgnore": False, "oid": None} for mode in modes]})
        if self.path.endswith("/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            actions = [
                {**item, "actions": {"upload": {"href": f"{self.hub.endpoint}/lfs/{item['oid']}"}}} for item in wanted
            ]
            return self._json(200, {"transfer": "basic", "objects": actions})
        if "/branch/" in self.path:
            return self._json(200, {})
        if "/commit/" in self.path:
            return self._commit(body)
        return self._json(500, {"error": self.path})

    def _commit(self, body: bytes) -> None:
        commit: dict[str, bytes] = {}
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                self.hub.messages.append(value["summary"])
            elif item["key"] == "file":
                commit[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                commit[value["path"]] = self.hub.blobs[value["oid"]]
        self.hub.commits.append(commit)
        repo = self.path.removeprefix("/api/models/").split("/commit/")[0]
        self._json(200, {"commitUrl": f"{self.hub.endpoint}/{repo}/commit/{'d' * 40}", "commitOid": "d" * 40})
