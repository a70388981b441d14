"""One server for all releases; what came of each scenario goes into a file for the table of compatibility."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper

from tests.engine.core import making
from tests.sdk.venvs import CannotMake, cache, python_of

EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    home: Path


def _make_models(folder: Path) -> Path:
    """Write models whose answers tell them from the example: they stand in its place, or behind it."""
    features, classes = ["N", 8], ["N", 2]
    start, end, ones = (helper.make_tensor(n, TensorProto.INT64, [1], [v]) for n, v in (("a", 0), ("b", 2), ("c", 1)))
    for name, factor in (("half", 0.5), ("tenth", 0.1)):
        scale = helper.make_tensor("factor", making.FLOAT, [], [factor])
        nodes = [
            helper.make_node("Slice", ["tensor", "a", "b", "c"], ["two"]),
            helper.make_node("Mul", ["two", "factor"], ["probabilities"]),
        ]
        making.save(
            folder / f"{name}.onnx",
            nodes,
            {"tensor": (making.FLOAT, features)},
            {"probabilities": (making.FLOAT, classes)},
            [start, end, ones, scale],
        )
    weights = helper.make_tensor("weights", making.FLOAT, [2, 1], [0.0, 100.0])
    making.save(
        folder / "percent.onnx",
        [helper.make_node("MatMul", ["probabilities", "weights"], ["percent"])],
        {"probabilities": (making.FLOAT, classes)},
        {"percent": (making.FLOAT, ["N", 1])},
        [weights],
    )
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`potoroo serve` in a home of its own."""
    # A short path: a Unix socket's name has room for about a hundred characters.
    home = Path(tempfile.mkdtemp(prefix="potoroo-sdk-"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"POTOROO_HOME": str(home), "POTOROO_PORT": str(port), "POTOROO_TASK_SDK": ""}
    url = f"http://127.0.0.1:{port}"
    with (home / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "app", "serve"], env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            _wait(url, process, home)
            _make_models(home / "models")
            yield Server(url, home)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def _wait(url: str, process: subprocess.Popen[bytes], home: Path) -> None:
    end = time.monotonic() + 90
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            assert process.poll() is None, (home / "server.log").read_text()[-2000:]
            time.sleep(0.2)
    raise AssertionError((home / "server.log").read_text()[-2000:])


def play(server: Server, release: str, area: str, data: Path | None = None) -> list[dict[str, Any]]:
    """Play the scenarios of an area with a release; returns what came of each.

    `data` is the folder of recorded cases, for areas that need it.
    """
    try:
        python = python_of(release)
    except CannotMake as exc:
        pytest.skip(f"no environment for {release}: {exc}")
    results = server.home / f"{release}-{area}.json"
    work = server.home / "work"
    work.mkdir(exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WALLAROO_", "XDG_", "PYTHON"))}
    environment = kept | {
        "PLAY_URL": server.url,
        "PLAY_CREDENTIALS": str(server.home / "creds.json"),
        "PLAY_EXAMPLES": str(EXAMPLES),
        "PLAY_MODELS": str(server.home / "models"),
        "PLAY_DATA": str(data or ""),
        "PYTHONPATH": str(Path(__file__).parent),
        "MPLBACKEND": "Agg",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [str(python), "-W", "ignore", "-m", "play", area, str(results)]
    # The clients write into the folder they run in.
    done = subprocess.run(command, env=environment, cwd=work, capture_output=True, text=True, timeout=900, check=False)
    assert results.exists(), done.stderr[-3000:]
    played: list[dict[str, Any]] = json.loads(results.read_text())
    report = cache() / "report" / f"{release}-{area}.json"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps(played, indent=1))
    return played
