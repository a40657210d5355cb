"""The whole road: transformers of video and sound."""

from pathlib import Path

import pytest

from . import WARNINGS
from .few_steps import check_few_steps
from .road import check_road, entries
from .selection import FEW_STEPS

pytestmark = pytest.mark.filterwarnings(*WARNINGS)
NAMES = entries("videos")


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_road(name: str, tmp_path: Path) -> None:
    check_road(name, tmp_path)


@pytest.mark.parametrize("name", [name for name in NAMES if name in FEW_STEPS])
def test_few_steps_go_the_whole_road(name: str, tmp_path: Path) -> None:
    check_few_steps(name, tmp_path)
