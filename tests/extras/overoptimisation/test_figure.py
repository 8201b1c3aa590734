"""The figure: an SVG file that any reader of XML takes."""

from xml.etree import ElementTree

import numpy as np
import pytest

from minirlhf.extras.overoptimisation.figure import HEIGHT, WIDTH, Line, Panel, figure, ticks

X = np.array([0.0, 1.0, 2.0])
SVG = "{http://www.w3.org/2000/svg}"


def line(label="n", **changes):
    parts = {"points": (X, np.array([0.0, 1.0, 0.5])), "curve": (X, np.array([0.0, 0.9, 0.6]))}
    parts |= {"band": np.array([[0.0, 0.8, 0.4], [0.0, 1.1, 0.8]]), "proxy": (X, np.array([0.0, 1.2, 2.0]))}
    return Line(label, **parts | changes)


def drawn(*panels):
    return ElementTree.fromstring(figure(panels))


def parts(one):
    """The numbers of circles, curves, bands and dashed lines, without the axes and the legend."""
    root = drawn(Panel("a", [one]))
    paths = [path for path in root.iter(f"{SVG}path") if path.get("stroke") not in ("#ddd", "#444")]
    dashed, curves = (sum(path.get(key) is not None for path in paths) for key in ("stroke-dasharray", "stroke-width"))
    return len(list(root.iter(f"{SVG}circle"))), curves, sum(path.get("stroke") is None for path in paths), dashed


def test_a_line_has_its_points_curve_band_and_proxy():
    assert parts(line()) == (len(X) + 1, 1, 1, 1)  # and the legend's circle
    assert parts(line(curve=None, band=None, proxy=None)) == (len(X) + 1, 0, 0, 0)


def test_a_point_stands_at_its_coordinates():
    """The highest proxy and the lowest gold bound the axis: the gain of 1 stands halfway between 0 and 2."""
    circles = drawn(Panel("a", [line()])).findall(f".//{SVG}circle")[-len(X) - 1 :]
    (x0, y0), (x1, y1), (x2, y2) = [(float(c.get("cx")), float(c.get("cy"))) for c in circles if c.get("r") == "2.5"]
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11) and x0 < x1
    assert y0 > y2 > y1 and (y0 + y1) / 2 == pytest.approx(y2, abs=0.11)  # 0, 0.5 and 1; y grows downwards


def test_a_curve_that_leaves_the_axis_stays_in_the_panel():
    text = figure([Panel("a", [line(curve=(X, np.array([0.0, -1e9, 1e9])))])])
    assert "e+" not in text and "nan" not in text


def test_labels_are_text_and_not_markup():
    root = drawn(Panel("a < b & c", [line("<script>")]))
    assert {"a < b & c", "<script>"} <= {text.text for text in root.iter(f"{SVG}text")}
    assert not list(root.iter(f"{SVG}script"))


def test_panels_stand_in_two_columns():
    root = drawn(*[Panel(str(k), [line()]) for k in range(3)])
    assert (root.get("width"), root.get("height")) == (str(2 * WIDTH), str(2 * HEIGHT))
    places = [group.get("transform") for group in root.iter(f"{SVG}g")]
    assert places == ["translate(0,0)", f"translate({WIDTH},0)", f"translate(0,{HEIGHT})"]


def test_an_empty_panel_and_a_constant_line_are_drawn():
    flat = line(points=(X, np.zeros(3)), proxy=None, band=None, curve=None)
    assert drawn(Panel("a", [flat]), Panel("b", [])) is not None


@pytest.mark.parametrize(
    ("ends", "expected"), [((0, 3), [0, 0.5, 1, 1.5, 2, 2.5, 3]), ((-1.2, 4.1), [-1, 0, 1, 2, 3, 4])]
)
def test_ticks_are_round_numbers_in_the_range(ends, expected):
    assert ticks(*ends) == pytest.approx(expected)
