"""Two kinds of plots as SVG text, written by hand: bars in groups, and curves of quantiles. Both on a log scale,
because LiteLLM and nginx are four powers of ten apart.

Colours are told apart by position and by the legend too; the ground is white, so that a plot reads the same in a
dark page.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

WIDTH = 760
LEFT, RIGHT, TOP, LEGEND = 70, 20, 40, 26
BAR, GAP, GROUP_GAP = 18, 4, 14
LABEL = 160
CURVE_HEIGHT = 320
NINES = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999)
COLOURS = {
    "direct": "#bbbbbb",
    "nginx": "#009639",
    "HAProxy": "#106da9",
    "Slipstream": "#d1495b",
    "Slipstream on aiohttp": "#edae49",
    "LiteLLM": "#7a5195",
    "Portkey": "#444444",
}


def bars(heading: str, groups: Mapping[str, Mapping[str, float]]) -> str:
    """One group of horizontal bars per measure, one bar per peer."""
    values = [value for group in groups.values() for value in group.values() if value > 0]
    if not values:
        return _svg(TOP, [_text(10, 24, heading, bold=True)])
    low, high = _decades(values)
    span = WIDTH - LABEL - RIGHT - 70
    parts = [_text(10, 24, heading, bold=True)]
    y = TOP + 10.0
    for group, rows in groups.items():
        parts.append(_text(10, y + 13, group, bold=True))
        y += BAR + GAP
        for name, value in rows.items():
            width = _log(max(value, low), low, high) * span
            colour = COLOURS.get(name, "#888888")
            parts.append(_text(LABEL - 8, y + 13, name, anchor="end"))
            parts.append(f'<rect x="{LABEL}" y="{y:.0f}" width="{max(width, 1):.1f}" height="{BAR}" fill="{colour}"/>')
            parts.append(_text(LABEL + width + 5, y + 13, f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"))
            y += BAR + GAP
        y += GROUP_GAP
    return _svg(y, parts)


def curves(heading: str, histograms: Mapping[str, Sequence[Sequence[int]]]) -> str:
    """Latency over quantile, the x axis in nines: what is rare is drawn as wide as what is common."""
    points = {name: _quantiles(rows) for name, rows in histograms.items() if rows}
    values = [value for line in points.values() for _, value in line if value > 0]
    if not values:
        return _svg(TOP, [_text(10, 24, heading, bold=True)])
    low, high = _decades(values)
    span, bottom = WIDTH - LEFT - RIGHT, TOP + CURVE_HEIGHT
    parts = [_text(10, 24, heading, bold=True)]

    def place(q: float, value: float) -> tuple[float, float]:
        return LEFT + _nines(q) / _nines(NINES[-1]) * span, bottom - _log(value, low, high) * CURVE_HEIGHT

    for q in NINES:
        x, _ = place(q, low)
        parts.append(_line(x, TOP, x, bottom))
        parts.append(_text(x, bottom + 16, f"{q * 100:g} %", anchor="middle"))
    power = round(math.log10(low))
    while 10**power <= high:
        _, at = place(0, 10.0**power)
        parts.append(_line(LEFT, at, WIDTH - RIGHT, at))
        parts.append(_text(LEFT - 6, at + 4, f"{10**power:,}", anchor="end"))
        power += 1
    x = float(LEFT)
    for name, line in points.items():
        colour = COLOURS.get(name, "#888888")
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in (place(q, max(value, low)) for q, value in line))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<rect x="{x:.0f}" y="{bottom + 30}" width="12" height="12" fill="{colour}"/>')
        parts.append(_text(x + 16, bottom + 41, name))
        x += 34 + 6.6 * len(name)
    return _svg(bottom + 30 + LEGEND, parts)


def _quantiles(rows: Sequence[Sequence[int]]) -> list[tuple[float, float]]:
    """Points of the curve, at most a few hundred."""
    total = sum(count for _, count in rows)
    points: list[tuple[float, float]] = []
    seen = 0
    for value, count in rows:
        q = min(seen / total, NINES[-1])
        if not points or _nines(q) - _nines(points[-1][0]) > 0.01 or not seen:
            points.append((q, float(value)))
        seen += count
    last = min(1 - 1 / max(total, 2), NINES[-1])
    points.append((max(last, points[-1][0]), float(rows[-1][0])))
    return points


def _nines(q: float) -> float:
    return -math.log10(1 - q) if q < 1 else 5.0


def _decades(values: Iterable[float]) -> tuple[float, float]:
    kept = list(values)
    low, high = 10.0 ** math.floor(math.log10(min(kept))), 10.0 ** math.ceil(math.log10(max(kept)))
    return (low, high) if high > low else (low, low * 10)


def _log(value: float, low: float, high: float) -> float:
    return math.log(value / low) / math.log(high / low)


def _text(x: float, y: float, text: str, *, anchor: str = "start", bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}"{weight}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


def _svg(height: float, parts: Iterable[str]) -> str:
    lines = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{lines}\n</svg>\n'
    )
