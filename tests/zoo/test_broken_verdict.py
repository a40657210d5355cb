"""What the probe finds foldable and a later stage refuses is a failure, not a refusal."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from guidefold.ground.errors import UnfoldableError
from guidefold.run.settings import Settings

from . import CHOSEN, UNFOLDABLE, WARNINGS, WIDE, road
from .entry import Entry

pytestmark = pytest.mark.filterwarnings(*WARNINGS)


@contextmanager
def refused_later(settings: Settings) -> Iterator[SimpleNamespace]:
    """An open run whose probe is done when a later stage refuses."""
    run = Path(settings.run)
    run.mkdir(parents=True)
    (run / "probe.json").write_text("{}", encoding="utf-8")

    def distill() -> None:
        raise UnfoldableError("it cannot be recorded")

    yield SimpleNamespace(distill=distill)


@pytest.fixture
def entry() -> Entry:
    return WIDE[CHOSEN[0]]


def test_a_refusal_after_the_probe_is_a_broken_verdict(
    entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(road, "open_run", refused_later)
    with pytest.raises(road.BrokenVerdictError, match="it cannot be recorded"):
        road.travel(entry, tmp_path)


def test_a_refusal_of_the_probe_is_none(tmp_path: Path) -> None:
    with pytest.raises(UnfoldableError, match="no second pass"):
        road.travel(UNFOLDABLE["flux_guidance_embedded"], tmp_path)
