"""The picture of who held what."""

from __future__ import annotations

import importlib.util
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tidepool.errors import TidepoolError
from tidepool.pool.tide import Tide, draw, ticks, to_svg

SVG = "{http://www.w3.org/2000/svg}"
TIDE = Tide(
    "Two holders & a wave",
    times=[0.0, 10.0, 20.0],
    total=4,
    holders=[("serving", [0, 2, 1]), ("training <live>", [4, 2, 3])],
    rate=[1.0, 20.0, 5.0],
)


def test_each_holder_is_an_area_from_the_one_below_it() -> None:
    root = ET.fromstring(to_svg(TIDE))
    serving, training = root.findall(f"{SVG}polygon")
    heights = [float(point.split(",")[1]) for point in (training.get("points") or "").split()]
    assert max(heights) - min(heights) > 100
    assert len({round(y, 1) for y in heights[:5]}) == 1  # together they hold all four, all the time
    assert serving.findtext(f"{SVG}title") == "serving"
    assert training.findtext(f"{SVG}title") == "training <live>"


def test_the_rate_has_a_panel_of_its_own_if_there_is_one() -> None:
    assert len(ET.fromstring(to_svg(TIDE)).findall(f"{SVG}polyline")) == 1
    bare = Tide(TIDE.title, TIDE.times, TIDE.total, TIDE.holders)
    assert not ET.fromstring(to_svg(bare)).findall(f"{SVG}polyline")


def test_pages_and_pictures_are_written_where_they_are_wanted(tmp_path: Path) -> None:
    draw(TIDE, tmp_path / "new" / "tide.svg")
    draw(TIDE, tmp_path / "tide.html")
    assert ET.parse(tmp_path / "new" / "tide.svg")
    assert "Two holders &amp; a wave" in (tmp_path / "tide.html").read_text()


def test_a_png_is_drawn_or_the_remedy_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tide.png"
    if importlib.util.find_spec("matplotlib"):
        draw(TIDE, path)
        assert path.read_bytes().startswith(b"\x89PNG")
    else:
        with pytest.raises(TidepoolError, match="pip install"):
            draw(TIDE, path)


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TidepoolError, match="no such picture format"):
        draw(TIDE, tmp_path / "tide.pdf")
    with pytest.raises(TidepoolError, match="nothing to draw"):
        draw(Tide("empty", [], 4, []), tmp_path / "tide.svg")


@pytest.mark.parametrize(("low", "high", "about"), [(0, 7, 4), (0, 0.3, 4), (12, 5000, 8), (0, 10_000, 4)])
def test_axis_values_are_round_and_inside(low: float, high: float, about: int) -> None:
    values = ticks(low, high, about)
    assert about / 2 <= len(values) <= 2.5 * about
    assert low <= values[0] <= values[-1] <= high
