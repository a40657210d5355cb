"""Many runs of one preset, to be compared: each recorded, trained and measured, and kept as JSON.

Finished runs stand, so a stopped series goes on. Runs that ask for the same settings are one run;
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
from guidefold.judge import Judge, evaluate, evaluate_weights
from guidefold.listen import Findings, probe, rows_of
from guidefold.lora import Adapter, attach
from guidefold.pipeline import open_pipeline
from guidefold.record import record
from guidefold.run import (
    RunFolder,
    Settings,
    finished_folder,
    load_settings,
    read_json,
    read_lines,
    write_json,
    write_text,
)
from guidefold.session import open_session
from guidefold.train import Student, open_launch, train

Attach = Callable[[nn.Module, str, int, int, Callable[[], object]], Adapter]
"""As :func:`~guidefold.lora.adapter.attach`, or as a rival that is measured against a LoRA."""

DRAWN_FOR_ALL = ("teacher", "unguided")


@dataclass(frozen=True)
class Trial:
    """One run of a series.

    Attributes:
        overrides: Settings on top of the series' own.
        seed: Of everything in it.
        attach: Puts on what is trained: a LoRA, or a full copy of the weights.
        measured: Whether pictures are made; else only the last validation counts.
        elsewhere: Guidance scales that it is measured at besides the settings' own.
    """

    overrides: tuple[str, ...]
    seed: int
    attach: Attach = attach
    measured: bool = True
    elsewhere: tuple[float, ...] = ()


class Passes:
    """Counts samples through denoisers while it listens.

    A stubbed denoiser answers without asking any of its layers, and is not counted.

    Args:
        denoiser: The name of the denoiser's class.
    """

    def __init__(self, denoiser: str) -> None:
        self.denoiser, self.count, self._worked = denoiser, 0, False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to every module of the process."""
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
        self._worked = type(module).__name__ != self.denoiser

    def _after(self, module: nn.Module, _inputs: Any, output: Any) -> None:
        if type(module).__name__ == self.denoiser and self._worked:
            self.count += rows_of(output)


@dataclass(frozen=True)
class Series:
    """Where runs of one preset are kept.

    Args:
        out: Folder.
        preset: A preset's name or a TOML file.
        common: Overrides that all trials have in common.
    """

    out: Path
    preset: str
    common: tuple[str, ...] = ()

    @cached_property
    def judge(self) -> Judge | None:
        """Tells of pictures whether they show their prompts; None where nobody can."""
        return judge_of(self.settings(Trial((), 0)).pipeline.source)

    def settings(self, trial: Trial, run: Path | str = "unnamed") -> Settings:
        """What a trial runs with."""
        asked = [*self.common, *trial.overrides, f"seed={trial.seed}", f"run={run}"]
        return load_settings(self.preset, asked)

    def file(self, trial: Trial) -> Path:
        """Where a trial's result is, or will be; named by all that decides it."""
        asked = self.settings(trial).model_dump(mode="json")
        decides = [asked, trial.attach.__name__, trial.measured, self.findings.fingerprint]
        return self.out / "trials" / f"{_name(decides)}.json"

    @cached_property
    def findings(self) -> Findings:
        """How the teacher guides."""
        asked = self.settings(Trial((), 0))
        pipeline = open_pipeline(asked.pipeline.source, config=asked.pipeline.config)
        call, negative = asked.pipeline.call, asked.pipeline.negative_prompt
        return probe(pipeline, call, asked.adapter.g_ref, negative)

    def result(self, trial: Trial) -> dict[str, Any] | None:
        """A finished trial's result; None if there is none yet."""
        path = self.file(trial)
        if not path.exists():
            return None
        found: dict[str, Any] = read_json(path)
        missing = {f"{g:g}" for g in trial.elsewhere} - found["elsewhere"].keys()
        return None if missing else found

    def run(self, trial: Trial) -> dict[str, Any]:
        """A trial's result: the finished one, or that of a fresh run.

        Returns:
            ``passes``: samples through the denoiser for recording, training and validation
            together; ``training_seconds``; ``curve``: pairs of passes so far and residual guidance
            on held-out states; ``noisiest``: that of the last validation's noisiest level;
            ``results``: what ``evaluate`` found; ``elsewhere``: likewise, by guidance scale.
        """
        found = self.result(trial)
        if found is not None:
            return found
        path = self.file(trial)
        run = self.out / "runs" / path.stem
        shutil.rmtree(run, ignore_errors=True)
        settings = self.settings(trial, run)
        recorded = self._recordings(trial)
        _link(RunFolder(recorded).trajectories, RunFolder(run).trajectories)
        passes, began = Passes(self.findings.denoiser_class), time.perf_counter()
        with passes.listening():
            train_with(settings, trial.attach)
        seconds = time.perf_counter() - began
        recording = int(read_json(recorded / "passes.json"))
        line = {
            "passes": recording + passes.count,
            "training_seconds": seconds,
            **_curve(settings, recording, recording + passes.count),
            **(self._measure(trial, settings) if trial.measured else {"elsewhere": {}}),
        }
        write_json(path, line)
        shutil.rmtree(run)
        kept: dict[str, Any] = read_json(path)
        return kept

    def pictures(self, trial: Trial) -> Path:
        """The folder of the first pictures of a finished trial: student-000.png, and so on."""
        return self.out / "shown" / self.file(trial).stem

    def _recordings(self, trial: Trial) -> Path:
        """The rounds that need no student, recorded once for all trials that share them."""
        settings = self.settings(trial)
        shared = [
            settings.seed,
            self.findings.fingerprint,
            settings.pipeline.model_dump(mode="json"),
        ]
        shared += [settings.prompts.model_dump(), settings.record.model_dump()]
        folder = self.out / "recordings" / _name(shared)
        if not (folder / "passes.json").exists():
            passes = Passes(self.findings.denoiser_class)
            with passes.listening():
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
            asked = settings.evaluate.model_copy(update={"guidance": scale})
            moved = settings.model_copy(update={"evaluate": asked})
            line["elsewhere"][f"{scale:g}"] = self._evaluate(trial, moved)
        self._keep_pictures(trial, settings)
        return line

    def _evaluate(self, trial: Trial, settings: Settings) -> dict[str, Any]:
        if trial.attach is not copy_weights:
            return evaluate(settings, self.judge)
        with open_session(settings) as session:
            return evaluate_weights(session, self.judge, CopiedWeights()).to_json()

    def _keep_pictures(self, trial: Trial, settings: Settings) -> None:
        """The first pictures of each kind, for a grid."""
        run = RunFolder(settings.run)
        target = self.pictures(trial)
        target.mkdir(parents=True, exist_ok=True)
        rows = read_json(run.index)["pictures"][: settings.evaluate.grid_prompts]
        for k, row in enumerate(rows):
            for kind, file in row["files"].items():
                shutil.copy2(run.evaluation / file, target / f"{kind}-{k:03d}.png")


def train_with(settings: Settings, attach: Attach) -> None:
    """Train whatever is put on the denoiser, as :func:`~guidefold.train.distill.distill` a LoRA.

    Args:
        settings: The run's.
        attach: Puts on what is trained.
    """
    with open_launch(settings) as launch:
        refs, session, asked = launch.record_teacher(), launch.session, settings.adapter
        denoiser = session.denoiser
        trained = partial(attach, denoiser, asked.targets, asked.rank, settings.seed)
        train(launch, Student(denoiser, session.findings, session.dial, refs, trained))


def _curve(settings: Settings, recording: int, total: int) -> dict[str, Any]:
    """Residual guidance on held-out states against passes so far, and the noisiest level's last."""
    lines = [line for line in read_lines(RunFolder(settings.run).log) if "levels" in line]
    steps = settings.distill.steps
    curve = [
        (round(recording + (total - recording) * line["step"] / steps), line["residual_guidance"])
        for line in lines
    ]
    return {"curve": curve, "noisiest": lines[-1]["levels"][-1]["residual"]}


def _name(decides: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]


def _link(source: Path, target: Path) -> None:
    """A copy that takes no room; lists that grow are copied for good."""

    def place(old: str, new: str) -> None:
        if old.endswith(".jsonl"):
            shutil.copy2(old, new)
        else:
            _link_file(old, new)

    shutil.copytree(
        source, target, copy_function=place, ignore=shutil.ignore_patterns("MANIFEST.json")
    )


def _link_file(old: str | Path, new: str | Path) -> None:
    """A second name for a file; a copy where the disk has no links, as sticks and shares."""
    try:
        os.link(old, new)
    except OSError:
        shutil.copy2(old, new)


def _share(run: RunFolder, shared: Path) -> None:
    """Keep what no student drew, for the next trial with this seed."""
    if shared.exists():
        return
    lines = read_lines(run.pictures)
    kept = [line for line in lines if line["of"]["kind"] in DRAWN_FOR_ALL]
    with finished_folder(shared) as temporary:
        for line in kept:
            _link_file(run.evaluation / line["file"], temporary / line["file"])
        text = "".join(f"{json.dumps(line)}\n" for line in kept)
        write_text(temporary / run.pictures.name, text)
