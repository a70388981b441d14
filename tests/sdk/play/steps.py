"""Pipelines of more than one model: what each kind of step answers, returns beside it and logs."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
from play.stage import Raises, Stage, probabilities, scenario, since, unless


def _by(stage: Stage, factor: float, rows: int) -> Any:
    """Return what a made model answers: the second feature, multiplied."""
    return np.array([row[1] * factor for row in stage.sample["rows"][:rows]], dtype=np.float32)


def _fraud(stage: Stage, rows: int) -> Any:
    return np.array(stage.sample["expected"][:rows], dtype=np.float32)


def _same(found: Any, wanted: Any) -> None:
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def _half(stage: Stage) -> Any:
    return stage.variant("fraud-half", "half")


def _tenth(stage: Stage) -> Any:
    return stage.variant("fraud-tenth", "tenth")


@scenario()
def one_model_s_output_is_the_next_one_s_input(stage: Stage) -> None:
    from wallaroo.framework import Framework

    percent = stage.client().upload_model("percent", f"{stage.models}/percent.onnx", framework=Framework.ONNX)
    if not since("2024.2"):
        percent = percent.configure(tensor_fields=["probabilities"])
    pipeline = stage.deployed("two", lambda p: p.add_model_step(stage.model()).add_model_step(percent))
    answer = pipeline.infer(stage.frame())
    logs = pipeline.logs(limit=4)
    pipeline.undeploy()

    found = np.array([row[0] for row in answer["out.percent"]], dtype=np.float32)
    _same(found, 100 * _fraud(stage, 4))
    assert list(logs.columns) == list(answer.columns)
    assert len(logs) == 4


@scenario()
def a_shadow_answers_beside_the_champion(stage: Stage) -> None:
    pipeline = stage.deployed("shadow", lambda p: p.add_shadow_deploy(stage.model(), [_half(stage), _tenth(stage)]))
    answer = pipeline.infer(stage.frame())
    logs = pipeline.logs(limit=4)
    pipeline.undeploy()

    _same(probabilities(answer), _fraud(stage, 4))
    for name, factor in (("fraud-half", 0.5), ("fraud-tenth", 0.1)):
        _same([row[1] for row in answer[f"out_{name}.probabilities"]], _by(stage, factor, 4))
        assert len(logs[f"out_{name}.probabilities"]) == 4


@scenario()
def one_of_several_models_is_selected(stage: Stage) -> None:
    models = [stage.model(), _half(stage)]
    pipeline = stage.deployed("select", lambda p: p.add_multi_model_step(models).add_select(1))
    answer = pipeline.infer(stage.frame())
    pipeline.undeploy()

    _same(probabilities(answer), _by(stage, 0.5, 4))


@scenario()
def a_random_split_shares_requests_by_weight(stage: Stage) -> None:
    pipeline = stage.deployed("split", lambda p: p.add_random_split([(0.75, stage.model()), (0.25, _half(stage))]))
    counted = {"fraud": 0, "fraud-half": 0}
    for _ in range(60):
        answer = pipeline.infer(stage.frame(1))
        told = json.loads(answer["out._model_split"][0][0])
        name = told["model_version"]["name"] if "model_version" in told else told["name"]
        _same(probabilities(answer), _fraud(stage, 1) if name == "fraud" else _by(stage, 0.5, 1))
        counted[name] += 1
    pipeline.undeploy()

    # Five standard deviations on both sides: it fails once in millions of runs.
    assert 28 <= counted["fraud"] <= 59, counted


@scenario()
def a_random_split_by_a_column_is_no_chance(stage: Stage) -> None:
    weighted = [(0.25, stage.model()), (0.75, _half(stage))]
    pipeline = stage.deployed("hashed", lambda p: p.add_random_split(weighted, hash_key="user"))
    low = pipeline.infer(stage.frame(2).assign(user=0.1))
    high = pipeline.infer(stage.frame(2).assign(user=0.9))
    pipeline.undeploy()

    _same(probabilities(low), _fraud(stage, 2))
    _same(probabilities(high), _by(stage, 0.5, 2))


@scenario()
def a_key_chooses_the_model(stage: Stage) -> None:
    others = {"fr": _half(stage), "de": _tenth(stage)}
    pipeline = stage.deployed("keyed", lambda p: p.add_key_split(stage.model(), "country", others))
    answers = {c: probabilities(pipeline.infer(stage.frame(2).assign(country=c))) for c in ("fr", "de", "nl")}
    pipeline.undeploy()

    _same(answers["fr"], _by(stage, 0.5, 2))
    _same(answers["de"], _by(stage, 0.1, 2))
    _same(answers["nl"], _fraud(stage, 2))


@scenario(unless(since("2023.4.2"), "its validations are the older ones"))
def validations_count_anomalies(stage: Stage) -> None:
    import polars as pl

    score = pl.col("out.probabilities").list.get(1)
    pipeline = stage.deployed(
        "check", lambda p: p.add_model_step(stage.model()).add_validations(high=score > 0.05, any=score > -1.0)
    )
    answer = pipeline.infer(stage.frame())
    logs = pipeline.logs(limit=4)
    pipeline.undeploy()

    high = [value > 0.05 for value in stage.sample["expected"][:4]]
    assert True in high
    assert False in high
    assert list(answer["anomaly.high"]) == high
    assert list(answer["anomaly.any"]) == [True] * 4
    assert list(answer["anomaly.count"]) == [1 + is_high for is_high in high]
    assert sorted(logs["anomaly.count"]) == sorted(answer["anomaly.count"])
    _same(probabilities(answer), _fraud(stage, 4))


@scenario(unless(not since("2023.4"), "gave way to polars expressions"))
def older_validations_count_failures(stage: Stage) -> None:
    model = stage.model()
    pipeline = stage.deployed(
        "check",
        lambda p: (
            p.add_model_step(model)
            .add_validation("low", model.outputs[1][1] < 0.05)
            .add_validation("never", model.outputs[1][1] < -1.0)
        ),
    )
    answer = pipeline.infer(stage.frame())
    logs = pipeline.logs(limit=4)
    pipeline.undeploy()

    failures = [1 + (value >= 0.05) for value in stage.sample["expected"][:4]]
    assert list(answer["check_failures"]) == failures
    assert sorted(logs["check_failures"]) == sorted(failures)


@scenario(unless(since("2023.4.2"), "its validations are the older ones"))
def a_validation_on_a_shadow(stage: Stage) -> None:
    import polars as pl

    odd = pl.col("out_fraud-half.probabilities").list.get(1) > 5.0
    pipeline = stage.deployed(
        "shadow-check", lambda p: p.add_shadow_deploy(stage.model(), [_half(stage)]).add_validations(odd=odd)
    )
    answer = pipeline.infer(stage.frame())
    pipeline.undeploy()

    assert list(answer["anomaly.odd"]) == list(_by(stage, 0.5, 4) > 5.0)


@scenario()
def steps_that_do_not_fit_together_are_told(stage: Stage) -> None:
    pipeline = stage.client().build_pipeline(f"misfit-{stage.tag}")
    pipeline.add_model_step(_half(stage)).add_model_step(stage.model())
    with Raises("Exception"):
        pipeline.deploy(deployment_config=stage.deployment_config())
        pipeline.infer(stage.frame())
    pipeline.undeploy()


@scenario()
def many_rows_are_answered_in_their_order(stage: Stage) -> None:
    pipeline = stage.deployed("many", lambda p: p.add_model_step(_half(stage)))
    rows = [[float(number + column) for column in range(8)] for number in range(3000)]
    answer = pipeline.infer(pd.DataFrame({stage.sample["input"]: rows}))
    pipeline.undeploy()

    _same(probabilities(answer), np.array([row[1] * 0.5 for row in rows], dtype=np.float32))
