"""The whole road with a student of fewer steps: the families that most people use."""

from pathlib import Path

import pytest

from . import WARNINGS, ZOO
from .few_steps import check_few_steps
from .selection import FEW_STEPS

pytestmark = pytest.mark.filterwarnings(*WARNINGS)


@pytest.mark.parametrize("name", [name for name in ZOO if name in FEW_STEPS])
def test_few_steps_go_the_whole_road(name: str, tmp_path: Path) -> None:
    check_few_steps(name, tmp_path)
