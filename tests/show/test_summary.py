"""What helps a run that folds too little."""

from typing import Any

import pytest

from guidefold.run.settings import Settings
from guidefold.show.summary import undertrained

HERE: dict[str, Any] = {"run": "here", "pipeline": {"source": "bundled"}}
FEW = {"steps": 5, "rank": 8}


@pytest.mark.parametrize(
    ("student", "what", "helps"),
    [
        ({}, "the guidance is", ["adapter.rank (now 32)"]),
        (FEW, "the guidance and of the longer steps is", ["adapter.rank", "student.rank (now 8)"]),
        (FEW | {"guidance_run": "runs/first"}, "longer steps is", ["student.rank (now 8)"]),
    ],
)
def test_only_settings_that_a_run_can_change_are_named(
    student: dict[str, Any], what: str, helps: list[str]
) -> None:
    """The guidance LoRA of another run stays as it is, and so does its rank."""
    said = undertrained(0.2, Settings.model_validate({**HERE, "student": student}))
    assert what in said and "distill.steps=4000" in said
    assert [name in said for name in ("adapter.rank", "student.rank")] == [
        any(word.startswith(name) for word in helps) for name in ("adapter.rank", "student.rank")
    ]
    assert all(word in said for word in helps)
