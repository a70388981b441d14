"""The first generation of assays through its REST face."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest

from app.kit.context import Context
from tests.assays.conftest import FixedClock, House
from tests.assays.history import DAY, DAY0, MODEL, append, config, counts, psi, quantile_edges, records
from tests.factories import Make

API = "/v1/api/assays"


async def call(client: httpx.AsyncClient, path: str, body: Any, status: int = 200) -> Any:
    answer = await client.post(f"{API}/{path}", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def modern(body: dict[str, Any], static: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration as clients since 2023.4 write it."""
    window = body["window"]
    return {k: v for k, v in body.items() if k != "iopath"} | {
        "baseline": {"static": static},
        "window": {
            "pipeline_name": window["pipeline"],
            "model_name": window["model"],
            "width": window["width"],
            "start": window["start"],
            "interval": window["interval"],
            "path": body["iopath"],
            "workspace_id": body["workspace_id"],
            "locations": [],
        },
    }


def fixed_window(house: House, **changes: Any) -> dict[str, Any]:
    return {
        "fixed_window": {
            "pipeline_name": "houses",
            "model_name": MODEL,
            "start": DAY0.isoformat(),
            "width": "86400000 ms",
            "path": "output variable 0",
            "workspace_id": house.workspace.id,
            "locations": [],
        }
        | changes
    }


async def test_an_interactive_run_scores_each_window_that_has_records(
    ann: httpx.AsyncClient, house: House, clock: FixedClock
) -> None:
    results = await call(ann, "run_interactive", config(house.pipeline, id=7))

    base = house.past.day(0)
    edges = quantile_edges(base, 5)
    assert [r["window_start"] for r in results] == [f"2023-01-0{d + 1}T00:00:00Z" for d in (1, 2, 4, 5, 6, 7)]
    for result, day in zip(results, (1, 2, 4, 5, 6, 7), strict=True):
        expected = psi(base, house.past.day(day), edges)
        assert result["score"] == pytest.approx(expected, rel=1e-12)
        assert result["status"] == ("Alert" if expected >= 0.25 else "Warning" if expected >= 0.1 else "Ok")
        assert result["window_summary"]["count"] == len(house.past.day(day))
        assert result["assay_id"] == 7
    assert results[-1]["status"] == "Alert"
    names = results[0]["window_summary"]["edge_names"]
    assert names[0] == "left_outlier"
    assert names[1].startswith("e_1.2")
    assert results[0]["summarizer"].keys() == {
        "type", "bin_mode", "aggregation", "metric", "num_bins", "bin_weights", "provided_edges",
    }  # fmt: skip


async def test_the_baseline_run_shows_the_baseline_as_an_analysis(
    ann: httpx.AsyncClient, house: House, clock: FixedClock
) -> None:
    result = await call(ann, "run_interactive_baseline", config(house.pipeline))

    base = house.past.day(0)
    summary = result["baseline_summary"]
    assert (result["status"], result["score"], result["scores"]) == ("BaselineRun", 0.0, [0.0] * 7)
    assert summary["edges"] == [*quantile_edges(base, 5), None]
    assert summary["edge_names"] == ["left_outlier", "q_20", "q_40", "q_60", "q_80", "q_100", "right_outlier"]
    assert [round(v * len(base)) for v in summary["aggregated_values"]] == counts(base, quantile_edges(base, 5))
    assert result["window_summary"]["edge_names"][1].startswith("e_")
    assert (summary["start"], result["assay_id"]) == ("2023-01-01T00:00:00Z", None)


async def test_both_spellings_give_the_same_scores(ann: httpx.AsyncClient, house: House, clock: FixedClock) -> None:
    body = config(house.pipeline)
    summarized = await call(ann, "summarize", {"summarizer": body["summarizer"], "baseline": fixed_window(house)})
    old = await call(ann, "run_interactive", body)
    new = await call(ann, "run_interactive", modern(body, summarized))
    renamed = {("start_at" if k == "start" else "end_at" if k == "end" else k): v for k, v in summarized.items()}
    of_2023_4 = await call(ann, "run_interactive", modern(body, renamed))

    assert [r["score"] for r in new] == [r["score"] for r in old] == [r["score"] for r in of_2023_4]
    assert (summarized["start"], summarized["end"]) == ("2023-01-01T00:00:00Z", "2023-01-02T00:00:00Z")


async def test_a_vector_is_summarised_without_dates_and_nulls_do_not_count(
    ann: httpx.AsyncClient, house: House
) -> None:
    body = {"summarizer": config(house.pipeline)["summarizer"], "baseline": {"vector": [1.0, None, 2.0, 3.0]}}

    summary = await call(ann, "summarize", body)

    assert (summary["count"], summary["start"], summary["end"]) == (3, None, None)
    assert summary["edges"][-1] is None
    assert len(summary["edges"]) == len(summary["edge_names"]) == len(summary["aggregated_values"]) == 7


@pytest.mark.parametrize(
    ("window", "until", "expected"),
    [
        ({"interval": "12 hours"}, 8, 12),
        ({"width": "4 hours"}, 8, 36),
        ({"start": "2022-01-03T00:00:00Z", "width": "1 weeks", "interval": "1 weeks"}, 30, 2),
    ],
)
async def test_windows_lie_where_the_configuration_says(
    ann: httpx.AsyncClient, house: House, clock: FixedClock, window: dict[str, Any], until: int, expected: int
) -> None:
    clock.moment = DAY0 + 60 * DAY
    body = config(house.pipeline, run_until=(DAY0 + until * DAY).isoformat())
    body["window"] |= window

    assert len(await call(ann, "run_interactive", body)) == expected


async def test_a_listed_assay_has_the_spellings_of_all_releases(
    ann: httpx.AsyncClient, house: House, clock: FixedClock
) -> None:
    made = await call(ann, "create", config(house.pipeline))

    (listed,) = await call(ann, "list", {"pipeline_id": house.pipeline.id})
    assert listed["id"] == made["assay_id"]
    assert (listed["status"], listed["last_run"], listed["active"]) == ("created", None, True)
    assert (listed["warning_threshold"], listed["alert_threshold"]) == (0.1, 0.25)
    assert listed["baseline"]["Fixed"] == config(house.pipeline)["baseline"]["Fixed"]
    assert listed["baseline"]["static"]["count"] == 181
    assert listed["baseline"]["static"]["start_at"] == listed["baseline"]["static"]["start"]
    assert {"pipeline", "model", "pipeline_name", "model_name", "path", "workspace_id", "locations"} <= set(
        listed["window"]
    )
    assert "bin_width" not in listed["summarizer"]
    assert datetime.fromisoformat(listed["next_run"])
    assert await call(ann, "get_assay_by_id", {"id": made["assay_id"]}) == listed


async def test_listing_filters_and_puts_the_newest_first(
    ann: httpx.AsyncClient, house: House, clock: FixedClock
) -> None:
    first = (await call(ann, "create", config(house.pipeline, name="one")))["assay_id"]
    second = (await call(ann, "create", config(house.pipeline, name="two", active=False)))["assay_id"]

    async def ids(**wanted: Any) -> list[int]:
        return [a["id"] for a in await call(ann, "list", wanted)]

    assert await ids() == [second, first]
    assert await ids(workspace_id=house.workspace.id, workspace_name=house.workspace.name) == [second, first]
    assert await ids(workspace_id=house.workspace.id + 1) == []
    assert await ids(workspace_name="elsewhere") == []
    assert (await ann.post(f"{API}/list")).status_code == 200


async def test_filter_returns_full_configurations(ann: httpx.AsyncClient, house: House, clock: FixedClock) -> None:
    await call(ann, "create", config(house.pipeline, name="one"))
    await call(ann, "create", config(house.pipeline, name="two", active=False))
    base = {"workspace_id": house.workspace.id, "pipeline_id": house.pipeline.id, "sort_by": "CreationDateDesc"}

    async def names(**more: Any) -> list[str]:
        return [a["name"] for a in await call(ann, "filter", base | more)]

    assert await names() == ["two", "one"]
    assert await names(active=True, sort_by="LastRunDateDesc") == ["one"]
    assert await names(name="TW", locations=[]) == ["two"]
    assert await names(locations=["edge-1"]) == []
    assert await names(drift_window={"start": DAY0.isoformat(), "end": (DAY0 + DAY).isoformat()}) == []


async def test_a_name_is_unique_in_the_whole_instance(ann: httpx.AsyncClient, house: House, clock: FixedClock) -> None:
    await call(ann, "create", config(house.pipeline))

    answer = await call(ann, "create", config(house.pipeline), status=400)

    assert "drift of houses" in answer["msg"]


async def test_set_active_answers_what_was_sent(ann: httpx.AsyncClient, house: House, clock: FixedClock) -> None:
    made = (await call(ann, "create", config(house.pipeline)))["assay_id"]

    for active in (False, True):
        body = {"id": made, "active": active}
        assert await call(ann, "set_active", body) == body
        assert (await call(ann, "get_assay_by_id", {"id": made}))["active"] is active


async def test_get_baseline_returns_flat_records(ann: httpx.AsyncClient, house: House) -> None:
    body = {
        "workspace_id": house.workspace.id,
        "pipeline_name": "houses",
        "start": DAY0.isoformat(),
        "end": (DAY0 + DAY).isoformat(),
        "limit": 3,
    }

    rows = await call(ann, "get_baseline", body)

    assert [r["out.variable"] for r in rows] == [[v] for v in house.past.day(0)[:3]]
    assert rows[0]["time"] == int(DAY0.timestamp() * 1000)
    assert "model_name" in rows[0]["metadata.last_model"]
    assert await call(ann, "get_baseline", body | {"model_name": "another"}) == []
    assert len(await call(ann, "get_baseline", {"pipeline_name": "houses", "limit": 1000})) == 1000


async def test_only_records_of_the_model_and_the_locations_count(
    ann: httpx.AsyncClient, house: House, clock: FixedClock
) -> None:
    day = DAY0 + DAY
    others = [(day + timedelta(minutes=i), 99.0) for i in range(50)]
    append(house.root, house.topic, records(others, model="another"), partition="engine-2")
    edge = [(t + timedelta(seconds=1), v) for t, v in house.past.rows if t < day + DAY]
    append(house.root, house.topic, records(edge, partition="edge-7"), partition="upload-1")
    body = config(house.pipeline, run_until=(day + DAY).isoformat())
    both = (await call(ann, "run_interactive", body))[0]
    summary = await call(
        ann, "summarize", {"summarizer": body["summarizer"], "baseline": fixed_window(house, locations=["edge-7"])}
    )
    placed = modern(body, summary)
    placed["window"]["locations"] = ["edge-7"]

    at_the_edge = (await call(ann, "run_interactive", placed))[0]

    assert both["window_summary"]["count"] == 2 * 181
    assert both["window_summary"]["max"] < 99
    assert at_the_edge["window_summary"]["count"] == 181


async def test_inputs_are_watched_as_outputs_are(ann: httpx.AsyncClient, house: House, clock: FixedClock) -> None:
    results = await call(ann, "run_interactive", config(house.pipeline, iopath="input tensor 0"))

    assert {r["window_summary"]["mean"] for r in results} == {0.5}
    assert {r["iopath"] for r in results} == {"input tensor 0"}


async def test_fields_by_number_are_those_of_the_first_clients(
    ann: httpx.AsyncClient, house: House, clock: FixedClock
) -> None:
    by_name = await call(ann, "run_interactive", config(house.pipeline))
    by_number = await call(ann, "run_interactive", config(house.pipeline, iopath="output 0 0"))

    assert [r["score"] for r in by_number] == [r["score"] for r in by_name]


async def test_a_sliding_baseline_lies_before_each_window(
    ann: httpx.AsyncClient, house: House, clock: FixedClock
) -> None:
    baseline = {"Sliding": {"pipeline": "houses", "model": MODEL, "width": "1 days", "offset": None}}
    body = config(house.pipeline, baseline=baseline)
    body["window"]["start"] = (DAY0 + DAY).isoformat()

    results = await call(ann, "run_interactive", body)

    days = [datetime.fromisoformat(r["window_start"]).day - 1 for r in results]
    assert days == [1, 2, 5, 6, 7]  # the day after the one without records has nothing to compare with
    for result, day in zip(results, days, strict=True):
        before = house.past.day(day - 1)
        expected = psi(before, house.past.day(day), quantile_edges(before, 5))
        assert result["score"] == pytest.approx(expected, rel=1e-12)


async def test_a_sliding_baseline_is_listed_in_the_forms_of_all_releases(
    ann: httpx.AsyncClient, house: House, clock: FixedClock
) -> None:
    baseline = {"Sliding": {"pipeline": "houses", "model": MODEL, "width": "1 days", "offset": None}}
    body = config(house.pipeline, baseline=baseline)
    body["window"]["start"] = (DAY0 + DAY).isoformat()
    await call(ann, "create", body)

    (listed,) = await call(ann, "list", {})

    assert listed["baseline"]["Sliding"] == baseline["Sliding"]
    assert listed["baseline"]["calculated"]["sliding_window"]["window"]["width"] == "1440 minutes"


@pytest.mark.parametrize(
    "bad",
    [
        {"pipeline_name": "nope"},
        {"summarizer": {"metric": "XYZ"}},
        {"summarizer": {"num_bins": 0}},
        {"summarizer": {"type": "MultivariateContinuous", "name": "x"}},
        {"summarizer": {"bin_weights": [1.0]}},
        {"summarizer": {"bin_mode": "Provided", "provided_edges": None}},
        {"window": {"width": "a while"}},
        {"window": {"width": "99999999999 weeks"}},
        {"window": {"width": "0 minutes"}},
        {"window": {"start": "someday"}},
        {"iopath": "nonsense"},
        {"iopath": None},
        {"iopath": "output nothing 0"},
        {"iopath": "output variable 5"},
        {"run_until": "0000-13-01"},
        {"alert_threshold": "high"},
        {"workspace_id": 10**9},
        {"baseline": {}},
        {"baseline": {"UserProvided": {"url": "http://example.org"}}},
        {"baseline": {"static": {"count": 1}}},
        {"baseline": {"calculated": {"vector": []}}},
        {"baseline": {"calculated": {"vector": ["a"]}}},
        {"baseline": {"calculated": {"vector": [1, 2]}}},
        {"baseline": {"Fixed": {"start_at": "2001-01-01T00:00:00Z", "end_at": "2001-01-02T00:00:00Z"}}},
        {"baseline": {"Fixed": {"start_at": "2023-01-02T00:00:00Z", "end_at": "2023-01-01T00:00:00Z"}}},
        {"baseline": {"Fixed": {"model": "unknown", "start_at": "2023-01-01", "end_at": "2023-01-02"}}},
    ],
)
async def test_what_cannot_be_computed_is_refused_with_a_reason(
    ann: httpx.AsyncClient, house: House, clock: FixedClock, bad: dict[str, Any]
) -> None:
    body = config(house.pipeline)
    body |= {k: body[k] | v if k in ("summarizer", "window") else v for k, v in bad.items()}

    for path in ("run_interactive", "create"):
        if path == "create" and bad.get("iopath") == "output variable 5":
            continue
        answer = await call(ann, path, body, status=400)
        assert len(answer["msg"]) > 10
        assert answer["code"] == 400


async def test_a_stranger_finds_nothing(
    ann: httpx.AsyncClient, bob: httpx.AsyncClient, house: House, clock: FixedClock
) -> None:
    made = (await call(ann, "create", config(house.pipeline)))["assay_id"]

    for path, body in (
        ("create", config(house.pipeline, name="mine")),
        ("run_interactive", config(house.pipeline)),
        ("run_interactive_baseline", config(house.pipeline)),
        ("summarize", {"summarizer": {}, "baseline": fixed_window(house)}),
        ("set_active", {"id": made, "active": False}),
        ("get_assay_by_id", {"id": made}),
        ("get_results", {"assay_id": made}),
        ("get_assay_results", {"assay_id": made}),
        ("get_baseline", {"pipeline_name": "houses", "workspace_id": house.workspace.id}),
        ("set_notifications", {"assay_id": made}),
        ("report", {"assay_id": made}),
        ("backfill", {"assay_id": made, "start": DAY0.isoformat()}),
    ):
        await call(bob, path, body, status=404)
    assert await call(bob, "list", {}) == []
    wanted = {"workspace_id": house.workspace.id, "pipeline_id": house.pipeline.id, "sort_by": "CreationDateDesc"}
    assert await call(bob, "filter", wanted) == []


async def test_a_baseline_of_another_pipeline_must_be_visible(
    ann: httpx.AsyncClient, house: House, clock: FixedClock, make: Make, context: Context
) -> None:
    hidden = await make.workspace()
    await make.pipeline(hidden, name="secret")
    body = config(house.pipeline)
    body["baseline"]["Fixed"]["pipeline"] = "secret"

    answer = await call(ann, "run_interactive", body, status=404)

    assert "secret" in answer["msg"]


@pytest.mark.parametrize("unknown", [10**9, 2**63 - 1])
async def test_an_unknown_assay_is_not_found(ann: httpx.AsyncClient, unknown: int) -> None:
    await call(ann, "set_active", {"id": unknown, "active": True}, status=404)
    await call(ann, "get_results", {"assay_id": unknown}, status=404)


@pytest.mark.parametrize("agent", ["WallarooSDK/2026.1.3", "WallarooSDK/2024.1.0", "python-httpx/0.23.3"])
async def test_the_vendors_clients_get_errors_under_statuses_they_show(
    ann: httpx.AsyncClient, house: House, clock: FixedClock, agent: str
) -> None:
    answers = []
    for path, body in (
        ("set_active", {"id": 10**9, "active": True}),
        ("create", config(house.pipeline, pipeline_id=10**9)),
        ("get_assay_results", {"assay_id": 10**9}),
        ("get_assay_results", {}),
        ("filter", {}),
    ):
        answers.append(await ann.post(f"{API}/{path}", json=body, headers={"user-agent": agent}))

    assert [a.status_code for a in answers] == [400, 400, 500, 500, 500]
    assert [a.json()["code"] for a in answers] == [400, 400, 500, 500, 500]
    assert [a.json()["error"] for a in answers] == ["not_found", "not_found", "not_found", "invalid", "invalid"]
    assert answers[2].json()["msg"] == "There is no assay 1000000000."
