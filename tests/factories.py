"""Rows for tests; what a test does not say is made up."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from app.identity.caller import Caller
from app.models.tables import Model, ModelConfig, ModelVersion
from app.pipelines.tables import Pipeline, PipelineVersion
from app.workspaces.tables import Workspace, WorkspaceUser

_numbers = itertools.count(1)


class Make:
    """Adds rows in the test's own transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def add(self, row: Any) -> Any:
        self.session.add(row)
        await self.session.flush()
        await self.session.commit()
        return row

    async def workspace(
        self, *, member: Caller | None = None, owner: Caller | None = None, name: str = ""
    ) -> Workspace:
        row: Workspace = await self.add(
            Workspace(name=name or f"workspace-{next(_numbers)}", created_by="someone", owner_id="someone")
        )
        for caller, kind in ((owner, "OWNER"), (member, "COLLABORATOR")):
            if caller is not None:
                await self.add(WorkspaceUser(workspace_id=row.id, user_id=caller.id, user_type=kind))
        return row

    async def model_version(
        self, workspace: Workspace, *, name: str = "", status: str = "ready", **values: Any
    ) -> ModelVersion:
        number = next(_numbers)
        name = name or f"model-{number}"
        model = await self.add(Model(name=name, workspace_id=workspace.id))
        sha = hashlib.sha256(str(number).encode()).hexdigest()
        values = {
            "conversion": {"framework": "onnx", "python_version": "3.8", "requirements": []},
            "file_name": f"{name}.onnx",
            "file_size": 10,
            "sha": sha,
        } | values
        version: ModelVersion = await self.add(
            ModelVersion(model_id=name, models_pk_id=model.id, status=status, **values)
        )
        await self.add(ModelConfig(model_id=version.id, runtime="onnx"))
        return version

    async def pipeline(
        self, workspace: Workspace, *, name: str = "", definition: dict[str, Any] | None = None
    ) -> tuple[Pipeline, PipelineVersion]:
        name = name or f"pipeline-{next(_numbers)}"
        row: Pipeline = await self.add(Pipeline(pipeline_id=name, workspace_id=workspace.id))
        version: PipelineVersion = await self.add(PipelineVersion(pipeline_pk_id=row.id, definition=definition or {}))
        return row, version
