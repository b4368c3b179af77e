"""Line charts as SVG, without a library: a page with them needs no network and no script."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 520, 320
LEFT, RIGHT, TOP, BOTTOM = 62, 24, 30, 46  # margins, in pixels
COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")


@dataclass(frozen=True, slots=True)
class Series:
    """A line through points (x, y).

    `labels` are shown when the pointer is over a point; without them no dots are drawn.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    labels: tuple[str, ...] = ()
    colour: int = 0  # a number of `COLOURS`, again from the first behind the last
    is_dashed: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis with its title. A logarithmic axis shows values above 0 alone."""

    title: str
    is_logarithmic: bool = False


def line_chart(title: str, x: Axis, y: Axis, series: Sequence[Series]) -> str:
    """Return the chart as an `<svg>` element, or a sentence where there is no point."""
    shown = [(one, _visible(one, x, y)) for one in series]
    points = [point for _, visible in shown for _, point in visible]
    if not points:
        return f'<p class="empty">{escape(title)}: no data</p>'
    across = _Scale([px for px, _ in points], x.is_logarithmic, LEFT, WIDTH - RIGHT)
    up = _Scale([py for _, py in points], y.is_logarithmic, HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        f'<text class="title" x="{LEFT}" y="16">{escape(title)}</text>',
    ]
    for value, place in across.ticks():
        parts.append(f'<line class="grid" x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text class="tick" x="{place:.1f}" y="{HEIGHT - BOTTOM + 15}">{value:g}</text>')
    for value, place in up.ticks():
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>')
        parts.append(f'<text class="tick up" x="{LEFT - 6}" y="{place + 3:.1f}">{value:g}</text>')
    parts.append(f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}">{escape(x.title)}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text class="axis" transform="translate(14 {middle}) rotate(-90)">{escape(y.title)}</text>')
    for one, visible in shown:
        colour = COLOURS[one.colour % len(COLOURS)]
        places = [(across.place(px), up.place(py)) for _, (px, py) in visible]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
        dash = ' stroke-dasharray="5 4"' if one.is_dashed else ""
        parts.append(f'<polyline points="{path}" stroke="{colour}"{dash}><title>{escape(one.name)}</title></polyline>')
        for (number, _), (px, py) in zip(visible, places, strict=True):
            if one.labels:
                parts.append(
                    f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.5" fill="{colour}">'
                    f"<title>{escape(one.labels[number])}</title></circle>"
                )
    parts.append("</svg>")
    return "\n".join([*parts, _legend(series)])


def _legend(series: Sequence[Series]) -> str:
    entries = (
        f'<li><i style="background:{COLOURS[one.colour % len(COLOURS)]}'
        f'{";opacity:.45" if one.is_dashed else ""}"></i>{escape(one.name)}</li>'
        for one in series
    )
    return f'<ul class="legend">{"".join(entries)}</ul>'


def _visible(series: Series, x: Axis, y: Axis) -> list[tuple[int, tuple[float, float]]]:
    return [
        (number, (px, py))
        for number, (px, py) in enumerate(series.points)
        if (px > 0 or not x.is_logarithmic) and (py > 0 or not y.is_logarithmic)
    ]


class _Scale:
    """Where a value stands between two pixels. A linear scale begins at 0."""

    def __init__(self, values: Sequence[float], is_logarithmic: bool, first: float, last: float) -> None:
        self._is_logarithmic = is_logarithmic
        self._first, self._last = first, last
        low, high = (min(values), max(values)) if is_logarithmic else (min(0.0, *values), max(values))
        if high <= low:
            high = low + 1 if not is_logarithmic else low * 10
        if is_logarithmic:
            low, high = 10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high))
            high = high if high > low else low * 10
        self._low, self._high = low, high

    def place(self, value: float) -> float:
        """Return the pixel of a value."""
        if self._is_logarithmic:
            share = math.log10(value / self._low) / math.log10(self._high / self._low)
        else:
            share = (value - self._low) / (self._high - self._low)
        return self._first + share * (self._last - self._first)

    def ticks(self) -> list[tuple[float, float]]:
        """Return round values with their pixels."""
        if self._is_logarithmic:
            count = round(math.log10(self._high / self._low))
            values = [self._low * 10**power for power in range(count + 1)]
        else:
            step = _round_step((self._high - self._low) / 5)
            first, last = math.ceil(self._low / step), math.floor(self._high / step)
            values = [round(number * step, 10) for number in range(first, last + 1)]
        return [(value, self.place(value)) for value in values]


def _round_step(step: float) -> float:
    """Return the next 1, 2 or 5 times a power of ten that is not below `step`."""
    power: float = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))
