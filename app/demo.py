"""The main job on a throw-away instance, over plain HTTP, as anybody could do it with curl."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from app.errors import CommandFailed

EXAMPLES = Path(__file__).parents[1] / "examples"
_ARROW = "application/vnd.apache.arrow.file"


def run(console: Console, *, keep: bool = False) -> None:
    """Start an instance, run the job with its progress shown, stop the instance again."""
    sample = json.loads((EXAMPLES / "fraud_sample.json").read_text())
    with instance(console, keep=keep) as (base, home):
        started = time.monotonic()
        job = Job(console, base, home)
        job.sign_in()
        job.upload(EXAMPLES / "fraud.onnx", sample["input"])
        job.deploy()
        answers = job.infer(sample)
        job.infer_arrow(sample, answers)
        job.read_logs(len(sample["rows"]) * 2)
        if not keep:
            job.undeploy()
        console.print(f"\nAll of it took {time.monotonic() - started:.1f} s.")


@contextmanager
def instance(console: Console, *, keep: bool) -> Iterator[tuple[str, Path]]:
    """Yield the URL and home of a server that was started for this demo alone."""
    home = Path(tempfile.mkdtemp(prefix="potoroo-demo-"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    base = f"http://127.0.0.1:{port}"
    environment = os.environ | {"POTOROO_HOME": str(home / "home"), "POTOROO_PORT": str(port)}
    log = (home / "server.log").open("wb")
    server = subprocess.Popen(
        [sys.executable, "-m", "app", "serve"], env=environment, stdout=log, stderr=log, start_new_session=True
    )
    try:
        with console.status("Starting a server …"):
            _wait(base, server, home / "server.log")
        console.print(f"A server runs at {base}, its data in {home}.")
        yield base, home / "home"
        if keep:
            console.print(f"It goes on running: docs at {base}/v1/api/docs, stop it with `kill {server.pid}`.")
    finally:
        if not keep:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
            _remove(home)


def _wait(base: str, server: subprocess.Popen[bytes], log: Path, patience_s: float = 60) -> None:
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        if server.poll() is not None:
            raise CommandFailed(f"The server stopped at once:\n{log.read_text()[-2000:]}")
        try:
            if httpx.get(f"{base}/readyz", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise CommandFailed(f"The server was not ready after {patience_s:.0f} s:\n{log.read_text()[-2000:]}")


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


class Job:
    """The steps, each shown as it is done."""

    def __init__(self, console: Console, base: str, home: Path) -> None:
        self.console = console
        self.http = httpx.Client(base_url=base, timeout=60)
        self.credentials = json.loads((home / "creds.json").read_text())
        self.model: dict[str, Any] = {}
        self.url = ""
        self.pipeline_pk = self.deployment = self.workspace = 0

    def done(self, text: str, started: float) -> None:
        """Say that a step is done, and how long it took."""
        self.console.print(f"  [green]✓[/green] {text}  [dim]{(time.monotonic() - started) * 1000:.0f} ms[/dim]")

    def call(self, path: str, body: Any = None, **options: Any) -> Any:
        """Post to the API and return the answer's JSON."""
        if body is not None:
            options["json"] = body
        answer = self.http.post(f"/v1/api/{path}", **options)
        if answer.is_error:
            raise CommandFailed(f"{path} answered {answer.status_code}: {answer.text[:500]}")
        return answer.json() if answer.content else {}

    def sign_in(self) -> None:
        """Get a token, as a user, through the confidential client."""
        started = time.monotonic()
        c = self.credentials
        answer = self.http.post(
            "/auth/realms/master/protocol/openid-connect/token",
            auth=(c["confidentialClient"], c["confidentialPassword"]),
            data={"grant_type": "password", "username": c["username"], "password": c["password"]},
        )
        if answer.is_error:
            raise CommandFailed(f"No token: {answer.text[:500]}")
        self.http.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
        self.done(f"signed in as {c['username']}", started)

    def upload(self, file: Path, column: str) -> None:
        """Make a workspace and upload the model into it."""
        started = time.monotonic()
        self.workspace = self.call("workspaces/create", {"workspace_name": "demo"})["workspace_id"]
        metadata = {
            "name": "fraud",
            "visibility": "private",
            "workspace_id": self.workspace,
            "conversion": {"framework": "onnx", "python_version": "3.8", "requirements": []},
        }
        files = {
            "metadata": (None, json.dumps(metadata), "application/json"),
            "file": (file.name, file.read_bytes(), "application/octet-stream"),
        }
        self.call("models/upload_and_convert", files=files)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            self.model = self.call("models/list_versions", {"model_id": "fraud"})[-1]
            if self.model["status"] in ("ready", "error"):
                break
            time.sleep(0.1)
        if self.model["status"] != "ready":
            raise CommandFailed(f"The model is {self.model['status']}.")
        self.done(f"uploaded {file.name} ({file.stat().st_size:,} bytes), input column {column!r}", started)

    def deploy(self) -> None:
        """Make a pipeline of the model and deploy it."""
        started = time.monotonic()
        reference = {"name": "fraud", "version": self.model["model_version"], "sha": self.model["sha"]}
        definition = {"id": "fraud", "steps": [{"ModelInference": {"models": [reference]}}]}
        made = self.call(
            "pipelines/create", {"pipeline_id": "fraud", "workspace_id": self.workspace, "definition": definition}
        )
        self.pipeline_pk = made["pipeline_pk_id"]
        self.deployment = self.call(
            "pipelines/deploy",
            {
                "deploy_id": "fraud",
                "pipeline_version_pk_id": made["pipeline_variant_pk_id"],
                "pipeline_id": self.pipeline_pk,
            },
        )["id"]
        end, status = time.monotonic() + 60, {}
        while time.monotonic() < end:
            status = self.call("status/get_deployment", {"name": f"fraud-{self.deployment}"})
            if status["status"] == "Running":
                break
            time.sleep(0.1)
        if status.get("status") != "Running":
            raise CommandFailed(f"The deployment is not running: {json.dumps(status)[:500]}")
        self.url = self.call(
            "admin/get_pipeline_external_url", {"workspace_id": self.workspace, "pipeline_name": "fraud"}
        )["url"]
        self.done("deployed the pipeline", started)

    def infer(self, sample: dict[str, Any]) -> list[float]:
        """Infer in JSON and show the answers beside scikit-learn's own."""
        started = time.monotonic()
        records = [{sample["input"]: row} for row in sample["rows"]]
        answer = self.http.post(
            self.url, json=records, headers={"Content-Type": "application/json; format=pandas-records"}
        )
        if answer.is_error:
            raise CommandFailed(f"The inference answered {answer.status_code}: {answer.text[:500]}")
        answers = [row["out"][sample["output"]][-1] for row in answer.json()]
        self.done(f"inferred {len(records)} rows in JSON", started)
        table = Table("row", "Potoroo", "scikit-learn", "difference", box=None, pad_edge=False)
        worst = 0.0
        for number, (ours, theirs) in enumerate(zip(answers, sample["expected"], strict=True)):
            worst = max(worst, abs(ours - theirs))
            if number < 6:
                table.add_row(str(number), f"{ours:.6f}", f"{theirs:.6f}", f"{abs(ours - theirs):.1e}")
        self.console.print(table)
        if worst > 1e-4:
            raise CommandFailed(f"The answers differ from scikit-learn's by up to {worst:.2e}.")
        return answers

    def infer_arrow(self, sample: dict[str, Any], answers: list[float]) -> None:
        """Infer the same rows in Arrow; the answers are the same."""
        started = time.monotonic()
        table = pa.table({sample["input"]: pa.array(sample["rows"], pa.list_(pa.float32()))})
        sink = io.BytesIO()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        answer = self.http.post(
            self.url, content=sink.getvalue(), headers={"Content-Type": _ARROW, "Accept": _ARROW},
            params={"dataset[]": "*", "dataset.separator": "."},
        )  # fmt: skip
        if answer.is_error:
            raise CommandFailed(f"The inference answered {answer.status_code}: {answer.text[:500]}")
        got = pa.ipc.open_file(answer.content).read_all().column(f"out.{sample['output']}").to_pylist()
        if any(abs(row[-1] - value) > 1e-6 for row, value in zip(got, answers, strict=True)):
            raise CommandFailed("JSON and Arrow gave different answers.")
        self.done(f"inferred {table.num_rows} rows in Arrow, with the same answers", started)

    def read_logs(self, rows: int) -> None:
        """Read the log: every answered inference is in it."""
        started = time.monotonic()
        wanted: dict[str, Any] = {"pipeline_id": "fraud", "workspace_id": self.workspace}
        logged: list[dict[str, Any]] = []
        while True:  # a page holds rows of one schema: those that came in JSON, or those in Arrow
            page = self.http.post("/v1/api/pipelines/get_logs", json=wanted)
            if page.is_error:
                raise CommandFailed(f"The log answered {page.status_code}: {page.text[:500]}")
            logged += page.json()
            cursor = page.headers.get("x-iteration-cursor")
            if page.headers.get("x-iteration-status") == "All" or not cursor or not page.json():
                break
            wanted["cursor"] = cursor
        if len(logged) != rows:
            raise CommandFailed(f"The log has {len(logged)} rows, not {rows}.")
        self.done(f"read {len(logged)} rows from the log", started)

    def undeploy(self) -> None:
        """Stop the deployment; the log stays."""
        started = time.monotonic()
        self.call("pipelines/undeploy", {"pipeline_id": self.pipeline_pk, "deployment_id": self.deployment})
        self.done("undeployed", started)
