"""Connections, orchestrations and tasks; what runs inside a task is `SCORING`, with the same release of the SDK."""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import time
import zipfile
from collections.abc import Callable
from typing import Any

from play.stage import Raises, Stage, scenario, since, unless

SCORING = """
import json
import uuid

import pandas as pd
import psycopg
import wallaroo

wl = wallaroo.Client()
assert wl.in_task()
args = wl.task_args()
for workspace in wl.list_workspaces():
    if workspace.name() == args["workspace"]:
        wl.set_current_workspace(workspace)
[pipeline] = [p for p in wl.pipelines_by_name(args["pipeline"])]
[connection] = [c for c in wl.get_current_workspace().list_connections() if c.name() == args["connection"]]
print("signed in as", wl.get_current_workspace().name(), flush=True)

pipeline.deploy()
answer = pipeline.infer(pd.DataFrame({args["input"]: args["rows"]}))
scores = [float(row[-1]) for row in answer["out.probabilities"]]
with psycopg.connect(connection.details()["url"]) as database:
    for score in scores:
        database.execute("INSERT INTO scores (run, score) VALUES (%s, %s)", (args["run"], score))
pipeline.undeploy()
print("wrote", json.dumps(scores))
"""

READING = """
import json

import psycopg
import wallaroo

wl = wallaroo.Client()
args = wl.task_args()
with psycopg.connect(wl.get_connection(name=args["connection"]).details()["url"]) as database:
    rows = database.execute("SELECT score FROM scores WHERE run = %s ORDER BY id", (args["run"],)).fetchall()
print("READ " + json.dumps([row[0] for row in rows]))
"""

WAITING = """
import sys
import time
import wallaroo

args = wallaroo.Client().task_args()
print("it begins", flush=True)
print("a complaint", file=sys.stderr, flush=True)
if "fail" in args:
    raise RuntimeError(args["fail"])
time.sleep(args.get("sleep", 0))
print("it ends")
"""


def _zipped(main: str, folder: str = "") -> bytes:
    """Return a bundle whose task has this release of the SDK."""
    requirements = f"wallaroo=={importlib.metadata.version('wallaroo')}\npsycopg[binary]\n"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(f"{folder}main.py", main)
        archive.writestr(f"{folder}requirements.txt", requirements)
    return packed.getvalue()


def _until(check: Callable[[], Any], timeout_s: float = 120, pause_s: float = 0.5) -> Any:
    end = time.monotonic() + timeout_s
    while not (found := check()):
        assert time.monotonic() < end, f"waited {timeout_s} s in vain"
        time.sleep(pause_s)
    return found


def _orchestration(stage: Stage, name: str, main: str, folder: str = "") -> Any:
    """Return the orchestration of `main`, uploaded at the first call and ready."""
    key = f"orchestration-{name}"
    if key not in stage.kept:
        stage.workspace()
        made = stage.client().upload_orchestration(
            bytes_buffer=_zipped(main, folder), name=f"{name}-{stage.tag}", file_name=f"{name}.zip"
        )
        assert made.status() in ("pending_packaging", "packaging", "ready")
        _until(lambda: made.status() in ("ready", "error"), 300)
        assert made.status() == "ready"
        stage.kept[key] = made
    return stage.kept[key]


def _waiting(stage: Stage) -> Any:
    return _orchestration(stage, "waiting", WAITING)


def _connection(stage: Stage) -> str:
    """Return the name of the connection to the database, made and attached at the first call."""
    name = f"warehouse-{stage.tag}"
    if "connection" not in stage.kept:
        stage.kept["connection"] = stage.client().create_connection(
            name, "POSTGRES", {"url": os.environ["PLAY_DATABASE"], "port": 5432}
        )
        stage.workspace().add_connection(name)
    return name


def _work(stage: Stage, pipeline: str, run: str) -> dict[str, Any]:
    """Return the arguments of a run of `SCORING`, on a pipeline that is there."""
    stage.workspace()
    stage.client().build_pipeline(pipeline).add_model_step(stage.model()).deploy(
        deployment_config=stage.deployment_config()
    )
    stage.client().pipelines_by_name(pipeline)[0].undeploy()
    return {
        "workspace": f"sdk-{stage.tag}",
        "pipeline": pipeline,
        "connection": _connection(stage),
        "input": stage.sample["input"],
        "rows": stage.sample["rows"][:4],
        "run": run,
    }


def _said(run: Any) -> list[str]:
    """Return what a run wrote, without the time and stream of each line."""
    lines = list(run.logs())
    assert all(len(line.split(" ", 3)) == 4 for line in lines), lines
    assert [line.split(" ")[0] for line in lines] == sorted(line.split(" ")[0] for line in lines)
    return [line.split(" ", 3)[3] for line in lines]


def _ended(task: Any, count: int = 1, timeout_s: float = 120) -> list[Any]:
    """Return the runs of a task, newest first, once `count` of them are over."""

    def look() -> list[Any]:
        runs = task.last_runs()
        done = [run for run in runs if run._status != "running"]
        return runs if len(done) >= count else []

    found: list[Any] = _until(look, timeout_s)
    return found


@scenario()
def a_connection_is_made_shared_and_deleted(stage: Stage) -> None:
    wl, room = stage.client(), stage.workspace()
    name, details = f"lake-{stage.tag}", {"host": "db.example.org", "port": 5432, "nested": {"a": [1, None]}}
    made = wl.create_connection(name, "BIGQUERY", details)

    assert made.name() == name
    assert made.connection_type() == "BIGQUERY"
    assert made.details() == details
    assert wl.get_connection(name=name).details() == details
    assert name in [c.name() for c in wl.list_connections()]
    assert "*****" in made._repr_html_()
    assert "db.example.org" not in made._repr_html_() + wl.list_connections()._repr_html_()
    with Raises("Exception", text="already exists"):
        wl.create_connection(name, "BIGQUERY", {})

    room.add_connection(name)
    assert name in [c.name() for c in room.list_connections()]
    assert wl.get_connection(name=name).workspace_names() == [f"sdk-{stage.tag}"]
    made.delete_connection()
    assert name in [c.name() for c in wl.list_connections()], "it is attached: it stays"

    room.remove_connection(name)
    assert name not in [c.name() for c in room.list_connections()]
    made.delete_connection()
    assert name not in [c.name() for c in wl.list_connections()]
    with Raises("Exception", text="failed to get connection"):
        wl.get_connection(name=name)


@scenario()
def a_bundle_is_uploaded_and_packaged(stage: Stage) -> None:
    made = _orchestration(stage, "scoring", SCORING, "job/")

    assert made.name() == f"scoring-{stage.tag}"
    assert made.file_name() == "scoring.zip"
    assert len(made.sha()) == 64
    assert made.workspace_id() == stage.workspace().id()
    listed = stage.client().list_orchestrations()
    assert made.id() in [o.id() for o in listed]
    assert made.sha()[:6] in listed._repr_html_()
    assert made.id() in made._repr_html_()


@scenario()
def a_bundle_without_main_is_refused(stage: Stage) -> None:
    stage.workspace()
    with Raises("OrchestrationUploadFailed"):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("other.py", "")
        stage.client().upload_orchestration(bytes_buffer=packed.getvalue(), name="bad", file_name="bad.zip")
    with Raises("OrchestrationMissingFile"):
        stage.client().upload_orchestration(name="bad")


@scenario()
def a_bundle_is_scheduled_every_minute(stage: Stage) -> None:
    orchestration = _orchestration(stage, "scoring", SCORING, "job/")
    work = _work(stage, f"tick-{stage.tag}", f"tick-{stage.tag}")
    task = orchestration.run_scheduled(name="every minute", schedule="* * * * *", json_args=work, timeout=120)
    stage.kept["scheduled"] = task  # its runs are looked at below, when there was time for two

    shown = stage.client().get_task_by_id(str(task.id()))
    assert shown._descriptive_task_type() == "Scheduled Run"
    assert shown._descriptive_schedule() == "* * * * *"
    with Raises("OrchestrationDeployOneshotFailed", text="not a schedule"):
        orchestration.run_scheduled(name="never", schedule="61 * * * *", json_args={})


@scenario()
def a_task_deploys_infers_and_writes_through_a_connection(stage: Stage) -> None:
    orchestration, run = _orchestration(stage, "scoring", SCORING, "job/"), f"once-{stage.tag}"
    work = _work(stage, f"once-{stage.tag}", run)
    task = orchestration.run_once(name="score once", json_args=work, timeout=120)

    _until(lambda: task.status() == "started")
    [done] = _ended(task)
    said = _said(done)
    assert done._status == "success", said
    assert f"signed in as sdk-{stage.tag}" in said
    assert task.input_data() == work
    assert task._descriptive_task_type() == "Temporary Run"
    assert task.status() == "started"
    assert "False" in stage.client().pipelines_by_name(f"once-{stage.tag}")[0]._repr_html_()

    reader = _orchestration(stage, "reading", READING)
    [read] = _ended(reader.run_once(name="read", json_args={"connection": work["connection"], "run": run}))
    [line] = [line for line in _said(read) if line.startswith("READ ")]
    wanted = [float(x) for x in stage.sample["expected"][:4]]
    assert [round(x, 5) for x in json.loads(line[5:])] == [round(x, 5) for x in wanted]


@scenario()
def a_task_without_arguments_runs(stage: Stage) -> None:
    [done] = _ended(_waiting(stage).run_once(name=None))

    assert done._status == "success"
    said = _said(done)
    assert said[0].startswith("WALLAROO: ")
    assert {"it begins", "a complaint", "it ends"} <= set(said)
    assert any(line.split(" ")[1] == "stderr" for line in done.logs())
    assert len(done.logs(limit=2)) == 2
    assert "it begins" in done.logs()._repr_html_()


@scenario()
def a_task_that_fails_says_why(stage: Stage) -> None:
    task = _waiting(stage).run_once(name="fails", json_args={"fail": "no such customer"})
    [done] = _ended(task)

    assert done._status == "failure"
    assert any("RuntimeError: no such customer" in line for line in _said(done))
    assert [r._pod_id for r in task.last_runs(status="failure")] == [done._pod_id]
    assert list(task.last_runs(status="success")) == []


@scenario()
def a_task_over_its_time_is_stopped(stage: Stage) -> None:
    [done] = _ended(_waiting(stage).run_once(name="slow", json_args={"sleep": 600}, timeout=10))

    assert done._status == ("timed_out" if since("2024.1") else "failure")
    assert any("time limit of 10 s" in line for line in _said(done))


@scenario()
def the_log_of_a_running_task_is_followed_until_it_is_killed(stage: Stage) -> None:
    task = _waiting(stage).run_once(name="long", json_args={"sleep": 600})
    [run] = _until(task.last_runs)
    _until(lambda: "it begins" in _said(run), 60)
    assert run._status == "running"

    assert task.kill() is not None
    [done] = _ended(task, timeout_s=30)

    assert done._status == ("killed" if since("2024.2") else "failure")
    assert "it ends" not in _said(done)
    _until(lambda: task.id() not in [t.id() for t in stage.client().list_tasks()])
    assert task.id() in [t.id() for t in stage.client().list_tasks(killed=True)]


@scenario(unless(since("2024.3"), "there is no run_continuously"))
def a_continuous_task_is_started_again_until_it_is_killed(stage: Stage) -> None:
    task = _waiting(stage).run_continuously(name="for ever")
    _ended(task, 2)

    assert stage.client().get_task_by_id(str(task.id()))._descriptive_task_type() == "Continuous Run"
    task.kill()
    _until(lambda: task.id() not in [t.id() for t in stage.client().list_tasks()])


@scenario(unless(since("2024.1"), "there is no pause"))
def a_scheduled_task_is_paused_and_resumed(stage: Stage) -> None:
    task = _waiting(stage).run_scheduled(name="sleeper", schedule="0 0 1 1 *", json_args={})

    assert task._pause().status() == "paused"
    assert task._resume().status() == "started"
    task.kill()


@scenario()
def tasks_are_listed_by_workspace_and_orchestration(stage: Stage) -> None:
    wl, orchestration = stage.client(), _waiting(stage)
    ids = [str(t.id()) for t in orchestration.list_tasks()]

    assert len(ids) >= 2
    assert str(stage.kept["scheduled"].id()) not in ids
    assert str(stage.kept["scheduled"].id()) in [str(t.id()) for t in wl.list_tasks()]
    assert "Scheduled Run" in wl.list_tasks()._repr_html_()
    assert "success" in orchestration.list_tasks()[0]._repr_html_() + wl.list_tasks()._repr_html_()


@scenario()
def the_scheduled_task_ran_at_two_ticks_and_ends_when_killed(stage: Stage) -> None:
    task = stage.kept["scheduled"]
    runs = _ended(task, 2, timeout_s=200)

    assert {run._status for run in runs if run._status != "running"} == {"success"}, [_said(r) for r in runs]
    task.kill()
    _until(lambda: task.id() not in [t.id() for t in stage.client().list_tasks()], 60)
    assert task.id() in [t.id() for t in stage.client().list_tasks(killed=True)]
