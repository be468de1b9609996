"""Against a stand-in of the Hub, which huggingface_hub itself talks to."""

import functools
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import tiny

from dream_jax.errors import UserError
from dream_jax.files import hub

FILES = {"model.safetensors": b"weights", "config.json": b"{}", "evil.py": b"print('run')"}
COMMIT = "c" * 40
PROGRAM = """
import sys
from dream_jax.files import hub
for address in sys.argv[1:]:
    try:
        folder = hub.fetch(address, ("model.safetensors", "config.json", "README.md"))
        print(address, {path.name: path.read_text() for path in sorted(folder.iterdir())})
    except hub.UserError as error:
        print(error)
"""


class Hub(BaseHTTPRequestHandler):
    """One repository, me/tiny, of one revision and its commit."""

    def do_GET(self):
        data = self._find(self.path.partition("?")[0])
        self.send_response(404 if data is None else 200)
        self.send_header("Content-Length", str(len(data or b"")))
        for name, value in self._facts(data).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.server.asked.append(self.path)
            self.wfile.write(data or b"")

    do_HEAD = do_GET

    def log_message(self, *_):
        pass

    def _facts(self, data):
        if data is None:
            return {"X-Error-Code": "RevisionNotFound" if "/me/tiny/" in self.path else "RepoNotFound"}
        return {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}

    def _find(self, path):
        if path in ("/api/models/me/tiny", *(f"/api/models/me/tiny/revision/{name}" for name in ("main", COMMIT))):
            files = [{"rfilename": name} for name in FILES]
            return json.dumps({"id": "me/tiny", "sha": COMMIT, "siblings": files}).encode()
        if path.startswith(f"/api/models/me/tiny/tree/{COMMIT}"):
            about = [{"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in FILES.items()]
            return json.dumps(about).encode()
        return FILES.get(path.removeprefix(f"/me/tiny/resolve/{COMMIT}/"))


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.asked = []
        threading.Thread(target=functools.partial(server.serve_forever, 0.05), daemon=True).start()
        yield server
        server.shutdown()


def fetch(home, port, *addresses, **variables):
    """What a program of its own prints: the client reads its settings when it is imported."""
    ours = {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, *addresses],
        cwd=tiny.ROOT, env=os.environ | ours | variables, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


def test_only_the_files_that_are_named_are_fetched_once(server, tmp_path):
    pytest.importorskip("huggingface_hub")
    held = "{'config.json': '{}', 'model.safetensors': 'weights'}"
    addresses = "hf://me/tiny", f"hf://me/tiny@{COMMIT}", "hf://me/none", "hf://me/tiny@v9"
    said = fetch(tmp_path, server.server_port, *addresses)
    assert said[:2] == [f"{address} {held}" for address in addresses[:2]]
    assert "no such repository" in said[2] and "no such revision" in said[3]
    assert not any("evil" in path for path in server.asked)
    assert len([path for path in server.asked if "/resolve/" in path]) == 2
    server.asked.clear()
    said = fetch(tmp_path, server.server_port, "hf://me/tiny", "hf://me/none", HF_HUB_OFFLINE="1")
    assert said[0] == f"hf://me/tiny {held}" and "hf://me/none: cannot be fetched (" in said[1]
    assert server.asked == []


@pytest.mark.parametrize(
    "address", ["hf://", "hf://a", "hf://a/b/c", "hf://a/b@", "hf://a/b@x y", "hf://../b/..", "hf://a/b\n"]
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(UserError, match="write hf://OWNER/NAME"):
        hub.fetch(address, ())


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="pip install huggingface_hub"):
        hub.fetch("hf://me/other", ())
