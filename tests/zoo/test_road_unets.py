"""The whole road: other UNets, of pictures, video and sound."""

from pathlib import Path

import pytest

from . import WARNINGS
from .road import check_road, entries

pytestmark = pytest.mark.filterwarnings(*WARNINGS)
NAMES = entries("unets")


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_road(name: str, tmp_path: Path) -> None:
    check_road(name, tmp_path)
