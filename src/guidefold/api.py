"""The Python API: a function for every verb of the command line.

from guidefold import api

settings = api.load_settings("sd15", ["pipeline.source=FOLDER", "run=runs/mine"])
with api.open_run(settings) as run:  # the pipeline is opened once for all of them
    run.distill()
    run.export()
    results = run.evaluate()
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from guidefold.deliver import (
    StockStudent,
    convert,
    deliver,
    export,
    open_student,
    verify,
    write_adapter,
)
from guidefold.ground import GuidefoldError, stop_on_signals
from guidefold.judge import Judge, evaluate, evaluate_adapter
from guidefold.listen import drive, follow, probe
from guidefold.pipeline import load_prompts, open_pipeline
from guidefold.record import gather, record, record_rounds
from guidefold.run import Settings, load_settings
from guidefold.session import Session
from guidefold.show import pack, push, report, sample
from guidefold.train import Launch, distill, distill_launch, open_to_train

__all__ = [
    "GuidefoldError",
    "Run",
    "Settings",
    "StockStudent",
    "convert",
    "deliver",
    "distill",
    "drive",
    "evaluate",
    "export",
    "follow",
    "gather",
    "load_prompts",
    "load_settings",
    "open_pipeline",
    "open_run",
    "open_student",
    "pack",
    "probe",
    "push",
    "record",
    "report",
    "sample",
    "verify",
]


@dataclass(frozen=True)
class Run:
    """A run that is open for as many verbs as wanted; made by :func:`open_run`.

    Attributes:
        session: The run's folder and its pipeline, opened and probed once.
        accelerator: The devices and processes that train.
    """

    session: Session
    accelerator: Accelerator

    @property
    def main(self) -> bool:
        """Whether this process writes; the other processes of a launch only train."""
        return bool(self.accelerator.is_main_process)

    def record(self) -> Path:
        """:func:`record`."""
        return record_rounds(self.session)

    def distill(self) -> Path:
        """:func:`distill`."""
        with stop_on_signals() as stop:
            return distill_launch(Launch(self.session, self.accelerator, stop))

    def export(self) -> Path:
        """:func:`export`."""
        return write_adapter(self.session)

    def evaluate(self, judge: Judge | None = None) -> dict[str, Any]:
        """:func:`evaluate`, which says when ``alignment`` is None."""
        return evaluate_adapter(self.session, judge).to_json()


@contextmanager
def open_run(settings: Settings) -> Iterator[Run]:
    """Open a run once for several verbs; each leaves the pipeline as the next one needs it.

    Args:
        settings: The run's; it goes on with them.

    Raises:
        InputError: Wrong prompts, settings, pipeline or base; a folder in use.
    """
    with open_to_train(settings) as (session, accelerator):
        yield Run(session, accelerator)
