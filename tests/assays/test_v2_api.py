"""The second generation of assays through its REST face."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from typing import Any

import httpx
import numpy as np
import pytest

from app.assays import scheduler
from app.kit.context import Context
from tests.assays.conftest import FixedClock, House
from tests.assays.history import DAY, DAY0, MODEL, append, records

API = "/v2/api/assays"
KEY = "out.variable.0"


async def call(client: httpx.AsyncClient, path: str, body: Any, status: int = 200) -> Any:
    answer = await client.post(f"{API}/{path}", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def summarizer(**changes: Any) -> dict[str, Any]:
    one = {"bin_mode": {"Quantile": 5}, "aggregation": "Density", "metric": "PSI", "bin_weights": None}
    return {"UnivariateContinuous": one | changes}


def targeting(house: House, *paths: dict[str, Any], **origin: Any) -> dict[str, Any]:
    thresholds = {"warning": 0.1, "alert": 0.25}
    return {
        "data_origin": {
            "pipeline_id": house.pipeline.id,
            "pipeline_name": "houses",
            "workspace_id": house.workspace.id,
            "workspace_name": house.workspace.name,
            "model_id": MODEL,
            "locations": None,
        }
        | origin,
        "iopath": list(paths) or [{"field": "out.variable", "indexes": [0], "thresholds": thresholds}],
    }


def assay(house: House, **changes: Any) -> dict[str, Any]:
    return {
        "name": "drift",
        "baseline": {"Static": [DAY0.isoformat(), (DAY0 + DAY).isoformat()]},
        "scheduling": {
            "first_run": (DAY0 + 2 * DAY).isoformat(),
            "run_frequency": {"SimpleRunFrequency": {"quantity": 1, "unit": "Day"}},
            "end": (DAY0 + 8 * DAY).isoformat(),
        },
        "summarizer": summarizer(),
        "targeting": targeting(house),
        "window": {"width": {"seconds": 86400}},
    } | changes


def preview(house: House, **changes: Any) -> dict[str, Any]:
    body = assay(house) | {"preview_start": (DAY0 + DAY).isoformat(), "preview_end": (DAY0 + 8 * DAY).isoformat()}
    return {k: v for k, v in body.items() if k != "name"} | changes


async def test_a_baseline_is_binned_by_path(ann: httpx.AsyncClient, house: House) -> None:
    body = {k: assay(house)[k] for k in ("baseline", "summarizer", "targeting")}

    found = await call(ann, "preview_baseline_binning", body)

    base = house.past.day(0)
    one = found[KEY]
    assert one["bins"]["edges"][:4] == pytest.approx([np.quantile(base, k / 5) for k in range(1, 5)], rel=1e-12)
    assert one["bins"]["edges"][4] == "INFINITY"
    assert one["bins"]["labels"] == ["< 20%", "20% - 40%", "40% - 60%", "60% - 80%", "> 80%"]
    assert one["bins"]["mode"] == {"Quantile": 5}
    assert one["statistics"]["count"] == 181
    assert sum(one["aggregated_values"]) == pytest.approx(1)
    assert (one["name"], one["start"], one["end"]) == (KEY, "2023-01-01T00:00:00Z", "2023-01-02T00:00:00Z")


async def test_a_vector_has_no_dates_and_needs_no_target(ann: httpx.AsyncClient, house: House) -> None:
    found = await call(
        ann, "preview_baseline_binning", {"baseline": {"Vector": [1.0, None, 3.0]}, "summarizer": summarizer()}
    )

    (one,) = found.values()
    assert (one["statistics"]["count"], one["start"], one["end"]) == (2, None, None)


@pytest.mark.parametrize(
    ("mode", "bins"),
    [
        ({"Equal": 5}, 7),
        ({"Quantile": 4}, 4),
        ({"QuantileWithExplicitOutliers": 4}, 6),
        ({"Provided": [12.0, 13.0]}, 3),
        ("None", 1),
    ],
)
async def test_every_bin_mode_gives_lists_of_one_length(
    ann: httpx.AsyncClient, house: House, mode: Any, bins: int
) -> None:
    results = await call(ann, "preview", preview(house, summarizer=summarizer(bin_mode=mode)))

    for result in results:
        one = result["summaries"][KEY]
        lengths = {len(x) for x in (one["bins"]["edges"], one["bins"]["labels"], one["aggregated_values"])}
        assert lengths == {bins}
        assert len(result["scores"][KEY]["scores"]) == bins
        assert one["bins"]["mode"] == mode


async def test_a_preview_has_each_window_with_records(ann: httpx.AsyncClient, house: House) -> None:
    results = await call(ann, "preview", preview(house))

    days = [datetime.fromisoformat(r["window_end"]).day - 2 for r in results]
    assert days == [1, 2, 4, 5, 6, 7]
    base = np.array(house.past.day(0))
    edges = [np.quantile(base, k / 5) for k in range(1, 5)]
    b = np.bincount(np.searchsorted(edges, base), minlength=5) / len(base)
    for result, day in zip(results, days, strict=True):
        values = house.past.day(day)
        w = np.bincount(np.searchsorted(edges, values), minlength=5) / len(values)
        w = np.where(w == 0, 0.005, w)
        assert result["scores"][KEY]["score"] == pytest.approx(float(((w - b) * np.log(w / b)).sum()), rel=1e-9)
        assert result["summaries"][KEY]["start"] == f"2023-01-0{day + 1}T00:00:00Z"
        assert result["summaries"][KEY]["end"] == result["window_end"]
        assert uuid.UUID(result["assay_id"])
        assert (result["pipeline_id"], result["workspace_name"]) == (house.pipeline.id, house.workspace.name)


async def test_a_path_that_fails_has_its_reason_beside_the_others_scores(ann: httpx.AsyncClient, house: House) -> None:
    paths = [
        {"field": "out.variable", "indexes": [0], "thresholds": None},
        {"field": "in.tensor", "indexes": [1]},
        {"field": "out.variable", "indexes": [9]},
    ]
    vector = {"Vector": [float(x) for x in range(20)]}

    results = await call(ann, "preview", preview(house, baseline=vector, targeting=targeting(house, *paths)))

    for result in results:
        assert set(result["summaries"]) == {KEY, "in.tensor.1"}
        assert "missing" in result["scores"]["out.variable.9"]


async def test_a_summary_that_was_given_back_is_the_baseline(ann: httpx.AsyncClient, house: House) -> None:
    body = {k: assay(house)[k] for k in ("baseline", "summarizer", "targeting")}
    summary = await call(ann, "preview_baseline_binning", body)

    direct = await call(ann, "preview", preview(house))
    given = await call(ann, "preview", preview(house, baseline={"Summary": summary}))

    assert [r["scores"] for r in given] == [r["scores"] for r in direct]


async def test_provided_edges_may_end_in_infinity(ann: httpx.AsyncClient, house: House) -> None:
    spec = summarizer(bin_mode={"Provided": [12.0, 12.5, 13.0, "INFINITY"]}, bin_weights=[0, 1, 1, 1, 1])
    body = {k: assay(house)[k] for k in ("baseline", "targeting")}

    summary = await call(ann, "preview_baseline_binning", body | {"summarizer": spec})

    assert summary[KEY]["bins"]["edges"] == [12.0, 12.5, 13.0, "INFINITY"]
    again = await call(ann, "preview", preview(house, baseline={"Summary": summary}, summarizer=spec))
    direct = await call(ann, "preview", preview(house, summarizer=spec))
    assert [r["scores"] for r in again] == [r["scores"] for r in direct]


async def test_a_scalar_field_has_no_index(ann: httpx.AsyncClient, house: House) -> None:
    times = [(DAY0 + timedelta(hours=i), float(i % 7)) for i in range(48)]
    append(house.root, house.topic, records(times, model="plain", field="price", scalar=True), partition="engine-9")
    target = targeting(house, {"field": "out.price", "indexes": None}, model_id="plain")

    results = await call(ann, "preview", preview(house, targeting=target))

    assert len(results) == 1
    assert set(results[0]["scores"]) == set(results[0]["summaries"]) == {"out.price"}


async def test_a_rolling_baseline_is_the_time_before_each_window(ann: httpx.AsyncClient, house: House) -> None:
    rolling = {"Rolling": {"start": DAY0.isoformat(), "width": {"seconds": 2 * 86400}}}

    results = await call(ann, "preview", preview(house, baseline=rolling))

    assert [len(r["summaries"]) for r in results] == [1] * 6
    drifted = results[-1]["scores"][KEY]["score"]
    fixed = (await call(ann, "preview", preview(house)))[-1]["scores"][KEY]["score"]
    assert drifted < fixed  # the baseline has drifted too


async def test_windows_by_cron_are_those_before_each_run(ann: httpx.AsyncClient, house: House) -> None:
    scheduling = assay(house)["scheduling"] | {"run_frequency": {"Cron": "0 12 * * *"}}

    results = await call(ann, "preview", preview(house, scheduling=scheduling))

    assert {datetime.fromisoformat(r["window_end"]).hour for r in results} == {12}
    assert results[0]["window_end"] == "2023-01-03T12:00:00Z"


async def test_a_scheduled_assay_runs_and_shows_its_results(
    ann: httpx.AsyncClient, house: House, clock: FixedClock, context: Context
) -> None:
    made = await call(ann, "schedule", assay(house))
    shown = await call(ann, "get/:id", {"id": made})
    while await scheduler.tick(context):
        pass

    results = await call(
        ann, "get_results", {"id": made, "start": DAY0.isoformat(), "end": (DAY0 + 9 * DAY).isoformat()}
    )
    previews = await call(ann, "preview", preview(house))

    assert uuid.UUID(made)
    assert set(shown["baseline"]["Summary"]) == {KEY}
    assert shown["targeting"]["data_origin"]["workspace_id"] == house.workspace.id
    good = [r for r in results if r["summaries"]]
    assert [r["scores"] for r in good] == [r["scores"] for r in previews]
    assert [r["summaries"] for r in good] == [r["summaries"] for r in previews]
    assert good[-1]["status"] == "Alert"
    (empty,) = [r for r in results if not r["summaries"]]
    assert "no records" in empty["scores"][KEY]
    assert good[0]["alert_threshold"] == 0.25
    assert await call(ann, "get_next_run", {"assay_id": made}) == {
        "last_run": "2023-01-09T00:00:00Z",
        "next_run": None,
    }


@pytest.mark.parametrize("path", ["get/:id", "get/%3Aid", "get/%3aid"])
async def test_the_literal_segment_is_taken_in_every_spelling(ann: httpx.AsyncClient, house: House, path: str) -> None:
    made = await call(ann, "schedule", assay(house))

    shown = await call(ann, path, {"id": made})

    assert shown["id"] == made
    assert set(shown) == {
        "id", "name", "active", "baseline", "scheduling", "summarizer", "targeting", "window",
        "created_at", "updated_at",
    }  # fmt: skip


async def test_pausing_stops_future_runs_only(
    ann: httpx.AsyncClient, house: House, clock: FixedClock, context: Context
) -> None:
    clock.moment = DAY0 + 5 * DAY
    made = await call(ann, "schedule", assay(house))

    assert await call(ann, "set_active", {"assay_id": made, "active": False}) is None
    clock.moment = DAY0 + 10 * DAY
    while await scheduler.tick(context):
        pass
    paused = await call(ann, "get_results", {"id": made})
    stopped = await call(ann, "get_next_run", {"assay_id": made})
    await call(ann, "set_active", {"assay_id": made, "active": True})
    while await scheduler.tick(context):
        pass

    assert [r["window_end"][:10] for r in paused] == [f"2023-01-0{day}" for day in (3, 4, 5, 6)]
    assert stopped["next_run"] is None
    assert len(await call(ann, "get_results", {"id": made})) == 7


async def test_listing_filters(ann: httpx.AsyncClient, house: House) -> None:
    one = await call(ann, "schedule", assay(house, name="one"))
    two = await call(ann, "schedule", assay(house, name="two"))
    await call(ann, "set_active", {"assay_id": one, "active": False})

    async def ids(**wanted: Any) -> list[str]:
        return [a["id"] for a in await call(ann, "get", {"active": "All"} | wanted)]

    assert await ids() == [two, one]
    assert await ids(active="ActiveOnly", workspace_id=house.workspace.id) == [two]
    assert await ids(active="InactiveOnly", pipeline_name="houses") == [one]
    assert await ids(pipeline_name="elsewhere") == []


async def test_scores_of_raw_and_stored_windows(ann: httpx.AsyncClient, house: House) -> None:
    body = {k: assay(house)[k] for k in ("baseline", "summarizer", "targeting")}
    stored = [(DAY0 + 7 * DAY).isoformat(), (DAY0 + 8 * DAY).isoformat()]

    by_time = await call(ann, "score", body | {"window": {"Stored": stored}})
    by_values = await call(ann, "score", body | {"window": {"Raw": house.past.day(7)}})
    nothing = await call(ann, "score", body | {"window": {"Stored": ["2001-01-01", "2001-01-02"]}})

    assert by_time == by_values
    assert by_time[KEY]["bin_index"] is None
    assert isinstance(nothing[KEY], str)


@pytest.mark.parametrize(
    "bad",
    [
        {"summarizer": {}},
        {"summarizer": summarizer(bin_mode={"Quantile": 0})},
        {"summarizer": summarizer(bin_mode={"Quantile": "5"})},
        {"summarizer": summarizer(bin_mode={"Fancy": 5})},
        {"summarizer": summarizer(bin_mode=[])},
        {"summarizer": summarizer(metric="XYZ")},
        {"summarizer": summarizer(bin_weights=[1])},
        {"summarizer": summarizer(bin_weights="heavy")},
        {"window": {"width": {"seconds": 0}}},
        {"window": {"width": {"seconds": 1e30}}},
        {"scheduling": {"first_run": "x", "run_frequency": {"SimpleRunFrequency": {"quantity": 1, "unit": "Day"}}}},
        {"scheduling": {"first_run": "2023", "run_frequency": {"SimpleRunFrequency": {"quantity": 1, "unit": "Aeon"}}}},
        {"scheduling": {"first_run": DAY0.isoformat(), "run_frequency": {"Cron": "every tuesday"}}},
        {"scheduling": {"first_run": DAY0.isoformat(), "run_frequency": {}}},
        {"baseline": {}},
        {"baseline": {"Static": ["2001-01-01", "2001-01-02"]}},
        {"baseline": {"Static": ["2023-01-02", "2023-01-01"]}},
        {"baseline": {"Vector": ["x"]}},
        {"baseline": {"Summary": {KEY: {}}}},
        {"baseline": {"Rolling": {"start": "2023-01-01", "width": {}}}},
    ],
)  # fmt: skip
async def test_what_makes_no_sense_is_refused_with_a_reason(
    ann: httpx.AsyncClient, house: House, bad: dict[str, Any]
) -> None:
    answer = await call(ann, "schedule", assay(house, **bad), status=400)

    assert len(answer["msg"]) > 10


async def test_a_stranger_finds_nothing(ann: httpx.AsyncClient, bob: httpx.AsyncClient, house: House) -> None:
    made = await call(ann, "schedule", assay(house))
    part = {k: assay(house)[k] for k in ("baseline", "summarizer", "targeting")}

    for path, body in (
        ("preview_baseline_binning", part),
        ("preview", preview(house)),
        ("schedule", assay(house)),
        ("score", part | {"window": {"Raw": [1.0]}}),
        ("get/:id", {"id": made}),
        ("set_active", {"assay_id": made, "active": False}),
        ("get_next_run", {"assay_id": made}),
        ("get_results", {"id": made}),
    ):
        await call(bob, path, body, status=404)
    assert await call(bob, "get", {"active": "All"}) == []
