"""Whole engine processes, asked over their port."""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

from engine.contract.deployment import EngineStatus
from engine.logs.query import read_page
from engine.server.supervisor import read_status
from tests.engine.server import models
from tests.engine.server.test_access import Publisher, Signer

pytestmark = pytest.mark.server

GOOD = [{"tensor": [1.5, 2.0, 3.0]}]
ARROW = "application/vnd.apache.arrow.file"


def until(claim: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := claim()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


class EngineUnderTest:
    def __init__(self, folder: Path, document: dict[str, Any]) -> None:
        self.path = folder / "document.json"
        self.status_path = Path(document["status_file"])
        self.write(document)
        self.process = subprocess.Popen([sys.executable, "-m", "engine.server", "--document", str(self.path)])

    def write(self, document: dict[str, Any]) -> None:
        self.document = document
        temporary = self.path.with_suffix(".new")
        temporary.write_text(json.dumps(document))
        os.replace(temporary, self.path)

    def status(self) -> EngineStatus | None:
        return read_status(self.status_path)

    def wait_for(self, phase: str) -> EngineStatus:
        return until(lambda: (found := self.status()) and found.phase == phase and found)

    @property
    def url(self) -> str:
        status = self.status()
        assert status is not None
        return f"http://127.0.0.1:{status.port}"

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@contextmanager
def running(folder: Path, document: dict[str, Any]) -> Iterator[EngineUnderTest]:
    engine = EngineUnderTest(folder, document)
    try:
        engine.wait_for("Running")
        yield engine
    finally:
        if engine.process.poll() is None:
            engine.process.kill()
        engine.process.wait(10)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineUnderTest]:
    folder = tmp_path_factory.mktemp("engine")
    document = models.document(
        folder,
        {"fraud": models.linear(folder / "m.onnx"), "slow": models.slow(folder / "slow.onnx", rounds=300)},
        limits={"queue_depth": 4, "deadline_s": 20, "body_bytes": 1 << 20},
    )
    with running(folder, document) as engine:
        yield engine


def test_every_way_to_a_pipeline_gives_its_answer(engine: EngineUnderTest) -> None:
    with httpx.Client(base_url=engine.url) as client:
        replies = [
            client.post(path, json=GOOD)
            for path in ("/pipelines/fraud", "/v1/api/pipelines/infer/shop-7/fraud")
            for _ in range(3)
        ]

        assert [reply.status_code for reply in replies] == [200] * 6
        assert {reply.json()[0]["out"]["y"][0] for reply in replies} == {replies[0].json()[0]["out"]["y"][0]}
        assert replies[0].headers["content-type"] == "application/json; format=pandas-records"
        assert client.post("/v1/api/pipelines/infer/shop-8/fraud", json=GOOD).status_code == 404
        assert client.post("/infer", json=GOOD).status_code == 404, "two pipelines: it must be said which"
        assert client.post("/pipelines/nope", json=GOOD).status_code == 404
        assert client.post("/pipelines/fraud/openai/v1/completions", json={}).status_code == 409


def test_bad_input_is_a_400_in_the_dialect_of_the_client(engine: EngineUnderTest) -> None:
    with httpx.Client(base_url=engine.url) as client:
        new = client.post("/pipelines/fraud", json=[{"tensor": [1, None, 3]}])
        old = client.post("/pipelines/fraud", json=[{"tensor": [1]}], headers={"User-Agent": "python-requests/2.25.1"})

    assert new.status_code == old.status_code == 400
    assert new.json()["source"] == "engine"
    assert old.json()[0]["error_type"] == "InferenceError"


def test_methods_and_pages(engine: EngineUnderTest) -> None:
    with httpx.Client(base_url=engine.url) as client:
        assert client.get("/pipelines").json() == {
            "pipelines": [
                {"id": "fraud", "version": "fraud-p1", "status": "Running"},
                {"id": "slow", "version": "slow-p1", "status": "Running"},
            ]
        }
        assert [set(model) for model in client.get("/models").json()["models"]] == [
            {"sha", "name", "version", "status", "model_version_id"}
        ] * 2
        assert client.get("/livez").status_code == client.get("/readyz").status_code == 200
        assert client.get("/status").json()["phase"] == "Running"
        wrong = client.get("/pipelines/fraud")
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST, OPTIONS")
        assert client.options("/pipelines/fraud").headers["allow"] == "POST, OPTIONS"
        assert client.head("/livez").content == b""
        assert client.get("/nothing").status_code == 404
        assert client.post("/pipelines/fraud", content=b"x" * (2 << 20)).status_code == 413


def test_metrics_carry_the_contracts_names(engine: EngineUnderTest) -> None:
    with httpx.Client(base_url=engine.url) as client:
        client.post("/pipelines/fraud", json=GOOD * 3)
        text = client.get("/metrics").text

    labels = '{pipeline_name="fraud",deploy_id="shop"'
    assert f"latency_histogram_ns_count{labels}" in text
    assert f"latency_histogram_ns_bucket{labels}" in text
    assert 'potoroo_engine_model_rows_total{model_name="fraud",model_version="fraud-v1",deploy_id="shop"}' in text
    assert int(re.search(rf"tensor_throughput_batch_count{labels}}} (\d+)", text)[1]) >= 3  # type: ignore[index]


@pytest.mark.parametrize("kind", ["JSON", "several rows", "Arrow"])
def test_requests_are_gathered_as_the_model_is_configured(tmp_path: Path, kind: str) -> None:
    rows = 4 if kind == "several rows" else 1
    gather = {"max_batch_delay_ms": 60_000, "batch_size_target": 3 * rows, "batch_size_limit": None}
    document = models.document(
        tmp_path, {"fraud": models.linear(tmp_path / "m.onnx")}, config={"dynamic_batching_config": gather}
    )

    def ask(number: int) -> list[float]:
        first = float(number)
        url = f"{engine.url}/pipelines/fraud"
        if kind == "Arrow":
            reply = httpx.post(
                url,
                content=arrow_file([[first, 2.0, 3.0]]),
                headers={"Content-Type": ARROW, "Accept": ARROW},
                timeout=30,
            )
            return pa.ipc.open_file(reply.content).read_all()["in"].combine_chunks().field("tensor")[0].as_py()
        reply = httpx.post(url, json=[{"tensor": [first, 2.0, 3.0]}] * rows, timeout=30)
        return reply.json()[0]["in"]["tensor"]

    with running(tmp_path, document) as engine, concurrent.futures.ThreadPoolExecutor(3) as pool:
        if kind == "Arrow":  # the first of its layout goes the plain path, and waits for nobody
            ask(0)
        before = httpx.get(f"{engine.url}/metrics").text
        asked = [pool.submit(ask, number) for number in range(3)]
        answers = [each.result() for each in asked]
        after = httpx.get(f"{engine.url}/metrics").text

    assert answers == [[number, 2.0, 3.0] for number in (0.0, 1.0, 2.0)]
    requests, runs = "potoroo_engine_batched_requests_sum", "potoroo_engine_batched_requests_count"
    assert counted(after, requests) - counted(before, requests) == 3
    assert counted(after, runs) - counted(before, runs) == 1, "one run answered all three"


def test_who_waits_for_others_does_not_wait_for_ever_and_no_run_is_larger_than_allowed(tmp_path: Path) -> None:
    gather = {"max_batch_delay_ms": 50, "batch_size_target": 100, "batch_size_limit": 2}
    document = models.document(
        tmp_path, {"fraud": models.linear(tmp_path / "m.onnx")}, config={"dynamic_batching_config": gather}
    )
    with running(tmp_path, document) as engine:
        replies = [
            httpx.post(f"{engine.url}/pipelines/fraud", json=GOOD * rows, timeout=30).json() for rows in (1, 2, 5)
        ]
        text = httpx.get(f"{engine.url}/metrics").text

    assert [len(reply) for reply in replies] == [1, 2, 5]
    assert counted(text, "potoroo_engine_model_rows_total") == 8
    assert counted(text, "potoroo_engine_model_ns_count") == 5, "five rows at two a run are three runs"


def test_an_engine_sleeps_when_nobody_asks(engine: EngineUnderTest) -> None:
    def processor_s() -> float:
        fields = Path(f"/proc/{engine.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    with httpx.Client(base_url=engine.url) as client:
        for _ in range(50):
            client.post("/pipelines/fraud", json=GOOD)
    time.sleep(0.5)
    before = processor_s()
    time.sleep(2)

    assert processor_s() - before < 0.5, "it does not look out for requests for ever"


def counted(text: str, name: str) -> int:
    """Return a number from a page of metrics."""
    found = re.search(rf"^{name}{{[^}}]*}} (\d+)$", text, re.MULTILINE)
    assert found is not None, text
    return int(found[1])


def arrow_file(rows: list[list[float]]) -> bytes:
    sink = pa.BufferOutputStream()
    batch = pa.record_batch({"tensor": pa.array(rows, pa.list_(pa.float32()))})
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def test_the_callers_trace_comes_back(engine: EngineUnderTest) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    for _ in range(2):
        reply = httpx.post(f"{engine.url}/pipelines/fraud", json=GOOD, headers={"traceparent": trace})
        assert reply.headers["traceparent"] == trace


def test_logs_gives_the_newest_records(engine: EngineUnderTest) -> None:
    with httpx.Client(base_url=engine.url) as client:
        client.post("/pipelines/fraud", json=[{"tensor": [42, 43, 44]}])
        rows = client.post("/logs", json={}).json()

    assert rows[0]["in"] == {"tensor": [42.0, 43.0, 44.0]}
    assert rows[0]["metadata"]["partition"] == "engine-abc-1"


def test_a_full_queue_refuses_at_once_and_recovers(engine: EngineUnderTest) -> None:
    port = int(engine.url.rsplit(":", 1)[1])
    body = json.dumps([{"tensor": [1.0]}]).encode()
    head = b"POST /pipelines/slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    clients = [socket.create_connection(("127.0.0.1", port), 30) for _ in range(24)]
    arrived: list[tuple[int, bool]] = []

    def read(client: socket.socket) -> None:
        received = b""
        while part := client.recv(65536):
            received += part
        arrived.append((int(received.split()[1]), b"\r\nretry-after: 1\r\n" in received))
        client.close()

    for client in clients:
        client.sendall(head + body)
    with concurrent.futures.ThreadPoolExecutor(len(clients)) as pool:
        list(pool.map(read, clients))

    assert set(arrived) == {(200, False), (503, True)}
    statuses = [status for status, _ in arrived]
    last_answered = len(statuses) - 1 - statuses[::-1].index(200)
    assert statuses.index(503) < last_answered, "those who are refused do not wait for those who are answered"
    assert httpx.post(f"{engine.url}/pipelines/slow", json=[{"tensor": [1.0]}], timeout=30).status_code == 200


def test_small_requests_are_answered_while_a_big_model_runs(engine: EngineUnderTest) -> None:
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        slow = [
            pool.submit(httpx.post, f"{engine.url}/pipelines/slow", json=[{"tensor": [1.0]}] * 40) for _ in range(2)
        ]
        with httpx.Client(base_url=engine.url) as client:
            replies = [client.post("/pipelines/fraud", json=GOOD).status_code for _ in range(20)]
        assert replies == [200] * 20
        assert all(future.result().status_code == 200 for future in slow)


def test_a_killed_engine_has_kept_every_record_it_answered(tmp_path: Path) -> None:
    document = models.document(tmp_path, {"fraud": models.linear(tmp_path / "m.onnx")})
    with running(tmp_path, document) as engine:
        with httpx.Client(base_url=engine.url) as client:
            for n in range(50):
                assert client.post("/infer", json=[{"tensor": [n, 0, 0]}]).status_code == 200
        engine.process.kill()
        engine.process.wait()

    kept = read_page(tmp_path / "logs", "topic-fraud").table
    assert [row["tensor"][0] for row in kept["in"].to_pylist()] == list(range(50))


def test_a_document_that_makes_no_engine_is_reported(tmp_path: Path) -> None:
    document = models.document(tmp_path, {"fraud": models.linear(tmp_path / "m.onnx")})
    document["models"][0]["path"] = str(tmp_path / "missing.onnx")

    engine = EngineUnderTest(tmp_path, document)

    assert engine.process.wait(30) == 2
    status = engine.status()
    assert status is not None
    assert status.phase == "Error"
    assert "missing.onnx" in (status.reason or "")


def test_versions_swap_without_a_failed_request_and_a_bad_one_is_not_swapped_in(tmp_path: Path) -> None:
    first = models.document(tmp_path, {"fraud": models.linear(tmp_path / "a.onnx", seed=1)})
    second = models.document(tmp_path, {"fraud": models.linear(tmp_path / "b.onnx", seed=2)}, revision=2)
    broken = json.loads(json.dumps(second)) | {"revision": 3}
    broken["models"][0]["path"] = "/nowhere"
    stop = False
    answers: list[float] = []

    def ask() -> None:
        with httpx.Client(base_url=url) as client:
            while not stop:
                reply = client.post("/infer", json=GOOD)
                assert reply.status_code == 200, reply.text
                answers.append(reply.json()[0]["out"]["y"][0])

    with running(tmp_path, first) as engine, concurrent.futures.ThreadPoolExecutor(2) as pool:
        url = engine.url
        asking = [pool.submit(ask) for _ in range(2)]
        time.sleep(0.2)
        engine.write(second)
        engine.process.send_signal(signal.SIGHUP)
        until(lambda: (found := engine.status()) and found.revision == 2)
        time.sleep(0.2)
        engine.write(broken)
        status = until(lambda: (found := engine.status()) and found.reason and found)
        stop = True
        for future in asking:
            future.result(10)
        assert engine.stop() == 0

    assert status.revision == 2
    assert "nowhere" in status.reason
    assert len(set(answers)) == 2
    assert answers[0] != answers[-1]


def test_stopping_answers_what_is_under_way(tmp_path: Path) -> None:
    document = models.document(tmp_path, {"slow": models.slow(tmp_path / "m.onnx", rounds=200)})
    with running(tmp_path, document) as engine, concurrent.futures.ThreadPoolExecutor(1) as pool:
        url = engine.url
        asked = pool.submit(httpx.post, f"{url}/infer", json=[{"tensor": [1.0]}] * 60, timeout=60)
        time.sleep(0.3)
        assert engine.stop() == 0
        assert asked.result().status_code == 200
        with suppress(FileNotFoundError):
            assert engine.status().phase == "Draining"  # type: ignore[union-attr]
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/livez")


def test_tokens_are_checked_on_the_engines_own_port(tmp_path: Path) -> None:
    signer, publisher = Signer(), Publisher()
    publisher.raw = json.dumps({"issuers": [], "keys": [signer.jwk], "users": ["ann"]}).encode()
    (tmp_path / "token").write_text("engine")
    access = {"url": publisher.url, "token_file": str(tmp_path / "token"), "refresh_s": 0.05}
    document = models.document(tmp_path, {"fraud": models.linear(tmp_path / "m.onnx")}, access=access)

    def ask(token: bytes | None, path: str = "/infer") -> httpx.Response:
        headers = {"Authorization": token.decode()} if token else {}
        return httpx.post(engine.url + path, json=GOOD, headers=headers)

    try:
        with running(tmp_path, document) as engine:
            ann = signer.token()
            until(lambda: ask(ann).status_code == 200)
            missing, stranger = ask(None), ask(signer.token(sub="eve"))
            assert missing.status_code == 401
            assert missing.json() == {"code": 401, "status": "Error", "error": "Jwt is missing", "source": "platform"}
            assert stranger.status_code == 404
            assert stranger.json()["error"] == "Deployment not found"
            assert ask(None, "/logs").status_code == 401
            assert httpx.get(engine.url + "/livez").status_code == 200
            with httpx.Client(base_url=engine.url, headers={"Authorization": ann.decode()}) as client:
                assert client.post("/infer", json=GOOD).status_code == 200
                publisher.raw = json.dumps(
                    {"issuers": [], "keys": [signer.jwk], "users": ["ann"], "revoked_sessions": ["s1"]}
                ).encode()
                until(lambda: client.post("/infer", json=GOOD).status_code == 401, 5)
    finally:
        publisher.close()


def test_workers_share_the_port_and_dead_ones_come_back(tmp_path: Path) -> None:
    document = models.document(tmp_path, {"fraud": models.linear(tmp_path / "m.onnx")}, resources={"workers": 2})
    with running(tmp_path, document) as engine:
        for _ in range(40):
            assert httpx.post(f"{engine.url}/infer", json=GOOD).status_code == 200
        first = read_status(tmp_path / "status.json.0")
        assert first is not None
        os.kill(first.pid, signal.SIGKILL)
        until(
            lambda: (now := read_status(tmp_path / "status.json.0")) and now.pid != first.pid and now.phase == "Running"
        )
        for _ in range(20):
            assert httpx.post(f"{engine.url}/infer", json=GOOD).status_code == 200
        time.sleep(1.2)
        text = httpx.get(f"{engine.url}/metrics").text
        assert engine.stop() == 0

    partitions = {path.name for path in (tmp_path / "logs").rglob("engine-abc-1-*")}
    assert partitions == {"engine-abc-1-0", "engine-abc-1-1"}
    assert "tensor_throughput_batch_count" in text
    assert read_page(tmp_path / "logs", "topic-fraud").table.num_rows == 60


def test_connections_passed_by_a_gateway_are_served(tmp_path: Path) -> None:
    from engine.contract import handoff

    path = str(tmp_path / "handoff.sock")
    document = models.document(tmp_path, {"fraud": models.linear(tmp_path / "m.onnx")}, handoff_socket=path)
    body = json.dumps(GOOD).encode()
    head = (
        "POST /v1/api/pipelines/infer/shop-7/fraud HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    with running(tmp_path, document), socket.create_server(("127.0.0.1", 0)) as listening:
        gateway = handoff.connect(path)
        client = socket.create_connection(listening.getsockname())
        accepted, _ = listening.accept()
        accepted.setblocking(False)
        handoff.send_connection(gateway, accepted.fileno(), head + body)
        accepted.close()
        first = client.recv(65536)
        client.sendall(head + body)
        second = client.recv(65536)
        client.sendall(b"GET /v1/api/config HTTP/1.1\r\nHost: x\r\n\r\n")
        gateway.setblocking(True)
        descriptor_and_bytes = until(lambda: _receive(gateway))

        assert first.startswith(b"HTTP/1.1 200")
        assert second.startswith(b"HTTP/1.1 200")
        assert descriptor_and_bytes[1].startswith(b"GET /v1/api/config")
        descriptor_and_bytes[0].close()
        client.close()
        gateway.close()


def _receive(gateway: socket.socket) -> Any:
    from engine.contract import handoff

    try:
        return handoff.receive_connection(gateway)
    except BlockingIOError:
        return None


def test_arrow_over_http(engine: EngineUnderTest) -> None:
    batch = pa.RecordBatch.from_pylist(GOOD * 4, schema=pa.schema([("tensor", pa.list_(pa.float32()))]))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    for _ in range(3):
        reply = httpx.post(
            f"{engine.url}/pipelines/fraud",
            content=sink.getvalue().to_pybytes(),
            headers={"Content-Type": ARROW, "Accept": ARROW},
        )
        table = pa.ipc.open_file(reply.content).read_all()
        assert table.num_rows == 4
        assert table.schema.names[:3] == ["time", "in", "out"]


def test_an_engine_opens_no_connection(engine: EngineUnderTest) -> None:
    httpx.post(f"{engine.url}/pipelines/fraud", json=GOOD)
    port = int(engine.url.rsplit(":", 1)[1])
    inodes = set()
    for entry in Path(f"/proc/{engine.process.pid}/fd").iterdir():
        with suppress(OSError):
            inodes.update(re.findall(r"socket:\[(\d+)\]", os.readlink(entry)))
    for name in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{engine.process.pid}/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in inodes:
                assert int(fields[1].rsplit(":", 1)[1], 16) == port, line


def test_plain_inferences_do_not_load_arrows_compute_functions(tmp_path: Path) -> None:
    arrow = {"content": arrow_file([GOOD[0]["tensor"]]), "headers": {"Content-Type": ARROW, "Accept": ARROW}}
    document = models.document(tmp_path, {"fraud": models.linear(tmp_path / "m.onnx")})
    with running(tmp_path, document) as engine:
        for request in ({"json": GOOD}, arrow):
            for _ in range(3):
                assert httpx.post(f"{engine.url}/infer", **request).status_code == 200

        mapped = Path(f"/proc/{engine.process.pid}/maps").read_text()

    assert "/onnxruntime_pybind11_state." in mapped
    assert "/pyarrow/_compute." not in mapped


def test_an_engine_loads_no_libraries_for_files_elsewhere() -> None:
    probe = "import sys, engine.server.process; print('pyarrow.fs' in sys.modules, 'pyarrow.parquet' in sys.modules)"

    ran = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)

    assert ran.stdout.split() == ["False", "False"]
