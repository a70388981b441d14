"""Charts as SVG text: drawn from numbers alone, readable without colour, described for those who do not see them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape

WIDTH, HEIGHT = 760, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 14, 46
DATE = 68
"""Width of a date."""

MARKS = {
    "Ok": '<circle class="ok" cx="{x:.1f}" cy="{y:.1f}" r="4"/>',
    "Warning": '<path class="warning" d="M{x:.1f} {top:.1f}l5.5 9.5h-11z"/>',
    "Alert": '<rect class="alert" x="{left:.1f}" y="{above:.1f}" width="9" height="9"/>',
}


@dataclass(frozen=True, slots=True)
class Point:
    """A window's score."""

    start: datetime
    score: float
    status: str


def scores_chart(points: Sequence[Point], warning: float | None, alert: float | None, title: str) -> str:
    """Return the scores over time, with the thresholds as lines."""
    limits = [limit for limit in (warning, alert) if limit is not None]
    top = max([*(p.score for p in points), *limits, 0.0]) * 1.1 or 1.0
    first, last = points[0].start.timestamp(), points[-1].start.timestamp()

    def x(moment: float) -> float:
        share = (moment - first) / (last - first) if last > first else 0.5
        return LEFT + 8 + share * (WIDTH - LEFT - RIGHT - 16)

    def y(score: float) -> float:
        return TOP + (1 - min(score / top, 1)) * (HEIGHT - TOP - BOTTOM)

    parts = [_axis(top, y)]
    # side by side: however close the lines are, their names do not cover each other
    for name, limit, right in (("warning", warning, WIDTH - RIGHT - 110), ("alert", alert, WIDTH - RIGHT)):
        if limit is not None:
            parts.append(
                f'<line class="limit {name}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(limit):.1f}" y2="{y(limit):.1f}"/>'
                f'<text class="name" x="{right}" y="{y(limit) - 4:.1f}" text-anchor="end">'
                f"{name} {_short(limit)}</text>"
            )
    line = " ".join(f"{x(p.start.timestamp()):.1f},{y(p.score):.1f}" for p in points)
    parts.append(f'<polyline class="line" points="{line}"/>')
    for p in points:
        px, py = x(p.start.timestamp()), y(p.score)
        mark = MARKS.get(p.status, MARKS["Ok"])
        shape = mark.format(x=px, y=py, top=py - 6, left=px - 4.5, above=py - 4.5)
        parts.append(
            f"<g><title>{p.start:%Y-%m-%d %H:%M} UTC: {_short(p.score)}, {escape(p.status)}</title>{shape}</g>"
        )
    for share in (0, 1 / 3, 2 / 3, 1) if last > first else (0,):
        moment = points[0].start + (points[-1].start - points[0].start) * share
        middle = min(x(moment.timestamp()), WIDTH - DATE / 2)
        parts.append(
            f'<text x="{middle:.1f}" y="{HEIGHT - 26}" text-anchor="middle">{moment:%Y-%m-%d}</text>'
            f'<text x="{middle:.1f}" y="{HEIGHT - 12}" text-anchor="middle">{moment:%H:%M}</text>'
        )
    worst = max(points, key=lambda p: p.score)
    said = f"{len(points)} windows; the highest score is {_short(worst.score)}, from {worst.start:%Y-%m-%d %H:%M} on."
    return _svg(title, said, parts)


def bins_chart(labels: Sequence[str], baseline: Sequence[float], window: Sequence[float], title: str) -> str:
    """Return the bins of a baseline and a window side by side."""
    top = max([*baseline, *window, 0.0]) * 1.1 or 1.0
    slot = (WIDTH - LEFT - RIGHT) / max(len(labels), 1)
    wide = slot * 0.36

    def y(value: float) -> float:
        return TOP + (1 - min(max(value, 0.0) / top, 1)) * (HEIGHT - TOP - BOTTOM)

    floor = y(0)
    parts = [_axis(top, y)]
    for i, (label, b, w) in enumerate(zip(labels, baseline, window, strict=False)):
        left = LEFT + i * slot + slot * 0.12
        for kind, value, at in (("base", b, left), ("window", w, left + wide + slot * 0.04)):
            parts.append(
                f"<g><title>{escape(label)}, {'baseline' if kind == 'base' else 'window'}: {_short(value)}</title>"
                f'<rect class="{kind}" x="{at:.1f}" y="{y(value):.1f}" width="{wide:.1f}" '
                f'height="{floor - y(value):.1f}"/></g>'
            )
        if len(labels) <= 16 or i % math.ceil(len(labels) / 16) == 0:
            parts.append(
                f'<text x="{LEFT + (i + 0.5) * slot:.1f}" y="{HEIGHT - 26 + 13 * (i % 2)}" text-anchor="middle">'
                f"{escape(label)}</text>"
            )
    return _svg(title, "Bars in pairs, one pair a bin: left the baseline, right the window.", parts)


def _svg(title: str, said: str, parts: list[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}. {escape(said)}">'
        f"<title>{escape(title)}</title><desc>{escape(said)}</desc>{''.join(parts)}</svg>"
    )


def _axis(top: float, y: Callable[[float], float]) -> str:
    lines = []
    for i in range(5):
        value = top * i / 4
        lines.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
            f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{_short(value)}</text>'
        )
    return "".join(lines)


def _short(value: float) -> str:
    return f"{value:.4g}"
