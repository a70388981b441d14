"""Assays of both generations: builders, interactive runs, uploads, results, data frames and charts."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyarrow as pa
import requests
from play.stage import Raises, Stage, scenario, since, unless

DAY = timedelta(days=1)
DAY0 = datetime(2023, 1, 1, tzinfo=UTC)
DAYS, ROWS = 6, 144
"""Days of history, and records of each; the last two have drifted."""
MODEL = "house-model"
PATH = "output variable 0"
ARROW = "application/vnd.apache.arrow.file"


def _in_generation(number: int) -> Any:
    @contextmanager
    def switched() -> Any:
        before = os.environ.get("ASSAYS_V2_ENABLED")
        os.environ["ASSAYS_V2_ENABLED"] = str(number == 2).lower()
        try:
            yield
        finally:
            plt.close("all")
            os.environ.pop("ASSAYS_V2_ENABLED")
            if before is not None:
                os.environ["ASSAYS_V2_ENABLED"] = before

    return switched()


def in_both_generations(
    second_lacks: str = "", first_lacks: str = ""
) -> Callable[[Callable[[Stage, int], None]], Callable[[Stage, int], None]]:
    """Register a scenario twice: the second generation is the default of the releases that have it whole."""

    def register(function: Callable[[Stage, int], None]) -> Callable[[Stage, int], None]:
        absent = first_lacks, unless(since("2024.4"), "has the first generation") or second_lacks
        for number, word in ((1, "first"), (2, "second")):

            def played(stage: Stage, number: int = number) -> None:
                with _in_generation(number):
                    function(stage, number)

            played.__name__ = f"{function.__name__} ({word} generation)"
            scenario(absent[number - 1])(played)
        return function

    return register


def _values() -> np.ndarray[Any, Any]:
    drift = np.repeat([0.0] * (DAYS - 2) + [0.8, 1.2], ROWS)
    return (np.random.default_rng(7).normal(12.9, 0.43, DAYS * ROWS) + drift).astype(np.float32)


def _pipeline(stage: Stage) -> Any:
    """Return a pipeline with a history, imported at the first call; the fourth day has no records."""
    if "watched" not in stage.kept:
        stage.workspace()
        wl = stage.client()
        pipeline = wl.build_pipeline(f"watched-{stage.tag}").add_model_step(stage.model())
        first = int(DAY0.timestamp() * 1000)
        prices = _values()
        inputs = np.random.default_rng(8).normal(size=(len(prices), 3)).astype(np.float32)
        inputs[-ROWS:, 1] += 2
        batch = pa.record_batch(
            [
                pa.array([first + i * 86_400_000 // ROWS for i in range(len(prices))], pa.int64()),
                pa.array([{"tensor": row} for row in inputs.tolist()], pa.struct([("tensor", pa.list_(pa.float32()))])),
                pa.array(
                    [{"variable": [x], "sure": x / 20} for x in prices.tolist()],
                    pa.struct([("variable", pa.list_(pa.float32())), ("sure", pa.float32())]),
                ),
                pa.array([{"last_model": json.dumps({"model_name": MODEL, "model_sha": "a"})}] * len(prices)),
            ],
            names=["time", "in", "out", "metadata"],
        )
        batch = pa.Table.from_batches([batch.slice(0, 2 * ROWS), batch.slice(3 * ROWS)])
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_table(batch)
        answer = requests.post(
            f"{stage.url}/v1/logs/topic/{wl.get_topic_name(pipeline.id())}/partition/import",
            data=sink.getvalue().to_pybytes(),
            headers={"authorization": wl.auth._bearer_token_str(), "content-type": ARROW},
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
        stage.kept["watched"] = pipeline
    return stage.kept["watched"]


def _builder(stage: Stage, name: str = "drift", path: str = PATH, **changes: Any) -> Any:
    pipeline = _pipeline(stage)
    given: dict[str, Any] = {
        "assay_name": f"{name} {stage.tag}",
        "pipeline": pipeline,
        "model_name": MODEL,
        "baseline_start": DAY0,
        "baseline_end": DAY0 + DAY,
    } | changes
    if since("2023.4"):
        builder = stage.client().build_assay(iopath=path, **given)
    else:
        builder = stage.client().build_assay(**given).add_iopath(path)
    builder.window_builder().add_width(hours=24)
    return builder.add_run_until(DAY0 + DAYS * DAY)


def _starts(frame: pd.DataFrame) -> list[datetime]:
    return [moment.to_pydatetime() for moment in pd.to_datetime(frame["start"], utc=True)]


def _each(results: Any) -> list[Any]:
    return [results[i] for i in range(len(results))]


def _shown(results: Any) -> pd.DataFrame:
    """Draw and tabulate everything that a list of analyses offers; returns its data frame."""
    frame = results.to_dataframe()
    assert len(frame) == len(results) == len(results.to_full_dataframe())
    results.chart_scores()
    results.chart_scores(title="Scores", nth_x_tick=2)
    results.chart_iopaths()
    results.chart_iopaths(labels=["price"], selected_labels=["price"], nth_x_tick=2)
    for one in _each(results):
        one.chart()
        one.chart(show_scores=False)
        one.compare_basic_stats()
        one.compare_bins()
    plt.close("all")
    return frame


@in_both_generations()
def an_interactive_run_finds_the_drift(stage: Stage, generation: int) -> None:
    builder = _builder(stage).add_warning_threshold(0.2).add_alert_threshold(0.5)
    results = builder.build().interactive_run()
    frame = _shown(results)

    assert _starts(frame) == [DAY0 + k * DAY for k in (1, 3, 4, 5)]
    assert list(frame["status"]) == ["Ok", "Ok", "Alert", "Alert"]
    assert frame["mean"].iloc[-1] > frame["mean"].iloc[0] + 1
    stats = _each(results)[-1].compare_basic_stats()
    assert stats.loc["count", "Baseline"] == stats.loc["count", "Window"] == ROWS
    assert len(_each(results)[0].compare_bins()) == (5 if generation == 2 else 7)


@in_both_generations()
def windows_overlap_where_the_interval_says(stage: Stage, generation: int) -> None:
    builder = _builder(stage)
    builder.window_builder().add_interval(hours=12)
    halves = builder.build().interactive_run()
    builder = _builder(stage)
    builder.window_builder().add_width(hours=8).add_interval(hours=8).add_start(DAY0 + 4 * DAY)
    thirds = builder.build().interactive_run()

    assert _starts(halves.to_dataframe()) == [DAY0 + k * DAY / 2 for k in (2, 3, 5, 6, 7, 8, 9, 10)]
    assert _starts(thirds.to_dataframe()) == [DAY0 + 4 * DAY + k * DAY / 3 for k in range(6)]


@in_both_generations()
def every_bin_mode_and_metric_is_scored_and_drawn(stage: Stage, generation: int) -> None:
    from wallaroo.assay_config import Aggregation, BinMode, Metric

    modes = {
        BinMode.QUANTILE: lambda s: s.add_bin_mode(BinMode.QUANTILE).add_num_bins(4),
        BinMode.EQUAL: lambda s: s.add_bin_mode(BinMode.EQUAL).add_num_bins(8),
        BinMode.PROVIDED: lambda s: s.add_bin_mode(BinMode.PROVIDED, [11.5, 12.0, 12.5, 13.0, 13.5]),
    }
    for mode, chosen in modes.items():
        for aggregation in Aggregation:
            for metric in Metric:
                builder = _builder(stage)
                chosen(builder.univariate_continuous_summarizer()).add_aggregation(aggregation).add_metric(metric)
                results = builder.build().interactive_run()
                frame = results.to_dataframe()
                assert len(frame) == 4, (mode, aggregation, metric)
                assert frame["score"].iloc[-1] > frame["score"].iloc[0] > 0, (mode, aggregation, metric)
                results[0].chart()
                results[3].compare_bins()
                plt.close("all")


@in_both_generations()
def without_bins_the_score_is_nothing(stage: Stage, generation: int) -> None:
    from wallaroo.assay_config import BinMode

    builder = _builder(stage)
    builder.univariate_continuous_summarizer().add_bin_mode(BinMode.NONE)
    results = builder.build().interactive_run()

    assert list(results.to_dataframe()["score"]) == [0, 0, 0, 0]
    if generation == 1:  # the chart of the other wants a number of bins
        results[0].chart()


@in_both_generations()
def weights_count(stage: Stage, generation: int) -> None:
    builder = _builder(stage)
    builder.univariate_continuous_summarizer().add_bin_weights([0, 0, 0, 0, 0, 1, 1])
    weighted = builder.build().interactive_run()
    plain = _builder(stage).build().interactive_run()
    _shown(weighted)

    assert 0 < weighted.to_dataframe()["score"].iloc[-1] < plain.to_dataframe()["score"].iloc[-1]


@in_both_generations()
def a_plain_value_needs_no_index(stage: Stage, generation: int) -> None:
    path = "output sure" if generation == 2 else "output sure 0"
    frame = _shown(_builder(stage, path=path).build().interactive_run())

    assert len(frame) == 4
    assert frame["mean"].iloc[0] < 1


@in_both_generations(first_lacks=unless(since("2023.4"), "has no filter of locations"))
def only_records_from_the_location_count(stage: Stage, generation: int) -> None:
    here = _builder(stage).add_location_filter(["import"]).build().interactive_run()

    assert len(here) == 4
    with Raises("Exception"):
        _builder(stage).add_location_filter(["elsewhere"]).build().interactive_run()


@in_both_generations(first_lacks=unless(since("2023.4"), "has baselines of logged records alone"))
def a_baseline_can_be_given_as_numbers(stage: Stage, generation: int) -> None:
    numbers = np.append(_values()[:ROWS].astype(np.float64), [np.nan] if since("2025.1") else [])
    vector = {"baseline_data": numbers, "baseline_start": None, "baseline_end": None}
    builder = _builder(stage, **vector)
    builder.baseline_dataframe()
    builder.baseline_histogram()
    builder.baseline_kde()
    builder.baseline_ecdf()
    results = builder.build().interactive_run()
    frame = _shown(results)

    assert _starts(frame) == [DAY0 + k * DAY for k in (0, 1, 3, 4, 5)]  # from the first record of the log on
    assert abs(frame["score"].iloc[0]) < 1e-9
    uploaded = _builder(stage, f"vector {generation}", **vector).upload()
    assert len(_results_of(stage, uploaded, 5)) == 5


@in_both_generations()
def the_baseline_is_shown(stage: Stage, generation: int) -> None:
    builder = _builder(stage)
    frame = builder.baseline_dataframe()
    builder.baseline_histogram()
    builder.baseline_kde()
    builder.baseline_ecdf()
    analysis = builder.build().interactive_baseline_run()
    analysis.chart()
    bins = analysis.baseline_bins()
    stats = analysis.baseline_stats()

    assert len(frame) == ROWS
    assert "output_variable_0" in frame.columns
    assert abs(bins["b_aggregated_values"].sum() - 1) < 1e-9
    assert stats.loc["count", "Baseline"] == ROWS
    assert stats.loc["mean", "Baseline"] == np.float64(np.mean(_values()[:ROWS], dtype=np.float64))


@in_both_generations("its list of previews has no `raw`, which the client's own loop reads")
def each_input_is_run_interactively(stage: Stage, generation: int) -> None:
    wl = stage.client()
    topic = wl.get_topic_name(_pipeline(stage).id())
    inferences = wl.get_raw_pipeline_inference_logs(topic, DAY0, DAY0 + DAY, MODEL)
    results = _builder(stage, path="input tensor 0").build().interactive_input_run(inferences, ["a", "b", "c"])
    frame = results.to_dataframe()
    results.chart_iopaths(labels=["a", "b", "c"], selected_labels=["b"])
    results.chart_iopaths()

    assert len(inferences) == ROWS
    assert list(frame["iopath"].unique()) == [f"input tensor {i}" for i in range(3)]
    of_second = frame[frame["iopath"] == "input tensor 1"]
    assert list(of_second["status"])[-1] == "Alert"


def _results_of(stage: Stage, assay_id: Any, windows: int) -> Any:
    """Return the stored results, once there are so many."""
    end = time.monotonic() + 60
    while True:
        results = stage.client().get_assay_results(assay_id, DAY0 - DAY, DAY0 + (DAYS + 1) * DAY)
        if len(results) >= windows or time.monotonic() > end:
            return results
        time.sleep(0.5)


@in_both_generations()
def an_uploaded_assay_computes_its_past(stage: Stage, generation: int) -> None:
    builder = _builder(stage, f"kept {generation}").add_warning_threshold(0.2).add_alert_threshold(0.5)
    builder.window_builder().add_start(DAY0 + DAY)
    assay_id = builder.upload()
    # the second generation calls `start` the first run: what ends there has been seen first
    results = _results_of(stage, assay_id, 5 if generation == 2 else 4)
    frame = _shown(results)
    stage.kept["uploaded", generation] = assay_id

    assert isinstance(assay_id, str if generation == 2 else int)
    assert _starts(frame) == [DAY0 + k * DAY for k in ((0, 1, 3, 4, 5) if generation == 2 else (1, 3, 4, 5))]
    assert list(frame["status"])[-3:] == ["Ok", "Alert", "Alert"]
    interactive = builder.build().interactive_run().to_dataframe()
    assert list(frame["score"])[-4:] == list(interactive["score"])
    if since("2024.1"):
        assert set(frame["assay_name"]) == {f"kept {generation} {stage.tag}"}
        assert set(frame["pipeline_name"]) == {_pipeline(stage).name()}


@in_both_generations()
def assays_are_listed_and_described(stage: Stage, generation: int) -> None:
    wl = stage.client()
    assay_id = stage.kept["uploaded", generation]
    listed = wl.list_assays()
    known = [one.id if generation == 2 else one._id for one in listed]

    assert assay_id in known
    assert f"kept {generation} {stage.tag}" in listed._repr_html_()
    if since("2024.2"):
        own = wl.list_assays(workspace_id=stage.workspace().id())
        assert {len(own), len(wl.list_assays(workspace_name=stage.workspace().name()))} == {len(own)}
    if since("2024.1"):
        described = wl.get_assay_info(assay_id)
        if generation == 2:
            assert described.name == f"kept {generation} {stage.tag}"
            assert described.active
            assert described._repr_html_()
        else:
            assert described["iopath"][0] == PATH
            assert described["metric"][0] == "PSI"
            assert described["num_bins"][0] == 5
            assert described["baseline"][0].startswith("Start:2023-01-01")


def _is_active(stage: Stage, assay_id: Any, generation: int) -> bool:
    for one in stage.client().list_assays():
        if (one.id if generation == 2 else one._id) == assay_id:
            return bool(one.active if generation == 2 else one._active)
    raise AssertionError(f"{assay_id} is not listed")


@in_both_generations()
def an_assay_is_paused_and_goes_on(stage: Stage, generation: int) -> None:
    wl = stage.client()
    assay_id = stage.kept["uploaded", generation]
    if since("2024.1"):
        wl.set_assay_active(assay_id, False)
        assert not _is_active(stage, assay_id, generation)
        wl.set_assay_active(assay_id, True)
        assert _is_active(stage, assay_id, generation)
    if generation == 2:
        assay = wl.get_assay_info(assay_id)
        assert not assay.pause().active
        assert assay._next_run().next_run is None
        assert assay.resume().active
        return
    assay = next(one for one in wl.list_assays() if one._id == assay_id)
    assay.turn_off()
    assert not _is_active(stage, assay_id, generation)
    assay.turn_on()
    assert _is_active(stage, assay_id, generation)


@scenario()
def thresholds_of_the_first_generation_are_changed(stage: Stage) -> None:
    with _in_generation(1):
        assay_id = stage.kept["uploaded", 1]
        assay = next(one for one in stage.client().list_assays() if one._id == assay_id)
        assay.set_alert_threshold(0.75)
        assay.set_warning_threshold(0.5)
        again = next(one for one in stage.client().list_assays() if one._id == assay_id)

        assert again._alert_threshold == 0.75
        assert again._warning_threshold == 0.5


@scenario()
def a_name_that_is_taken_is_refused(stage: Stage) -> None:
    with _in_generation(1), Raises("Exception", text="exists already"):
        _builder(stage, "kept 1").upload()


@scenario()
def an_unknown_assay_is_explained(stage: Stage) -> None:
    with _in_generation(1), Raises("Exception", text="no assay 999999999"):
        stage.client().get_assay_results(999_999_999, DAY0, DAY0 + DAY)


@in_both_generations()
def what_cannot_be_watched_is_explained(stage: Stage, generation: int) -> None:
    with Raises("Exception", text="nothing_of_the_kind"):
        _builder(stage, path="output nothing_of_the_kind 0").build().interactive_run()
    with Raises("Exception", text="no records"):
        empty = {"baseline_start": DAY0 - 9 * DAY, "baseline_end": DAY0 - 8 * DAY}
        _builder(stage, **empty).build().interactive_run()


def _built(stage: Stage, builder: Any) -> Any:
    """Return the assay that `build` makes: some releases make it and then trip over its id."""
    if not since("2025.2"):
        return builder.build()
    with Raises("AttributeError", text="UUID"):
        builder.build()
    return next(one for one in stage.client().list_assays() if one.name == builder.name)


@scenario(unless(since("2024.4"), "has the first generation"))
def the_builder_of_the_second_generation_builds(stage: Stage) -> None:
    from wallaroo.assays_v2 import AssayV2Builder

    with _in_generation(2):
        pipeline, wl = _pipeline(stage), stage.client()
        builder = (
            AssayV2Builder(wl, pipeline.id(), pipeline.name(), stage.workspace().id())
            .set_name(f"built {stage.tag}")
            .set_model(MODEL)
            .set_monitoring("out.variable", [0], warning=0.2, alert=0.5)
            .set_baseline(DAY0, DAY0 + DAY)
            .set_window_width(DAY)
            .set_first_run(DAY0 + 2 * DAY)
            .daily()
            .density_aggregation()
            .psi_metric()
            .quantile_bins(4)
            .set_bin_weights([1, 1, 1, 3])
            .set_locations(["import"])
        )
        assay = _built(stage, builder)
        results = _results_of(stage, assay.id, 4)
        frame = _shown(results)
        every = assay.results(DAY0, DAY0 + DAYS * DAY, include_failures=False)

        assert _starts(frame) == [DAY0 + k * DAY for k in (1, 3, 4, 5)]
        assert list(frame["status"]) == ["Ok", "Ok", "Alert", "Alert"]
        assert every._repr_html_()
        assert assay._repr_html_()
        builder.set_name(f"hourly {stage.tag}").hours_of_data(6).hourly(6).equal_bins(5)
        builder.cumulative_aggregation().max_diff_metric().bin_weights = None
        hourly = _results_of(stage, _built(stage, builder).id, 16)
        # the first run, at the end of the second day, looks back six hours
        assert _starts(hourly.to_dataframe())[:2] == [DAY0 + 1.75 * DAY, DAY0 + 3 * DAY]


@scenario()
def an_assay_watches_what_the_engine_logs(stage: Stage) -> None:
    with _in_generation(1):
        stage.workspace()
        pipeline = stage.client().build_pipeline(f"live-{stage.tag}").add_model_step(stage.model())
        pipeline.deploy(deployment_config=stage.deployment_config())
        began = datetime.now(UTC)
        pipeline.infer(stage.frame(10))
        pipeline.infer(stage.frame(10))
        pipeline.undeploy()
        builder = _builder(
            stage,
            path="output probabilities 1",
            pipeline=pipeline,
            model_name=stage.model().name(),
            baseline_start=began,
            baseline_end=began + timedelta(minutes=1),
        )
        now = datetime.now(UTC)
        builder.window_builder().add_width(minutes=1).add_start(now - timedelta(minutes=1))
        results = builder.add_run_until(now).build().interactive_run()

        assert len(results) == 1
        assert results[0].compare_basic_stats().loc["count", "Window"] == 20
        assert results.to_dataframe()["score"][0] == 0
