"""What an engine process does with every kind of step."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.engine.core.making import scale
from tests.engine.server import models
from tests.engine.server.test_engine_process import EngineUnderTest, running

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineUnderTest]:
    folder = tmp_path_factory.mktemp("engine")
    paths = {name: scale(folder / f"{name}.onnx", factor) for name, factor in {"double": 2, "triple": 3}.items()}
    double, triple = (models.reference(name, path) for name, path in paths.items())
    pipelines: dict[str, list[dict[str, Any]]] = {
        "alone": [{"ModelInference": {"models": [double]}}],
        "two": [{"ModelInference": {"models": [double, triple]}}, {"Nth": {"index": 1}}],
    }
    document = models.document(folder, paths, pipelines, config={"tensor_fields": None})
    with running(folder, document) as engine:
        yield engine


def counts(exposition: str, metric: str) -> dict[str, int]:
    """Return how often each series of a histogram was observed, by its labels."""
    found = re.findall(rf"^{metric}_count({{.*}}) (\d+)$", exposition, re.MULTILINE)
    return {labels: int(count) for labels, count in found}


def test_each_of_several_steps_has_its_times(engine: EngineUnderTest) -> None:
    with httpx.Client(base_url=engine.url) as client:
        for pipeline in ("alone", "two"):
            for _ in range(3):
                assert client.post(f"/pipelines/{pipeline}", json=[{"x": [1.0, 2.0, 3.0]}]).status_code == 200
        text = client.get("/metrics").text

    assert counts(text, "potoroo_engine_step_ns") == {
        '{pipeline_name="two",deploy_id="shop",step="0:ModelInference"}': 3,
        '{pipeline_name="two",deploy_id="shop",step="1:Nth"}': 3,
    }
    assert counts(text, "potoroo_engine_run_ns")['{pipeline_name="alone",deploy_id="shop"}'] == 3
