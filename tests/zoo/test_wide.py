"""The whole road, pipeline by pipeline: probe, record, train, write, load it as a client would."""

from pathlib import Path

import pytest

from . import UNFOLDABLE, WARNINGS, WIDE
from .road import refusal, travel

pytestmark = pytest.mark.filterwarnings(*WARNINGS)


@pytest.mark.parametrize("name", WIDE)
def test_the_whole_road(name: str, tmp_path: Path) -> None:
    entry, found = WIDE[name], travel(WIDE[name], tmp_path)
    findings = found.findings
    assert findings.denoisers == entry.denoisers
    assert findings.guidance_argument == entry.guidance_argument
    assert (findings.passes_on, findings.passes_off) == (entry.passes, 1)
    assert str(findings.output_map) == entry.output_map
    assert found.sources == {"teacher", "noise", "student"}
    assert found.off_student < 0.02 * found.moved


@pytest.mark.parametrize("name", UNFOLDABLE)
def test_what_cannot_be_folded_is_refused_with_its_reason(name: str, tmp_path: Path) -> None:
    kind, reason = refusal(UNFOLDABLE[name], tmp_path)
    assert reason.startswith(kind)
