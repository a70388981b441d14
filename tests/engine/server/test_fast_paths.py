"""The fast paths must say what the plain path says."""

from __future__ import annotations

import asyncio
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.contract.datasets import Selection
from engine.contract.deployment import DeploymentDocument
from engine.logs.query import read_page
from engine.runtime.engine import Engine, InferRequest
from engine.server.app import _see_what_is_fast
from engine.server.commit import Logs
from engine.server.desk import Desk, Route, Ticket
from engine.server.fast import texts
from engine.server.http import State
from engine.server.lanes import Lane
from engine.server.metrics import Metrics
from tests.engine.server import models

SDK_QUERY = "dataset%5B%5D=%2A&dataset.exclude%5B%5D=metadata&dataset.separator=."
RECORDS = "application/json; format=pandas-records"
ARROW = "application/vnd.apache.arrow.file"


class Client:
    """Stands for a connection: takes the reply."""

    def __init__(self) -> None:
        self.serial = 1
        self.state = State.BUSY
        self.closes = False
        self.head = SimpleNamespace(version="1.1")
        self.listener = SimpleNamespace(date_line=b"")
        self.status = 0
        self.body = b""

    def respond(self, serial: int, status: int, _type: bytes, body: bytes, _headers: Any = (), **_: Any) -> None:
        self.state, self.status, self.body = State.IDLE, status, bytes(body)

    def send(self, serial: int, reply: bytes) -> None:
        head, _, body = reply.partition(b"\r\n\r\n")
        self.state, self.status, self.body = State.IDLE, int(head.split()[1]), body
        assert f"content-length: {len(body)}".encode() in head

    def send_parts(self, serial: int, parts: list[Any]) -> None:
        self.send(serial, b"".join(parts))


class Bench:
    """An engine without sockets."""

    def __init__(self, raw: dict[str, Any]) -> None:
        document = msgspec.convert(raw, DeploymentDocument)
        self.document = document
        self.loop = asyncio.new_event_loop()
        self.metrics = Metrics()
        self.logs = Logs(document.log, document.replica, self.metrics)
        self.desk = Desk(self.loop, self.logs, self.metrics, 64, 1)
        self.engine = Engine(document)
        self.engine.load()
        self.lanes = {name: Lane(self.desk, self.engine, name) for name in self.engine.pipelines}

    def route(self, pipeline: str, content_type: str, accept: str | None, query: str) -> Route:
        route = Route(self.lanes[pipeline], pipeline)
        route.content_type, route.accept, route.query = content_type, accept, query
        _see_what_is_fast(route)
        return route

    def ask(
        self,
        pipeline: str,
        bodies: list[bytes],
        content_type: str = RECORDS,
        accept: str | None = None,
        query: str = "",
    ) -> list[Client]:
        """Send requests that arrive in one turn of the loop."""
        clients = [Client() for _ in bodies]
        route = self.route(pipeline, content_type, accept, query)
        for client, body in zip(clients, bodies, strict=True):
            self.lanes[pipeline].submit(Ticket(client, route, body))  # type: ignore[arg-type]
        deadline = self.loop.time() + 5
        while any(client.state is State.BUSY for client in clients):
            assert self.loop.time() < deadline, "no reply"
            self.loop.run_until_complete(asyncio.sleep(0))
        return clients

    def plain(
        self, pipeline: str, body: bytes, content_type: str = RECORDS, accept: str | None = None, query: str = ""
    ) -> Any:
        request = InferRequest(pipeline=pipeline, content_type=content_type, body=body, accept=accept, query=query)
        return self.engine.infer(request)

    def fast_count(self) -> float:
        return sum(
            value for (name, _), value in self.metrics.snapshot().items() if name.endswith("fast_requests_total")
        )

    def close(self) -> None:
        self.desk.close()
        self.logs.close()
        self.loop.close()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("fast")
    made = {
        "one": models.linear(folder / "one.onnx"),
        "wide": models.linear(folder / "wide.onnx", outputs=4),
        "double": models.linear(folder / "double.onnx", kind=models.DOUBLE),
        "mixing": models.over_the_batch(folder / "mixing.onnx"),
        "largest": models.largest(folder / "largest.onnx"),
    }
    bench = Bench(models.document(folder, made))
    yield bench
    bench.close()


def same_json(fast: bytes, plain: bytes) -> None:
    """Equal, apart from what differs between any two runs, and with numbers compared as numbers."""

    def blur(value: Any) -> Any:
        for row in value:
            for key in ("time", "metadata.elapsed"):
                if key in row:
                    row[key] = None
            if isinstance(row.get("metadata"), dict):
                row["metadata"]["elapsed"] = None
        return value

    left, right = blur(json.loads(fast)), blur(json.loads(plain))
    assert left == right
    assert [list(row) for row in left] == [list(row) for row in right], "columns in the same order"


def same_arrow(fast: bytes, plain: bytes) -> None:
    left, right = pa.ipc.open_file(fast).read_all(), pa.ipc.open_file(plain).read_all()
    left.validate(full=True)
    assert left.schema.equals(right.schema, check_metadata=True)
    for name in left.schema.names:
        if name == "time" or name.endswith("elapsed"):
            continue
        if name == "metadata":
            assert [{**row, "elapsed": 0} for row in left[name].to_pylist()] == [
                {**row, "elapsed": 0} for row in right[name].to_pylist()
            ]
        else:
            assert left[name].equals(right[name]) or _equal_with_nan(left[name], right[name])


def _equal_with_nan(left: Any, right: Any) -> bool:
    return str(left.to_pylist()) == str(right.to_pylist())


ordinary = st.floats(-1e6, 1e6) | st.integers(-(10**6), 10**6)
numbers = ordinary | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70)
queries = st.sampled_from(
    [
        "",
        SDK_QUERY,
        "dataset[]=out",
        "dataset[]=time&dataset[]=out.y&dataset.separator=.",
        "dataset[]=in",
        "dataset[]=metadata&dataset[]=out",
        "dataset[]=time",
        "dataset[]=nope",
        "dataset[]=in&dataset[]=out&dataset.separator=:",
        "dataset[]=out.count&dataset.separator=.",
    ]
)
spellings = st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", " : ")])


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=1, max_size=6),
    query=queries,
    spelling=spellings,
    pipeline=st.sampled_from(["one", "wide", "double", "mixing"]),
)
def test_json_replies_are_those_of_the_plain_path(
    bench: Bench, rows: list[list[float]], query: str, spelling: tuple[str, str], pipeline: str
) -> None:
    body = json.dumps([{"tensor": row} for row in rows], separators=spelling).encode()

    (fast,) = bench.ask(pipeline, [body], query=query)
    plain = bench.plain(pipeline, body, query=query)

    assert fast.status == plain.status
    if plain.status == 200:
        same_json(fast.body, plain.body)
    else:
        assert fast.body == plain.body


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.lists(ordinary, min_size=3, max_size=3), min_size=2, max_size=20), query=queries)
def test_requests_of_one_turn_are_answered_each_with_its_own_rows(
    bench: Bench, rows: list[list[float]], query: str
) -> None:
    bodies = [json.dumps([{"tensor": row}]).encode() for row in rows]

    replies = bench.ask("one", bodies, query=query)

    for body, reply in zip(bodies, replies, strict=True):
        plain = bench.plain("one", body, query=query)
        assert reply.status == plain.status
        if reply.status == 200:
            left, right = json.loads(reply.body)[0], json.loads(plain.body)[0]
            assert list(left) == list(right)
            for key in left:
                if "y" in key or key == "out":
                    continue
                if "time" not in key and "metadata" not in key:
                    assert left[key] == right[key]
            for key in ("out.y", "out:y"):
                if key in left:
                    assert math.isclose(left[key][0], right[key][0], rel_tol=1e-5, abs_tol=1e-3)


def test_ordinary_requests_take_the_fast_path_from_the_first_on(tmp_path: Path) -> None:
    fresh = Bench(models.document(tmp_path, {"one": models.linear(tmp_path / "one.onnx")}))
    try:
        for count in (1, 2, 1, 40, 1, 3, 3):
            for indent in (None, None, 4, 1):
                body = json.dumps([{"tensor": [1.5, n, -2]} for n in range(count)], indent=indent).encode()
                before = fresh.fast_count()
                (client,) = fresh.ask("one", [body])
                same_json(client.body, fresh.plain("one", body).body)
                assert fresh.fast_count() == before + 1, (count, indent)
    finally:
        fresh.close()


def test_a_reply_of_too_many_numbers_is_left_to_the_plain_path(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    body = json.dumps([{"tensor": [n, 0.5, -n]} for n in range(40)]).encode()
    bench.ask("wide", [body])
    before = bench.fast_count()
    monkeypatch.setattr(texts, "MOST_NUMBERS", 4 * 40 - 1)

    (client,) = bench.ask("wide", [body])

    same_json(client.body, bench.plain("wide", body).body)
    assert bench.fast_count() == before


MALFORMED = [
    b"",
    b"[]",
    b"{}",
    b"[{}]",
    b"nonsense",
    b'[{"tensor":[1,2]}]',
    b'[{"tensor":[1,2,3,4]}]',
    b'[{"tensor":[1,2,null]}]',
    b'[{"tensor":[1,2,"3"]}]',
    b'[{"tensor":[1,2,true]}]',
    b'[{"tensor":[1,2,3]},{"tensor":[1,2]}]',
    b'[{"tensor":[[1,2,3]]}]',
    b'[{"tensor":[1,2,3]}',
    b'[{"tensor":[1,2,3,]}]',
    b'[{"tensor":[1,,3]}]',
    b'[{"tensor":[1,2,NaN]}]',
    b'[{"tensor":[1,2,1e999]}]',
    b'[{"tensor":[1,2,3],"more":[1]}]',
    b'[{"tensor":[1,2,3]},{"other":[1,2,3]}]',
    b'[{"tensor":[1,2,3],"tensor":[4,5,6]}]',
    b'[{"tensor":[1,2,3]},{"tensor":[4,5,6],"tensor":[7,8,9]}]',
    b'[{"tensor":[1,2,3]}]x',
    b'[{"tensor":[1,2],[3]}]',
    b'[{"tensor":[01,2,3]}]',
    b'[{"tensor":[1.,2,3]}]',
    b'[{"tensor":[+1,2,3]}]',
    b'[{"tensor":[1 2,3]}]',
    b'[{"tensor":[1,2,3]]}]',
    b'[{"tensor":[1},{"tensor":2,3]}]',
    b'[{"tensor":[1,2,3]},{"tensor":[1,[],3,4]}]',
    b'[{"tensor":"[1,2,3]"}]',
    b'[{"tensor":[1,2,"a]}]',
    b'[{"tensor":[1,2,{}]}]',
    b'\xef\xbb\xbf[{"tensor":[1,2,3]}]',
    b'[{"t\\u0065nsor":[1,2,3]}]',
    b'[{"tensor":[\x001,2,3]}]',
    b'[{"tensor":[1,2,3]/**/}]',
    b"[{'tensor':[1,2,3]}]",
    b'[{"tensor":[]}]',
    b'[{"tensor":[],"x":[1,2,3]}]',
]


@pytest.mark.parametrize("body", MALFORMED)
@pytest.mark.parametrize("neighbours", [False, True])
def test_malformed_json_is_what_the_plain_path_says_it_is(bench: Bench, body: bytes, neighbours: bool) -> None:
    good = b'[{"tensor":[1.5,-2,3]}]'
    bodies = [good, body, good] if neighbours else [body]

    replies = bench.ask("one", bodies)

    plain = bench.plain("one", body)
    reply = replies[1] if neighbours else replies[0]
    assert reply.status == plain.status
    if plain.status == 200:
        same_json(reply.body, plain.body)
    else:
        assert reply.body == plain.body
    if neighbours:
        for other in (replies[0], replies[2]):
            same_json(other.body, bench.plain("one", good).body)


def arrow_file(rows: np.ndarray[Any, Any], kind: pa.DataType, **options: Any) -> bytes:
    batch = pa.RecordBatch.from_pylist([{"tensor": row} for row in rows.tolist()], schema=pa.schema([("tensor", kind)]))
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, batch.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


KINDS = [pa.list_(pa.float32()), pa.list_(pa.float64()), pa.list_(pa.float32(), 3), pa.large_list(pa.float32()),
         pa.list_(pa.int32())]  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(
    counts=st.lists(st.integers(1, 7), min_size=2, max_size=4),
    kind=st.sampled_from(KINDS),
    query=queries,
    seed=st.integers(0, 5),
    pipeline=st.sampled_from(["one", "wide", "double", "mixing"]),
)
def test_arrow_replies_are_those_of_the_plain_path(
    bench: Bench, counts: list[int], kind: pa.DataType, query: str, seed: int, pipeline: str
) -> None:
    generator = np.random.default_rng(seed)
    for count in [*counts, *counts]:
        rows = (
            generator.integers(-9, 9, (count, 3)).astype("f8")
            if kind == KINDS[-1]
            else generator.normal(size=(count, 3))
        )
        body = arrow_file(rows, kind)

        (fast,) = bench.ask(pipeline, [body], ARROW, ARROW, query)
        plain = bench.plain(pipeline, body, ARROW, ARROW, query)

        assert fast.status == plain.status
        if plain.status == 200:
            same_arrow(fast.body, plain.body)
        else:
            assert fast.body == plain.body


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_arrow_files_are_what_the_plain_path_says_they_are(bench: Bench, data: st.DataObject) -> None:
    good = arrow_file(np.arange(12.0).reshape(4, 3), KINDS[0])
    bench.ask("one", [good], ARROW, ARROW)
    body = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))

    (fast,) = bench.ask("one", [bytes(body)], ARROW, ARROW)
    plain = bench.plain("one", bytes(body), ARROW, ARROW)

    assert fast.status == plain.status
    if plain.status == 200:
        same_arrow(fast.body, plain.body)


def test_nulls_and_ragged_rows_in_arrow_are_refused_after_good_ones_were_seen(bench: Bench) -> None:
    kind = pa.list_(pa.float32())
    bench.ask("one", [arrow_file(np.ones((2, 3)), kind)], ARROW, ARROW)
    for cells in ([[1.0, 2.0, 3.0], [1.0, None, 3.0]], [[1.0, 2.0], [1.0, 2.0, 3.0, 4.0]], [[1.0, 2.0, 3.0], None]):
        batch = pa.RecordBatch.from_pylist([{"tensor": cell} for cell in cells], schema=pa.schema([("tensor", kind)]))
        sink = io.BytesIO()
        with pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)

        (reply,) = bench.ask("one", [sink.getvalue()], ARROW, ARROW)

        assert reply.status == 400


def test_each_row_has_its_own_outputs_also_when_their_number_changes(bench: Bench) -> None:
    for pipeline, rows in (
        ("one", [[1.0, 2.0, 3.0], [1e300, -1e300, 0.0], [4.0, 5.0, 6.0], [1.0, 2.0, 3.0]]),
        ("largest", [[0.0, 0.0, 0.0], [1.0, -1.0, 0.0], [-1.0, -2.0, -3.0], [1.0, 2.0, -3.0], [3.0, -2.0, 0.5]]),
    ):
        for row in rows:
            body = json.dumps([{"tensor": row}]).encode()
            (client,) = bench.ask(pipeline, [body])
            assert client.status == 200
            same_json(client.body, bench.plain(pipeline, body).body)


def test_nan_in_arrow_stays_nan_in_arrow(bench: Bench) -> None:
    body = arrow_file(np.array([[1.0, math.nan, math.inf]] * 3), KINDS[0])
    for _ in range(3):
        (fast,) = bench.ask("one", [body], ARROW, ARROW)
        same_arrow(fast.body, bench.plain("one", body, ARROW, ARROW).body)


def test_the_usual_requests_do_take_the_fast_path(bench: Bench) -> None:
    arrow = arrow_file(np.ones((5, 3)), KINDS[0])
    bench.ask("one", [arrow], ARROW, ARROW)
    before = bench.fast_count()

    bench.ask("one", [b'[{"tensor":[1.5,2,3]}]'] * 5, query=SDK_QUERY)
    bench.ask("one", [b'[{"tensor":[1.5,2,3]},{"tensor":[1,2,3]}]'], query=SDK_QUERY)
    bench.ask("one", [arrow], ARROW, ARROW)

    assert bench.fast_count() - before == 7


def test_rows_that_depend_on_their_neighbours_never_share_a_run(bench: Bench) -> None:
    assert bench.lanes["one"].shares
    assert not bench.lanes["mixing"].shares
    bodies = [b'[{"tensor":[%d,2,3]}]' % n for n in range(4)]

    replies = bench.ask("mixing", bodies)

    assert [json.loads(reply.body)[0]["out"]["y"] for reply in replies] == [[0.0, 0.0, 0.0]] * 4


def test_records_in_the_log_are_those_of_the_plain_path(tmp_path: Path) -> None:
    bench = Bench(models.document(tmp_path, {"one": models.linear(tmp_path / "m.onnx")}))
    try:
        arrow = arrow_file(np.ones((2, 3)), KINDS[0])
        bodies = [b'[{"tensor":[1.5,%d,3]}]' % n for n in range(5)]
        bench.ask("one", bodies)
        kept = read_page(tmp_path / "logs", "topic-one").table
        plain = bench.plain("one", bodies[2]).record

        assert kept.num_rows == 5
        assert kept.schema.equals(plain.schema, check_metadata=True)
        assert [row["in"]["tensor"][1] for row in kept.to_pylist()] == [0.0, 1.0, 2.0, 3.0, 4.0]
        got, wanted = kept.to_pylist()[2], plain.to_pylist()[0]
        assert {**got, "time": 0, "metadata": 0, "out": 0} == {**wanted, "time": 0, "metadata": 0, "out": 0}
        assert math.isclose(got["out"]["y"][0], wanted["out"]["y"][0], rel_tol=1e-5)
        assert {**got["metadata"], "elapsed": 0} == {**wanted["metadata"], "elapsed": 0}

        bench.ask("one", [arrow], ARROW, ARROW)
        bench.ask("one", [arrow], ARROW, ARROW)
        end = bench.logs._writer("topic-one").end
        assert end == 9
        kept = read_page(tmp_path / "logs", "topic-one", positions={"engine-abc-1": 7}).table
        plain = bench.plain("one", arrow, ARROW, ARROW).record
        assert kept.num_rows == 2
        assert kept.schema.equals(plain.schema, check_metadata=True)
        assert kept["in"].to_pylist() == plain["in"].to_pylist()
        assert kept["out"].to_pylist() == plain["out"].to_pylist()
    finally:
        bench.close()


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 500])
def test_records_of_many_rows_are_kept_whole_however_they_are_packed(tmp_path: Path, rows: int) -> None:
    bench = Bench(models.document(tmp_path, {"one": models.linear(tmp_path / "m.onnx")}))
    try:
        body = json.dumps([{"tensor": [n, 0.5, -n]} for n in range(rows)]).encode()
        bench.ask("one", [body])
        (kept,) = read_page(tmp_path / "logs", "topic-one").table.to_batches()
        plain = bench.plain("one", body).record

        kept.validate(full=True)
        assert kept.schema.equals(plain.schema, check_metadata=True)
        for name in ("in", "out", "check_failures", "anomaly"):
            assert kept[name].equals(plain[name])
        for name in ("last_model", "pipeline_version", "dropped", "partition"):
            assert kept["metadata"].field(name).equals(plain["metadata"].field(name))
        assert set(kept["time"].to_pylist()).issubset({kept["time"][0].as_py()})
    finally:
        bench.close()


@pytest.mark.parametrize("count", [1, 2, 40])
@pytest.mark.parametrize("number", ["9007199254740993", "-9007199254740993", "1e300", "123456789012345678901234567890"])
def test_numbers_that_a_double_has_no_place_for_are_shown_as_they_are_kept(
    bench: Bench, number: str, count: int
) -> None:
    rows = [f'{{"tensor":[0.5,{number},1]}}'] + ['{"tensor":[1,2,3]}'] * (count - 1)
    body = f"[{','.join(rows)}]".encode()
    bench.ask("one", [b'[{"tensor":[1,2,3]}]'])

    (client,) = bench.ask("one", [body])

    same_json(client.body, bench.plain("one", body).body)
    assert json.loads(client.body)[0]["in"]["tensor"][1] == float(number)


def test_a_selection_is_the_same_however_often_it_is_asked_for(bench: Bench) -> None:
    fast = bench.lanes["one"].fast
    assert fast is not None
    assert fast.row_template_of_json(Selection()) is fast.row_template_of_json(Selection())


def narrow(folder: Path, limit_bytes: int) -> tuple[Bench, list[int]]:
    """A lane whose log keeps rows up to a size, and the rows of each run of its model from now on."""
    folder.mkdir(exist_ok=True)
    document = models.document(folder, {"one": models.linear(folder / "one.onnx")})
    bench = Bench(document | {"log": document["log"] | {"record_bytes_limit": limit_bytes}})
    model = next(iter(bench.engine.models.values()))
    runs: list[int] = []
    execute = model.execute  # type: ignore[attr-defined]

    def counted(feed: dict[str, Any]) -> Any:
        runs.append(len(next(iter(feed.values()))))
        return execute(feed)

    model.execute = counted  # type: ignore[attr-defined]
    return bench, runs


@pytest.mark.parametrize("kind", [ARROW, RECORDS])
def test_requests_that_no_template_fits_run_their_model_once(tmp_path: Path, kind: str) -> None:
    bench, runs = narrow(tmp_path, 40)  # too little for any row: the log drops a column
    bodies = [arrow_file(np.ones((rows, 3)), KINDS[0]) for rows in (1, 2, 3)]
    if kind == RECORDS:
        bodies = [json.dumps([{"tensor": [1.0, 2.0, 3.0], "note": "x"}] * rows).encode() for rows in (1, 2, 3)]
    for body in bodies:
        bench.ask("one", [body], kind, kind)
    runs.clear()

    for body in bodies * 2:
        (reply,) = bench.ask("one", [body], kind, kind)
        assert reply.status == 200

    assert runs == [1, 2, 3] * 2
    bench.close()


def test_a_row_that_the_log_keeps_whole_is_fast_however_near_it_is_to_the_limit(tmp_path: Path) -> None:
    body = arrow_file(np.ones((1, 3)), KINDS[0])
    whole, _ = narrow(tmp_path / "whole", 1 << 20)
    whole.ask("one", [body], ARROW, ARROW)
    record = whole.engine.infer(InferRequest(pipeline="one", content_type=ARROW, body=body)).record
    whole.close()
    assert record is not None
    bench, _ = narrow(tmp_path / "near", int(record.nbytes * 1.2))
    bench.ask("one", [body], ARROW, ARROW)
    before = bench.fast_count()

    bench.ask("one", [body], ARROW, ARROW)

    assert bench.fast_count() == before + 1
    bench.close()
