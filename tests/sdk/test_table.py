"""The page of releases says what was reported, and the reason of every gap."""

from __future__ import annotations

import json
from pathlib import Path

from tests.sdk import table
from tests.sdk.venvs import RELEASES


def _report(folder: Path, release: str, area: str, **outcomes: tuple[str, str]) -> None:
    entries = [{"scenario": name, "outcome": o, "reason": reason, "s": 0.1} for name, (o, reason) in outcomes.items()]
    (folder / f"{release}-{area}.json").write_text(json.dumps(entries))


def test_a_table_has_a_sign_for_each_release_and_a_reason_for_each_gap(tmp_path: Path) -> None:
    _report(tmp_path, "2024.4.4", "auth", a_user_s_token=("ok", ""), an_old_way=("failed", "ValueError: no\n @ x.py:1"))
    _report(tmp_path, "2023.10.1", "auth", a_user_s_token=("absent", "came with 2024.1"))

    page = table.page(table.read(tmp_path))

    assert "| scenario | 2023.10.1 | 2024.4.4 |" in page
    assert "| a user's token | – | ✓ |" in page
    assert "| an old way |  | ✗ |" in page
    assert "- a user's token: came with 2024.1 (2023.10.1)" in page
    assert "- an old way: ValueError: no (2024.4.4)" in page
    assert "| 2024.4.4 | 1 | 0 | 1 |" in page


def test_releases_and_areas_keep_their_order(tmp_path: Path) -> None:
    for release in ("2026.1.3", "2023.4.2"):
        for area in ("deploy", "auth", "zebra"):
            _report(tmp_path, release, area, works=("ok", ""))

    page = table.page(table.read(tmp_path))

    assert page.index("2023.4.2") < page.index("2026.1.3 |")
    assert page.index("## Signing in") < page.index("## Deployments") < page.index("## Zebra")


def test_the_committed_page_knows_every_release_that_ci_runs_and_no_failure() -> None:
    page = table.PAGE.read_text()

    assert all(f"| {release} |" in page for release in RELEASES)
    assert "✗" not in page.split("\n## ", 1)[1]
