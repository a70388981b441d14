"""Configurations of model versions: each change is a new row, and the newest is in force."""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import Invalid
from app.identity.caller import Caller
from app.models import frameworks, service
from app.models.schemas import ConfigIn
from app.models.tables import ModelConfig
from app.models.uploads import check_schema

_BATCHINGS = ("batch_config", "dynamic_batching_config", "continuous_batching_config")


async def insert(session: AsyncSession, caller: Caller, new: ConfigIn) -> ModelConfig:
    """Add a configuration to a version; what `new` does not say is as before.

    Of the ways to batch one is in force: choosing one ends the others. Raises `NotFound` for a version that does not
    exist for the caller, `Invalid` for a schema that is none and for two ways to batch at once.
    """
    version = await service.version_by_id(session, caller, new.model_version_id)
    check_schema("input_schema", new.input_schema)
    check_schema("output_schema", new.output_schema)
    given: dict[str, Any] = new.model_dump(exclude={"model_version_id", "openai_config"}, exclude_none=True)
    if new.openai_config is not None:
        given["openai"] = new.openai_config.model_dump()
    chosen = [name for name in _BATCHINGS if name in given]
    if len(chosen) > 1:
        raise Invalid(f"{' and '.join(chosen)} exclude each other; choose one way to batch.")
    before = await service.config_in_force(session, version.id)
    values: dict[str, Any] = {"runtime": _runtime_of(version.conversion or {})}
    if before is not None:
        names = [c.key for c in ModelConfig.__table__.columns if c.key not in ("id", "created_at", "model_id")]
        values = {name: getattr(before, name) for name in names}
    if chosen:
        values |= dict.fromkeys(_BATCHINGS)
    row = ModelConfig(**(values | given), model_id=version.id)
    session.add(row)
    await session.flush()
    return row


def _runtime_of(conversion: dict[str, Any]) -> str:
    return frameworks.RUNTIMES.get(conversion.get("framework", ""), "onnx")
