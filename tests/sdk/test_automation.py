"""Tasks that use the vendor's SDK themselves, release by release, and write to a database of the user's own."""

from __future__ import annotations

import psycopg
import pytest

from app.kit.db import plain_url
from app.kit.postgres import EmbeddedPostgres
from tests.sdk.conftest import Server, play
from tests.sdk.test_scenarios import _releases
from tests.sdk.venvs import cache

pytestmark = [pytest.mark.sdk, pytest.mark.slow]


@pytest.fixture(scope="module")
def warehouse(server: Server) -> str:
    """URL of a database that is not the server's own, with a table to write to."""
    given = EmbeddedPostgres(server.home / "postgres").start()
    url = plain_url(given).replace("/potoroo?", "/warehouse?")
    with psycopg.connect(plain_url(given), autocommit=True) as connection:
        connection.execute("CREATE DATABASE warehouse")
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE scores (id bigserial PRIMARY KEY, run text, score float8)")
    return url


@pytest.fixture(scope="module", autouse=True)
def _downloads(server: Server) -> None:
    """Keep what environments are made of outside the server's home, so that it is fetched once."""
    (cache() / "uv").mkdir(parents=True, exist_ok=True)
    (server.home / "cache").mkdir(exist_ok=True)
    (server.home / "cache" / "uv").symlink_to(cache() / "uv")


@pytest.mark.parametrize("release", _releases())
def test_every_scenario_of_a_release_plays(
    release: str, server: Server, warehouse: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLAY_DATABASE", warehouse)
    with psycopg.connect(warehouse) as connection:
        connection.execute("TRUNCATE scores")

    played = play(server, release, "automation")

    assert played
    assert {p["scenario"]: p["reason"] for p in played if p["outcome"] == "failed"} == {}
    with psycopg.connect(warehouse) as connection:
        written = connection.execute("SELECT run, score FROM scores").fetchall()
    assert sum(run.startswith("once-") for run, _ in written) == 4
    assert sum(run.startswith("tick-") for run, _ in written) >= 8
