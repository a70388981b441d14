"""`/v1/api/pipelines/get_logs`, `/v1/api/plateau/…` and the log store's own API under `/v1/logs`."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Header, Path, Query, Request
from fastapi.responses import Response

from app.deployments import access as deployments
from app.errors import Invalid, TooLarge
from app.identity.caller import CurrentCaller, bearer_token, current_caller
from app.kit.clients import client_of
from app.kit.context import context_of
from app.kit.db import Session
from app.kit.http import Faces
from app.logs import queries, replies, schemas, service, topics
from app.logs.replies import ARROW

router = APIRouter()

TopicName = Annotated[str, Path(max_length=400, examples=["workspace-1-pipeline-logpipeline-inference"])]
PartitionName = Annotated[str, Path(max_length=200, examples=["engine-6d5f-abcde"])]
Accept = Annotated[str | None, Header(description=f"`{ARROW}`, or JSON.")]


def register(faces: Faces) -> None:
    """Show errors under `/v1/logs` as the log store's clients expect them."""
    faces.register("/v1/logs/", replies.log_error)


@router.post("/v1/api/pipelines/get_logs", tags=["logs"], responses=replies.PAGE_CONTENT)
async def get_logs(
    request: Request, caller: CurrentCaller, wanted: schemas.GetLogsIn, accept: Accept = None
) -> Response:
    """Return a page of a pipeline's inference logs, newest first unless asked otherwise.

    The header `x-iteration-status` says why the page ended; `x-iteration-cursor`, unless the status is `All`, is the
    `cursor` of the next page.
    """
    context = context_of(request)
    async with context.sessions() as session:
        topic = await topics.of_pipeline(
            session, caller, pipeline_id=None, name=wanted.name, workspace_id=wanted.workspace_id
        )
    page = await service.pipeline_logs(
        context.settings,
        topic,
        order=wanted.order,
        cursor=wanted.cursor,
        page_size=wanted.page_size,
        time_range=wanted.time_range(),
        arrow=replies.wants_arrow(accept, strict=False),
    )
    return replies.answer(page.content, page.content_type, page.headers)


@router.post("/v1/api/plateau/get_topic_name", tags=["logs"])
async def get_topic_name(session: Session, caller: CurrentCaller, wanted: schemas.TopicNameIn) -> schemas.TopicNameOut:
    """Return the log topic of a pipeline."""
    name = await topics.of_pipeline(
        session,
        caller,
        pipeline_id=wanted.pipeline_pk_id,
        name=wanted.pipeline_name,
        workspace_id=wanted.workspace_id,
    )
    return schemas.TopicNameOut(topic_name=name)


@router.post("/v1/api/plateau/get_pipeline_topic_name", tags=["logs"])
async def get_pipeline_topic_name(
    session: Session, caller: CurrentCaller, wanted: schemas.PipelineTopicNameIn
) -> schemas.TopicNameOut:
    """Return the log topic of a pipeline by its name."""
    name = await topics.of_pipeline(
        session, caller, pipeline_id=None, name=wanted.pipeline_name, workspace_id=wanted.workspace_id
    )
    return schemas.TopicNameOut(topic_name=name)


@router.get("/v1/logs/ok", tags=["log store"])
async def log_store_ok(request: Request) -> schemas.OkOut:
    """Tell whether the log store is well."""
    await service.check_health(context_of(request).settings)
    return schemas.OkOut()


@router.get("/v1/logs/topics", tags=["log store"])
async def list_topics(request: Request, caller: CurrentCaller) -> schemas.TopicsOut:
    """List the topics of the workspaces the caller belongs to."""
    context = context_of(request)
    names = await service.topics(context.settings)
    async with context.sessions() as session:
        names = await topics.visible(session, caller, names)
    return schemas.TopicsOut(topics=[schemas.Topic(name=name) for name in names])


@router.get("/v1/logs/topic/{topic}", tags=["log store"])
async def describe_topic(request: Request, caller: CurrentCaller, topic: TopicName) -> schemas.TopicOut:
    """Show the partitions of a topic with their positions; a topic that is unknown to the caller has none."""
    context = context_of(request)
    async with context.sessions() as session:
        if not await topics.sees(session, caller, topic):
            return schemas.TopicOut(partitions={}, bytes=0)
    found = await service.describe(context.settings, topic)
    spans = {name: schemas.SpanOut(start=span.start, end=span.end) for name, span in found.partitions.items()}
    return schemas.TopicOut(partitions=spans, bytes=found.size_bytes)


@router.post(
    "/v1/logs/topic/{topic}/records",
    tags=["log store"],
    responses=replies.PAGE_CONTENT,
    openapi_extra={
        "parameters": queries.PARAMETERS,
        "requestBody": {
            "description": "Positions to go on from, by partition: `next` of the page before.",
            "content": {
                "application/json": {"schema": {"type": "object", "additionalProperties": {"type": "integer"}}}
            },
        },
    },
)
async def read_topic(request: Request, caller: CurrentCaller, topic: TopicName, accept: Accept = None) -> Response:
    """Return a page of a topic, over all its partitions or those of `partition_filter`.

    An Arrow reply with rows carries `status` in its schema's metadata, a JSON reply in `x-iteration-status`. The
    vendor's SDK up to 2024.2 that asks for `application/json` gets `{"records", "status", "next"}` with a JSON text per
    row.
    """
    context = context_of(request)
    arrow = replies.wants_arrow(accept, strict=True)
    as_texts = replies.is_plain_json(accept) and client_of(request.headers.get("user-agent")).reads_logs_as_texts
    wanted = queries.parse(request.url.query, older=as_texts)
    positions = _positions(await _limited_body(request, 1 << 20))
    async with context.sessions() as session:
        if not await topics.sees(session, caller, topic):
            topic = ""
    if as_texts:
        page = await service.topic_records_as_texts(context, topic, wanted, positions)
        return replies.answer(page.content, page.content_type)
    if not topic:
        return replies.answer(*replies.encode(queries.NOTHING, arrow=arrow))
    page = await service.topic_records(context.settings, topic, wanted, positions, arrow=arrow)
    return replies.answer(page.content, page.content_type, page.headers)


@router.get(
    "/v1/logs/topic/{topic}/partition/{partition}/records",
    tags=["log store"],
    responses=replies.PAGE_CONTENT,
    openapi_extra={"parameters": queries.PARTITION_PARAMETERS},
)
async def read_partition(
    *,
    request: Request,
    caller: CurrentCaller,
    topic: TopicName,
    partition: PartitionName,
    start: Annotated[int, Query(ge=0, le=2**63 - 1, description="Position of the first row.")] = 0,
    accept: Accept = None,
) -> Response:
    """Return a page of one partition."""
    context = context_of(request)
    arrow = replies.wants_arrow(accept, strict=True)
    wanted = queries.parse(request.url.query)
    async with context.sessions() as session:
        seen = await topics.sees(session, caller, topic)
    if not seen:
        return replies.answer(*replies.encode(queries.NOTHING, arrow=arrow))
    page = await service.partition_records(context.settings, topic, partition, start, wanted, arrow=arrow)
    return replies.answer(page.content, page.content_type, page.headers)


async def may_append(request: Request, topic: TopicName) -> None:
    """Let through who may append to a topic: members of its workspace, and the engines that run there."""
    context = context_of(request)
    deployment_id = deployments.deployment_of_token(context, bearer_token(request))
    caller = await current_caller(request) if deployment_id is None else None
    async with context.sessions() as session:
        if caller is not None:
            await topics.check_appendable(session, caller, topic)
        else:
            await topics.check_engine_appends(session, deployment_id or 0, topic)


@router.post(
    "/v1/logs/topic/{topic}/partition/{partition}",
    tags=["log store"],
    dependencies=[Depends(may_append)],
    openapi_extra={
        "requestBody": {"required": True, "content": {ARROW: {"schema": {"type": "string", "format": "binary"}}}}
    },
)
async def append_records(
    request: Request,
    topic: TopicName,
    partition: PartitionName,
    sequence: Annotated[
        int | None, Query(ge=1, le=2**62, description="Number of the first row at its source; known rows are left out.")
    ] = None,
    content_type: Annotated[str, Header()] = "",
) -> schemas.InsertedOut:
    """Append the records of an Arrow file, past ones too; its first column is `time`, int64 milliseconds."""
    settings = context_of(request).settings
    if content_type.partition(";")[0].strip().lower() != ARROW:
        raise Invalid(f"cannot accept {content_type[:100]!r}; send {ARROW}.")
    body = await _limited_body(request, settings.log_append_limit_bytes)
    span = await service.append(settings, topic, partition, body, sequence)
    return schemas.InsertedOut(span=schemas.SpanOut(start=span.start, end=span.end))


async def _limited_body(request: Request, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            error = TooLarge(f"The body is larger than {limit} bytes; send it in parts.")
            error.headers = {"x-max-request-size": str(limit)}
            raise error
        parts.append(part)
    return b"".join(parts)


def _positions(body: bytes) -> dict[str, int]:
    if not body.strip():
        return {}
    try:
        found = msgspec.json.decode(body, type=dict[str, int] | None) or {}
    except msgspec.DecodeError as exc:
        raise Invalid(f"The body must map partitions to positions, like {{}}: {exc}") from exc
    if any(not 0 <= position < 2**63 for position in found.values()):
        raise Invalid("Positions are not negative.")
    return found
