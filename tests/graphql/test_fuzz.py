"""Generated queries and mutations against a running server: no 500, and no answer but data or errors."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.graphql.service import Endpoint
from tests.inference.instance import Instance

pytestmark = [pytest.mark.api_fuzz, pytest.mark.slow, pytest.mark.server]

BUDGET_S = 150
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def instance() -> Iterator[Instance]:
    # A short path: a Unix socket's name has room for about a hundred characters.
    running = Instance(Path(tempfile.mkdtemp(prefix="potoroo-gql-")))
    try:
        running.start()
        running.sign_in()
        yield running
    finally:
        running.stop_everything()


def test_no_document_breaks_the_server(instance: Instance, tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{instance.base}/v1/graphql"),
        *("--phases", "fuzzing", "--checks", "not_a_server_error", "--max-examples", "15"),
        *("--max-time", str(BUDGET_S), "--workers", "2", "--request-timeout", "60", "--warnings", "off"),
        *("--generation-deterministic", "--header", f"Authorization: Bearer {instance.token}"),
    ]

    environment = os.environ | {"SCHEMATHESIS_HOOKS": "tests.graphql.fuzz_scalars", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=BUDGET_S + 180, check=False
    )

    assert done.returncode == 0, done.stdout[-6000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None, done.stdout[-6000:]
    schema = Endpoint().schema
    assert schema.query_type is not None
    assert schema.mutation_type is not None
    assert int(passed.group(1)) == len(schema.query_type.fields) + len(schema.mutation_type.fields)
