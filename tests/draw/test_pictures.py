"""Pictures laid out in a labelled grid, under headings."""

import pytest
from PIL import Image

from guidefold.draw.pictures import Drawn, grid, heading


@pytest.mark.parametrize(("side", "shown"), [(16, 128), (100, 200), (128, 128), (300, 300)])
def test_the_grid_has_room_for_every_picture_its_heading_and_its_caption(
    side: int, shown: int
) -> None:
    colours = [["red", "green", "blue"], ["white", "black", "gray"]]
    rows = [[Image.new("RGB", (side, side), c) for c in row] for row in colours]
    sheet = grid(rows, ["one", "two", "three"], ["a caption", "a much longer caption " * 5])
    assert sheet.size == (200 + 3 * (shown + 6), 44 + 2 * (shown + 6))
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            left, top = 200 + c * (shown + 6), 44 + r * (shown + 6)
            box = sheet.crop((left, top, left + shown, top + shown))
            assert box.getcolors() == [(shown * shown, picture.getpixel((0, 0)))]


def test_headings_say_who_drew_in_how_many_passes() -> None:
    assert heading("teacher", Drawn(passes_per_image=50)) == "CFG teacher\n50 passes"
    assert heading("student", Drawn(passes_per_image=25)) == "student\n25 passes"
