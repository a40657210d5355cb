"""What cannot be folded is refused, with its reason."""

from pathlib import Path

import pytest

from . import UNFOLDABLE, WARNINGS
from .road import refusal

pytestmark = pytest.mark.filterwarnings(*WARNINGS)


@pytest.mark.parametrize("name", UNFOLDABLE)
def test_what_cannot_be_folded_is_refused_with_its_reason(name: str, tmp_path: Path) -> None:
    kind, reason = refusal(UNFOLDABLE[name], tmp_path)
    assert reason.startswith(kind)
