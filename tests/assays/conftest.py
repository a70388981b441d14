"""A pipeline of Ann's with a past."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest

from app.kit.context import Context
from tests.assays.history import DAY, DAY0, Past, append, drifting_past, records
from tests.conftest import ANN
from tests.factories import Make


@dataclass
class FixedClock:
    """A clock that stands still until it is moved."""

    moment: datetime

    def now(self) -> datetime:
        return self.moment


@dataclass
class House:
    """Ann's pipeline and its log."""

    pipeline: Any
    workspace: Any
    topic: str
    past: Past
    root: str


@pytest.fixture
async def house(context: Context, make: Make) -> House:
    workspace = await make.workspace(owner=ANN)
    pipeline, _ = await make.pipeline(workspace, name="houses")
    topic = f"workspace-{workspace.id}-pipeline-houses-inference"
    past = drifting_past()
    append(context.settings.logs_root, topic, records(past.rows))
    return House(pipeline, workspace, topic, past, context.settings.logs_root)


@pytest.fixture
def clock(context: Context) -> FixedClock:
    """The present: ten days after the log begins."""
    fixed = FixedClock(DAY0 + 10 * DAY)
    context.clock = fixed
    return fixed


Post = Callable[..., Any]
