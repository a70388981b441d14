"""What a deployment can be asked for, and how a running pipeline is changed."""

from __future__ import annotations

import json
import os
from typing import Any

import gql
import numpy as np
from play.stage import Raises, Stage, probabilities, scenario, since, unless, until


def _builder() -> Any:
    from wallaroo.deployment_config import DeploymentConfigBuilder

    return DeploymentConfigBuilder()


def _kept(stage: Stage, name: str) -> Any:
    wl = stage.client()
    look = gql.gql("query($id: bigint!) { deployment_by_pk(id: $id) { engine_config } }")
    key = wl.deployment_by_name(f"{name}-{stage.tag}").id()
    return wl._gql_client.execute(look, variable_values={"id": key})["deployment_by_pk"]["engine_config"]


def _same(found: Any, wanted: Any) -> None:
    np.testing.assert_allclose(found, np.array(wanted, dtype=np.float32), rtol=1e-5, atol=1e-6)


@scenario()
def every_option_of_a_deployment_is_kept(stage: Stage) -> None:
    model = stage.model()
    builder = (
        _builder()
        .cpus(0.25)
        .memory("512Mi")
        .lb_cpus(0.2)
        .lb_memory("128Mi")
        .gpus(0)
        .image("ghcr.example/engine:1")
        .deployment_label("zone:a")
        .python_load_timeout_secs(30)
        .replica_autoscale_min_max(maximum=2, minimum=1)
        .autoscale_cpu_utilization(75)
        .disable_autoscale()
        .sidekick_cpus(model, 0.5)
        .sidekick_memory(model, "256Mi")
        .sidekick_gpus(model, 0)
        .sidekick_env(model, {"LEVEL": "debug"})
    )
    if since("2023.4"):
        from wallaroo.engine_config import Architecture

        builder = builder.arch(Architecture.X86).sidekick_arch(model, Architecture.X86)
    if since("2024.1"):
        from wallaroo.engine_config import Acceleration

        builder = builder.accel(Acceleration._None).sidekick_accel(model, Acceleration._None)
    pipeline = stage.deployed("opts", lambda p: p.add_model_step(model), builder.build())
    status, kept = pipeline.status(), _kept(stage, "opts")
    answer = pipeline.infer(stage.frame(1))
    pipeline.undeploy()

    assert status["status"] == "Running"
    assert len(status["engines"]) == 1
    _same(probabilities(answer), stage.sample["expected"][:1])
    engine, auxiliary = kept["engine"], kept["engineAux"]["images"][f"fraud-{model.id()}"]
    assert engine["cpu"] == 0.25
    assert engine["resources"]["limits"]["memory"] == "512Mi"
    assert engine["image"] == "ghcr.example/engine:1"
    assert engine["node_selector"] == "zone:a"
    assert engine["python"]["load_timeout_millis"] == 30_000
    assert {"replica_min": 1, "replica_max": 2, "type": "cpu", "cpu_utilization": 75}.items() <= engine[
        "autoscale"
    ].items()
    assert kept["enginelb"]["resources"]["requests"] == {"cpu": 0.2, "memory": "128Mi"}
    assert auxiliary["resources"]["limits"]["memory"] == "256Mi"
    assert auxiliary["env"] == [{"name": "LEVEL", "value": "debug"}]
    assert kept["workspace_id"] == stage.workspace().id()
    if since("2023.4"):
        assert (engine["arch"], auxiliary["arch"]) == ("x86", "x86")
    if since("2024.1"):
        assert (engine["accel"], auxiliary["accel"]) == ("none", "none")


@scenario(unless(since("2024.3"), "came with 2024.3"))
def a_deployment_scales_by_its_queue(stage: Stage) -> None:
    builder = _builder().cpus(0.25).memory("256Mi").replica_autoscale_min_max(maximum=2, minimum=1)
    builder.scale_up_queue_depth(5).scale_down_queue_depth(2).autoscaling_window(60)
    pipeline = stage.deployed("queue", lambda p: p.add_model_step(stage.model()), builder.build())
    kept = _kept(stage, "queue")["engine"]["autoscale"]
    pipeline.undeploy()

    assert kept["type"] == "queue"
    assert (kept["scale_up_queue_depth"], kept["scale_down_queue_depth"], kept["autoscaling_window"]) == (5, 2, 60)


@scenario()
def replicas_are_as_many_as_asked_for(stage: Stage) -> None:
    config = _builder().replica_count(2).cpus(0.25).memory("256Mi").build()
    pipeline = stage.deployed("replicas", lambda p: p.add_model_step(stage.model()), config)
    status = pipeline.status()
    answers = [probabilities(pipeline.infer(stage.frame(1))) for _ in range(6)]
    logs = pipeline.logs(limit=10)
    pipeline.undeploy()

    assert [engine["status"] for engine in status["engines"]] == ["Running", "Running"]
    for answer in answers:
        _same(answer, stage.sample["expected"][:1])
    assert len(logs) == 6


@scenario()
def options_come_from_the_environment(stage: Stage) -> None:
    os.environ["DEPLOYMENT_CONFIG"] = json.dumps({"replicas": 1, "cpus": 0.5, "memory": "300Mi", "lb_memory": "99Mi"})
    try:
        config = _builder().build()
    finally:
        del os.environ["DEPLOYMENT_CONFIG"]
    pipeline = stage.deployed("env", lambda p: p.add_model_step(stage.model()), config)
    kept = _kept(stage, "env")
    pipeline.undeploy()

    assert kept["engine"]["resources"]["requests"] == {"cpu": 0.5, "memory": "300Mi"}
    assert kept["enginelb"]["resources"]["requests"]["memory"] == "99Mi"


@scenario()
def more_memory_than_there_is_is_told(stage: Stage) -> None:
    wl = stage.client()
    pipeline = wl.build_pipeline(f"huge-{stage.tag}").add_model_step(stage.model())
    config = _builder().cpus(0.25).memory("900Ti").build()

    kept_timeout, wl.timeout = wl.timeout, 8
    try:
        with Raises("Exception"):
            pipeline.deploy(deployment_config=config)
    finally:
        wl.timeout = kept_timeout
    shown = wl.deployment_by_name(f"huge-{stage.tag}").status()
    pipeline.undeploy()

    assert shown["status"] != "Running"
    assert "memory" in json.dumps(shown).lower()


@scenario()
def options_that_make_no_sense_are_refused(stage: Stage) -> None:
    pipeline = stage.client().build_pipeline(f"bad-{stage.tag}").add_model_step(stage.model())

    for bad in (_builder().memory("much"), _builder().cpus(-1), _builder().replica_count(-1)):
        with Raises("Exception"):
            pipeline.deploy(deployment_config=bad.build())
    assert f"bad-{stage.tag}" not in [d.name() for d in stage.client().list_deployments() if d.deployed()]


@scenario(unless(since("2024.2"), "always waits there"))
def a_deployment_is_started_without_waiting(stage: Stage) -> None:
    options = {"wait_for_status": False} if since("2024.3") else {"wait_for_running": False}
    import inspect

    pipeline = stage.client().build_pipeline(f"nowait-{stage.tag}").add_model_step(stage.model())
    known = inspect.signature(pipeline.deploy).parameters
    pipeline.deploy(deployment_config=stage.deployment_config(), **{k: v for k, v in options.items() if k in known})
    until(lambda: pipeline.status()["status"] == "Running", "the deployment runs")
    answer = pipeline.infer(stage.frame(1))
    pipeline.undeploy()

    _same(probabilities(answer), stage.sample["expected"][:1])


@scenario()
def a_pipeline_is_deployed_anew_with_another_model(stage: Stage) -> None:
    pipeline = stage.deployed("redo", lambda p: p.add_model_step(stage.model()))
    before = probabilities(pipeline.infer(stage.frame(2)))
    old = stage.client().deployment_by_name(f"redo-{stage.tag}")

    pipeline.clear()
    pipeline.add_model_step(stage.variant("fraud-half", "half"))
    pipeline.deploy(deployment_config=stage.deployment_config())
    wanted = np.array([row[1] * 0.5 for row in stage.sample["rows"][:2]], dtype=np.float32)
    until(lambda: bool(np.allclose(probabilities(pipeline.infer(stage.frame(2))), wanted)), "the new model answers")
    again = stage.client().deployment_by_name(f"redo-{stage.tag}")
    assert again.deployed()
    logs = pipeline.logs(limit=50, dataset=["time", "out", "metadata"])
    fresh = stage.client().pipelines_by_name(f"redo-{stage.tag}")[0]
    versions = fresh.versions() if since("2023.4") else fresh.variants()
    pipeline.undeploy()

    _same(before, stage.sample["expected"][:2])
    assert again.id() == old.id()
    assert len(versions) == 3
    answered = {json.loads(text)["model_name"] for text in logs["metadata.last_model"]}
    assert "fraud-half" in answered


@scenario()
def an_older_version_of_a_pipeline_is_deployed(stage: Stage) -> None:
    name = f"older-{stage.tag}"
    build = lambda: stage.client().build_pipeline(name)  # noqa: E731
    build().add_model_step(stage.model())._upload()
    build().add_model_step(stage.variant("fraud-half", "half"))._upload()
    pipeline = stage.client().pipelines_by_name(name)[0]
    versions = pipeline.versions() if since("2023.4") else pipeline.variants()
    (first,) = [v for v in versions if stage.model().sha() in str(v.definition())]

    deployment = first.deploy(
        deployment_name=name, model_configs=[stage.model().config()], config=stage.deployment_config()
    )
    answer = deployment.infer(stage.frame(2))
    deployment.undeploy()

    _same(probabilities(answer), stage.sample["expected"][:2])


@scenario()
def a_model_is_deployed_by_itself(stage: Stage) -> None:
    deployment = stage.model().deploy(f"alone-{stage.tag}", deployment_config=stage.deployment_config())
    answer = deployment.infer(stage.frame(2))
    deployment.undeploy()

    _same(probabilities(answer), stage.sample["expected"][:2])


@scenario()
def what_is_not_deployed_is_told(stage: Stage) -> None:
    pipeline = stage.client().build_pipeline(f"idle-{stage.tag}").add_model_step(stage.model())

    assert "not deployed" in pipeline.status()["status"]
    with Raises("RuntimeError"):
        pipeline.url()
    with Raises("RuntimeError"):
        pipeline.infer(stage.frame(1))
    pipeline.undeploy()
    assert "not deployed" in pipeline.status()["status"]


@scenario(unless(since("2025.2"), "came with 2025.2"))
def the_server_tells_where_a_pipeline_answers(stage: Stage) -> None:
    pipeline = stage.deployed("outer", lambda p: p.add_model_step(stage.model()))
    url = pipeline.get_external_url()
    pipeline.undeploy()

    assert url == pipeline.url() or str(url).endswith(f"/outer-{stage.tag}")
