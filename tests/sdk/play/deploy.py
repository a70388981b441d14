"""Deployments, inferences and logs."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import requests
from play.stage import Raises, Stage, probabilities, scenario, since, unless, until


def _pipeline(stage: Stage) -> Any:
    return stage.kept["pipeline"]


def _expected(stage: Stage, answer: Any, rows: int = 4) -> None:
    wanted = np.array(stage.sample["expected"][:rows], dtype=np.float32)
    np.testing.assert_allclose(probabilities(answer), wanted, rtol=1e-5, atol=1e-6)


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
    (listed,) = [d for d in stage.client().list_deployments() if d.name() == f"run-{stage.tag}"]
    found = stage.client().deployment_by_name(f"run-{stage.tag}")
    assert listed.id() == found.id()
    assert found.deployed()
    assert found.url() == pipeline.url()
    assert pipeline.url().endswith(f"/v1/api/pipelines/infer/run-{stage.tag}-{found.id()}/run-{stage.tag}")
    assert found.status()["engines"][0]["model_statuses"]["models"][0]["sha"] == stage.model().sha()
    with Raises("EntityNotFoundError"):
        stage.client().deployment_by_name("no-such-deployment")


@scenario()
def infer_with_a_data_frame(stage: Stage) -> None:
    _expected(stage, _pipeline(stage).infer(stage.frame()))


def _warnings(call: Callable[[], Any]) -> tuple[Any, str]:
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        return call(), said.getvalue()


@scenario()
def logs_are_read_in_a_range_of_time(stage: Stage) -> None:
    now = datetime.datetime.now(datetime.UTC)
    hour = datetime.timedelta(hours=1)
    logs, said = _warnings(lambda: _pipeline(stage).logs(start_datetime=now - hour, end_datetime=now + hour))
    none = _pipeline(stage).logs(start_datetime=now - 3 * hour, end_datetime=now - 2 * hour)

    assert len(logs) == 4
    assert len(none) == 0
    assert "more logs available" not in said
    assert "changed" not in said
    _expected(stage, logs)


def _table(stage: Stage) -> pa.Table:
    rows = np.array(stage.sample["rows"][:4], dtype=np.float32)
    values = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
    return pa.table({stage.sample["input"]: values})


@scenario()
def infer_with_an_arrow_table(stage: Stage) -> None:
    answer = _pipeline(stage).infer(_table(stage))

    assert isinstance(answer, pa.Table)
    _expected(stage, answer)


def _in_parallel(stage: Stage, rows: Any, parts: list[Any]) -> list[Any]:
    """Infer in parallel; older releases want the parts, newer ones make them and put the answers together."""
    options: dict[str, Any] = {"timeout": 60, "num_parallel": 2, "retries": 2}
    if since("2024.1"):
        return [asyncio.run(_pipeline(stage).parallel_infer(tensor=rows, batch_size=1, **options))]
    return list(asyncio.run(_pipeline(stage).parallel_infer(tensor_list=parts, **options)))


@scenario(unless(not since("2025.2") or since("2026.1"), "this client breaks before it sends a table asynchronously"))
def infer_an_arrow_table_in_parallel(stage: Stage) -> None:
    table = _table(stage)
    answers = _in_parallel(stage, table, [table.slice(row, 1) for row in range(table.num_rows)])

    assert {type(answer) for answer in answers} == {pa.Table}
    _expected(stage, pa.concat_tables(answers))


@scenario()
def infer_with_a_dictionary(stage: Stage) -> None:
    answer = _pipeline(stage).infer({stage.sample["input"]: stage.sample["rows"][:2]})

    wanted = np.array(stage.sample["expected"][:2], dtype=np.float32)
    (found,) = [o["Float"]["data"] for o in answer[0]["outputs"] if "Float" in o]
    np.testing.assert_allclose(np.array(found).reshape(2, 2)[:, 1], wanted, rtol=1e-5, atol=1e-6)


@scenario()
def infer_from_a_file(stage: Stage) -> None:
    path = Path(stage.folder) / "input.df.json"
    path.write_text(stage.frame().to_json(orient="records"))

    _expected(stage, _pipeline(stage).infer_from_file(str(path)))

    table = Path(stage.folder) / "input.arrow"
    with pa.OSFile(str(table), "wb") as sink, pa.ipc.new_file(sink, _table(stage).schema) as writer:
        writer.write(_table(stage))
    _expected(stage, _pipeline(stage).infer_from_file(str(table)))


@scenario()
def infer_only_some_columns(stage: Stage) -> None:
    # Clients of that time ask for the column of failed checks whatever the dataset is.
    needed = [] if since("2023.4.2") else ["check_failures"]
    answer = _pipeline(stage).infer(stage.frame(1), dataset=["time", "out", *needed])
    kept = _pipeline(stage).infer(stage.frame(1), dataset=["*"], dataset_exclude=["in"])
    narrow = _pipeline(stage).infer(stage.frame(1), dataset=["time", "out.probabilities", *needed])

    assert [c for c in answer.columns if c.startswith("in.")] == []
    assert [c for c in kept.columns if c.startswith("in.")] == []
    assert [c for c in narrow.columns if c.startswith("out.")] == ["out.probabilities"]
    _expected(stage, answer, 1)
    _expected(stage, kept, 1)


@scenario()
def infer_asynchronously(stage: Stage) -> None:
    import httpx

    async def run() -> Any:
        async with httpx.AsyncClient(timeout=60) as client:
            return await _pipeline(stage).async_infer(tensor=stage.frame(), async_client=client, timeout=60, retries=2)

    _expected(stage, asyncio.run(run()))


@scenario()
def infer_in_parallel(stage: Stage) -> None:
    rows = stage.frame()
    answer = pd.concat(_in_parallel(stage, rows, [rows.iloc[[row]].reset_index(drop=True) for row in range(len(rows))]))

    assert len(answer) == 4
    assert "error" not in answer.columns
    _expected(stage, answer)


@scenario()
def a_bad_input_is_explained(stage: Stage) -> None:
    with Raises("InferenceError", text="tensor"):
        _pipeline(stage).infer(pd.DataFrame({"nothing": [[1.0, 2.0]]}))
    with Raises("InferenceError"):
        _pipeline(stage).infer(pd.DataFrame({stage.sample["input"]: [[1.0, 2.0]]}))
    with Raises("Exception"):
        _pipeline(stage).infer("no table at all")


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
def logs_warn_when_there_are_more(stage: Stage) -> None:
    few, said = _warnings(lambda: _pipeline(stage).logs(limit=2))
    _, changed = _warnings(lambda: _pipeline(stage).logs(limit=1000))

    assert len(few) == 2
    assert "more logs available" in said
    assert "log schema has changed" in changed  # the rows of the Arrow table hold narrower numbers


@scenario()
def logs_are_exported(stage: Stage) -> None:
    folder = Path(stage.folder) / "exported"
    _pipeline(stage).export_logs(directory=str(folder), file_prefix="logs", limit=4)
    _pipeline(stage).export_logs(directory=str(folder), file_prefix="arrow", limit=3, arrow=True)

    (text,) = folder.glob("logs*")
    assert len(pd.read_json(text, orient="records", lines=True)) == 4
    (table,) = folder.glob("arrow*")
    with pa.ipc.open_file(str(table)) as reader:
        assert reader.read_all().num_rows == 3


@scenario()
def logs_tell_which_model_answered(stage: Stage) -> None:
    logs = _pipeline(stage).logs(limit=1, dataset=["time", "out", "metadata"])

    assert json.loads(logs["metadata.last_model"][0]) == {
        "model_name": stage.model().name(),
        "model_sha": stage.model().sha(),
    }
    assert list(logs["metadata.dropped"][0]) == []


@scenario()
def raw_logs_are_read(stage: Stage) -> None:
    wl = stage.client()
    topic = wl.get_topic_name(_pipeline(stage).id())
    now = datetime.datetime.now(datetime.UTC)
    hour = datetime.timedelta(hours=1)

    assert f"run-{stage.tag}" in topic
    raw = wl.get_raw_logs(topic, limit=3)
    assert len(raw) == 3
    assert {"time", "in", "out", "metadata"} <= set(raw.columns)
    assert len(wl.get_raw_logs(topic, start=now - hour, end=now + hour)) > 10
    assert len(wl.get_raw_logs(topic, start=now - 3 * hour, end=now - 2 * hour)) == 0
    flat = wl.get_pipeline_inference_dataframe(topic, now - hour, now + hour, model_name=stage.model().name())
    assert len(flat) > 10
    assert len(wl.get_raw_pipeline_inference_logs(topic, now - hour, now + hour, model_name="another")) == 0
    assert len(wl.get_raw_logs("no-such-topic")) == 0


@scenario(unless(not since("2024.3"), "reads logs as Arrow alone"))
def logs_are_read_with_arrow_switched_off(stage: Stage) -> None:
    wl, model = stage.client(), stage.model()
    topic = wl.get_topic_name(_pipeline(stage).id())
    now = datetime.datetime.now(datetime.UTC)
    hour = datetime.timedelta(hours=1)
    _pipeline(stage).infer(stage.frame(3))

    os.environ["ARROW_ENABLED"] = "false"
    try:
        entries, _status = wl.get_logs(topic, 3)
        raw = wl.get_raw_logs(topic, limit=3)
        flat = wl.get_pipeline_inference_dataframe(topic, now - hour, now + hour, model_name=model.name())
        nothing = wl.get_raw_logs("no-such-topic")
    finally:
        del os.environ["ARROW_ENABLED"]

    assert [(entry.model_name, entry.model_version) for entry in entries] == [(model.name(), model.version())] * 3
    same = np.testing.assert_allclose
    same([entry.output[1].ravel()[1] for entry in entries], stage.sample["expected"][:3], rtol=1e-5, atol=1e-6)
    same([entry.input[0] for entry in entries], stage.sample["rows"][:3], rtol=1e-5)
    assert entries._repr_html_()
    assert [json.loads(text)["time"] for text in raw] == [entry.raw["time"] for entry in entries]
    assert len(flat) > 10
    assert nothing == []


@scenario()
def a_stranger_neither_infers_nor_reads_logs(stage: Stage) -> None:
    guest, pipeline = stage.guest(), _pipeline(stage)
    url, topic = pipeline.url(), stage.client().get_topic_name(pipeline.id())

    sent = stage.frame(1).to_dict(orient="records")
    reply = requests.post(url, json=sent, headers=guest.auth.auth_header(), timeout=20)
    nobody = requests.post(url, json=sent, timeout=20)

    assert reply.status_code in (403, 404), reply.text
    assert nobody.status_code == 401
    assert f"run-{stage.tag}" not in [d.name() for d in guest.list_deployments()]
    with Raises("EntityNotFoundError"):
        guest.deployment_by_name(f"run-{stage.tag}")
    assert len(guest.get_raw_logs(topic, limit=3)) == 0


@scenario()
def another_configuration_takes_a_model_s_place(stage: Stage) -> None:
    deployment = stage.client().deployment_by_name(f"run-{stage.tag}")
    changed = stage.model().configure(tensor_fields=["renamed"])

    deployment.replace_configured_model(changed.config())
    _pipeline(stage)._deployment = None
    renamed = stage.frame().rename(columns={stage.sample["input"]: "renamed"})
    until(lambda: _is_answered(stage, renamed), "the other configuration answers")

    _expected(stage, _pipeline(stage).infer(renamed))
    with Raises("TransportQueryError", text="does not run"):
        deployment.replace_model(stage.variant("fraud-half", "half"))


@scenario()
def another_version_takes_a_model_s_place(stage: Stage) -> None:
    deployment = stage.client().deployment_by_name(f"run-{stage.tag}")
    other = stage.upload("fraud", stage.models / "half.onnx")
    wanted = [row[1] * 0.5 for row in stage.sample["rows"][:2]]

    deployment.replace_model(other)
    found = lambda: probabilities(_pipeline(stage).infer(stage.frame(2)))  # noqa: E731
    until(lambda: _is_answered(stage, stage.frame(2)) and bool(np.allclose(found(), wanted)), "it answers")

    deployment.replace_model(stage.model())
    until(lambda: not np.allclose(found(), wanted), "the former version answers again")
    _expected(stage, _pipeline(stage).infer(stage.frame()))


def _is_answered(stage: Stage, frame: pd.DataFrame) -> bool:
    reply = requests.post(
        _pipeline(stage).url(),
        json=frame.to_dict(orient="records"),
        headers=stage.client().auth.auth_header(),
        timeout=20,
    )
    assert reply.status_code in (200, 400), reply.text
    return reply.status_code == 200


@scenario()
def another_model_takes_the_place_of_the_running_one(stage: Stage) -> None:
    pipeline = _pipeline(stage)
    other = stage.variant("fraud-half", "half")
    wanted = [row[1] * 0.5 for row in stage.sample["rows"][:2]]
    before = stage.client().deployment_by_name(f"run-{stage.tag}").id()

    pipeline.replace_with_model_step(0, other).deploy(deployment_config=stage.deployment_config())
    until(lambda: bool(np.allclose(probabilities(pipeline.infer(stage.frame(2))), wanted)), "the other model answers")

    assert stage.client().deployment_by_name(f"run-{stage.tag}").id() == before
    pipeline.replace_with_model_step(0, stage.model()).deploy(deployment_config=stage.deployment_config())
    until(lambda: not np.allclose(probabilities(pipeline.infer(stage.frame(2))), wanted), "the first one again")
    _expected(stage, pipeline.infer(stage.frame()))


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
