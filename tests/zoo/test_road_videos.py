"""The whole road: transformers of video and sound."""

from pathlib import Path

import pytest

from . import WARNINGS
from .road import check_road, entries

pytestmark = pytest.mark.filterwarnings(*WARNINGS)
NAMES = entries("videos")


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_road(name: str, tmp_path: Path) -> None:
    check_road(name, tmp_path)
