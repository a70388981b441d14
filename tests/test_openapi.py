"""The OpenAPI document against a running server: no 500, no answer of another shape, no status it does not tell."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.inference.instance import Instance, running

pytestmark = [pytest.mark.api_fuzz, pytest.mark.slow, pytest.mark.server]

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.fixture(scope="module")
def instance() -> Iterator[Instance]:
    with tempfile.TemporaryDirectory(prefix="potoroo-") as folder:
        yield from running(Path(folder) / "home")


@pytest.mark.parametrize(("phase", "budget_s"), [("fuzzing", 90), ("coverage", 90)])
def test_every_operation_answers_as_documented(instance: Instance, tmp_path: Path, phase: str, budget_s: int) -> None:
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{instance.base}/v1/api/openapi.json"),
        *("--phases", phase, "--checks", CHECKS, "--max-examples", "8", "--max-time", str(budget_s)),
        # One worker: `ast.parse`, which the generator uses, is not safe in threads before Python 3.12.
        *("--workers", "1", "--request-timeout", "60", "--warnings", "off", "--generation-deterministic"),
        *("--exclude-path", "/v1/logs/topic/{topic}/partition/{partition}"),  # takes Arrow files alone
        *("--header", f"Authorization: Bearer {instance.token}"),
    ]

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=budget_s + 120, check=False)

    assert done.returncode == 0, done.stdout[-6000:]
    assert " tested" in done.stdout.lower()
