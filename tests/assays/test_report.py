"""The report: one page that stands for itself."""

from __future__ import annotations

import re
from datetime import timedelta
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest

from app.assays import scheduler
from app.assays.charts import WIDTH, Point, scores_chart
from app.kit.context import Context
from tests.assays.conftest import FixedClock, House
from tests.assays.history import DAY0, config
from tests.assays.test_v2_api import assay, targeting

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Checks that tags nest, and gathers what a check needs."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


async def report(client: httpx.AsyncClient, assay_id: Any) -> str:
    answer = await client.post("/v1/api/assays/report", json={"assay_id": assay_id})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    return answer.text


@pytest.fixture
async def computed(ann: httpx.AsyncClient, house: House, clock: FixedClock, context: Context) -> int:
    body = config(house.pipeline, name="drift <b>of</b> houses")
    made: int = (await ann.post("/v1/api/assays/create", json=body)).json()["assay_id"]
    while await scheduler.tick(context):
        pass
    return made


async def test_nothing_is_loaded_from_elsewhere(ann: httpx.AsyncClient, computed: int) -> None:
    html = await report(ann, computed)

    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not [attrs for _, attrs in page.tags if {"src", "href", "srcset"} & set(attrs)]
    assert not re.search(r"url\(|@import|https?://", html)
    assert "default-src 'none'" in html


async def test_it_shows_scores_thresholds_histograms_statistics_and_failures(
    ann: httpx.AsyncClient, computed: int
) -> None:
    html = await report(ann, computed)

    assert html.count("<svg") == 2
    assert len(re.findall(r'class="limit (?:warning|alert)"', html)) == 2
    assert "Worst window: 2023-01-08" in html
    for word in ("count", "median", "std", "left_outlier", "right_outlier", "There are no records", "PSI of density"):
        assert word in html
    assert "&lt;b&gt;of&lt;/b&gt;" in html
    assert "<b>" not in html


async def test_it_is_readable_without_eyes_and_without_colour(ann: httpx.AsyncClient, computed: int) -> None:
    page = Page(await report(ann, computed))

    assert ("html", {"lang": "en"}) in page.tags
    assert [tag for tag, _ in page.tags].count("h1") == 1
    assert all(attrs.get("role") == "img" and attrs.get("aria-label") for tag, attrs in page.tags if tag == "svg")
    assert all(attrs.get("scope") in ("col", "row") for tag, attrs in page.tags if tag == "th")
    shapes = {attrs.get("class") for tag, attrs in page.tags if tag in ("circle", "path", "rect")}
    assert {"ok", "alert"} <= shapes


async def test_an_assay_without_results_has_a_page_too(ann: httpx.AsyncClient, house: House, clock: FixedClock) -> None:
    made = (await ann.post("/v1/api/assays/create", json=config(house.pipeline))).json()["assay_id"]

    assert "No window could be compared yet." in await report(ann, made)


async def test_the_second_generation_reports_every_path(
    ann: httpx.AsyncClient, house: House, clock: FixedClock, context: Context
) -> None:
    made = (await ann.post("/v2/api/assays/schedule", json=assay(house))).json()
    while await scheduler.tick(context):
        pass

    html = await report(ann, made)

    assert "out.variable.0" in html
    Page(html)


async def test_each_path_is_judged_by_its_own_thresholds(
    ann: httpx.AsyncClient, house: House, clock: FixedClock, context: Context
) -> None:
    counted = {"field": "in.tensor", "indexes": [1], "thresholds": None}  # counts the records: drifts without end
    watched = {"field": "out.variable", "indexes": [0], "thresholds": {"warning": 0.1, "alert": 0.25}}
    body = assay(house, targeting=targeting(house, watched, counted))
    made = (await ann.post("/v2/api/assays/schedule", json=body)).json()
    while await scheduler.tick(context):
        pass

    own, other = (await report(ann, made)).split("<section")[1:3]

    assert 'class="limit alert"' in own
    assert '<rect class="alert"' in own
    assert 'class="limit' not in other
    assert 'class="alert"' not in other
    assert "<td>Alert</td>" not in other
    assert other.count('<circle class="ok"') == 6


async def test_widths_are_said_as_people_say_them(ann: httpx.AsyncClient, house: House, clock: FixedClock) -> None:
    body = config(house.pipeline)
    body["window"] |= {"width": "36 hours", "interval": "90 minutes"}
    made = (await ann.post("/v1/api/assays/create", json=body)).json()["assay_id"]

    assert "36 hours wide, every 90 minutes" in await report(ann, made)


def test_no_label_of_a_chart_is_cut_off_or_covers_another() -> None:
    day = timedelta(days=1)
    points = [Point(DAY0 + i * day, score, "Ok") for i, score in enumerate((0.0, 0.1, 3.0))]

    chart = scores_chart(points, 0.1, 0.12, "Scores")

    labels = re.findall(r'<text(?: class="name")? x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">([^<]+)<', chart)
    boxes = []
    for x, y, anchor, text in labels:
        width = 6.2 * len(text)
        left = float(x) - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
        assert left >= 0, text
        assert left + width <= WIDTH, text
        boxes.append((left, left + width, float(y) - 11, float(y), text))
    for i, (left, right, top, bottom, text) in enumerate(boxes):
        for other in boxes[:i]:
            apart = right <= other[0] or other[1] <= left or bottom <= other[2] or other[3] <= top
            assert apart, (text, other[4])
