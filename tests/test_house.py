"""The rules of the house that no linter checks: documented knobs, guarded routes, one schema."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect

from app.identity.caller import CHECKS
from app.kit import docs, migrate
from app.kit.db import sync_url
from app.main import ROUTERS
from app.settings import Settings

ROOT = Path(__file__).parents[1]

PUBLIC = {
    "/livez": "probes carry no token",
    "/readyz": "probes carry no token",
    "/metrics": "scraped inside the cluster",
    "/v1/api/docs": "the documentation is for everybody",
    "/v1/api/docs/assets/{name}": "the documentation is for everybody",
    "/v1/api/config": "clients ask it before they sign in",
    "/v1/logs/ok": "probes carry no token",
    "/v1/logs/topic/{topic}/partition/{partition}": "engines append with a secret of their own, people with a token",
    "/v1/api/orchestration/download": "takes its token from the query too, and checks it itself",
    "/internal": "engines come with a secret of their own, checked by the route",
    "/auth": "this is where tokens are made; the admin API below it checks for itself",
}
"""Routes without one of the usual token checks, and why."""


@pytest.fixture(scope="session")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["configuration.md", "command-line.md", "metrics.md"])
def test_the_generated_pages_are_up_to_date(generator: ModuleType, page: str) -> None:
    assert (ROOT / "docs" / page).read_text() == generator.PAGES[page](), "run `make docs`"


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_is_described(name: str) -> None:
    assert len(Settings.model_fields[name].description or "") > 10


def test_every_route_checks_its_caller_or_is_public_for_a_reason() -> None:
    open_paths = {route.path_format for route in docs.routes_of(ROUTERS) if not docs.checks_caller(route, CHECKS)}

    unexplained = {
        path for path in open_paths if not any(path == known or path.startswith(known + "/") for known in PUBLIC)
    }

    assert unexplained == set()
    outdated = {known for known in PUBLIC if not any(p == known or p.startswith(known + "/") for p in open_paths)}
    assert outdated == set()


def test_there_is_one_head_and_the_models_match_it(postgres_url: str) -> None:
    assert len(ScriptDirectory.from_config(migrate.config()).get_heads()) == 1
    engine = create_engine(sync_url(postgres_url))
    with engine.connect() as connection:
        command.check(migrate.config(connection))
    engine.dispose()


def test_the_schema_goes_down_to_nothing_and_up_again(postgres_url: str) -> None:
    engine = create_engine(sync_url(postgres_url))
    with engine.connect() as connection:
        command.downgrade(migrate.config(connection), "base")
        connection.commit()
        assert set(inspect(connection).get_table_names()) <= {"alembic_version"}
    engine.dispose()

    before, after = migrate.upgrade(postgres_url)

    assert (before, after) == (None, migrate.head())


def test_the_lock_files_name_no_index_host() -> None:
    for name in ("requirements.lock", "requirements-dev.lock"):
        assert not re.search(r"https?://|--index|--find-links|file:", (ROOT / name).read_text())


def test_constraint_names_are_those_that_clients_see(postgres_url: str) -> None:
    engine = create_engine(sync_url(postgres_url))
    with engine.connect() as connection:
        seen = inspect(connection)
        names = {c["name"] for t in seen.get_table_names() for c in seen.get_unique_constraints(t)}
    engine.dispose()

    assert names >= {
        "workspace_name_key",
        "workspace_users_workspace_id_user_id_key",
        "models_name_workspace_id_key",
        "pipeline_pipeline_id_workspace_id_key",
        "deployment_pipeline_id_key",
        "deployment_model_configs_deployment_id_model_config_id_pipeline",
    }
