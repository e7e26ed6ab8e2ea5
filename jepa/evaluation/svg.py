"""Charts as inline SVG: they follow the page's light or dark colours and need no files.

Colours are CSS classes (`s0`, `s1`, ...) and variables of `jepa.evaluation.page`. Each chart is an
image with a text alternative. All text is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

Series = tuple[str, Sequence[float], Sequence[float]]
# (number of the series, value, low, high), all shares.
Bar = tuple[int, float, float, float]
# (label, its bars, chance or None).
Row = tuple[str, Sequence[Bar], float | None]


def _figure(width: float, height: float, alt: str, body: list[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(alt)}">'
        f"{''.join(body)}</svg>"
    )


def _text(x: float, y: float, text: str, *, anchor: str = "middle", css: str = "tick") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{css}">{escape(text)}</text>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>'


def number(value: float) -> str:
    """Returns a short decimal: 1200 -> 1.2k, 0.05 -> 0.05."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g}M"
    if abs(value) >= 1e3:
        return f"{value / 1e3:.3g}k"
    return f"{value:.3g}"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Returns about `count` round numbers within [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    scale = 10 ** math.floor(math.log10(raw))
    step = next(scale * m for m in (1, 2, 5, 10) if scale * m >= raw)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Returns 1, 2 or 5 times powers of ten within [low, high]."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [m * 10.0**e for e in exponents for m in (1, 2, 5) if low <= m * 10.0**e <= high]


def lines(
    series: Sequence[Series],
    *,
    alt: str,
    x_label: str,
    y_label: str,
    log: bool = False,
    percent: bool = False,
) -> str:
    """Draws curves over a common x axis that starts at 0.

    Args:
      series: (name, x, y) each; points whose y is not finite (or not positive, if `log`) are left
        out. Up to eight.
      alt: what the chart shows, for those who cannot see it.
      x_label: under the x axis.
      y_label: above the y axis.
      log: a logarithmic y axis.
      percent: y is a share from 0 to 1.
    """
    width, height, left, right, top, bottom = 560.0, 260.0, 52.0, 14.0, 30.0, 40.0
    drawn = []
    for name, xs, ys in series:
        x, y = np.asarray(xs, float), np.asarray(ys, float)
        keep = np.isfinite(y) & ((y > 0) if log else True)
        drawn.append((name, x[keep], y[keep]))
    values = np.concatenate([y for _, _, y in drawn]) if drawn else np.zeros(0)
    if not values.size:
        return ""
    low, high = (0.0, 1.0) if percent else (float(values.min()), float(values.max()))
    if not percent and not log:
        low = min(low, 0.0)
    if high <= low:
        high = low * 1.1 if low > 0 else low + 1
    if log:
        low, high = low / 1.1, high * 1.1
    end = max(float(x.max()) for _, x, _ in drawn if x.size) or 1.0

    def place_y(value: float) -> float:
        share = (
            math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)
        )
        return height - bottom - share * (height - top - bottom)

    def place_x(value: float) -> float:
        return left + value / end * (width - left - right)

    body = [_text(left - 44, 14, y_label, anchor="start", css="label")]
    for tick in log_ticks(low, high) if log else ticks(low, high):
        body.append(_line(left, place_y(tick), width - right, place_y(tick), "grid"))
        label = f"{tick:.0%}" if percent else number(tick)
        body.append(_text(left - 6, place_y(tick) + 4, label, anchor="end"))
    for tick in ticks(0, end, 6):
        body.append(_text(place_x(tick), height - bottom + 18, number(tick)))
    body.append(_text((left + width - right) / 2, height - 4, x_label, css="label"))
    for index, (_, xs, ys) in enumerate(drawn):
        points = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in zip(xs, ys, strict=True))
        body.append(f'<polyline points="{points}" class="curve s{index % 8}"/>')
        if len(xs) <= 30:
            body += [
                f'<circle cx="{place_x(x):.1f}" cy="{place_y(y):.1f}" r="2.6" '
                f'class="dot s{index % 8}"/>'
                for x, y in zip(xs, ys, strict=True)
            ]
    return _figure(width, height, alt, body)


def bar(series: int, measure: Mapping[str, Any]) -> Bar:
    """Returns the bar of a `jepa.evaluation.intervals.Measure`."""
    return series, measure["value"], measure["low"], measure["high"]


def bars(rows: Sequence[Row], *, alt: str) -> str:
    """Draws horizontal bars of shares with their intervals and a tick at chance.

    Args:
      rows: what to draw, from top to bottom.
      alt: what the chart shows.
    """
    thick, gap, right, top = 13.0, 12.0, 46.0, 8.0
    # Room for the longest label, at about 6.4 units a letter.
    left = 18 + 6.4 * max((len(label) for label, _, _ in rows), default=0)
    width = 640.0
    height = top + sum(len(items) * (thick + 2) + gap for _, items, _ in rows) + 22

    def place(value: float) -> float:
        return left + value * (width - left - right)

    body = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        body.append(_line(place(tick), top, place(tick), height - 22, "grid"))
        body.append(_text(place(tick), height - 6, f"{tick:.0%}"))
    y = top + gap / 2
    for label, items, chance in rows:
        block = len(items) * (thick + 2)
        body.append(_text(left - 10, y + block / 2 + 4, label, anchor="end", css="label"))
        start = y
        for which, value, low, high in items:
            body.append(
                f'<rect x="{left:.1f}" y="{y:.1f}" width="{max(place(value) - left, 0.5):.1f}" '
                f'height="{thick:g}" rx="2.5" class="bar s{which}"/>'
            )
            middle = y + thick / 2
            body.append(_line(place(low), middle, place(high), middle, "whisker"))
            body.append(
                _text(place(max(value, high)) + 6, middle + 4, f"{value:.0%}", anchor="start")
            )
            y += thick + 2
        if chance is not None:
            body.append(_line(place(chance), start - 3, place(chance), y + 1, "chance"))
        y += gap
    return _figure(width, height, alt, body)


_SHAPES = (
    "M-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0-7.2 0Z",
    "M-3.2-3.2h6.4v6.4h-6.4Z",
    "M0-4.4L4.2 3.2H-4.2Z",
    "M0-4.6L4.6 0 0 4.6-4.6 0Z",
    "M-1.5-4.4h3v2.9h2.9v3h-2.9v2.9h-3v-2.9h-2.9v-3h2.9Z",
    "M0 4.4L4.2-3.2H-4.2Z",
    "M-4.4-1.8h8.8v3.6h-8.8Z",
    "M-1.8-4.4h3.6v8.8h-3.6Z",
)


def marker(which: int, colour: str | None = None) -> str:
    """Returns a small SVG of the marker of class `which`, for a legend."""
    return (
        f'<svg class="marker" viewBox="-6 -6 12 12" aria-hidden="true">'
        f"{_marker(which, 0, 0, colour)}</svg>"
    )


def _marker(which: int, x: float, y: float, colour: str | None) -> str:
    style = f' style="fill:{escape(colour)}"' if colour else ""
    path = _SHAPES[which % len(_SHAPES)]
    place = f"translate({x:.1f} {y:.1f})"
    return f'<path d="{path}" transform="{place}" class="mark s{which % 8}"{style}/>'


def scatter(
    points: np.ndarray, classes: Sequence[int], *, alt: str, colours: Sequence[str | None]
) -> str:
    """Draws points `[N, 2]`, each class with a shape and a colour of its own; -1 is drawn faint.

    Args:
      points: `[N, 2]`, scaled to fit.
      classes: `[N]`.
      alt: what the chart shows.
      colours: a CSS colour for each class, or None for the palette's.
    """
    width, margin = 320.0, 12.0
    low = points.min(axis=0)
    spans = np.maximum(points.max(axis=0) - low, 1e-12)
    scale = (width - 2 * margin) / float(spans.max())
    height = max(float(spans[1]) * scale + 2 * margin, width / 2)
    middle = (points.max(axis=0) + low) / 2
    placed = (points - middle) * scale + np.array([width, height]) / 2
    order = np.argsort(np.asarray(classes) >= 0, kind="stable")
    body = []
    for index in order:
        x, y = placed[index].tolist()
        which = classes[int(index)]
        if which < 0:
            body.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.6" class="faint"/>')
        else:
            body.append(_marker(which, x, y, colours[which]))
    return _figure(width, height, alt, body)
