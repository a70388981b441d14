"""Uploads: in every form, refused in time, and without a trace when they fail."""

from __future__ import annotations

import base64
import hashlib
import json
import resource
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pyarrow as pa
import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.kit.context import Context
from app.main import create_app
from app.models.tables import ModelConfig, ModelVersion
from tests.conftest import ADA, ANN
from tests.factories import Make
from tests.models import onnx_files
from tests.models.conftest import UPLOAD, form, id_in, metadata, upload

LeftOver = Callable[[], Awaitable[list[Any]]]
SCHEMA = base64.b64encode(bytes(pa.schema([pa.field("x", pa.list_(pa.float32(), 3))]).serialize())).decode()


@pytest.mark.parametrize(("path", "status"), [("upload", 200), ("upload_and_convert", 202)])
async def test_a_model_is_kept_as_it_came(
    ann: httpx.AsyncClient, make: Make, context: Context, session: AsyncSession, path: str, status: int
) -> None:
    lab, blob = await make.workspace(member=ANN), onnx_files.linear()

    answer = await ann.post(f"/v1/api/models/{path}", files=form(metadata(lab), blob))

    assert answer.status_code == status
    assert answer.json() == {"insert_models": {"returning": [{"models": [{"id": id_in(answer)}]}]}}
    row = await session.get_one(ModelVersion, id_in(answer))
    sha = hashlib.sha256(blob).hexdigest()
    assert (row.model_id, row.sha, row.file_name, row.file_size) == ("fraud", sha, "fraud.onnx", len(blob))
    assert (row.status, row.owner_id, row.created_by) == ("pending_load_native", ANN.id, ANN.email)
    assert row.conversion == {
        "framework": "onnx", "python_version": "3.8", "requirements": [],
        "arch": "x86", "accel": "none", "framework_config": None,
    }  # fmt: skip
    assert b"".join([c async for c in context.storage.stream(f"models/{sha}")]) == blob
    config = await session.scalar(select(ModelConfig).where(ModelConfig.model_id == row.id))
    assert config is not None
    assert (config.runtime, config.input_schema) == ("onnx", None)


async def test_the_description_may_come_after_the_file(ann: httpx.AsyncClient, make: Make) -> None:
    lab = await make.workspace(member=ANN)

    answer = await ann.post(UPLOAD, files=form(metadata(lab), onnx_files.linear())[::-1])

    assert answer.status_code == 202


async def test_schemas_are_kept_unchanged_wherever_they_stand(
    ann: httpx.AsyncClient, make: Make, session: AsyncSession
) -> None:
    lab = await make.workspace(member=ANN)
    inner = {"framework": "onnx", "python_version": "3.8", "requirements": [], "output_schema": SCHEMA}

    version_id = await upload(ann, lab, input_schema=SCHEMA, conversion=inner)

    config = await session.scalar(select(ModelConfig).where(ModelConfig.model_id == version_id))
    assert config is not None
    assert (config.input_schema, config.output_schema) == (SCHEMA, SCHEMA)


async def test_a_second_upload_under_the_name_is_a_new_version(
    ann: httpx.AsyncClient, make: Make, session: AsyncSession
) -> None:
    lab = await make.workspace(member=ANN)

    first, second = [await upload(ann, lab, onnx_files.linear(seed=n)) for n in (1, 2)]

    rows = [await session.get_one(ModelVersion, n) for n in (first, second)]
    assert rows[0].models_pk_id == rows[1].models_pk_id
    assert rows[0].model_version != rows[1].model_version


async def test_a_workspace_id_may_be_text(ann: httpx.AsyncClient, make: Make) -> None:
    lab = await make.workspace(member=ANN)

    assert (await ann.post(UPLOAD, files=form(metadata(lab, workspace_id=str(lab.id)), b"x"))).status_code == 202


async def test_a_file_name_loses_its_folders(ann: httpx.AsyncClient, make: Make, session: AsyncSession) -> None:
    lab = await make.workspace(member=ANN)

    answer = await ann.post(UPLOAD, files=form(metadata(lab), b"x", "./models/../fraud.onnx"))

    assert (await session.get_one(ModelVersion, id_in(answer))).file_name == "fraud.onnx"


async def test_a_raw_body_with_its_description_in_the_query_is_taken(
    ann: httpx.AsyncClient, make: Make, session: AsyncSession
) -> None:
    lab, blob = await make.workspace(member=ANN), onnx_files.linear()
    query = {"name": "fraud", "filename": "models/fraud.onnx", "workspace_id": lab.id}

    answer = await ann.post("/v1/api/models/upload_stream", params=query, content=blob)

    assert answer.status_code == 200
    row = await session.get_one(ModelVersion, id_in(answer))
    assert (row.sha, row.file_name) == (hashlib.sha256(blob).hexdigest(), "fraud.onnx")
    assert (row.conversion or {})["framework"] == "onnx"


async def test_a_stream_form_with_fields_is_taken(ann: httpx.AsyncClient, make: Make, session: AsyncSession) -> None:
    lab = await make.workspace(member=ANN)
    fields = {"name": "fraud", "filename": "./models/fraud.onnx", "visibility": "public", "workspace_id": str(lab.id)}

    answer = await ann.post(
        "/v1/api/models/upload_stream", data=fields, files={"file": ("apiteststreammodel", onnx_files.linear())}
    )

    row = await session.get_one(ModelVersion, id_in(answer))
    assert (row.file_name, row.visibility) == ("fraud.onnx", "public")


CONVERSION = {"framework": "onnx", "python_version": "3.8", "requirements": []}
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("a name with an underscore", {"name": "under_score"}, "under_score"),
    ("a name with a dot", {"name": "dot.ted"}, "dot.ted"),
    ("a name that is no text", {"name": 7}, "name"),
    ("a framework nobody knows", {"conversion": CONVERSION | {"framework": "cobol"}}, "This server runs: onnx"),
    ("a framework for later", {"conversion": CONVERSION | {"framework": "sklearn"}}, "This server runs: onnx"),
    ("no framework", {"conversion": {}}, "conversion.framework"),
    ("no conversion", {"conversion": None}, "conversion"),
    ("an architecture nobody knows", {"conversion": CONVERSION | {"arch": "vax"}}, "vax"),
    ("an acceleration of another one", {"conversion": CONVERSION | {"arch": "x86", "accel": "jetson"}}, "jetson"),
    ("a visibility nobody knows", {"visibility": "group"}, "visibility"),
    ("a schema that is none", {"input_schema": base64.b64encode(b"no schema").decode()}, "input_schema"),
    ("a schema that is no base64", {"output_schema": "%%%"}, "output_schema"),
    ("a workspace that is no number", {"workspace_id": "lab"}, "workspace_id"),
    ("a NUL", {"conversion": CONVERSION | {"framework_config": {"x": "\x00"}}}, "framework_config"),
    ("half a character", {"conversion": CONVERSION | {"framework_config": {"\ud800": 1}}}, "framework_config"),
]


@pytest.mark.parametrize("last", [False, True], ids=["described first", "described last"])
@pytest.mark.parametrize(("values", "tells"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
async def test_what_cannot_be_is_refused_and_leaves_nothing(
    ann: httpx.AsyncClient, make: Make, left_over: LeftOver, values: dict[str, Any], tells: str, last: bool
) -> None:
    lab = await make.workspace(member=ANN)
    parts = form(metadata(lab, **values), onnx_files.linear())

    answer = await ann.post(UPLOAD, files=parts[::-1] if last else parts)

    assert answer.status_code == 400
    assert answer.json()["code"] == 400
    assert tells in answer.json()["msg"]
    assert await left_over() == []


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [("file", ("x.onnx", b"x"))],
        [("metadata", (None, "{no json", "application/json")), ("file", ("x.onnx", b"x"))],
        [("metadata", (None, "[" * 100_000, "application/json")), ("file", ("x.onnx", b"x"))],
        [("metadata", (None, b"\xff\xfe", "application/json")), ("file", ("x.onnx", b"x"))],
        [("metadata", (None, "7", "application/json")), ("file", ("x.onnx", b"x"))],
    ],
)
async def test_forms_that_describe_nothing_are_refused(
    ann: httpx.AsyncClient, left_over: LeftOver, parts: list[Any]
) -> None:
    answer = await ann.post(UPLOAD, files=parts or {"other": b""})

    assert answer.status_code == 400
    assert await left_over() == []


async def test_a_form_without_a_file_with_two_or_with_an_empty_one_is_refused(
    ann: httpx.AsyncClient, make: Make, left_over: LeftOver
) -> None:
    lab = await make.workspace(member=ANN)
    one = form(metadata(lab), b"x")

    answers = [await ann.post(UPLOAD, files=f) for f in (one[:1], [*one, one[1]], form(metadata(lab), b""))]

    assert [a.status_code for a in answers] == [400, 400, 400]
    assert await left_over() == []


async def test_a_body_that_is_no_form_is_refused(ann: httpx.AsyncClient) -> None:
    answer = await ann.post(UPLOAD, json={"name": "x"})

    assert answer.status_code == 400
    assert "multipart/form-data" in answer.json()["msg"]


async def test_a_container_image_is_refused_with_what_can_be_run(ann: httpx.AsyncClient, make: Make) -> None:
    lab = await make.workspace(member=ANN)
    image = metadata(lab, image_path="registry/image:1", conversion=CONVERSION | {"framework": "mlflow"})
    old = {"image_path": "registry/image:1", "name": "fraud", "workspace_id": str(lab.id)}

    answers = [
        await ann.post("/v1/api/models/upload", files=form(image, None)),
        await ann.post("/v1/api/models/upload", data=old, files={"dummy": ("none", b"")}),
    ]

    assert [a.status_code for a in answers] == [400, 400]
    assert all("'mlflow' cannot be run by this server yet" in a.json()["msg"] for a in answers)


@pytest.mark.parametrize("query", [{}, {"filename": "fraud.txt"}, {"filename": "fraud.py"}, {"name": "a_b"}])
async def test_a_raw_body_without_a_proper_description_is_refused(
    ann: httpx.AsyncClient, make: Make, left_over: LeftOver, query: dict[str, str]
) -> None:
    lab = await make.workspace(member=ANN)
    whole = {"name": "fraud", "filename": "fraud.onnx", "workspace_id": str(lab.id)} | query if query else {}

    answer = await ann.post("/v1/api/models/upload_stream", params=whole, content=b"x")

    assert answer.status_code == 400
    assert await left_over() == []


async def test_an_outsider_cannot_upload(
    bob: httpx.AsyncClient, nobody: httpx.AsyncClient, make: Make, left_over: LeftOver
) -> None:
    lab = await make.workspace(member=ANN)
    query = {"name": "fraud", "filename": "fraud.onnx", "workspace_id": lab.id}

    found = [
        await bob.post(UPLOAD, files=form(metadata(lab), b"x")),
        await bob.post(UPLOAD, files=form(metadata(lab), b"x")[::-1]),
        await bob.post("/v1/api/models/upload_stream", params=query, content=b"x"),
        await nobody.post(UPLOAD, files=form(metadata(lab), b"x")),
    ]

    assert [a.status_code for a in found] == [404, 404, 404, 401]
    assert await left_over() == []


async def test_an_outsider_is_refused_before_the_file_is_read(bob: httpx.AsyncClient, make: Make) -> None:
    lab = await make.workspace(member=ANN)
    sent = 0
    head = (
        b'--b\r\nContent-Disposition: form-data; name="metadata"\r\n\r\n'
        + json.dumps(metadata(lab)).encode()
        + b'\r\n--b\r\nContent-Disposition: form-data; name="file"; filename="x.onnx"\r\n\r\n'
    )

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        yield head
        for _ in range(1000):
            sent += 1
            yield b"x" * 65536

    answer = await bob.post(UPLOAD, content=body(), headers={"Content-Type": "multipart/form-data; boundary=b"})

    assert answer.status_code == 404
    assert sent < 5


async def test_a_form_that_breaks_off_leaves_nothing(ann: httpx.AsyncClient, make: Make, left_over: LeftOver) -> None:
    lab = await make.workspace(member=ANN)
    whole = httpx.Request("POST", "http://x", files=form(metadata(lab), b"x" * 3_000_000))
    raw = whole.read()

    answer = await ann.post(UPLOAD, content=raw[:-40], headers={"Content-Type": whole.headers["content-type"]})

    assert answer.status_code == 400
    assert "breaks off" in answer.json()["msg"]
    assert await left_over() == []


@pytest.mark.parametrize("path", ["upload_and_convert", "upload_stream"])
async def test_a_client_that_goes_away_leaves_nothing(
    context: Context, make: Make, left_over: LeftOver, path: str
) -> None:
    lab = await make.workspace(member=ANN)
    whole = httpx.Request("POST", "http://x", files=form(metadata(lab), b"x" * 3_000_000))
    messages = [
        {"type": "http.request", "body": whole.read()[:2_000_000], "more_body": True},
        {"type": "http.disconnect"},
    ]
    is_form = path == "upload_and_convert"
    query = b"" if is_form else f"name=fraud&filename=fraud.onnx&workspace_id={lab.id}".encode()
    kind = whole.headers["content-type"].encode() if is_form else b"application/octet-stream"
    scope = {
        "type": "http", "method": "POST", "path": f"/v1/api/models/{path}", "raw_path": b"", "query_string": query,
        "headers": [(b"authorization", f"Bearer {ANN.username}".encode()), (b"content-type", kind)],
        "http_version": "1.1", "scheme": "http", "server": ("x", 80), "client": ("127.0.0.1", 1),
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        assert message.get("status", 400) == 400

    await create_app(context, roles=())(scope, receive, send)

    assert await left_over() == []


@pytest.mark.parametrize("told", [True, False], ids=["with a length", "without one"])
async def test_an_upload_that_is_too_large_is_refused(
    ann: httpx.AsyncClient, make: Make, context: Context, left_over: LeftOver, told: bool
) -> None:
    lab = await make.workspace(member=ANN)
    context.settings.upload_limit_bytes = 1_000_000
    query = {"name": "fraud", "filename": "fraud.onnx", "workspace_id": lab.id}

    async def body() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 100_000

    answer = await ann.post("/v1/api/models/upload_stream", params=query, content=b"x" * 2_000_000 if told else body())

    assert answer.status_code == 413
    assert answer.json()["code"] == 413
    assert await left_over() == []


async def test_fields_are_not_kept_without_bound(ann: httpx.AsyncClient) -> None:
    many = [(f"field{n}", (None, "x" * 4_000_000)) for n in range(6)]

    assert (await ann.post(UPLOAD, files=many)).status_code == 413


async def test_a_full_disk_is_507_and_leaves_nothing(ann: httpx.AsyncClient, make: Make, left_over: LeftOver) -> None:
    lab = await make.workspace(member=ANN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * 1024 * 1024, hard))
    try:
        answer = await ann.post(UPLOAD, files=form(metadata(lab), b"x" * 8_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert answer.status_code == 507
    assert answer.json()["code"] == 507
    assert await left_over() == []
    assert (await ann.post(UPLOAD, files=form(metadata(lab), b"x" * 8_000_000))).status_code == 202


async def test_the_same_file_is_kept_once_and_until_its_last_version_is_gone(
    ann: httpx.AsyncClient, make: Make, context: Context, session: AsyncSession
) -> None:
    lab, blob = await make.workspace(member=ANN), onnx_files.linear()
    ids = [await upload(ann, lab, blob, name=name) for name in ("one", "two")]
    versions = [(await session.get_one(ModelVersion, n)).model_version for n in ids]
    freed, kept = [], []

    for version in versions:
        answer = await ann.post(
            "/v1/api/models/delete_model_versions", json={"model_versions": [version], "confirm_delete": True}
        )
        freed.append(answer.json()["bytes"])
        kept.append(len(await context.storage.keys("models")))

    assert freed == [0, len(blob)]
    assert kept == [1, 0]


async def test_a_recorded_models_sha_is_the_vendors(
    ada: httpx.AsyncClient, make: Make, session: AsyncSession, vendor_data: Any
) -> None:
    lab = await make.workspace(owner=ADA)

    version_id = await upload(ada, lab, (vendor_data / "ccfraud" / "ccfraud.onnx").read_bytes())

    sha = (await session.get_one(ModelVersion, version_id)).sha
    assert sha == "bc85ce596945f876256f41515c7501c399fd97ebcb9ab3dd41bf03f8937b4507"
