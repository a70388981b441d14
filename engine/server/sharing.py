"""Which models the fast path can run, whose rows may share a run, and what runs cost."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.contract import definitions
from engine.contract.failures import InferenceFailure
from engine.runtime.onnx import OnnxModel
from engine.runtime.pipeline import Pipeline
from engine.server.metrics import Metrics, labels

PROBE_ROWS = 3
PROBE_LIMIT_NS = 50_000_000
PAYS_BELOW = 0.7
"""Sharing pays when a further row costs less than this part of a run of its own."""
RETRY_RUNS = 64


class Cost:
    """What runs of a pipeline take, learned from the runs themselves."""

    __slots__ = ("_marginal_ns", "_one_ns", "_runs")

    def __init__(self) -> None:
        self._one_ns = 0.0
        self._marginal_ns = 0.0
        self._runs = 0

    def saw(self, rows: int, elapsed_ns: int) -> None:
        """Learn from a run."""
        self._runs += 1
        if rows <= 1:
            self._one_ns = _towards(self._one_ns, elapsed_ns)
        else:
            self._marginal_ns = _towards(self._marginal_ns, max(elapsed_ns - self._one_ns, 1.0) / (rows - 1))

    def of(self, rows: int) -> float:
        """Return what a run of so many rows is expected to take, in nanoseconds; infinite when nothing is known."""
        if not self._runs:
            return float("inf")
        return self._one_ns + self._marginal_ns * (rows - 1)

    def is_small(self, limit_ns: float) -> bool:
        """Say whether runs of one row are known to stay below a limit."""
        return self.of(1) <= limit_ns

    def batch_limit(self, limit_ns: float, most: int) -> int:
        """Return how many rows may run together without taking longer than `limit_ns`."""
        if not self._marginal_ns:
            return most
        return max(1, min(most, int((limit_ns - self._one_ns) / self._marginal_ns)))

    def batch_limit_if_it_pays(self, most: int) -> int:
        """Return how many rows should run together: many if a further row is cheap, one if it is not."""
        if not self._marginal_ns or not self._one_ns:
            return 2
        if self._marginal_ns < PAYS_BELOW * self._one_ns:
            return most
        return 2 if self._runs % RETRY_RUNS == 0 else 1


def _towards(estimate: float, seen: float) -> float:
    """Move an estimate: quickly down and slowly up, because a neighbour on the machine can only make a run longer."""
    if not estimate or seen < estimate:
        return seen if not estimate else 0.5 * estimate + 0.5 * seen
    return estimate + 0.02 * (min(seen, 8 * estimate) - estimate)


@dataclass(frozen=True, slots=True)
class Batching:
    """What a model's configuration says of batches (`dynamic_batching_config`)."""

    target: int
    """A run starts when so many rows wait,"""
    delay_s: float
    """or when the first of them has waited for so long."""
    limit: int | None
    """No run has more rows."""


def wanted_batching(model: OnnxModel) -> Batching | None:
    """Return how requests to a model are to be gathered; None when its configuration does not say."""
    config = model.document.config.dynamic_batching_config
    if not config:
        return None
    target, delay_ms, limit = (
        config.get(key) for key in ("batch_size_target", "max_batch_delay_ms", "batch_size_limit")
    )
    return Batching(target or 1, (delay_ms or 0) / 1000, limit)


def fast_model(pipeline: Pipeline) -> OnnxModel | None:
    """Return the model of a pipeline that the fast path can run."""
    steps = pipeline.definition.steps
    if len(steps) != 1 or not isinstance(steps[0], definitions.ModelInference) or len(steps[0].models) != 1:
        return None
    model = pipeline.models[steps[0].models[0]]
    if not isinstance(model, OnnxModel) or len(model.inputs) != 1 or model.document.config.input_schema:
        return None
    if model.runs_rows_alone or model.output_schema is not None:
        return None
    if model.document.config.filter_threshold is not None:
        return None
    (spec,) = model.inputs
    if spec.dtype not in (np.float32, np.float64) or len(spec.shape) < 2 or spec.shape[0] is not None:
        return None
    if not spec.row_shape or 0 in spec.row_shape or len(model.outputs) != len(model.session.get_outputs()):
        return None
    if any(output.dtype.kind not in "fiu" for output in model.outputs):
        return None
    return model


def rows_are_alone(model: OnnxModel, cost: Cost) -> bool:
    """Find out, by running random rows together and one by one, whether a row's outputs depend on its neighbours.

    What the runs take goes into `cost`. A model that runs for long is not probed: its rows do not share runs unless
    its configuration says that they may (`dynamic_batching_config`).
    """
    (spec,) = model.inputs
    wanted = bool(model.document.config.dynamic_batching_config)
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((PROBE_ROWS, *(spec.row_shape or ()))).astype(spec.dtype)
    try:
        started = time.perf_counter_ns()
        first = _run(model, rows[:1])
        took = time.perf_counter_ns() - started
        if took > PROBE_LIMIT_NS:
            cost.saw(1, took)
            return wanted
        singles = [first]
        for row in range(1, PROBE_ROWS):
            started = time.perf_counter_ns()
            singles.append(_run(model, rows[row : row + 1]))
            cost.saw(1, time.perf_counter_ns() - started)
        started = time.perf_counter_ns()
        together = _run(model, rows)
        cost.saw(PROBE_ROWS, time.perf_counter_ns() - started)
    except InferenceFailure:
        return wanted
    for index, value in enumerate(together):
        if not isinstance(value, np.ndarray) or not value.ndim or value.shape[0] != PROBE_ROWS:
            return False
        alone = np.concatenate([single[index] for single in singles])
        if alone.shape != value.shape or not np.allclose(alone, value, rtol=1e-4, atol=1e-6, equal_nan=True):
            return False
    return True


def watch(model: OnnxModel, metrics: Metrics, deploy_id: str) -> None:
    """Count every run of a model, whichever pipeline and path it is for.

    Threads may count at the same time; a count lost that way is no loss to a histogram.
    """
    label_set = labels(model_name=model.document.name, model_version=model.document.version, deploy_id=deploy_id)
    times = metrics.histogram("potoroo_engine_model_ns", label_set)
    count = metrics.counter("potoroo_engine_model_rows_total", label_set)

    def observe(rows: int, elapsed_ns: int) -> None:
        times.observe(elapsed_ns)
        count.value += rows

    model.on_run = observe


def watch_steps(pipeline: Pipeline, metrics: Metrics, deploy_id: str) -> None:
    """Time each step of a pipeline that has several; the time of a lone one is that of the pipeline's run."""
    steps = pipeline.definition.steps
    if len(steps) == 1:
        return
    times = []
    for position, step in enumerate(steps):
        name = f"{position}:{definitions.step_kind(step)}"
        label_set = labels(pipeline_name=pipeline.document.id, deploy_id=deploy_id, step=name)
        times.append(metrics.histogram("potoroo_engine_step_ns", label_set))

    def observe(position: int, elapsed_ns: int) -> None:
        times[position].observe(elapsed_ns)

    pipeline.observe_step = observe


def _run(model: OnnxModel, rows: np.ndarray[Any, Any]) -> list[Any]:
    return model.execute({model.inputs[0].name: rows})
