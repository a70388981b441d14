"""The report: one page that stands for itself."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest

from app.assays import scheduler
from app.kit.context import Context
from tests.assays.conftest import FixedClock, House
from tests.assays.history import config
from tests.assays.test_v2_api import assay

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
