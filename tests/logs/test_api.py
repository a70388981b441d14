"""The logs through HTTP: `get_logs`, topic names and the log store's own API."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

from app.deployments.access import access_token
from app.deployments.launches import launch_of
from app.deployments.tables import Deployment, DeploymentPipelineVersion
from app.kit.context import Context
from app.logs import service
from app.pipelines.tables import Pipeline
from app.workspaces.tables import Workspace
from engine.contract.deployment import LogDocument
from engine.contract.failures import InferenceFailure
from engine.logs.writer import PartitionWriter
from engine.runtime.failures import failure_record
from tests.conftest import ANN
from tests.factories import Make
from tests.logs.rows import FLOATS, batch, ids_of

ARROW = "application/vnd.apache.arrow.file"
RECORDS = "application/json; format=pandas-records"


@pytest.fixture
async def lab(make: Make) -> Workspace:
    return await make.workspace(member=ANN)


@pytest.fixture
async def pipe(make: Make, lab: Workspace) -> Pipeline:
    row, _ = await make.pipeline(lab, name="houses")
    return row


@pytest.fixture
def topic(lab: Workspace, pipe: Pipeline) -> str:
    return f"workspace-{lab.id}-pipeline-houses-inference"


def keep(
    context: Context, topic: str, ids: Iterable[int], *, partition: str = "engine-a", times: Any = None, **how: Any
) -> None:
    with PartitionWriter(context.settings.logs_root, topic, partition) as writer:
        writer.append(batch(ids, times, **how))


def arrow_of(answer: httpx.Response) -> pa.Table:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == ARROW
    return pa.ipc.open_file(answer.content).read_all()


def file_of(*batches: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batches[0].schema) as writer:
        for one in batches:
            writer.write_batch(one)
    return bytes(sink.getvalue())


def iso(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat()


# -- topic names -------------------------------------------------------------------------------------------------------


async def test_a_pipelines_topic_is_named_by_number_or_by_name(
    ann: httpx.AsyncClient, lab: Workspace, pipe: Pipeline, topic: str
) -> None:
    by_number = await ann.post("/v1/api/plateau/get_topic_name", json={"pipeline_pk_id": pipe.id})
    by_name = await ann.post("/v1/api/plateau/get_topic_name", json={"workspace_id": lab.id, "pipeline_name": "houses"})
    other = await ann.post("/v1/api/plateau/get_pipeline_topic_name", json={"pipeline_name": "houses"})

    assert by_number.json() == by_name.json() == other.json() == {"topic_name": topic}


async def test_an_outsider_learns_no_topic(bob: httpx.AsyncClient, lab: Workspace, pipe: Pipeline) -> None:
    for path, body in (
        ("get_topic_name", {"pipeline_pk_id": pipe.id}),
        ("get_topic_name", {"workspace_id": lab.id, "pipeline_name": "houses"}),
        ("get_pipeline_topic_name", {"pipeline_name": "houses"}),
    ):
        answer = await bob.post(f"/v1/api/plateau/{path}", json=body)
        assert answer.status_code == 404
        assert answer.json()["code"] == 404


# -- get_logs ----------------------------------------------------------------------------------------------------------


async def test_get_logs_gives_nested_rows_newest_first(
    ann: httpx.AsyncClient, context: Context, lab: Workspace, topic: str
) -> None:
    keep(context, topic, range(5))
    keep(context, topic, range(10, 13), partition="engine-b", times=[1, 2, 3])

    answer = await ann.post("/v1/api/pipelines/get_logs", json={"pipeline_id": "houses", "workspace_id": lab.id})

    assert answer.headers["content-type"] == RECORDS
    assert answer.headers["x-iteration-status"] == "All"
    assert "x-iteration-cursor" not in answer.headers
    assert [row["in"]["id"] for row in answer.json()] == [4, 12, 3, 11, 2, 10, 1, 0]
    assert answer.json()[0] == {
        "time": 4,
        "in": {"id": 4, "tensor": [4.0, 4.0, 4.0]},
        "out": {"y": [2.0]},
        "metadata": {"last_model": '{"model_name":"m1"}', "dropped": []},
    }


@pytest.mark.parametrize("order", ["Asc", "Desc", "asc", "desc"])
async def test_pages_by_cursor_cover_each_row_once_in_order(
    ann: httpx.AsyncClient, context: Context, lab: Workspace, topic: str, order: str
) -> None:
    for start in range(0, 60, 10):
        keep(context, topic, range(start, start + 10), partition=f"engine-{start % 3}", times=[start // 20] * 10)
    asked: dict[str, Any] = {"pipeline_name": "houses", "workspace_id": lab.id, "order": order, "page_size": 7}

    seen: list[int] = []
    times: list[int] = []
    status, cursor = "", None
    while status != "All":
        answer = await ann.post("/v1/api/pipelines/get_logs", json=asked | ({"cursor": cursor} if cursor else {}))
        assert answer.status_code == 200, answer.text
        assert len(answer.json()) <= 7
        seen += [row["in"]["id"] for row in answer.json()]
        times += [row["time"] for row in answer.json()]
        status, cursor = answer.headers["x-iteration-status"], answer.headers.get("x-iteration-cursor")
        assert status in {"All", "RecordLimited"}
        assert (cursor is None) == (status == "All")

    assert sorted(seen) == list(range(60))
    assert times == sorted(times, reverse=order.lower() == "desc")


async def test_a_page_ends_where_the_schema_changes(
    ann: httpx.AsyncClient, context: Context, lab: Workspace, topic: str
) -> None:
    keep(context, topic, range(3))
    keep(context, topic, range(3, 6), kind=1)
    asked = {"pipeline_id": "houses", "workspace_id": lab.id}

    first = await ann.post("/v1/api/pipelines/get_logs", json=asked)
    second = await ann.post("/v1/api/pipelines/get_logs", json=asked | {"cursor": first.headers["x-iteration-cursor"]})

    assert first.headers["x-iteration-status"] == "SchemaChange"
    assert [row["in"]["id"] for row in first.json()] == [5, 4, 3]
    assert second.headers["x-iteration-status"] == "All"
    assert [row["in"]["id"] for row in second.json()] == [2, 1, 0]


async def test_a_page_ends_at_its_limit_of_bytes(
    ann: httpx.AsyncClient, context: Context, lab: Workspace, topic: str
) -> None:
    keep(context, topic, range(100), width=50_000)
    asked = {"pipeline_id": "houses", "workspace_id": lab.id}

    answer = await ann.post("/v1/api/pipelines/get_logs", json=asked, headers={"accept": ARROW})

    assert answer.headers["x-iteration-status"] == "ByteLimited"
    table = arrow_of(answer)
    assert 5_000_000 < table.nbytes < 12_000_000
    assert ids_of(table)[0] == 99


async def test_a_time_range_is_honoured_with_both_ends(
    ann: httpx.AsyncClient, context: Context, lab: Workspace, topic: str
) -> None:
    base = 1_700_000_000_000
    keep(context, topic, range(10), times=[base + 1000 * i for i in range(10)])
    asked = {"pipeline_id": "houses", "workspace_id": lab.id, "order": "Asc"}

    answer = await ann.post(
        "/v1/api/pipelines/get_logs", json=asked | {"start_time": iso(base + 2000), "end_time": iso(base + 5000)}
    )

    assert [row["in"]["id"] for row in answer.json()] == [2, 3, 4, 5]


async def test_get_logs_speaks_arrow_on_request(
    ann: httpx.AsyncClient, context: Context, lab: Workspace, topic: str
) -> None:
    keep(context, topic, range(5))

    answer = await ann.post(
        "/v1/api/pipelines/get_logs",
        json={"pipeline_id": "houses", "workspace_id": lab.id},
        headers={"accept": ARROW},
    )

    table = arrow_of(answer)
    assert ids_of(table) == [4, 3, 2, 1, 0]
    assert table.schema.equals(batch([1]).schema, check_metadata=True)


async def test_a_pipeline_without_logs_has_none(ann: httpx.AsyncClient, lab: Workspace, topic: str) -> None:
    asked = {"pipeline_id": "houses", "workspace_id": lab.id}

    answer = await ann.post("/v1/api/pipelines/get_logs", json=asked)

    assert (answer.status_code, answer.json(), answer.headers["x-iteration-status"]) == (200, [], "All")


@pytest.mark.parametrize(
    "change",
    [
        {"order": "sideways"},
        {"start_time": "2023-01-01T00:00:00Z"},
        {"end_time": "2023-01-01T00:00:00Z"},
        {"start_time": "yesterday", "end_time": "2023-01-01T00:00:00Z"},
        {"start_time": "2023-01-02T00:00:00Z", "end_time": "2023-01-01T00:00:00Z"},
        {"cursor": "garbage"},
        {"cursor": "ünicode"},
        {"page_size": -1},
        {"page_size": 0},
        {"page_size": "many"},
        {"pipeline_id": None},
    ],
)
async def test_bad_questions_are_refused(
    ann: httpx.AsyncClient, lab: Workspace, topic: str, change: dict[str, Any]
) -> None:
    answer = await ann.post(
        "/v1/api/pipelines/get_logs", json={"pipeline_id": "houses", "workspace_id": lab.id} | change
    )

    assert answer.status_code == 400, answer.text
    assert answer.json()["code"] == 400
    assert answer.json()["msg"]


async def test_a_cursor_serves_its_own_question_only(
    ann: httpx.AsyncClient, context: Context, make: Make, lab: Workspace, topic: str
) -> None:
    await make.pipeline(lab, name="other")
    keep(context, topic, range(5))
    asked = {"pipeline_id": "houses", "workspace_id": lab.id, "page_size": 2}
    cursor = (await ann.post("/v1/api/pipelines/get_logs", json=asked)).headers["x-iteration-cursor"]

    turned = await ann.post("/v1/api/pipelines/get_logs", json=asked | {"cursor": cursor, "order": "Asc"})
    elsewhere = await ann.post("/v1/api/pipelines/get_logs", json=asked | {"cursor": cursor, "pipeline_id": "other"})
    kept = await ann.post("/v1/api/pipelines/get_logs", json=asked | {"cursor": cursor, "order": "Desc"})

    assert (turned.status_code, elsewhere.status_code, kept.status_code) == (400, 400, 200)


async def test_an_outsider_finds_no_logs(bob: httpx.AsyncClient, context: Context, lab: Workspace, topic: str) -> None:
    keep(context, topic, range(5))

    answer = await bob.post("/v1/api/pipelines/get_logs", json={"pipeline_id": "houses", "workspace_id": lab.id})

    assert answer.status_code == 404


# -- the log store's API -----------------------------------------------------------------------------------------------


async def test_the_newest_rows_come_flat_with_their_status_in_the_schema(
    ann: httpx.AsyncClient, context: Context, topic: str
) -> None:
    keep(context, topic, range(200))
    path = f"/v1/logs/topic/{topic}/records?page_size=100&order=desc&dataset%5B%5D=%2A&dataset.separator=."

    table = arrow_of(await ann.post(path, json={}, headers={"accept": ARROW}))

    assert table.column_names == [
        "time", "in.id", "in.tensor", "out.y", "metadata.last_model", "metadata.dropped"
    ]  # fmt: skip
    assert table["time"].to_pylist() == list(range(199, 99, -1))
    status = json.loads(table.schema.metadata[b"status"])
    assert status == {"status": "RecordLimited", "next": {"engine-a": 100}}
    assert list(table.schema.metadata) == [b"status"]


async def test_the_newest_rows_come_from_whichever_partition_has_them(
    ann: httpx.AsyncClient, context: Context, topic: str
) -> None:
    keep(context, topic, range(50), partition="import")
    keep(context, topic, [100, 102], partition="engine-a")
    keep(context, topic, [101, 103], partition="engine-b")
    path = f"/v1/logs/topic/{topic}/records?page_size=5&order=desc"

    answer = await ann.post(path, json={})

    assert [row["time"] for row in answer.json()] == [103, 102, 101, 100, 49]
    assert json.loads(answer.headers["x-iteration-status"])["next"] == {"engine-a": 0, "engine-b": 0, "import": 49}


async def test_raw_reading_goes_on_by_positions_until_an_empty_page(
    ann: httpx.AsyncClient, context: Context, topic: str
) -> None:
    keep(context, topic, range(25))
    keep(context, topic, range(100, 110), partition="engine-b")
    described = (await ann.get(f"/v1/logs/topic/{topic}")).json()
    assert described["partitions"] == {"engine-a": {"start": 0, "end": 25}, "engine-b": {"start": 0, "end": 10}}
    assert described["bytes"] > 0

    seen: list[int] = []
    positions = {"engine-a": 5, "engine-b": 0}
    while True:
        answer = await ann.post(
            f"/v1/logs/topic/{topic}/records?page_size=10&dataset[]=*", json=positions, headers={"accept": ARROW}
        )
        table = arrow_of(answer)
        if table.num_rows == 0:
            assert table.schema.metadata is None
            assert table.column_names == []
            break
        seen += ids_of(table)
        positions = json.loads(table.schema.metadata[b"status"])["next"]

    assert sorted(seen) == [*range(5, 25), *range(100, 110)]


async def test_an_export_of_a_time_range_goes_on_in_ascending_order(
    ann: httpx.AsyncClient, context: Context, topic: str
) -> None:
    base = 1_700_000_000_000
    keep(context, topic, range(10), times=[base + i for i in range(10)])
    query = {"time.start": iso(base + 3), "time.end": iso(base + 7), "dataset[]": "*", "dataset.separator": "."}

    table = arrow_of(
        await ann.post(f"/v1/logs/topic/{topic}/records", params=query, json={}, headers={"accept": ARROW})
    )

    assert table["in.id"].to_pylist() == [3, 4, 5, 6, 7]
    assert json.loads(table.schema.metadata[b"status"])["status"] == "All"


async def test_a_page_of_the_store_never_mixes_schemas(ann: httpx.AsyncClient, context: Context, topic: str) -> None:
    keep(context, topic, range(3))
    keep(context, topic, range(3, 6), kind=1)

    first = await ann.post(f"/v1/logs/topic/{topic}/records", json={})
    status = json.loads(first.headers["x-iteration-status"])
    second = await ann.post(f"/v1/logs/topic/{topic}/records", json=status["next"])

    assert [row["in"]["id"] for row in first.json()] == [0, 1, 2]
    assert status == {"status": "SchemaChange", "next": {"engine-a": 3}}
    assert [row["in"]["id"] for row in second.json()] == [3, 4, 5]


async def test_partitions_can_be_chosen_by_name_and_pattern(
    ann: httpx.AsyncClient, context: Context, topic: str
) -> None:
    for number, name in enumerate(["engine-a", "engine-b", "edge-1"]):
        keep(context, topic, [number], partition=name)

    async def found(filters: str) -> list[int]:
        answer = await ann.post(f"/v1/logs/topic/{topic}/records?{filters}", json={})
        return sorted(row["in"]["id"] for row in answer.json())

    assert await found("partition_filter[]=edge-1") == [2]
    assert await found("partition_filter[]=regex:^engine-") == [0, 1]
    assert await found("partition_filter[]=engine-b&partition_filter[]=edge-1") == [1, 2]
    assert (await ann.post(f"/v1/logs/topic/{topic}/records?partition_filter[]=regex:(", json={})).status_code == 400


async def test_one_partition_is_read_with_its_status_and_span(
    ann: httpx.AsyncClient, context: Context, topic: str
) -> None:
    keep(context, topic, range(20))
    keep(context, topic, range(100, 105), partition="engine-b")

    table = arrow_of(
        await ann.get(
            f"/v1/logs/topic/{topic}/partition/engine-a/records?start=5&page_size=4", headers={"accept": ARROW}
        )
    )

    assert ids_of(table) == [5, 6, 7, 8]
    assert table.schema.metadata == {b"status": b'"RecordLimited"', b"span": b'{"start":5,"end":9}'}


async def test_what_makes_no_sense_is_refused_in_the_stores_own_shape(
    ann: httpx.AsyncClient, context: Context, topic: str
) -> None:
    keep(context, topic, range(3))
    path = f"/v1/logs/topic/{topic}/records"
    half = await ann.post(path, params={"time.start": iso(0)}, json={})
    backwards = await ann.post(path, params={"time.start": iso(0), "time.end": iso(5), "order": "desc"}, json={})
    pathless = await ann.post(f"{path}?dataset[]=nope", json={})
    formless = await ann.post(path, json={}, headers={"accept": "text/csv"})
    bodiless = await ann.post(path, content=b"[1]")

    for answer in (half, backwards, pathless, formless, bodiless):
        assert answer.status_code == 400, answer.text
        assert answer.json()["code"] == 400
        assert isinstance(answer.json()["message"], str)
    assert "invalid path" in pathless.json()["message"]
    assert "cannot emit requested" in formless.json()["message"]
    assert "invalid query" in backwards.json()["message"]


OLD_SDK = {"accept": "application/json", "user-agent": "WallarooSDK/2023.2.1+abc"}


def recorded(ids: Iterable[int], sha: str, name: str = "champ") -> pa.RecordBatch:
    """Records as an engine keeps them: a failed check on even rows, a shadow model, a split."""
    ids = list(ids)
    shape = {b"tensor_type": b'{"shape":[2,1]}'}
    inputs = [pa.field("tensor", pa.list_(pa.float32())), pa.field("tier", pa.string())]
    outputs = [pa.field("_model_split", pa.list_(pa.string())), pa.field("y", FLOATS, metadata=shape)]
    failure = pa.struct([pa.field("False", pa.struct([pa.field("expr", pa.string())]))])
    metadata = [("last_model", pa.string()), ("elapsed", pa.list_(pa.uint64())), ("dropped", pa.list_(pa.string()))]
    rows = [
        {
            "time": i,
            "in": {"tensor": [float(i), 0.1], "tier": "gold"},
            "out": {"_model_split": ["{}"], "y": [i / 2, 1.0]},
            "check_failures": [] if i % 2 else [{"False": {"expr": "champ.outputs[0][0] > 9"}}],
            "anomaly": {"count": 0},
            "out_shadow": {"label": i},
            "metadata": {
                "last_model": json.dumps({"model_name": name, "model_sha": sha}),
                "elapsed": [5, 70],
                "dropped": [],
            },
        }
        for i in ids
    ]
    schema = pa.schema(
        [
            ("time", pa.int64()),
            ("in", pa.struct(inputs)),
            ("out", pa.struct(outputs)),
            ("check_failures", pa.list_(failure)),
            ("anomaly", pa.struct([("count", pa.uint32())])),
            ("out_shadow", pa.struct([("label", pa.int64())])),
            ("metadata", pa.struct(metadata)),
        ]
    )
    return pa.RecordBatch.from_pylist(rows, schema=schema)


async def test_an_sdk_with_arrow_switched_off_reads_a_text_per_row(
    ann: httpx.AsyncClient, context: Context, make: Make, lab: Workspace, topic: str
) -> None:
    version = await make.model_version(lab, name="champ")
    with PartitionWriter(context.settings.logs_root, topic, "engine-a") as writer:
        writer.append(recorded(range(6), version.sha or ""))

    answer = await ann.post(f"/v1/logs/topic/{topic}/records?limit=2", json={"engine-a": 2}, headers=OLD_SDK)

    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert {key: body[key] for key in body if key != "records"} == {"status": "RecordLimited", "next": {"engine-a": 4}}
    assert [json.loads(text) for text in body["records"]] == [
        {
            "check_failures": failures,
            "elapsed": [5, 70],
            "model_name": "champ",
            "model_version": version.model_version,
            "original_data": {"tensor": [[float(i), 0.1]], "tier": ["gold"]},
            "outputs": [{"Float": {"v": 1, "dim": [1, 2, 1], "data": [i / 2, 1.0]}}],
            "pipeline_name": "houses",
            "shadow_data": {"shadow": [{"Int64": {"v": 1, "dim": [1], "data": [i]}}]},
            "time": i,
        }
        for i, failures in ((2, [{"False": {"expr": "champ.outputs[0][0] > 9"}}]), (3, []))
    ]


async def test_an_sdk_with_arrow_switched_off_reads_to_an_empty_page(
    ann: httpx.AsyncClient, bob: httpx.AsyncClient, context: Context, topic: str
) -> None:
    keep(context, topic, range(3))
    keep(context, topic, range(3, 8), kind=1, partition="engine-b")
    path, positions, seen = f"/v1/logs/topic/{topic}/records?page_size=2", {"engine-a": 1, "engine-b": 0}, []

    while records := (body := (await ann.post(path, json=positions, headers=OLD_SDK)).json())["records"]:
        seen += [json.loads(text) for text in records]
        positions = body["next"]

    assert sorted(row["original_data"]["id"] for row in seen) == [[i] for i in range(1, 8)]
    assert {(row["model_name"], row["model_version"]) for row in seen} == {("m0", ""), ("m1", ""), ("m2", "")}
    assert body["status"] == "All"
    outsider = await bob.post(path, json={}, headers=OLD_SDK)
    assert outsider.json() == {"records": [], "status": "All", "next": {}}


async def test_an_sdk_with_arrow_switched_off_reads_failures(
    ann: httpx.AsyncClient, context: Context, topic: str
) -> None:
    failure = InferenceFailure("No.", status=400)
    with PartitionWriter(context.settings.logs_root, f"{topic}-failures", "engine-a") as writer:
        writer.append(failure_record(failure, None, "v1", "engine-a", 7))

    answer = await ann.post(f"/v1/logs/topic/{topic}-failures/records", json={}, headers=OLD_SDK)

    (text,) = answer.json()["records"]
    record = json.loads(text)
    assert (record["time"], record["outputs"], record["elapsed"]) == (7, [], [0, 0])
    assert record["original_data"] == {"request": [""]}
    assert record["error"] == {"code": 400, "message": "No."}


@pytest.mark.parametrize(
    "headers",
    [
        {"accept": "application/json"},
        {"accept": "application/json", "user-agent": "python-requests/2.25.1"},
        {"accept": "application/json", "user-agent": "WallarooSDK/2024.3.0"},
        {"accept": "*/*", "user-agent": "WallarooSDK/2023.2.1"},
        {"accept": RECORDS, "user-agent": "WallarooSDK/2023.2.1"},
    ],
)
async def test_everybody_else_reads_an_array(
    ann: httpx.AsyncClient, context: Context, topic: str, headers: dict[str, str]
) -> None:
    keep(context, topic, range(3))

    answer = await ann.post(f"/v1/logs/topic/{topic}/records?limit=2", json={}, headers=headers)

    assert answer.headers["content-type"] == RECORDS
    assert [row["in"]["id"] for row in answer.json()] == [0, 1, 2]
    assert json.loads(answer.headers["x-iteration-status"])["status"] == "All"


async def test_a_query_that_cannot_be_read_counts_as_none(ann: httpx.AsyncClient, context: Context, topic: str) -> None:
    keep(context, topic, range(3))

    answer = await ann.post(f"/v1/logs/topic/{topic}/records?page_size=many&order=desc", json={})

    assert [row["in"]["id"] for row in answer.json()] == [0, 1, 2]


async def test_an_outsider_sees_an_unknown_topic(
    bob: httpx.AsyncClient, ann: httpx.AsyncClient, ada: httpx.AsyncClient, context: Context, topic: str
) -> None:
    keep(context, topic, range(3))

    assert (await bob.get(f"/v1/logs/topic/{topic}")).json() == {"partitions": {}, "bytes": 0}
    answer = await bob.post(f"/v1/logs/topic/{topic}/records", json={})
    assert (answer.status_code, answer.json()) == (200, [])
    assert "x-iteration-status" not in answer.headers
    assert (await bob.get(f"/v1/logs/topic/{topic}/partition/engine-a/records")).json() == []
    assert (await bob.get("/v1/logs/topics")).json() == {"topics": []}
    assert (await ann.get("/v1/logs/topics")).json() == {"topics": [{"name": topic}]}
    assert (await ada.get("/v1/logs/topics")).json() == {"topics": [{"name": topic}]}


async def test_without_a_token_nothing_is_shown(nobody: httpx.AsyncClient, topic: str) -> None:
    for method, path in (
        ("GET", "topics"),
        ("GET", f"topic/{topic}"),
        ("POST", f"topic/{topic}/records"),
        ("GET", f"topic/{topic}/partition/p/records"),
        ("POST", f"topic/{topic}/partition/p"),
    ):
        answer = await nobody.request(method, f"/v1/logs/{path}")
        assert answer.status_code == 401, path
        assert answer.json()["message"]
    assert (await nobody.get("/v1/logs/ok")).json() == {"ok": "true"}


# -- appending ---------------------------------------------------------------------------------------------------------


async def test_past_records_can_be_imported_and_are_found_by_time(
    ann: httpx.AsyncClient, context: Context, lab: Workspace, topic: str
) -> None:
    base = 1_672_531_200_000
    keep(context, topic, range(1000, 1003), times=[base * 2 + i for i in range(3)])
    path = f"/v1/logs/topic/{topic}/partition/import"
    days = [batch(range(n, n + 10), [base + 1000 * i for i in range(n, n + 10)]) for n in (0, 10)]

    answers = [await ann.post(path, content=file_of(day), headers={"content-type": ARROW}) for day in days]
    found = await ann.post(
        "/v1/api/pipelines/get_logs",
        json={
            "pipeline_id": "houses",
            "workspace_id": lab.id,
            "order": "Asc",
            "start_time": iso(base + 5000),
            "end_time": iso(base + 12_000),
        },
    )

    assert [a.json() for a in answers] == [{"span": {"start": 0, "end": 10}}, {"span": {"start": 10, "end": 20}}]
    assert [row["in"]["id"] for row in found.json()] == list(range(5, 13))


async def test_numbered_rows_are_kept_once_however_often_they_come(
    ann: httpx.AsyncClient, context: Context, topic: str
) -> None:
    path = f"/v1/logs/topic/{topic}/partition/far-away"
    for first, count in ((1, 5), (1, 5), (4, 6), (1, 3), (10, 2)):
        body = file_of(batch(range(first, first + count)))
        answer = await ann.post(path, params={"sequence": first}, content=body, headers={"content-type": ARROW})
        assert answer.status_code == 200, answer.text

    stored = await ann.get(f"{path}/records")

    assert [row["in"]["id"] for row in stored.json()] == list(range(1, 12))


async def test_an_engines_token_appends_to_its_workspace_alone(
    nobody: httpx.AsyncClient, make: Make, context: Context, lab: Workspace, pipe: Pipeline, topic: str
) -> None:
    other, _ = await make.pipeline(await make.workspace())
    mine, theirs = [
        await make.add(Deployment(deploy_id=one.pipeline_id, pipeline_id=one.id, deployed=True))
        for one in (pipe, other)
    ]
    token, foreign = access_token(context, mine.id), access_token(context, theirs.id)
    body = file_of(batch([1]))

    async def status(token: str) -> int:
        headers = {"content-type": ARROW, "authorization": f"Bearer {token}".encode("latin-1")}
        path = f"/v1/logs/topic/{topic}/partition/p"
        return (await nobody.post(path, content=body, headers=headers)).status_code

    assert await status(token) == 200
    assert await status(foreign) == 404
    assert await status(access_token(context, 999_999_999)) == 404
    assert await status(token[:40] + ("A" if token[40] != "A" else "B") + token[41:]) == 401
    assert await status("ünicode") == 401
    reading = await nobody.get("/v1/logs/topics", headers={"authorization": f"Bearer {token}"})
    assert reading.status_code == 401


async def test_what_is_no_record_is_refused(ann: httpx.AsyncClient, context: Context, topic: str) -> None:
    path = f"/v1/logs/topic/{topic}/partition/p"
    no_time = pa.record_batch({"x": [1]})
    text_time = pa.record_batch({"time": ["now"], "x": [1]})
    null_type = pa.record_batch({"time": pa.array([1], pa.int64()), "x": pa.nulls(1)})
    null_time = pa.record_batch({"time": pa.array([None], pa.int64())})
    empty = batch([])

    for one in (no_time, text_time, null_type, null_time, empty):
        answer = await ann.post(path, content=file_of(one), headers={"content-type": ARROW})
        assert answer.status_code == 400, one.schema
    for body, kind in ((b"nonsense", ARROW), (b"", ARROW), (file_of(batch([1])), "application/json")):
        answer = await ann.post(path, content=body, headers={"content-type": kind})
        assert answer.status_code == 400
    assert (await ann.get(f"/v1/logs/topic/{topic}")).json()["partitions"] in ({}, {"p": {"start": 0, "end": 0}})


async def test_a_file_over_the_limit_is_refused_with_the_limit(
    ann: httpx.AsyncClient, context: Context, topic: str
) -> None:
    context.settings.log_append_limit_bytes = 500

    answer = await ann.post(
        f"/v1/logs/topic/{topic}/partition/p", content=file_of(batch([1])), headers={"content-type": ARROW}
    )

    assert answer.status_code == 413
    assert answer.headers["x-max-request-size"] == "500"


async def test_a_partition_with_a_writer_is_busy(
    ann: httpx.AsyncClient, context: Context, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_WRITER_WAIT_S", 0.05)
    with PartitionWriter(context.settings.logs_root, topic, "engine-a"):
        answer = await ann.post(
            f"/v1/logs/topic/{topic}/partition/engine-a", content=file_of(batch([1])), headers={"content-type": ARROW}
        )

    assert answer.status_code == 429


async def test_nulls_are_kept_as_zeroes_and_empty_lists(ann: httpx.AsyncClient, context: Context, topic: str) -> None:
    schema = pa.schema([("time", pa.int64()), ("in", pa.struct([("a", pa.float64()), ("b", pa.list_(pa.int32()))]))])
    one = pa.RecordBatch.from_pylist([{"time": 1, "in": {"a": None, "b": None}}], schema=schema)
    path = f"/v1/logs/topic/{topic}/partition/p"
    await ann.post(path, content=file_of(one), headers={"content-type": ARROW})

    stored = await ann.get(f"{path}/records")

    assert stored.json() == [{"time": 1, "in": {"a": 0.0, "b": []}}]


async def test_only_the_topics_of_pipelines_take_records(
    ann: httpx.AsyncClient, bob: httpx.AsyncClient, lab: Workspace, topic: str
) -> None:
    body = file_of(batch([1]))
    for client, name in (
        (bob, topic),
        (ann, "anything"),
        (ann, f"workspace-{lab.id}-pipeline-nope-inference"),
        (ann, f"workspace-{lab.id + 999}-pipeline-houses-inference"),
    ):
        answer = await client.post(f"/v1/logs/topic/{name}/partition/p", content=body, headers={"content-type": ARROW})
        assert answer.status_code == 404, name


async def test_engines_keep_records_as_the_settings_say(context: Context, make: Make, lab: Workspace) -> None:
    pipeline, version = await make.pipeline(lab, name="kept")
    row = await make.add(Deployment(deploy_id="kept", pipeline_id=pipeline.id, deployed=True))
    await make.add(DeploymentPipelineVersion(deployment_id=row.id, pipeline_version_pk_id=version.id))
    context.settings.log_sync_s = 0.0
    context.settings.log_when_full = "drop"
    context.settings.log_record_bytes = 5_000
    context.settings.log_spool_bytes = 7_000

    async with context.sessions() as session:
        found = (await launch_of(context, session, row, 1)).document.log

    assert found == LogDocument(
        root=context.settings.logs_root,
        fsync_interval_s=0.0,
        when_full="drop",
        record_bytes_limit=5_000,
        spool_bytes_limit=7_000,
    )


async def test_upkeep_follows_the_settings(context: Context, topic: str, ann: httpx.AsyncClient) -> None:
    keep(context, topic, range(10))
    with PartitionWriter(context.settings.logs_root, topic, "engine-a") as writer:
        writer.seal()
    context.settings.log_keep_days = 1e-9
    damaged = Path(context.settings.logs_root) / "damaged" / "p" / "manifest.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"{")

    report = await service.maintain(context)

    assert report.deleted_rows == 10
    assert (await ann.get(f"/v1/logs/topic/{topic}")).json()["partitions"] == {"engine-a": {"start": 10, "end": 10}}
