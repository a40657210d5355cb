"""Trials of one preset: runs that are recorded, trained and measured, each result a JSON file.

Finished trials are kept, so stopped ones resume. Trials with the same settings are one run;
recordings, and the pictures of teacher and unguided teacher, are shared where they would be equal.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from guidefold.bench.fidelity.copy import CopiedWeights, copy_weights, write_copy
from guidefold.deliver import export
from guidefold.demo import judge_of
from guidefold.ground import ConfigError
from guidefold.judge import Judge, evaluate, evaluate_weights
from guidefold.listen import Findings, probe, rows_of
from guidefold.lora import Adapter, attach
from guidefold.pipeline import open_pipeline
from guidefold.record import record
from guidefold.run import (
    Kind,
    PictureIndex,
    Record,
    Results,
    RunFolder,
    Settings,
    finished_folder,
    load_settings,
    read_json,
    read_lines,
    read_log,
    write_json,
    write_lines,
    write_record,
)
from guidefold.session import open_session
from guidefold.train import Student, Training, open_launch

Attach = Callable[[nn.Module, str, int, int, Callable[[], object]], Adapter]
"""Puts on what is trained: ``attach`` from the lora wing, or a function with its arguments."""

BASELINES: tuple[Kind, ...] = ("teacher", "unguided")

DAMAGED = "Remove it; the same command makes it anew."


@dataclass(frozen=True)
class Trial:
    """A run to make and measure.

    Attributes:
        overrides: Settings on top of the common ones.
        seed: The run's seed.
        attach: Puts on what is trained: a LoRA, or a full copy of the weights.
        measured: Whether it is evaluated; otherwise validations alone are kept.
        elsewhere: Further guidance scales to evaluate at.
    """

    overrides: tuple[str, ...]
    seed: int
    attach: Attach = attach
    measured: bool = True
    elsewhere: tuple[float, ...] = ()


class TrialResult(Record):
    """The result of a trial.

    Attributes:
        passes: Samples through the denoiser for recording, training and validation together.
        training_seconds: Seconds of training and validation.
        curve: Pairs of passes so far and residual guidance on held-out states.
        noisiest: Residual guidance of the last validation at the noisiest level.
        results: The evaluation's; None where the trial is not measured.
        elsewhere: Results at further guidance scales, by scale.
    """

    passes: int
    training_seconds: float
    curve: list[tuple[int, float]]
    noisiest: float
    results: Results | None = None
    elsewhere: dict[str, Results]

    @property
    def measured(self) -> Results:
        """The results of a trial that is measured."""
        assert self.results is not None, "an unmeasured trial"
        return self.results


class PassCounter:
    """Counts samples through a denoiser.

    A stubbed denoiser runs none of its layers, and is not counted.

    Args:
        denoiser: The name of the denoiser's class.
    """

    def __init__(self, denoiser: str) -> None:
        self.denoiser, self.count, self._layer_ran = denoiser, 0, False

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count within the context, over all modules of the process."""
        hooks = [
            register_module_forward_pre_hook(self._before),
            register_module_forward_hook(self._after),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _before(self, module: nn.Module, _inputs: Any) -> None:
        self._layer_ran = type(module).__name__ != self.denoiser

    def _after(self, module: nn.Module, _inputs: Any, output: Any) -> None:
        if type(module).__name__ == self.denoiser and self._layer_ran:
            self.count += rows_of(output)


@dataclass(frozen=True)
class Trials:
    """Trials of one preset, and the folder that holds them.

    Args:
        out: The folder.
        preset: A preset's name or a TOML file.
        common: Overrides of all trials.
    """

    out: Path
    preset: str
    common: tuple[str, ...] = ()

    @cached_property
    def judge(self) -> Judge | None:
        """The judge of the preset's pipeline; None where there is none."""
        return judge_of(self.settings(Trial((), 0)).pipeline.source)

    def settings(self, trial: Trial, run: Path | str = "unnamed") -> Settings:
        """The settings of a trial."""
        overrides = [*self.common, *trial.overrides, f"seed={trial.seed}", f"run={run}"]
        settings = load_settings(self.preset, overrides)
        if settings.student.steps is not None:
            raise ConfigError(
                f"student.steps: {settings.student.steps}, but the trials compare ways to fold "
                "guidance alone",
                "Leave it out.",
            )
        return settings

    def file(self, trial: Trial) -> Path:
        """The path of a trial's result: a hash of everything that the result depends on."""
        settings = self.settings(trial).model_dump(mode="json")
        decides = [settings, trial.attach.__name__, trial.measured, self.findings.fingerprint]
        return self.out / "trials" / f"{_hash(decides)}.json"

    @cached_property
    def findings(self) -> Findings:
        """The probe's findings in the teacher's pipeline."""
        settings = self.settings(Trial((), 0))
        pipeline = open_pipeline(settings.pipeline.source, **settings.pipeline.described())
        call, negative = settings.pipeline.call, settings.pipeline.negative_prompt
        return probe(pipeline, call, settings.adapter.g_ref, negative)

    def result(self, trial: Trial) -> TrialResult | None:
        """A finished trial's result; None where it or one of its guidance scales is missing."""
        result = TrialResult.read(self.file(trial), DAMAGED)
        if result is None or {f"{g:g}" for g in trial.elsewhere} - result.elsewhere.keys():
            return None
        return result

    def run(self, trial: Trial) -> TrialResult:
        """A trial's result: the finished one, or a fresh run's."""
        finished = self.result(trial)
        if finished is not None:
            return finished
        path = self.file(trial)
        run = self.out / "runs" / path.stem
        shutil.rmtree(run, ignore_errors=True)
        settings = self.settings(trial, run)
        recorded = self._recordings(trial)
        _link(RunFolder(recorded).trajectories, RunFolder(run).trajectories)
        passes, began = PassCounter(self.findings.denoiser_class), time.perf_counter()
        with passes.counting():
            train_with(settings, trial.attach)
        seconds = time.perf_counter() - began
        recording = int(read_json(recorded / "passes.json"))
        line = {
            "passes": recording + passes.count,
            "training_seconds": seconds,
            **_curve(settings, recording, recording + passes.count),
            **(self._measure(trial, settings) if trial.measured else {"elsewhere": {}}),
        }
        write_record(path, line)
        shutil.rmtree(run)
        return TrialResult.model_validate(line)

    def pictures(self, trial: Trial) -> Path:
        """The folder of a finished trial's first pictures: student-000.png, and so on."""
        return self.out / "shown" / self.file(trial).stem

    def _recordings(self, trial: Trial) -> Path:
        """Record the rounds without a student once for all trials with equal settings for them."""
        settings = self.settings(trial)
        shared = [
            settings.seed,
            self.findings.fingerprint,
            settings.pipeline.model_dump(mode="json"),
        ]
        shared += [settings.prompts.model_dump(), settings.record.model_dump()]
        folder = self.out / "recordings" / _hash(shared)
        if not (folder / "passes.json").exists():
            passes = PassCounter(self.findings.denoiser_class)
            with passes.counting():
                record(settings.model_copy(update={"run": str(folder)}))
            write_json(folder / "passes.json", passes.count)
        return folder

    def _measure(self, trial: Trial, settings: Settings) -> dict[str, Any]:
        if trial.attach is copy_weights:
            with open_session(settings) as session:
                write_copy(session)
        else:
            export(settings)
        run = RunFolder(settings.run)
        shared = self.out / "pictures" / f"{self.findings.fingerprint}-{settings.seed}"
        if shared.exists():
            _link(shared, run.evaluation)
        line = {"results": self._evaluate(trial, settings), "elsewhere": {}}
        _share(run, shared)
        for scale in trial.elsewhere:
            at_scale = settings.evaluate.model_copy(update={"guidance": scale})
            moved = settings.model_copy(update={"evaluate": at_scale})
            line["elsewhere"][f"{scale:g}"] = self._evaluate(trial, moved)
        self._keep_pictures(trial, settings)
        return line

    def _evaluate(self, trial: Trial, settings: Settings) -> dict[str, Any]:
        if trial.attach is not copy_weights:
            return evaluate(settings, self.judge)
        with open_session(settings) as session:
            return evaluate_weights(session, self.judge, CopiedWeights()).to_json()

    def _keep_pictures(self, trial: Trial, settings: Settings) -> None:
        """Copy the first pictures of each kind, for a grid."""
        run = RunFolder(settings.run)
        target = self.pictures(trial)
        target.mkdir(parents=True, exist_ok=True)
        index = PictureIndex.read(run.index)
        assert index is not None, "the evaluation wrote it"
        for k, row in enumerate(index.pictures[: settings.evaluate.grid_prompts]):
            for kind, file in row.files.items():
                shutil.copy2(run.evaluation / file, target / f"{kind}-{k:03d}.png")


def train_with(settings: Settings, attach: Attach) -> None:
    """Train a LoRA or a full copy, as :func:`~guidefold.train.distill.distill` trains a LoRA.

    Args:
        settings: The run's.
        attach: Puts on what is trained.
    """
    with open_launch(settings) as launch:
        refs, session, adapter = launch.record_teacher(), launch.session, settings.adapter
        denoiser = session.denoiser
        trained = partial(attach, denoiser, adapter.targets, adapter.rank, settings.seed)
        student = Student(denoiser, session.findings, session.dial, refs, trained)
        Training(launch, student).run()


def _curve(settings: Settings, recording: int, total: int) -> dict[str, Any]:
    """``curve`` and ``noisiest`` of a trial's result, from the run's validations."""
    validations = read_log(RunFolder(settings.run).log).validations
    training, steps = total - recording, settings.distill.steps
    curve = [
        (round(recording + training * line.step / steps), line.residual_guidance)
        for line in validations
    ]
    return {"curve": curve, "noisiest": validations[-1].levels[-1].residual}


def _hash(decides: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]


def _link(source: Path, target: Path) -> None:
    """Copy a folder by hard links; files that grow later are copied in full."""

    def place(old: str, new: str) -> None:
        if old.endswith(".jsonl"):
            shutil.copy2(old, new)
        else:
            _link_file(old, new)

    shutil.copytree(
        source, target, copy_function=place, ignore=shutil.ignore_patterns("MANIFEST.json")
    )


def _link_file(old: str | Path, new: str | Path) -> None:
    """Link a file; copy it on disks without hard links, as memory sticks and network shares."""
    try:
        os.link(old, new)
    except OSError:
        shutil.copy2(old, new)


def _share(run: RunFolder, shared: Path) -> None:
    """Keep the baselines' pictures for the next trial with this seed."""
    if shared.exists():
        return
    lines = read_lines(run.pictures)
    kept = [line for line in lines if line["of"]["kind"] in BASELINES]
    with finished_folder(shared) as temporary:
        for line in kept:
            _link_file(run.evaluation / line["file"], temporary / line["file"])
        write_lines(temporary / run.pictures.name, kept)
