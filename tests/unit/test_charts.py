"""Charts: what is drawn, what is left out, and that both are said."""

import math
from xml.etree import ElementTree

import pytest

from trainer.charts import line_chart, number, thinned, ticks


def test_few_points_are_all_drawn_and_counted():
    chart = line_chart("Loss", [(1, 4.0), (2, 2.0), (3, 3.0)], unit="nats", best=(2, 2.0))
    assert chart is not None
    svg = ElementTree.fromstring(chart.svg)
    assert svg.attrib["role"] == "img"
    assert svg.attrib["aria-label"].startswith("Loss. 3 points, steps 1 to 3: 4 at first, 3 at last (nats)")
    classes = [element.attrib.get("class") for element in svg]
    assert (classes.count("dot"), classes.count("best")) == (3, 1)
    assert chart.caption.endswith("Best: 2 at step 2.")
    assert any(element.text == "best 2 at step 2" for element in svg)


def test_nothing_finite_is_no_chart():
    assert line_chart("Loss", [], unit="nats") is None
    assert line_chart("Loss", [(1, math.nan), (2, math.inf)], unit="nats") is None


def test_points_that_are_not_finite_are_counted():
    chart = line_chart("Loss", [(1, 1.0), (2, math.nan), (3, 2.0)], unit="nats")
    assert chart is not None and "1 points are not finite numbers and are not drawn." in chart.caption
    assert "nan" not in chart.svg


@pytest.mark.parametrize("points", [[(5, 3.0)], [(0, 0.0), (9, 0.0)], [(1, -2.0), (2, -2.0)], [(1, 1e-12), (2, 1e12)]])
def test_flat_lone_negative_and_wide_series_stay_on_the_drawing(points):
    chart = line_chart("x", points, unit="u", best=points[0])
    assert chart is not None
    svg = ElementTree.fromstring(chart.svg)
    for name in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy"):
        assert all(0 <= float(element.attrib[name]) <= 360 for element in svg if name in element.attrib)


def test_a_long_series_keeps_every_bucket_s_extremes():
    points = [(float(step), math.sin(step / 500)) for step in range(100_000)]
    points[54_321] = (54_321.0, 40.0)  # a spike of one step
    points[98_765] = (98_765.0, -7.0)
    kept = thinned(points, 300)
    assert len(kept) <= 600 and kept == sorted(kept)
    assert set(kept) <= set(points)
    assert points[54_321] in kept and points[98_765] in kept
    chart = line_chart("x", points, unit="u")
    assert chart is not None and len(chart.svg) < 20_000
    assert "100,000 points" in chart.caption
    assert "Drawn: the lowest and the highest point of each of 300 buckets of steps." in chart.caption


def test_ticks_are_round():
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(0.0, 0.011) == pytest.approx([0, 0.005, 0.01])
    assert ticks(-3, 3) == [-2, 0, 2]


def test_numbers_are_short():
    assert [number(value) for value in (0, 0.00001234, 0.1234567, 12.5, 12_345.6, 2.5e9)] == [
        "0", "1.2e-5", "0.1235", "12.5", "12.35k", "2.5e+09",
    ]  # fmt: skip
