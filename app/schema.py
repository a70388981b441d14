"""The whole schema: importing this module makes every table and relationship known."""

from __future__ import annotations

from app.assays import tables as assays
from app.connections import tables as connections
from app.deployments import tables as deployments
from app.identity import tables as identity
from app.kit.db import Table
from app.models import tables as models
from app.orchestration import tables as orchestration
from app.pipelines import tables as pipelines
from app.workspaces import tables as workspaces

METADATA = Table.metadata

__all__ = [
    "METADATA",
    "assays",
    "connections",
    "deployments",
    "identity",
    "models",
    "orchestration",
    "pipelines",
    "workspaces",
]
