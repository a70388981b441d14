"""Deployments, inferences and logs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from play.stage import Raises, Stage, scenario, since, unless


def _pipeline(stage: Stage) -> Any:
    return stage.kept["pipeline"]


def _probabilities(answer: Any) -> Any:
    """Return the probabilities of fraud, whichever form the answer has."""
    if isinstance(answer, pa.Table):
        answer = answer.to_pandas()
    return np.array([row[-1] for row in answer["out.probabilities"]], dtype=np.float32)


def _expected(stage: Stage, answer: Any, rows: int = 4) -> None:
    wanted = np.array(stage.sample["expected"][:rows], dtype=np.float32)
    np.testing.assert_allclose(_probabilities(answer), wanted, rtol=1e-5, atol=1e-6)


@scenario()
def a_pipeline_is_deployed(stage: Stage) -> None:
    stage.workspace()
    pipeline = stage.client().build_pipeline(f"run-{stage.tag}").add_model_step(stage.model())
    pipeline.deploy(deployment_config=stage.deployment_config())
    stage.kept["pipeline"] = pipeline

    status = pipeline.status()
    assert status["status"] == "Running", status
    assert f"/run-{stage.tag}" in pipeline.url()
    assert "True" in pipeline._repr_html_()
    assert pipeline.id() in [d.id() for d in stage.client().list_deployments()] or stage.client().list_deployments()
    assert stage.client().deployment_by_name(f"run-{stage.tag}").deployed()


@scenario()
def infer_with_a_data_frame(stage: Stage) -> None:
    _expected(stage, _pipeline(stage).infer(stage.frame()))


@scenario()
def logs_are_read_in_a_range_of_time(stage: Stage) -> None:
    import datetime

    now = datetime.datetime.now(datetime.UTC)
    hour = datetime.timedelta(hours=1)
    logs = _pipeline(stage).logs(start_datetime=now - hour, end_datetime=now + hour)
    none = _pipeline(stage).logs(start_datetime=now - 3 * hour, end_datetime=now - 2 * hour)

    assert len(logs) == 4
    assert len(none) == 0


@scenario()
def infer_with_an_arrow_table(stage: Stage) -> None:
    column = stage.sample["input"]
    rows = np.array(stage.sample["rows"][:4], dtype=np.float32)
    values = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
    answer = _pipeline(stage).infer(pa.table({column: values}))

    assert isinstance(answer, pa.Table)
    _expected(stage, answer)


@scenario()
def infer_with_a_dictionary(stage: Stage) -> None:
    answer = _pipeline(stage).infer({stage.sample["input"]: stage.sample["rows"][:2]})

    assert answer


@scenario()
def infer_from_a_file(stage: Stage) -> None:
    path = Path(stage.folder) / "input.df.json"
    path.write_text(stage.frame().to_json(orient="records"))

    _expected(stage, _pipeline(stage).infer_from_file(str(path)))


@scenario()
def infer_only_some_columns(stage: Stage) -> None:
    answer = _pipeline(stage).infer(stage.frame(1), dataset=["time", "out"])
    kept = _pipeline(stage).infer(stage.frame(1), dataset=["*"], dataset_exclude=["in"])

    assert [c for c in answer.columns if c.startswith("in.")] == []
    assert [c for c in kept.columns if c.startswith("in.")] == []


@scenario()
def infer_asynchronously(stage: Stage) -> None:
    import httpx

    async def run() -> Any:
        async with httpx.AsyncClient(timeout=60) as client:
            return await _pipeline(stage).async_infer(tensor=stage.frame(), async_client=client, timeout=60, retries=2)

    _expected(stage, asyncio.run(run()))


@scenario()
def infer_in_parallel(stage: Stage) -> None:
    parts = [stage.frame() for _ in range(3)] if not since("2023.4") else stage.frame()
    options: dict[str, Any] = {"timeout": 60, "num_parallel": 2, "retries": 2}
    if since("2023.4"):
        options["batch_size"] = 1

    answers = asyncio.run(_pipeline(stage).parallel_infer(tensor=parts, **options))

    assert len(answers) in (3, 4)


@scenario()
def a_bad_input_is_explained(stage: Stage) -> None:
    with Raises("Exception"):
        _pipeline(stage).infer(pd.DataFrame({"nothing": [[1.0, 2.0]]}))


@scenario()
def logs_are_read_with_a_limit(stage: Stage) -> None:
    logs = _pipeline(stage).logs(limit=5)

    assert len(logs) == 5
    assert {"time", "out.probabilities"} <= set(logs.columns)


@scenario()
def logs_are_read_as_arrow(stage: Stage) -> None:
    table = _pipeline(stage).logs(limit=3, arrow=True)

    assert isinstance(table, pa.Table)
    assert table.num_rows == 3


@scenario()
def logs_hold_chosen_columns(stage: Stage) -> None:
    logs = _pipeline(stage).logs(limit=2, dataset=["time", "out.probabilities", "metadata"])

    assert "out.probabilities" in logs.columns
    assert [c for c in logs.columns if c.startswith("in.")] == []
    assert [c for c in logs.columns if c.startswith("metadata")]


@scenario()
def logs_are_exported(stage: Stage) -> None:
    folder = Path(stage.folder) / "exported"
    _pipeline(stage).export_logs(directory=str(folder), file_prefix="logs", limit=4)

    assert [path for path in folder.rglob("*") if path.is_file()]


@scenario()
def raw_logs_are_read(stage: Stage) -> None:
    wl = stage.client()
    topic = wl.get_topic_name(_pipeline(stage).id())

    assert f"run-{stage.tag}" in topic
    assert len(wl.get_raw_logs(topic, limit=3)) > 0


@scenario()
def another_configuration_takes_a_model_s_place(stage: Stage) -> None:
    deployment = stage.client().deployment_by_name(f"run-{stage.tag}")
    changed = stage.model().configure(tensor_fields=[stage.sample["input"]])

    deployment.replace_configured_model(changed.config())
    _pipeline(stage)._deployment = None
    deployment.wait_for_running()

    _expected(stage, _pipeline(stage).infer(stage.frame()))


@scenario()
def a_pipeline_is_undeployed(stage: Stage) -> None:
    _pipeline(stage).undeploy()

    assert not stage.client().deployment_by_name(f"run-{stage.tag}").deployed()
    assert "False" in stage.client().pipelines_by_name(f"run-{stage.tag}")[0]._repr_html_()


@scenario()
def a_stopped_deployment_is_started_through_itself(stage: Stage) -> None:
    deployment = stage.client().deployment_by_name(f"run-{stage.tag}")
    deployment.deploy()
    deployment.wait_for_running()

    _expected(stage, _pipeline(stage).infer(stage.frame()))
    _pipeline(stage).undeploy()


def _deployed(stage: Stage, name: str, build: Any) -> Any:
    stage.workspace()
    pipeline = build(stage.client().build_pipeline(f"{name}-{stage.tag}"))
    pipeline.deploy(deployment_config=stage.deployment_config())
    return pipeline


@scenario()
def a_shadow_answers_beside_the_champion(stage: Stage) -> None:
    champion, shadow = stage.model(), stage.model("fraud-b")
    pipeline = _deployed(stage, "shadow", lambda p: p.add_shadow_deploy(champion, [shadow]))
    answer = pipeline.infer(stage.frame())
    pipeline.undeploy()

    _expected(stage, answer)
    assert [c for c in answer.columns if c.startswith("out_fraud-b")]


@scenario()
def a_random_split_answers_by_one_of_its_models(stage: Stage) -> None:
    one, two = stage.model(), stage.model("fraud-b")
    pipeline = _deployed(stage, "split", lambda p: p.add_random_split([(0.5, one), (0.5, two)]))
    answer = pipeline.infer(stage.frame(1))
    pipeline.undeploy()

    _expected(stage, answer, 1)
    assert "fraud" in json.dumps(str(answer.get("out._model_split", ["fraud"])[0]))


@scenario(unless(since("2023.4.2"), "its validations are the older ones"))
def a_validation_counts_anomalies(stage: Stage) -> None:
    import polars as pl

    pipeline = _deployed(
        stage,
        "check",
        lambda p: p.add_model_step(stage.model()).add_validations(fraud=pl.col("out.probabilities").list.get(1) > -1.0),
    )
    answer = pipeline.infer(stage.frame())
    pipeline.undeploy()

    assert list(answer["anomaly.count"]) == [1, 1, 1, 1]
    assert list(answer["anomaly.fraud"]) == [True, True, True, True]


@scenario(unless(not since("2023.4"), "gave way to polars expressions"))
def an_older_validation_counts_failures(stage: Stage) -> None:
    model = stage.model()
    pipeline = _deployed(
        stage, "check", lambda p: p.add_model_step(model).add_validation("sure", model.outputs[0][1] < -1.0)
    )
    answer = pipeline.infer(stage.frame())
    pipeline.undeploy()

    assert list(answer["check_failures"]) == [1, 1, 1, 1]
