"""Listings of models in the shape that clients of every release can read."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

import msgspec
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncSession

from app.identity.caller import Caller
from app.kit.wire import wire_time
from app.models import queries, service


async def items(
    session: AsyncSession,
    caller: Caller,
    *,
    workspace_id: int | None = None,
    workspace_name: str | None = None,
    name: str | None = None,
) -> list[dict[str, Any]]:
    """Return the models the caller sees, each with its versions and its workspace, in one statement.

    What is JSON in the database stays so (`msgspec.Raw`): encode the items with msgspec.
    """
    rows = await session.execute(queries.listing(caller, workspace_id, workspace_name, name))
    return _grouped(rows)


# The tables name the fields, which no type checker can follow.
_row_type: Any = namedtuple
_Model: Any = _row_type("_Model", queries.MODEL_COLUMNS)
_Workspace: Any = _row_type("_Workspace", queries.WORKSPACE_COLUMNS)
_Version: Any = _row_type("_Version", queries.VERSION_COLUMNS)
_Config: Any = _row_type("_Config", queries.CONFIG_COLUMNS)
_ENDS = list(accumulate(len(kind._fields) for kind in (_Model, _Workspace, _Version, _Config)))


def _grouped(rows: Iterable[Row[Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    first, second, third, fourth = _ENDS
    last = workspace_id = None
    for row in rows:
        if row[0] != last:
            model = _Model(*row[:first])
            last, workspace_id = model.id, model.workspace_id
            found.append(_item(model, _Workspace(*row[first:second])))
        version, config = _Version(*row[second:third]), _Config(*row[third:fourth])
        if version.id is None or config.id is None:
            continue
        record = service.record_of(version, config, workspace_id=workspace_id, deployed=row[fourth])
        if version.conversion is not None:
            record["model_version"]["conversion"] = msgspec.Raw(version.conversion.encode())
        found[-1]["model_versions"].append(record)
    return found


def _item(model: Any, workspace: Any) -> dict[str, Any]:
    flat = {
        "id": model.id,
        "name": model.name,
        "owner_id": model.owner_id,
        "workspace_id": model.workspace_id,
        "created_at": wire_time(model.created_at),
        "updated_at": wire_time(model.updated_at),
    }
    return flat | {
        "model": flat,
        "model_versions": [],
        "workspace": {
            "id": workspace.id,
            "name": workspace.name,
            "archived": workspace.archived,
            "created_at": wire_time(workspace.created_at),
            "created_by": workspace.created_by,
            "group_id": None,
        },
    }
