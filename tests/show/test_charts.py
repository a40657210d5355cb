"""Charts: well-formed drawings that say in words what they show."""

import base64
import re
from xml.etree import ElementTree

import pytest

from guidefold.show.charts import COLOURS, INKS, Chart, bars, curves

SVG = "{http://www.w3.org/2000/svg}"
LINES = {"loss": [(10, 1.0), (20, 0.5), (30, 0.25)], "held out": [(10, 0.75), (30, 0.5)]}
GROUPS = {"two objects": {"teacher": 1.0, "student": 0.75}, "$_{$": {"teacher": 0.5, "student": 0}}


def line_chart(**options: bool) -> Chart:
    return curves("Training", LINES, "step", "loss", **options)


def bar_chart() -> Chart:
    return bars("Alignment", GROUPS, "aligned")


def source(uri: str) -> str:
    kind, data = uri.split(",")
    assert kind == "data:image/svg+xml;base64"
    return base64.b64decode(data, validate=True).decode()


def texts(uri: str) -> list[str]:
    return [
        "".join(node.itertext()) for node in ElementTree.fromstring(source(uri)).iter(f"{SVG}text")
    ]


def paths(uri: str, colour: str) -> list[ElementTree.Element]:
    """What is drawn in a colour, each mark apart."""
    root = ElementTree.fromstring(source(uri))
    return [node for node in root.iter() if colour in node.get("style", "")]


@pytest.mark.parametrize("chart", [line_chart(), bar_chart()], ids=["lines", "bars"])
@pytest.mark.parametrize("theme", INKS)
def test_a_chart_is_a_drawing_that_refers_to_nothing_outside_it(chart: Chart, theme: str) -> None:
    root = ElementTree.fromstring(source(getattr(chart, theme)))
    assert root.tag == f"{SVG}svg"
    for node in root.iter():
        assert not node.tag.endswith(("script", "image", "foreignObject"))
        for name, value in node.attrib.items():
            assert not name.endswith("href") or value.startswith("#")
            assert "url(" not in value or "url(#" in value


def test_text_stays_text_and_a_dollar_a_dollar() -> None:
    assert {"loss", "held out", "step"} <= set(texts(line_chart().light))
    found = texts(bar_chart().light)
    assert {"teacher", "student", "aligned", "two", "objects", "$_{$"} <= set(
        " ".join(found).split()
    )


def test_long_names_leave_the_bars_their_room() -> None:
    """Matplotlib warns where labels take all of it, and a warning is an error here."""
    names = ["a" * 300, "many words " * 30, ""]
    chart = bars("Alignment", {name: {"teacher": 1.0} for name in names}, "aligned")
    assert min(bar_heights(chart.light, COLOURS["light"][0])) > 100
    assert [row[0] for row in chart.rows] == names


def test_a_lines_highest_point_lies_below_the_top_of_the_chart() -> None:
    """Of a flat line too, whose own margin would be nothing."""
    chart = curves("Flat", {"loss": [(1, 0.75), (2, 0.76)]}, "step", "loss")
    (line,) = paths(chart.light, COLOURS["light"][0])[:1]
    heights = [float(y) for _, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", line.get("d", ""))]
    axis = [
        float(y)
        for d in re.findall(r'd="(M [^"]*)"', source(chart.light))
        for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", d)
    ]
    assert min(heights) > min(axis) + 8


def test_a_line_charts_words_tell_where_each_line_begins_and_ends() -> None:
    alt = line_chart().alt
    assert alt == "Training. loss: 1 at 10, 0.25 at 30; held out: 0.75 at 10, 0.5 at 30."


def test_a_bar_charts_words_tell_every_height() -> None:
    assert bar_chart().alt == (
        "Alignment. two objects: teacher 1.00, student 0.75; $_{$: teacher 0.50, student 0.00."
    )


def test_a_charts_table_holds_every_number() -> None:
    chart = line_chart()
    assert chart.columns == ["line", "step", "loss"]
    assert chart.rows == [
        [name, f"{x}", f"{y:g}"] for name, points in LINES.items() for x, y in points
    ]
    chart = bar_chart()
    assert chart.columns == ["", "teacher", "student"]
    assert chart.rows == [["two objects", "1.000", "0.750"], ["$_{$", "0.500", "0.000"]]


@pytest.mark.parametrize("make", [line_chart, bar_chart])
def test_the_same_numbers_are_the_same_bytes(make) -> None:
    assert make() == make()


@pytest.mark.parametrize("chart", [line_chart(), bar_chart()], ids=["lines", "bars"])
def test_light_and_dark_differ_in_ink_only(chart: Chart) -> None:
    """Names of markers go with their colours, so they are left out as well."""
    drawn = {theme: source(getattr(chart, theme)) for theme in INKS}
    assert drawn["light"] != drawn["dark"]
    for theme, text in drawn.items():
        assert INKS[theme] in text
        assert all(colour in text for colour in COLOURS[theme][:2])
        other = "dark" if theme == "light" else "light"
        assert not any(colour in text for colour in (INKS[other], *COLOURS[other]))
    bare = [re.sub(r'#[0-9a-f]{6}|(?<=id=")m\w+|(?<=#)m\w+', "", text) for text in drawn.values()]
    assert bare[0] == bare[1]


def bar_heights(uri: str, colour: str) -> list[float]:
    """Of each bar in a colour, the legend's left out, in the drawing's units."""
    found = []
    for node in paths(uri, f"fill: {colour}"):
        ys = [float(y) for y in re.findall(r"[ML] \S+ (\S+)", node.get("d", ""))]
        if "clip-path" in node.attrib:
            found.append(max(ys) - min(ys))
    return found


def test_bars_are_as_high_as_their_numbers() -> None:
    teacher = bar_heights(bar_chart().light, COLOURS["light"][0])
    student = bar_heights(bar_chart().light, COLOURS["light"][1])
    assert teacher[1] / teacher[0] == pytest.approx(0.5, abs=1e-3)
    assert student[0] / teacher[0] == pytest.approx(0.75, abs=1e-3)
    assert student[1] == 0


@pytest.mark.parametrize("falling", [False, True])
def test_a_line_runs_the_way_its_axis_does(falling: bool) -> None:
    chart = line_chart(falling=falling)
    line = next(p for p in paths(chart.light, COLOURS["light"][0]) if "clip-path" in p.attrib)
    points = [tuple(map(float, p)) for p in re.findall(r"[ML] (\S+) (\S+)", line.get("d", ""))]
    x, y = zip(*points, strict=True)
    assert list(x) == sorted(x, reverse=falling)
    assert (y[1] - y[0]) / (y[2] - y[1]) == pytest.approx(2, abs=1e-3)  # 1, 0.5, 0.25


def test_the_axis_of_a_line_chart_begins_at_zero() -> None:
    high = curves("Training", {"loss": [(1, 10.0), (2, 11.0)]}, "step", "loss")
    assert "0" in texts(high.light)
