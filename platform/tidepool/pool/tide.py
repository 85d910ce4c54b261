"""The tide, drawn: who held which accelerators over time, and the rate of requests that moved them.

The picture is an SVG written here, alone or in an HTML page; a PNG needs matplotlib (`pip install tidepool[report]`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from tidepool import storage
from tidepool.errors import TidepoolError

COLORS = ("#2a78d6", "#eb6834", "#1baf7a", "#eda100", "#4a3aa7", "#e87ba4", "#008300", "#e34948")
"""Of the holders in their order, then again from the first; the rate of requests is grey."""
GREY = "#898781"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, GAP, LINE = 960, 450, 64, 16, 66, 34, 100
"""Of the picture, in pixels: margins, and the height of the lower panel, which shows the rate."""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 14px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
       color: #0b0b0b; background: #fcfcfb; }}
svg {{ width: 100%; height: auto; }}
@media (prefers-color-scheme: dark) {{ body {{ color: #fff; background: #1a1a19; }} }}
</style></head><body>
{svg}
</body></html>
"""


Scale = Callable[[float], float]
"""From a value to pixels."""


@dataclass(frozen=True)
class Tide:
    """What is drawn: rows in time, each good until the next one. Times in seconds from the beginning."""

    title: str
    times: Sequence[float]
    total: float
    """Accelerators of the pool."""
    holders: Sequence[tuple[str, Sequence[float]]]
    """Names and what each held, from the bottom up; one value a time."""
    rate: Sequence[float] = ()
    """Requests a second; none if there is nothing to show."""
    accelerator: str = "GPU"


def draw(tide: Tide, path: Path) -> None:
    """Write the picture as `.svg`, `.html` or `.png`.

    Raises:
        TidepoolError: another suffix; no rows; or a PNG without matplotlib.
        StorageError: the file can't be written.
    """
    if len(tide.times) < 2:
        raise TidepoolError("nothing to draw", seen=f"{len(tide.times)} rows", allowed="two or more")
    with storage.explained("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        match path.suffix:
            case ".svg":
                path.write_text(to_svg(tide))
            case ".html":
                path.write_text(PAGE.format(title=escape(tide.title), svg=to_svg(tide)))
            case ".png":
                _to_png(tide, path)
            case other:
                raise TidepoolError("no such picture format", seen=other or path, allowed=".svg, .html, .png")


def to_svg(tide: Tide) -> str:
    """The picture as an SVG element; it takes its text colour from the page around it."""
    bottom = HEIGHT - 28 - (LINE + GAP if len(tide.rate) else 0)
    across = _scale(tide.times[0], tide.times[-1], LEFT, WIDTH - RIGHT)
    up = _scale(0, tide.total, bottom, TOP)
    parts = [*_axis(0, tide.total, bottom, TOP, tide.accelerator), *_hours(tide.times, across)]
    floor = [0.0] * len(tide.times)
    for (name, held), color in zip(tide.holders, _colors(tide), strict=True):
        top = [low + value for low, value in zip(floor, held, strict=True)]
        edge = " ".join(_steps(tide.times, top, across, up))
        back = " ".join(_steps(tide.times, floor, across, up)[::-1])
        label = f"<title>{escape(name)}</title>"
        parts.append(f'<polygon points="{edge} {back}" fill="{color}" fill-opacity="0.85">{label}</polygon>')
        floor = top
    if len(tide.rate):
        most = max(tide.rate) or 1.0
        rise = _scale(0, most, HEIGHT - 28, HEIGHT - 28 - LINE)
        parts += _axis(0, most, HEIGHT - 28, HEIGHT - 28 - LINE, "requests/s")
        line = " ".join(_steps(tide.times, tide.rate, across, rise))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{GREY}" stroke-width="1.5"/>')
    head = f'<text x="{LEFT}" y="18" font-size="15" font-weight="600">{escape(tide.title)}</text>'
    body = "\n".join([head, *_legend(tide), *parts])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(tide.title)}" font-family="system-ui, sans-serif" font-size="12" fill="currentColor">\n'
        f"{body}\n</svg>"
    )


def _steps(times: Sequence[float], values: Sequence[float], across: Scale, up: Scale) -> list[str]:
    """Points of a line that keeps each value until the next time."""
    points = []
    for index, time in enumerate(times):
        if index:
            points.append(f"{across(time):.1f},{up(values[index - 1]):.1f}")
        points.append(f"{across(time):.1f},{up(values[index]):.1f}")
    return points


def _scale(low: float, high: float, start: float, end: float) -> Scale:
    slope = (end - start) / ((high - low) or 1.0)
    return lambda value: start + (value - low) * slope


def _axis(low: float, high: float, bottom: float, top: float, unit: str) -> Iterator[str]:
    """Lines and labels at round values of a panel."""
    up = _scale(low, high, bottom, top)
    for value in ticks(low, high, 4):
        y = up(value)
        yield f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="{GREY}" stroke-opacity="0.25"/>'
        yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:,.4g}</text>'
    yield f'<text x="{LEFT}" y="{top - 6:.1f}" fill="{GREY}">{escape(unit)}</text>'


def _hours(times: Sequence[float], across: Scale) -> Iterator[str]:
    size, unit = _unit(times)
    for value in ticks(times[0] / size, times[-1] / size, 8):
        yield f'<text x="{across(value * size):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{value:g} {unit}</text>'


def _unit(times: Sequence[float]) -> tuple[int, str]:
    """The largest unit of time of which there are more than two: its seconds and its name."""
    units = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
    return next((size, unit) for size, unit in units if times[-1] - times[0] > 2 * size or size == 1)


def _legend(tide: Tide) -> Iterator[str]:
    x = float(LEFT)
    for (name, _), color in zip(tide.holders, _colors(tide), strict=True):
        yield f'<rect x="{x:.0f}" y="28" width="12" height="12" rx="2" fill="{color}"/>'
        yield f'<text x="{x + 18:.0f}" y="38">{escape(name)}</text>'
        x += 34 + 7 * len(name)


def ticks(low: float, high: float, about: int) -> list[float]:
    """About so many round values from `low` to `high`.

    >>> ticks(0, 7, 4)
    [0.0, 2.0, 4.0, 6.0]
    """
    rough = (high - low) / about or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * times for times in (1, 2, 5, 10) if power * times >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 10) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _colors(tide: Tide) -> list[str]:
    return [COLORS[index % len(COLORS)] for index in range(len(tide.holders))]


def _to_png(tide: Tide, path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise TidepoolError(
            "a PNG needs matplotlib", seen=path, remedy="pip install 'tidepool[report]', or write .html or .svg"
        ) from None
    figure = Figure(figsize=(WIDTH / 96, HEIGHT / 96), layout="constrained")
    rows = 2 if len(tide.rate) else 1
    panels = figure.subplots(rows, 1, sharex=True, squeeze=False, height_ratios=[3, 1][:rows])[:, 0]
    size, unit = _unit(tide.times)
    times = [time / size for time in tide.times]
    names, held = zip(*tide.holders, strict=True)
    panels[0].stackplot(times, *held, labels=names, colors=_colors(tide), alpha=0.85, step="post")
    panels[0].set(title=tide.title, ylabel=tide.accelerator, ylim=(0, tide.total), xlim=(times[0], times[-1]))
    panels[0].legend(loc="upper left", ncols=4, frameon=False)
    if len(tide.rate):
        panels[1].step(times, tide.rate, where="post", color=GREY)
        panels[1].set(ylabel="requests/s", ylim=(0, None))
    panels[-1].set(xlabel=unit)
    figure.savefig(path, dpi=144)
