"""Other servers of ONNX models, each in a venv of its own outside the checkout."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

SHARED = ("onnxruntime==1.32.0", "numpy==2.4.6")
"""What every peer runs the model with."""
_MLSERVER = """
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class Onnx(MLModel):
    async def load(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession("model.onnx", options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        return True

    async def predict(self, payload):
        rows = NumpyCodec.decode_input(payload.inputs[0]).astype("float32")
        output = self._session.run(None, {self._input: rows})[0]
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("output", output)])
"""
_KSERVE = """
import sys

import onnxruntime
from kserve import InferOutput, InferResponse, Model, ModelServer


class Onnx(Model):
    def load(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession("model.onnx", options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        self.ready = True

    def predict(self, payload, headers=None, response_headers=None):
        rows = payload.inputs[0].as_numpy().astype("float32")
        output = self._session.run(None, {self._input: rows})[0]
        answer = InferOutput("output", list(output.shape), "FP32")
        answer.set_data_from_numpy(output, binary_data=False)
        return InferResponse(payload.id or "1", self.name, [answer])


model = Onnx("bench")
model.load()
ModelServer(http_port=int(sys.argv[1]), workers=1, enable_grpc=False).start([model])
"""
_BENTOML = """
import bentoml
import numpy
import onnxruntime


@bentoml.service(workers=1, traffic={"timeout": 30})
class Bench:
    def __init__(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession("model.onnx", options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    @bentoml.api
    def infer(self, tensor: numpy.ndarray) -> numpy.ndarray:
        return self._session.run(None, {self._input: tensor.astype("float32")})[0]
"""


@dataclass
class Peer:
    """A server to compare with."""

    name: str
    requirements: list[str]
    files: dict[str, str]
    command: list[str]
    """`{bin}` is the venv's folder of programs, `{port}` the port."""
    path: str
    form: str
    """`v2` (Open Inference Protocol) or `tensor`."""
    port: int
    environment: dict[str, str] = field(default_factory=dict)
    version: str = ""
    reason: str = ""
    """Why it is not in the table."""
    process: subprocess.Popen[bytes] | None = None
    cold_start_s: float = 0.0

    @property
    def url(self) -> str:
        """Where it infers."""
        return f"http://127.0.0.1:{self.port}{self.path}"


def known_peers() -> list[Peer]:
    """Return the peers that pip can install."""
    return [
        Peer(
            "MLServer",
            ["mlserver==1.7.1", *SHARED],
            {
                "runtime.py": _MLSERVER,
                "settings.json": json.dumps(
                    {
                        "http_port": 18311,
                        "grpc_port": 18312,
                        "metrics_port": 18313,
                        "parallel_workers": 0,
                        "debug": False,
                    }
                ),
                "model-settings.json": json.dumps({"name": "bench", "implementation": "runtime.Onnx"}),
            },
            ["{bin}/mlserver", "start", "."],
            "/v2/models/bench/infer",
            "v2",
            18311,
        ),
        Peer(
            "KServe Python server",
            ["kserve==0.21.0", *SHARED, "setuptools<81"],
            {"server.py": _KSERVE},
            ["{bin}/python", "server.py", "{port}"],
            "/v2/models/bench/infer",
            "v2",
            18321,
        ),
        Peer(
            "BentoML",
            ["bentoml==1.4.40", *SHARED],
            {"service.py": _BENTOML},
            ["{bin}/bentoml", "serve", "service:Bench", "--port", "{port}"],
            "/infer",
            "tensor",
            18331,
            {"BENTOML_DO_NOT_TRACK": "True"},
        ),
    ]


def install(peer: Peer, folder: Path) -> None:
    """Make a peer's venv, once; what goes wrong becomes its `reason`."""
    venv = folder / peer.name.split()[0].lower()
    if not (venv / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    done = subprocess.run(
        [str(venv / "bin" / "pip"), "install", "-q", "--disable-pip-version-check", *peer.requirements],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        peer.reason = "pip could not install it: " + done.stderr.strip().splitlines()[-1][:200]
        return
    shown = subprocess.run(
        [str(venv / "bin" / "pip"), "show", peer.requirements[0].partition("==")[0]],
        capture_output=True,
        text=True,
        check=True,
    )
    peer.version = next(line.split()[1] for line in shown.stdout.splitlines() if line.startswith("Version:"))


def start(peer: Peer, folder: Path, model: Path, probe: Path, core: int) -> None:
    """Start a peer and wait for its first answer; failing that, say why in `reason`."""
    home = folder / f"{peer.name.split()[0].lower()}-run"
    home.mkdir(parents=True, exist_ok=True)
    shutil.copy(model, home / "model.onnx")
    for name, text in peer.files.items():
        (home / name).write_text(text)
    programs = folder / peer.name.split()[0].lower() / "bin"
    command = [part.format(bin=programs, port=peer.port) for part in peer.command]
    environment = os.environ | peer.environment | {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(home)}
    started = time.monotonic()
    with (home / "log").open("wb") as log:
        peer.process = subprocess.Popen(
            ["taskset", "-c", str(core), *command],
            cwd=home,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    while time.monotonic() - started < 90:
        if peer.process.poll() is not None:
            break
        try:
            ask(peer.url, probe)
        except OSError:
            time.sleep(0.1)
        else:
            peer.cold_start_s = time.monotonic() - started
            return
    stop(peer)
    lines = (home / "log").read_text(errors="replace").strip().splitlines()
    peer.reason = "it does not answer: " + (lines[-1][:200] if lines else "no output")


def ask(url: str, body: Path, headers: dict[str, str] | None = None) -> bytes:
    """Post a body; raises `OSError` for anything but 200."""
    request = urllib.request.Request(url, body.read_bytes(), {"Content-Type": "application/json"} | (headers or {}))
    with urllib.request.urlopen(request, timeout=10) as reply:
        answer: bytes = reply.read()
        return answer


def stop(peer: Peer) -> None:
    """End a peer and what it started."""
    if peer.process is None:
        return
    try:
        os.killpg(peer.process.pid, signal.SIGTERM)
        peer.process.wait(10)
    except ProcessLookupError:
        pass
    except subprocess.TimeoutExpired:
        os.killpg(peer.process.pid, signal.SIGKILL)
        peer.process.wait()
    peer.process = None


def resident_mib(pid: int) -> float:
    """Return the memory of a process and of all it started, in MiB."""
    pids = [pid]
    total = 0
    while pids:
        one = pids.pop()
        try:
            status = Path(f"/proc/{one}/status").read_text()
            for task in Path(f"/proc/{one}/task").iterdir():
                pids += [int(child) for child in (task / "children").read_text().split()]
        except FileNotFoundError:
            continue
        total += next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")), 0)
    return total / 1024
