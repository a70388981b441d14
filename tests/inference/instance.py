"""A whole server in a process of its own, with a model to infer on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH = 4


def model_bytes(factor: float) -> bytes:
    """Return an ONNX model that multiplies the sum of its row by `factor`."""
    weights = numpy_helper.from_array(np.full((WIDTH, 1), factor, np.float32), "weights")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["tensor", "weights"], ["total"])],
        "sum",
        [helper.make_tensor_value_info("tensor", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("total", TensorProto.FLOAT, ["batch", 1])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    raw: bytes = model.SerializeToString()
    return raw


def free_port() -> int:
    """Return a port that nobody listens on at the moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def eventually(look: Callable[[], Any], seconds: float = 30, every: float = 0.05) -> Any:
    """Return what `look` returns as soon as that is true."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(httpx.TransportError):
            if found := look():
                return found
        assert time.monotonic() < deadline, "it never came to pass"
        time.sleep(every)


@dataclass
class Instance:
    """`potoroo serve` on a home of its own."""

    home: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    token: str = ""
    workspace: int = 0

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> float:
        """Start the server; returns the seconds until it was ready."""
        began = time.monotonic()
        environment = os.environ | {
            "POTOROO_HOME": str(self.home),
            "POTOROO_PORT": str(self.port),
            "POTOROO_LOG_LEVEL": "info",
        }
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app", "serve"], env=environment, stdout=log, stderr=log, start_new_session=True
            )
        eventually(self.is_ready, 60)
        return time.monotonic() - began

    def is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.home / "server.log").read_text()[-3000:]
        return httpx.get(f"{self.base}/readyz").status_code == 200

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Kill the server's whole process group."""
        assert self.process is not None
        os.killpg(self.process.pid, number)
        self.process.wait()

    def stop_everything(self) -> None:
        """Leave nothing behind: server, engines, database."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(30)
        for pid in [*self.engine_pids(), *self.postgres_pid()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def engine_pids(self) -> list[int]:
        files = self.home.glob("run/engines/*/*/process.json")
        return [pid for file in files if (pid := json.loads(file.read_bytes())["pid"]) is not None]

    def postgres_pid(self) -> list[int]:
        file = self.home / "postgres" / "postmaster.pid"
        return [int(file.read_text().splitlines()[0])] if file.exists() else []

    def sign_in(self) -> None:
        """Get a token and a workspace."""
        creds = json.loads((self.home / "creds.json").read_text())
        answer = httpx.post(
            f"{self.base}/auth/realms/master/protocol/openid-connect/token",
            auth=(creds["confidentialClient"], creds["confidentialPassword"]),
            data={"grant_type": "password", "username": creds["username"], "password": creds["password"]},
            timeout=30,
        )
        self.token = answer.raise_for_status().json()["access_token"]
        name = f"lab-{uuid.uuid4().hex[:6]}"
        self.workspace = self.call("workspaces/create", {"workspace_name": name}).json()["workspace_id"]

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def call(self, path: str, body: dict[str, Any], expected: int = 200) -> httpx.Response:
        answer = httpx.post(f"{self.base}/v1/api/{path}", json=body, headers=self.headers, timeout=30)
        assert answer.status_code == expected, f"{path}: {answer.status_code} {answer.text}"
        return answer

    def upload(self, name: str, raw: bytes) -> dict[str, Any]:
        """Upload a model; returns how steps name it, when it is ready."""
        metadata = {
            "name": name,
            "visibility": "private",
            "workspace_id": self.workspace,
            "conversion": {"framework": "onnx", "python_version": "3.8", "requirements": []},
        }
        answer = httpx.post(
            f"{self.base}/v1/api/models/upload_and_convert",
            headers=self.headers,
            files={
                "metadata": (None, json.dumps(metadata), "application/json"),
                "file": (f"{name}.onnx", raw, "application/octet-stream"),
            },
            timeout=60,
        )
        assert answer.is_success, answer.text

        def ready() -> dict[str, Any] | None:
            versions = self.call("models/list_versions", {"model_id": name, "models_pk_id": 0}).json()
            mine = max((v for v in versions if v["model_id"] == name), key=lambda v: v["id"])
            assert mine["status"] != "error", mine
            return mine if mine["status"] == "ready" else None

        found = eventually(ready)
        return {"name": name, "version": found["model_version"], "sha": found["sha"]}

    def configure(self, model: dict[str, Any], **config: Any) -> dict[str, Any]:
        """Configure an uploaded model; returns the model, as steps name it."""
        versions = self.call("models/list_versions", {"model_id": model["name"], "models_pk_id": 0}).json()
        number = next(v["id"] for v in versions if v["model_version"] == model["version"])
        self.call("models/insert_model_config", {"model_version_id": number, **config})
        return model

    def deploy(self, pipeline: str, model: dict[str, Any], **config: Any) -> Deployed:
        """Make a version of `pipeline` that runs `model`, deploy it and wait until it runs."""
        return self.deploy_steps(pipeline, [{"ModelInference": {"models": [model]}}], **config)

    def deploy_steps(self, pipeline: str, steps: list[dict[str, Any]], **config: Any) -> Deployed:
        """Make a version of `pipeline` of these steps, deploy it and wait until it runs."""
        version = self.version_of(pipeline, steps)
        began = time.monotonic()
        body = {"deploy_id": pipeline, "pipeline_version_pk_id": version, "engine_config": config}
        number = self.call("pipelines/deploy", body).json()["id"]
        eventually(lambda: self.status(f"{pipeline}-{number}") == "Running", every=0.02)
        took = time.monotonic() - began
        url = self.call(
            "admin/get_pipeline_external_url", {"workspace_id": self.workspace, "pipeline_name": pipeline}
        ).json()["url"]
        return Deployed(number, url, took)

    def undeploy(self, deployed: Deployed) -> None:
        """Ask for a deployment's end, without waiting for it."""
        self.call("pipelines/undeploy", {"deployment_id": deployed.id})

    def version_of(self, pipeline: str, steps: list[dict[str, Any]]) -> int:
        """Make a version of `pipeline` of these steps; returns its number."""
        body = {"pipeline_id": pipeline, "workspace_id": self.workspace, "definition": {"steps": steps}}
        number: int = self.call("pipelines/create", body).json()["pipeline_variant_pk_id"]
        return number

    def status(self, name: str) -> str:
        answer = httpx.post(f"{self.base}/v1/api/status/get_deployment", json={"name": name}, headers=self.headers)
        if answer.status_code != 200:
            return str(answer.status_code)
        assert answer.json()["status"] != "Error", answer.text
        status: str = answer.json()["status"]
        return status

    def infer(self, url: str) -> httpx.Response:
        return httpx.post(url, json=[{"tensor": [1.0] * WIDTH}], headers=self.headers, timeout=30)


@dataclass(frozen=True)
class Deployed:
    """A deployment that runs."""

    id: int
    url: str
    took_s: float


def running(home: Path) -> Iterator[Instance]:
    """Yield a server that was started and signed in to; nothing of it is left afterwards."""
    instance = Instance(home)
    try:
        instance.start()
        instance.sign_in()
        yield instance
    finally:
        instance.stop_everything()
