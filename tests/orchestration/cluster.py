"""A cluster of one node behind the API that Kubernetes has: its pods are processes of this machine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from app.orchestration.runtimes import manifests

ROOT = Path(__file__).parents[2]


@dataclass
class Pod:
    """A pod that runs the containers of a Job one after the other."""

    job: dict[str, Any]
    folder: Path
    states: dict[str, dict[str, Any]] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    is_going: bool = False

    @property
    def name(self) -> str:
        return f"{self.job['metadata']['name']}-x7k2p"

    @property
    def template(self) -> dict[str, Any]:
        spec: dict[str, Any] = self.job["spec"]["template"]
        return spec

    def shown(self) -> dict[str, Any]:
        def statuses(kind: str) -> list[dict[str, Any]]:
            rest = {"image": "i", "imageID": "", "ready": False, "restartCount": 0}
            return [
                {"name": c["name"], "state": self.states.get(c["name"], {"waiting": {"reason": "PodInitializing"}})}
                | rest
                for c in self.template["spec"][kind]
            ]

        return {
            "metadata": {"name": self.name, "labels": self.template["metadata"]["labels"]},
            "spec": self.template["spec"],
            "status": {
                "phase": "Running",
                "initContainerStatuses": statuses("initContainers"),
                "containerStatuses": statuses("containers"),
            },
        }


class FakeCluster:
    """Answers what a worker asks; `bundle` is what pods may fetch, by the token of their run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bundle: Path | None = None
        self.namespaces: set[str] = set()
        self.secrets: dict[str, dict[str, Any]] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, Pod] = {}
        self.refusal: tuple[int, str] | None = None
        self.makes_pods = True
        self.break_output_after: int | None = None
        self.fails_once: set[str] = set()
        self._threads: list[threading.Thread] = []
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def log_message(self, *_: Any) -> None:
                pass

            def _do(self) -> None:
                cluster.answer(self)

            do_GET = do_POST = do_DELETE = _do

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self._serving = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})
        self._serving.start()

    def close(self) -> None:
        for pod in list(self.pods.values()):
            self._end(pod)
        for thread in self._threads:
            thread.join(30)
        self.server.shutdown()
        self._serving.join()
        self.server.server_close()

    # The API.

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = urllib.parse.urlsplit(request.path)
        query = {k: v[0] for k, v in urllib.parse.parse_qs(path.query).items()}
        size = int(request.headers.get("content-length") or 0)
        body = json.loads(request.rfile.read(size)) if size else {}
        kind, name, rest = self._target(path.path)
        if path.path in self.fails_once:
            self.fails_once.discard(path.path)
            return self._send(request, 500, {"message": "etcd is away"})
        if self.refusal is not None and request.command == "POST" and kind == "jobs":
            return self._send(request, self.refusal[0], {"message": self.refusal[1]})
        if kind == "bundles":
            return self._bundle(request, name)
        if kind == "pods" and rest == "log":
            return self._output(request, name, query)
        if request.command == "POST":
            return self._create(request, kind, body)
        if kind == "pods":
            wanted = query["labelSelector"].split("=", 1)
            found = [p.shown() for p in self.pods.values() if p.template["metadata"]["labels"][wanted[0]] == wanted[1]]
            return self._send(request, 200, {"items": found})
        kept = self.jobs if kind == "jobs" else self.secrets
        if name not in kept:
            return self._send(request, 404, {"message": f"{kind} {name!r} not found"})
        if request.command == "DELETE":
            del kept[name]
            if kind == "jobs" and name in self.pods:
                self._spawn(self._end, self.pods[name])
            return self._send(request, 200, {"status": "Success"})
        return self._send(request, 200, kept[name])

    @staticmethod
    def _target(path: str) -> tuple[str, str, str]:
        if found := re.fullmatch(r"/internal/bundles/(.+)", path):
            return "bundles", found[1], ""
        if path == "/api/v1/namespaces":
            return "namespaces", "", ""
        found = re.fullmatch(r"/(?:api|apis/batch)/v1/namespaces/[^/]+/([^/]+)(?:/([^/]+))?(?:/([^/]+))?", path)
        assert found, path
        return found[1], found[2] or "", found[3] or ""

    def _create(self, request: BaseHTTPRequestHandler, kind: str, body: dict[str, Any]) -> None:
        name = body["metadata"]["name"]
        if kind == "namespaces":
            status = 409 if name in self.namespaces else 201
            self.namespaces.add(name)
            return self._send(request, status, body if status == 201 else {"message": "already exists"})
        if kind == "secrets":
            self.secrets[name] = body
        else:
            self.jobs[name] = body
            if self.makes_pods:
                pod = self.pods[name] = Pod(body, self.folder / name)
                self._spawn(self._run, pod)
        return self._send(request, 201, body)

    def _bundle(self, request: BaseHTTPRequestHandler, run_id: str) -> None:
        if request.headers["authorization"] != f"Bearer token-of-{run_id}" or self.bundle is None:
            return self._send(request, 401, {"message": "no"})
        request.send_response(200)
        request.end_headers()
        request.wfile.write(self.bundle.read_bytes())
        return None

    def _output(self, request: BaseHTTPRequestHandler, name: str, query: dict[str, str]) -> None:
        pod = next((p for p in self.pods.values() if p.name == name), None)
        container = query["container"]
        if pod is None or "waiting" in pod.states.get(container, {"waiting": 1}):
            return self._send(request, 400, {"message": f"container {container} is waiting to start"})
        request.send_response(200)
        request.end_headers()
        file = pod.folder / f"{container}.log"
        if "follow" not in query:
            lines = file.read_bytes().splitlines(keepends=True)
            request.wfile.write(b"".join(lines[-int(query.get("tailLines", len(lines) or 1)) :]))
            return None
        sent, limit = 0, self.break_output_after
        self.break_output_after = None
        with file.open("rb") as source:
            while True:
                over = "terminated" in pod.states[container]
                if chunk := source.read(4096 if limit is None else limit - sent):
                    request.wfile.write(chunk)
                    sent += len(chunk)
                    if limit is not None and sent >= limit:
                        request.connection.shutdown(2)
                        return None
                elif over:
                    return None
                else:
                    time.sleep(0.02)

    @staticmethod
    def _send(request: BaseHTTPRequestHandler, status: int, body: dict[str, Any]) -> None:
        raw = json.dumps(body).encode()
        request.send_response(status)
        request.send_header("content-type", "application/json")
        request.send_header("content-length", str(len(raw)))
        request.end_headers()
        request.wfile.write(raw)

    # The node.

    def _spawn(self, call: Any, pod: Pod) -> None:
        thread = threading.Thread(target=call, args=(pod,))
        self._threads.append(thread)
        thread.start()

    def _run(self, pod: Pod) -> None:
        places = {
            manifests.HOME: "home",
            manifests.STATE_DIR + "-environments": "environments",
            manifests.STATE_DIR: "state",
            manifests.CONFIG_DIR: "config",
        }
        for place in places.values():
            (pod.folder / place).mkdir(parents=True)
        words = pod.folder / "last-words"
        order = self.secrets[pod.job["metadata"]["name"]]["stringData"]["run.json"]
        order = order.replace(manifests.TERMINATION_LOG, str(words)).replace('"parent": 0', f'"parent": {os.getpid()}')
        (pod.folder / "config" / "run.json").write_text(order)
        for container in (*pod.template["spec"]["initContainers"], *pod.template["spec"]["containers"]):
            if pod.is_going:
                break
            words.write_text("")
            command = [sys.executable if c == "python" else c for c in container["command"]]
            for argument in container["args"]:
                mapped = argument.replace(manifests.TERMINATION_LOG, str(words))
                for path, place in places.items():
                    mapped = mapped.replace(path, str(pod.folder / place), 1) if path in mapped else mapped
                command.append(mapped)
            with (pod.folder / f"{container['name']}.log").open("wb") as output:
                pod.process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
            pod.states[container["name"]] = {"running": {}}
            code = pod.process.wait()
            ended = {"exitCode": code, "reason": "Error" if code else "Completed", "message": words.read_text()}
            pod.states[container["name"]] = {"terminated": ended}
            if code:
                break

    def _end(self, pod: Pod) -> None:
        pod.is_going = True
        if pod.process is not None and pod.process.poll() is None:
            pod.process.send_signal(signal.SIGTERM)
            try:
                pod.process.wait(15)
            except subprocess.TimeoutExpired:
                pod.process.kill()
        time.sleep(0.3)  # the node tells of the end before the pod is gone
        self.pods.pop(pod.job["metadata"]["name"], None)
