"""Bundles as they come in: streamed into storage, checked, and only then known."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from pydantic import ValidationError

from app.errors import Invalid, TooLarge
from app.identity.caller import Caller
from app.kit.context import Context
from app.kit.http import describe
from app.kit.multipart import Form
from app.kit.storage import Blob
from app.orchestration import bundles, service
from app.orchestration.schemas import BundleMetadata
from app.orchestration.tables import Orchestration
from app.workspaces import access

_FIELD_BYTES = 64 * 1024


async def receive(context: Context, caller: Caller, form: Form) -> Orchestration:
    """Store the bundle that `form` brings; one that is refused leaves nothing.

    Raises `Invalid` for a bad form or bundle, `NotFound` for an unknown workspace, `TooLarge`.
    """
    metadata: BundleMetadata | None = None
    blob: Blob | None = None
    file_name = "bundle.zip"
    try:
        while (part := await form.next()) is not None:
            if part.name == "metadata":
                metadata = _parsed(await form.text(_FIELD_BYTES))
                async with context.sessions() as session:
                    await access.visible_workspace(session, caller, metadata.workspace_id)
            elif part.name == "file" and blob is None:
                file_name = part.filename or file_name
                blob = await context.storage.put("bundles", _bounded(form.data(), context.settings.upload_limit_bytes))
        if metadata is None:
            raise Invalid("The form has no `metadata` part; it names the workspace.")
        if blob is None:
            raise Invalid("The form has no `file` part with the bundle's ZIP.")
        bundle = await _inspected(context, blob)
        async with context.sessions.begin() as session:
            return await service.add_bundle(
                session,
                caller,
                workspace_id=metadata.workspace_id,
                name=metadata.name,
                file_name=file_name,
                blob=blob,
                bundle=bundle,
            )
    except BaseException:
        if blob is not None:
            await asyncio.shield(discard(context, blob.key))
        raise


async def discard(context: Context, key: str) -> None:
    """Delete the blob of a bundle unless an orchestration has it."""
    async with context.sessions() as session:
        if not await service.blob_is_used(session, key):
            await context.storage.delete(key)


def _parsed(text: str) -> BundleMetadata:
    try:
        return BundleMetadata.model_validate_json(text)
    except ValidationError as exc:
        raise Invalid(describe(exc.errors())) from exc


async def _bounded(chunks: AsyncIterator[bytes], limit_bytes: int) -> AsyncIterator[bytes]:
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > limit_bytes:
            raise TooLarge(f"The bundle is larger than {limit_bytes:,} bytes.")
        yield chunk


async def _inspected(context: Context, blob: Blob) -> bundles.Bundle:
    with tempfile.TemporaryDirectory(prefix="potoroo-bundle-") as folder:
        path = Path(folder) / "bundle.zip"
        await context.storage.fetch(blob.key, path)
        return await asyncio.to_thread(bundles.inspect, path)
