"""The engine as it is measured: logging on, tokens checked, one core."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jose import jwt

from bench import models
from bench.peers import ask
from tests.inference.instance import Instance

ARROW = "application/vnd.apache.arrow.file"
ISSUER = "http://bench/auth/realms/master"


class Tokens:
    """A signer, and the access document that knows it, published over HTTP as the control plane does."""

    def __init__(self, folder: Path) -> None:
        key = rsa.generate_private_key(65537, 2048)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()
        numbers = key.public_key().public_numbers()
        public = {"kty": "RSA", "kid": "bench", "alg": "RS256", "n": _b64(numbers.n), "e": _b64(numbers.e)}
        raw = json.dumps({"issuers": [ISSUER], "keys": [public], "users": ["ann"]}).encode()
        claims = {"iss": ISSUER, "sub": "ann", "exp": int(time.time()) + 86_400, "iat": int(time.time()), "sid": "s"}
        self.token = jwt.encode(claims, pem, "RS256", headers={"kid": "bench"})

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        (folder / "token").write_text("bench")
        self.settings = {
            "url": f"http://127.0.0.1:{self._server.server_port}/access",
            "token_file": str(folder / "token"),
            "refresh_s": 2.0,
        }


def _b64(number: int) -> str:
    return base64.urlsafe_b64encode(number.to_bytes((number.bit_length() + 7) // 8, "big")).rstrip(b"=").decode()


class Engine:
    """One engine process."""

    def __init__(
        self, folder: Path, model: Path, core: int, tokens: Tokens | None, probe: Path, *, log: bool, **fields: Any
    ) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.folder = folder
        self.headers = {"Authorization": f"Bearer {tokens.token}"} if tokens else {}
        document = models.deployment(model, folder, log=log, access=tokens.settings if tokens else None, **fields)
        (folder / "document.json").write_text(json.dumps(document))
        self._core = core
        self._probe = probe
        self.cold_start_s = 0.0
        kind = {"Content-Type": ARROW} if probe.read_bytes().startswith(b"ARROW1") else {}
        self._probe_headers = self.headers | kind
        self.start()

    def start(self) -> None:
        """Start, and time how long it takes to the first inference."""
        status = self.folder / "status.json"
        status.unlink(missing_ok=True)
        started = time.monotonic()
        self.process = subprocess.Popen(
            ["taskset", "-c", str(self._core), sys.executable, "-m", "engine.server", "--document",
             str(self.folder / "document.json")],
            env=os.environ, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while True:
            try:
                shown = json.loads(status.read_bytes())
                self.url = f"http://127.0.0.1:{shown['port']}/pipelines/bench"
                ask(self.url, self._probe, self._probe_headers)
            except (OSError, ValueError):
                if self.process.poll() is not None or time.monotonic() - started > 60:
                    self.process.kill()
                    raise RuntimeError("the engine does not start") from None
                time.sleep(0.005)
            else:
                self.cold_start_s = time.monotonic() - started
                return

    @property
    def pids(self) -> list[int]:
        """The processes it is made of."""
        return [self.process.pid]

    def clear_log(self) -> None:
        """Start again with an empty log, so that a disk full of the last round does not slow this one down."""
        self.stop()
        shutil.rmtree(self.folder / "logs", ignore_errors=True)
        self.start()

    def stop(self) -> None:
        """End the process."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


class Server:
    """The whole server with one deployment; its engine checks tokens and keeps its log as anywhere."""

    def __init__(self, folder: Path, model: Path, core: int) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self._instance = Instance(folder)
        try:
            self._instance.start()
            self._instance.sign_in()
            uploaded = self._instance.upload("bench-model", model.read_bytes())
            self._instance.configure(uploaded, tensor_fields=["tensor"])
            self.url = self._instance.deploy("bench", uploaded).url
            (status,) = folder.glob("run/engines/*/*/status.json")
            shown = json.loads(status.read_bytes())
            assert self._instance.process is not None
            self.pids = [self._instance.process.pid, shown["pid"]]
            for pid in self.pids:
                subprocess.run(["taskset", "-a", "-c", "-p", str(core), str(pid)], check=True, capture_output=True)
        except BaseException:
            self._instance.stop_everything()
            raise
        self.own_url = f"http://127.0.0.1:{shown['port']}/pipelines/bench"

    @property
    def headers(self) -> dict[str, str]:
        """A token that is good for the next run."""
        self._instance.sign_in()
        return self._instance.headers

    def stop(self) -> None:
        """End everything."""
        self._instance.stop_everything()


GATEWAY = """
import socket, sys, asyncio
import uvloop
from engine.contract.handoff import GatewaySide

async def main(port, path):
    loop = asyncio.get_running_loop()
    listening = socket.create_server(("127.0.0.1", port), backlog=1024)
    listening.setblocking(False)
    gateway = GatewaySide(path, lambda sock, received: sock.close())
    async def serve(sock):
        received = await loop.sock_recv(sock, 65536)
        if received:
            gateway.hand_over(sock.fileno(), received)
        sock.close()
    tasks = set()
    while True:
        sock, _ = await loop.sock_accept(listening)
        sock.setblocking(False)
        task = loop.create_task(serve(sock))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

uvloop.run(main(int(sys.argv[1]), sys.argv[2]))
"""


def gateway(port: int, socket_path: str, core: int) -> subprocess.Popen[bytes]:
    """Start the least that can stand before an engine: it accepts, reads once and hands the connection over."""
    return subprocess.Popen(["taskset", "-c", str(core), sys.executable, "-c", GATEWAY, str(port), socket_path])
