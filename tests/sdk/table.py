"""`python -m tests.sdk.table`: write docs/sdk-releases.md from what the last runs of the scenarios reported."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.sdk.venvs import ALL_RELEASES, cache

PAGE = Path(__file__).parents[2] / "docs" / "sdk-releases.md"
HEADS = {
    "auth": "Signing in",
    "workspaces": "Users and workspaces",
    "models": "Models, versions and tags",
    "pipelines": "Pipelines",
    "deploy": "Deployments, inferences and logs",
    "steps": "Pipelines of several models",
    "options": "Options of a deployment, and changes while it runs",
    "assays": "Assays",
    "automation": "Connections, orchestrations and tasks",
    "tutorials": "The vendor's tutorials, on recorded data",
}
_SIGNS = {"ok": "✓", "absent": "–", "failed": "✗"}


@dataclass(frozen=True)
class Played:
    """What came of one scenario."""

    outcome: str
    reason: str


Reports = Mapping[str, Mapping[str, Mapping[str, Played]]]
"""By area, scenario and release."""


def read(folder: Path) -> Reports:
    """Return what is reported in the folder, scenarios in the order of the newest release's run."""
    found: dict[str, dict[str, dict[str, Played]]] = {}
    for path in sorted(folder.glob("*.json"), key=lambda path: _order(path.stem.partition("-")[0]), reverse=True):
        release, _, area = path.stem.partition("-")
        for entry in json.loads(path.read_text()):
            row = found.setdefault(area, {}).setdefault(entry["scenario"], {})
            row[release] = Played(entry["outcome"], entry["reason"])
    return found


def _order(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split("."))


def page(reports: Reports) -> str:
    """Return the page with a table for each area, and the reason of every gap below it."""
    releases = sorted({r for rows in reports.values() for row in rows.values() for r in row}, key=_order)
    out = [
        "<!-- Written by `make sdk-table` from the reports of `make test-sdk`; do not edit. -->\n\n# SDK releases\n\n"
        "What each release of the vendor's SDK did against a running server: ✓ the scenario played and its results "
        "were as they should be, – the release cannot play it (why is told below the table), ✗ it failed, blank: it "
        f"was not run. The newest known release is {ALL_RELEASES[-1]}.\n\n{_summary(reports, releases)}"
    ]
    for area in sorted(reports, key=lambda a: (list(HEADS).index(a) if a in HEADS else len(HEADS), a)):
        rows = reports[area]
        out.append(f"\n## {HEADS.get(area, area.capitalize())}\n\n| scenario | {' | '.join(releases)} |\n")
        out.append(f"| --- |{' :-: |' * len(releases)}\n")
        for name, row in rows.items():
            signs = [_SIGNS[row[r].outcome] if r in row else "" for r in releases]
            out.append(f"| {_sentence(name)} | {' | '.join(signs)} |\n")
        gaps = list(_gaps(rows, releases))
        if gaps:
            out.append("\n" + "".join(f"- {gap}\n" for gap in gaps))
    return "".join(out)


def _summary(reports: Reports, releases: Iterable[str]) -> str:
    lines = ["| release | played | absent | failed |\n| --- | --: | --: | --: |\n"]
    for release in releases:
        outcomes = [row[release].outcome for rows in reports.values() for row in rows.values() if release in row]
        counts = [str(outcomes.count(outcome)) for outcome in ("ok", "absent", "failed")]
        lines.append(f"| {release} | {' | '.join(counts)} |\n")
    return "".join(lines)


def _gaps(rows: Mapping[str, Mapping[str, Played]], releases: list[str]) -> Iterable[str]:
    for name, row in rows.items():
        by_reason: dict[str, list[str]] = {}
        for release in releases:
            if release in row and row[release].outcome != "ok":
                by_reason.setdefault(row[release].reason.splitlines()[0][:200], []).append(release)
        for reason, where in by_reason.items():
            yield f"{_sentence(name)}: {reason} ({', '.join(where)})"


def _sentence(name: str) -> str:
    return name.replace("_s_", "'s_").replace("_", " ")


def main() -> None:
    """Write the page; exit with an error when a scenario failed or nothing was reported."""
    reports = read(cache() / "report")
    if not reports:
        sys.exit("No reports; run `make test-sdk` first.")
    PAGE.write_text(page(reports))
    failed = [name for rows in reports.values() for name, row in rows.items() for p in row.values() if is_failed(p)]
    sys.stdout.write(f"{PAGE.name}: {sum(len(rows) for rows in reports.values())} scenarios, {len(failed)} failures\n")
    sys.exit(1 if failed else 0)


def is_failed(played: Played) -> bool:
    """Tell whether the scenario failed."""
    return played.outcome == "failed"


if __name__ == "__main__":
    main()
