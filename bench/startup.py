"""Measure what a person waits for: `python -m bench.startup [--rounds 5] [--out FILE]`.

The cold start of `potoroo serve` on an empty home and on one that was used before, a deployment until it runs, and the
list of a thousand workspaces. Medians; each round has a home of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

EXAMPLE = Path(__file__).parents[1] / "examples" / "fraud.onnx"
WORKSPACES = 1000


@dataclass
class Server:
    """`potoroo serve` on a home of its own."""

    home: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    client: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=60))

    def start(self) -> float:
        """Start it; returns the seconds until `/readyz` says so."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.client.base_url = httpx.URL(f"http://127.0.0.1:{self.port}")
        environment = os.environ | {"POTOROO_HOME": str(self.home), "POTOROO_PORT": str(self.port)}
        command = [sys.executable, "-m", "app", "serve"]
        began = time.perf_counter()
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet, start_new_session=True)
        until(self._is_ready, every_s=0.01)
        return time.perf_counter() - began

    def _is_ready(self) -> bool:
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        """Stop it and wait for its end."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)

    def sign_in(self) -> None:
        """Act as the administrator from now on."""
        creds = json.loads((self.home / "creds.json").read_text())
        answer = self.client.post(
            "/auth/realms/master/protocol/openid-connect/token",
            auth=(creds["confidentialClient"], creds["confidentialPassword"]),
            data={"grant_type": "password", "username": creds["username"], "password": creds["password"]},
        )
        self.client.headers["Authorization"] = f"Bearer {answer.raise_for_status().json()['access_token']}"

    def call(self, path: str, body: dict[str, Any]) -> Any:
        """Call an endpoint of the API; returns what it answers."""
        return self.client.post(f"/v1/api/{path}", json=body).raise_for_status().json()

    def deploy(self) -> float:
        """Upload the example model, deploy it; returns the seconds from the call to the state Running."""
        workspace = self.call("workspaces/create", {"workspace_name": "bench"})["workspace_id"]
        metadata = {
            "name": "fraud",
            "visibility": "private",
            "workspace_id": workspace,
            "conversion": {"framework": "onnx"},
        }
        files = {
            "metadata": (None, json.dumps(metadata), "application/json"),
            "file": ("fraud.onnx", EXAMPLE.read_bytes(), "application/octet-stream"),
        }
        self.client.post("/v1/api/models/upload_and_convert", files=files).raise_for_status()
        model: dict[str, Any] = {}
        until(lambda: model.update(self._newest()) or model["status"] == "ready", every_s=0.05)
        step = {"name": "fraud", "version": model["model_version"], "sha": model["sha"]}
        definition = {"steps": [{"ModelInference": {"models": [step]}}]}
        made = self.call(
            "pipelines/create", {"pipeline_id": "fraud", "workspace_id": workspace, "definition": definition}
        )
        body = {"deploy_id": "fraud", "pipeline_version_pk_id": made["pipeline_variant_pk_id"]}
        began = time.perf_counter()
        name = f"fraud-{self.call('pipelines/deploy', body)['id']}"
        until(lambda: self.call("status/get_deployment", {"name": name})["status"] == "Running", every_s=0.02)
        took = time.perf_counter() - began
        self.call("pipelines/undeploy", {"pipeline_id": made["pipeline_pk_id"]})
        return took

    def _newest(self) -> dict[str, Any]:
        return max(self.call("models/list_versions", {"model_id": "fraud"}), key=lambda row: int(row["models_pk_id"]))

    def list_workspaces(self) -> float:
        """Make a thousand workspaces; returns the median seconds of listing them."""
        for number in range(WORKSPACES):
            self.call("workspaces/create", {"workspace_name": f"team-{number}"})
        times = []
        for _ in range(11):
            began = time.perf_counter()
            found = self.call("workspaces/list", {})["workspaces"]
            times.append(time.perf_counter() - began)
        assert len(found) >= WORKSPACES
        return statistics.median(times)


def until(look: Callable[[], Any], every_s: float, patience_s: float = 60) -> None:
    """Return as soon as `look` is true; raises `TimeoutError` when that takes too long."""
    end = time.perf_counter() + patience_s
    while not look():
        if time.perf_counter() > end:
            raise TimeoutError(f"not within {patience_s} s")
        time.sleep(every_s)


def measure(rounds: int) -> dict[str, tuple[float, str]]:
    """Return medians in seconds, and the aims, by what was measured."""
    empty, used, deployed = [], [], []
    listed = 0.0
    for number in range(rounds):
        # A short path: a Unix socket's name has room for about a hundred characters.
        with tempfile.TemporaryDirectory(prefix="potoroo-start-") as folder:
            server = Server(Path(folder) / "home")
            empty.append(server.start())
            try:
                server.sign_in()
                deployed.append(server.deploy())
                if number == 0:
                    listed = server.list_workspaces()
            finally:
                server.stop()
            used.append(server.start())
            server.stop()
    return {
        "`potoroo serve` to `/readyz`, empty home": (statistics.median(empty), "≤ 5 s"),
        "`potoroo serve` to `/readyz`, used home": (statistics.median(used), "≤ 5 s"),
        "deploy to `Running`": (statistics.median(deployed), "≤ 3 s"),
        f"list of {WORKSPACES:,} workspaces": (listed, "≤ 0.05 s"),
    }


def table(found: dict[str, tuple[float, str]], rounds: int) -> str:
    """Return the figures as a section of a Markdown page."""
    rows = [f"| {name} | {seconds:.3f} s | {aim} |" for name, (seconds, aim) in found.items()]
    head = (
        f"## Start and control plane\n\nMedians of {rounds} rounds.\n\n| what | median | aim |\n| --- | --- | --- |\n"
    )
    return head + "\n".join(rows) + "\n"


def main() -> None:
    """Measure and print, or write to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the section to this file")
    given = parser.parse_args()
    section = table(measure(given.rounds), given.rounds)
    if given.out:
        given.out.write_text(section)
    print(section)


if __name__ == "__main__":
    main()
