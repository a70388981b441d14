"""Uploads: a body streams into storage, then one short transaction makes the version."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import pyarrow as pa
import structlog
from pydantic import BaseModel, ValidationError
from sqlalchemy import func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import Invalid, TooLarge, Unavailable
from app.identity.caller import Caller
from app.kit.context import Context
from app.kit.events import notify
from app.kit.http import describe
from app.kit.multipart import Form, base_name
from app.kit.names import check_name
from app.kit.storage import Blob
from app.models import frameworks, service
from app.models.schemas import StreamQuery, UploadIn
from app.models.tables import Model, ModelConfig, ModelVersion
from app.workspaces import access

log = structlog.get_logger()

TOPIC = "models"
"""Wakes the workers: a version waits to be inspected."""

_FIELD_BYTES = 16 * 1024 * 1024

T = TypeVar("T", bound=BaseModel)

Fields = dict[str, str]
Reader = Callable[[Fields, str | None], UploadIn | None]
"""Makes an upload's metadata of the fields and the file's name seen so far; None when they do not tell it yet."""


def read_metadata(fields: Fields, _file_name: str | None) -> UploadIn | None:
    """Return what the form's `metadata` says, or the fields in which old clients registered a container image."""
    if "metadata" in fields:
        try:
            raw = json.loads(fields["metadata"])
        except (ValueError, RecursionError) as exc:
            raise Invalid(f"metadata: is no JSON: {exc}.") from exc
        return _parsed(UploadIn, raw)
    if {"image_path", "name", "workspace_id"} <= fields.keys():
        return _parsed(UploadIn, {"visibility": "private"} | fields | {"conversion": {"framework": "mlflow"}})
    return None


def read_stream_fields(fields: Fields, file_name: str | None) -> UploadIn | None:
    """Return what the fields of an `upload_stream` form say; the framework is told by the file's name."""
    if not {"name", "workspace_id"} <= fields.keys() or not (fields.get("filename") or file_name):
        return None
    return of_stream(_parsed(StreamQuery, {"filename": file_name} | fields))


def of_stream(query: StreamQuery) -> UploadIn:
    """Return the metadata of an upload that names a file instead of a framework."""
    framework = frameworks.framework_of(base_name(query.filename))
    return _parsed(UploadIn, query.model_dump(exclude={"filename"}) | {"conversion": {"framework": framework}})


def _parsed(kind: type[T], raw: Any) -> T:
    try:
        return kind.model_validate(raw)
    except ValidationError as exc:
        raise Invalid(describe(exc.errors())) from exc


class Reception:
    """One upload as it comes in.

    What can be refused is refused before a byte is stored when the form tells it first, and before the stored bytes
    get their name when it tells it last.
    """

    def __init__(self, context: Context, caller: Caller) -> None:
        """Receive an upload of `caller`."""
        self._context = context
        self._caller = caller
        self._fields: Fields = {}
        self._wanted: UploadIn | None = None
        self._file_name: str | None = None
        self._room = _FIELD_BYTES

    async def form(self, form: Form, read: Reader) -> int:
        """Take a whole form, whose parts come in any order; returns the id of the new version."""
        blob: Blob | None = None
        while (head := await form.next()) is not None:
            if head.name != "file":
                await self._take(head.name, form)
                continue
            self._file_name = head.filename
            self._wanted = read(self._fields, self._file_name)
            if self._wanted is not None:
                await self._check(self._wanted)
            blob = await self._context.storage.put("models", self._file_and_rest(form, read))
        if blob is None:
            self._wanted = read(self._fields, None)
            if self._wanted is not None:
                await self._check(self._wanted)
            raise Invalid("The form has no part named `file` with the model's bytes.")
        return await self._keep(blob, self._fields.get("filename") or self._file_name)

    async def body(self, chunks: AsyncIterator[bytes], wanted: UploadIn, file_name: str) -> int:
        """Take a raw body; returns the id of the new version."""
        self._wanted = wanted
        await self._check(wanted)
        return await self._keep(await self._context.storage.put("models", _filled(chunks)), file_name)

    async def _take(self, name: str, form: Form) -> None:
        """Keep a field; all of them together have a bound."""
        self._fields[name] = await form.text(self._room)
        self._room -= len(name) + len(self._fields[name])

    async def _file_and_rest(self, form: Form, read: Reader) -> AsyncIterator[bytes]:
        async for chunk in _filled(form.data()):
            yield chunk
        while (head := await form.next()) is not None:
            if head.name == "file":
                raise Invalid("The form has two parts named `file`; upload one model at a time.")
            await self._take(head.name, form)
        if self._wanted is None:
            self._wanted = read(self._fields, self._file_name)
            if self._wanted is None:
                raise Invalid("The form does not describe the model: send a part `metadata` as the API docs show.")
            await self._check(self._wanted)

    async def _check(self, wanted: UploadIn) -> None:
        check_name("Model", wanted.name)
        frameworks.check_framework(wanted.conversion.framework)
        conversion = wanted.conversion
        frameworks.check_target(conversion.arch or self._context.settings.default_arch, conversion.accel or "none")
        check_schema("input_schema", wanted.input_schema or conversion.input_schema)
        check_schema("output_schema", wanted.output_schema or conversion.output_schema)
        async with _turns_of(self._context), self._context.sessions() as session:
            await access.visible_workspace(session, self._caller, wanted.workspace_id)

    async def _keep(self, blob: Blob, file_name: str | None) -> int:
        assert self._wanted is not None  # noqa: S101 - checked before the blob got its name
        wanted, settings = self._wanted, self._context.settings
        kept = False
        try:
            async with _turns_of(self._context), self._context.sessions.begin() as session:
                await access.visible_workspace(session, self._caller, wanted.workspace_id)
                # Against whoever frees the same bytes just now. Asking storage in a transaction is short.
                await hold_artifact(session, blob.sha256, shared=True)
                if await self._context.storage.size(blob.key) is None:
                    raise Unavailable("The same file was being deleted at this moment; upload it again.")
                version = await _insert(
                    session,
                    self._caller,
                    wanted,
                    blob,
                    file_name=base_name(file_name or ""),
                    default_arch=settings.default_arch,
                )
                await notify(session, TOPIC, str(version.id))
            kept = True
        finally:
            if not kept:
                await free_artifacts(self._context, [blob.sha256])
        log.info(
            "model.uploaded",
            version=version.id,
            model=wanted.name,
            workspace=wanted.workspace_id,
            bytes=blob.size_bytes,
        )
        return version.id


def _turns_of(context: Context) -> asyncio.Semaphore:
    """Return the turns that uploads take at the database: a crowd of them waits here, and leaves connections free."""
    turns: asyncio.Semaphore = context.parts.setdefault(
        "models.turns", asyncio.Semaphore(max(1, context.settings.database_pool // 3))
    )
    return turns


async def _filled(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield `chunks`; raises `Invalid` when there is not one byte in them."""
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        yield chunk
    if size == 0:
        raise Invalid("The file is empty.")


async def _insert(
    session: AsyncSession, caller: Caller, wanted: UploadIn, blob: Blob, *, file_name: str, default_arch: str
) -> ModelVersion:
    named = insert(Model).values(name=wanted.name, workspace_id=wanted.workspace_id, owner_id=caller.id)
    model_id = await session.scalar(
        named.on_conflict_do_update(
            constraint="models_name_workspace_id_key", set_={"updated_at": func.now()}
        ).returning(Model.id)
    )
    conversion = wanted.conversion
    version = ModelVersion(
        model_id=wanted.name,
        models_pk_id=model_id,
        sha=blob.sha256,
        status=service.PENDING,
        file_name=file_name,
        file_size=blob.size_bytes,
        owner_id=caller.id,
        created_by=caller.email or caller.username,
        visibility=wanted.visibility,
        conversion={
            "framework": conversion.framework,
            "python_version": conversion.python_version,
            "requirements": conversion.requirements,
            "arch": conversion.arch or default_arch,
            "accel": conversion.accel or "none",
            "framework_config": conversion.framework_config,
        },
    )
    session.add(version)
    await session.flush()
    session.add(
        ModelConfig(
            model_id=version.id,
            runtime=frameworks.check_framework(conversion.framework),
            input_schema=wanted.input_schema or conversion.input_schema,
            output_schema=wanted.output_schema or conversion.output_schema,
        )
    )
    await session.flush()
    return version


def check_schema(name: str, encoded: str | None) -> None:
    """Raise `Invalid` when `encoded` is not the base64 of an Arrow schema."""
    if not encoded:
        return
    try:
        pa.ipc.read_schema(pa.py_buffer(base64.b64decode(encoded, validate=True)))
    except (binascii.Error, pa.ArrowException, ValueError, OSError) as exc:
        raise Invalid(
            f"{name}: is not the base64 of an Arrow schema; send base64.b64encode(bytes(schema.serialize()))."
        ) from exc


async def limited(chunks: AsyncIterator[bytes], limit_bytes: int) -> AsyncIterator[bytes]:
    """Yield `chunks`; raises `TooLarge` as soon as they are more than the limit."""
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > limit_bytes:
            raise TooLarge(f"The upload is larger than this server accepts ({limit_bytes:,} bytes).")
        yield chunk


async def hold_artifact(session: AsyncSession, sha: str, *, shared: bool) -> None:
    """Keep others from freeing the artifact (shared), or from using it, until the transaction ends."""
    lock = "pg_advisory_xact_lock_shared" if shared else "pg_advisory_xact_lock"
    await session.execute(text(f"SELECT {lock}(hashtextextended(:name, 0))"), {"name": service.artifact_key(sha)})


async def free_artifacts(context: Context, shas: list[str]) -> None:
    """Remove the artifacts that no version uses any more."""
    for sha in shas:
        async with context.sessions.begin() as session:
            await hold_artifact(session, sha, shared=False)
            used = await session.scalar(select(ModelVersion.id).where(ModelVersion.sha == sha).limit(1))
            if used is None:
                await context.storage.delete(service.artifact_key(sha))
