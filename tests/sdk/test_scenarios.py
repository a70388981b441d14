"""The vendor's SDK works unchanged, release by release."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.sdk.conftest import Server, play
from tests.sdk.venvs import ALL_RELEASES, RELEASES

AREAS = ("auth", "workspaces", "models", "pipelines", "deploy", "steps", "options", "assays")

pytestmark = [pytest.mark.sdk, pytest.mark.slow]


def _releases() -> tuple[str, ...]:
    chosen = os.environ.get("POTOROO_TEST_SDK", "")
    return ALL_RELEASES if chosen == "all" else tuple(chosen.split()) or RELEASES


@pytest.mark.parametrize("area", AREAS)
@pytest.mark.parametrize("release", _releases())
def test_every_scenario_of_a_release_plays(release: str, area: str, server: Server) -> None:
    played = play(server, release, area)

    assert played
    assert {p["scenario"]: p["reason"] for p in played if p["outcome"] == "failed"} == {}


@pytest.mark.vendor_data
@pytest.mark.parametrize("release", _releases())
def test_the_tutorials_give_what_they_record(release: str, server: Server, vendor_data: Path) -> None:
    played = play(server, release, "tutorials", vendor_data)

    assert len(played) > 8
    assert {p["scenario"]: p["reason"] for p in played if p["outcome"] == "failed"} == {}
