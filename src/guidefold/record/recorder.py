"""Record trajectories: drive and follow the pipeline, write files, resume."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from guidefold.ground import (
    CaptureError,
    MismatchError,
    Stop,
    Stopped,
    compat,
    derive_seed,
    task,
)
from guidefold.listen import (
    DryRun,
    Findings,
    RandomStub,
    SolverProbe,
    Step,
    StepGrid,
    Tree,
    coarse_steps,
    drive,
    follow,
    follow_stubbed,
    naming_rows,
    restart,
    split,
    tree_map,
    unpack,
)
from guidefold.lora import Adapter, Dial
from guidefold.pipeline import Prompt, denoisers
from guidefold.record.costs import print_costs
from guidefold.record.forward_noise import add_noise
from guidefold.record.plans import Plan, kept_indices
from guidefold.record.trajectory_files import Checked, KeptState, read_round, write_trajectory
from guidefold.run import LINES, StateSource, TrajectoryLine, append_line, readable_size

Inputs = Callable[[Sequence[Prompt], float, int], dict[str, Any]]


def record_round(
    folder: Path,
    source: StateSource,
    batches: Sequence[Sequence[Plan]],
    recorder: Recorder,
    stop: Stop | None = None,
    shard: tuple[int, int] = (1, 1),
    checked: Checked | None = None,
) -> int:
    """Record what is missing of a round.

    Args:
        folder: The round's folder.
        source: The round's state source.
        batches: From :func:`plan_round`.
        recorder: The pipeline, ready to be recorded.
        stop: Whether a signal to stop has arrived; checked before every batch.
        shard: ``(i, n)``: record every n-th batch only, from the i-th.
        checked: Files that need no check, as of :func:`read_round`.

    Returns:
        Bytes on disk.

    Raises:
        MismatchError: The folder holds trajectories of another plan or another base.
        Stopped: On request; what was recorded stands.
    """
    lines = read_round(folder, checked=checked)
    plans = {plan.index: plan for batch in batches for plan in batch}
    for line in lines:
        _check_line(line, plans.get(line.index), recorder, source, folder)
    mine = batches[shard[0] - 1 :: shard[1]]
    wanted = {plan.index for batch in mine for plan in batch}
    done = {line.index for line in lines} & wanted
    missing = [batch for batch in mine if any(plan.index not in done for plan in batch)]
    with task(f"Recording {source} states", len(wanted), len(done)) as progress:
        for batch in missing:
            if stop is not None and stop.signal is not None:
                raise Stopped(
                    stop.signal, f"Stopped: {len(done)} of {len(wanted)} trajectories recorded."
                )
            before, start = len(done), time.perf_counter()
            with naming_rows(plan.prompt for plan in batch):
                recorded = recorder.record(source, batch)
            took = time.perf_counter() - start
            seconds = round(took / len(batch), 4)
            for plan, states in recorded:
                if plan.index in done:
                    continue
                path = folder / f"{plan.split}-{plan.index:06d}.safetensors"
                entry = write_trajectory(path, states, recorder.dtype)
                line = _line(plan, entry, recorder, source, seconds)
                append_line(folder / LINES, line.to_json())
                lines.append(line)
                done.add(plan.index)
            progress.advance(len(done) - before, readable_size(sum(line.size for line in lines)))
            if batch is missing[0] and len(missing) > 1:
                size = sum(line.size for line in lines[-len(batch) :]) / len(batch)
                print_costs(folder, compat.execution_device(recorder.pipeline), missing, took, size)
    return sum(line.size for line in lines)


class Recorder:
    """Drives and follows one pipeline.

    Args:
        pipeline: The pipeline.
        findings: What the probe found.
        dial: Gives the strength at which the student visits states.
        inputs: The arguments of the pipeline's call for ``(prompts, guidance, steps)``.
        seed: The run's seed, for the random outputs of the denoiser's stub.
        states: Number of states kept of each trajectory.
        dtype: Precision of stored latents and embeddings; None keeps theirs.
        adapter: The student's adapter, for the state source ``student``.
        adapter_hash: The checksum of that adapter's file.
    """

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        findings: Findings,
        dial: Dial,
        inputs: Inputs,
        *,
        seed: int,
        states: int,
        dtype: torch.dtype | None = None,
        adapter: Adapter | None = None,
        adapter_hash: str = "",
    ) -> None:
        self.pipeline, self.findings, self.dial = pipeline, findings, dial
        self.inputs, self.states, self.dtype = inputs, states, dtype
        self.adapter, self.adapter_hash = adapter, adapter_hash
        self.stub = RandomStub(seed)
        self.listened = denoisers(pipeline, findings.denoisers)

    def stamp(self, source: StateSource) -> dict[str, Any]:
        """The fields that all manifest lines of a round share."""
        stamp = {
            "source": source,
            "base": self.findings.fingerprint,
            "output_map": str(self.findings.output_map),
        }
        return {**stamp, "adapter": self.adapter_hash} if source == "student" else stamp

    def record(
        self, source: StateSource, batch: Sequence[Plan]
    ) -> list[tuple[Plan, list[KeptState]]]:
        """Record one batch of plans.

        Returns:
            ``(plan, kept states)`` for each plan.
        """
        if len(batch) > 1 and not self._batchable(batch):
            return [entry for plan in batch for entry in self.record(source, [plan])]
        seeds, prompts = [plan.seed for plan in batch], [plan.prompt for plan in batch]
        plan, grid = batch[0], self.findings.steps
        on = self.inputs(prompts, plan.guidance, self.teacher_steps(plan))
        off = self.inputs(prompts, self.findings.off, plan.student_steps or plan.steps)
        if grid is not None:
            dry_run, targets = self._few_steps(source, on, off, seeds, grid)
        else:
            visits = {"teacher": self._teacher, "student": self._student, "noise": self._noise}
            driven, heard = visits[source](on, off, seeds)
            dry_run = self._dry_run(off, seeds, driven)
            targets = [step.model_output for step in heard]
        return [
            (plan, self._keep(plan, row, len(batch), dry_run, targets))
            for row, plan in enumerate(batch)
        ]

    def teacher_steps(self, plan: Plan) -> int:
        """The teacher's number of steps in a plan's trajectory."""
        return plan.steps if self.findings.steps is None else self.findings.steps.teacher

    def _batchable(self, batch: Sequence[Plan]) -> bool:
        """Whether the plans' prompts can share the pipeline's calls."""
        plain = not any(plan.prompt.columns for plan in batch)
        return plain and self.findings.layout is not None and self.findings.mixed_lengths

    def _teacher(
        self, on: Mapping[str, Any], _off: Mapping[str, Any], seeds: Sequence[int]
    ) -> tuple[list[Step], list[Step]]:
        """The teacher visits the states; its model outputs are the targets."""
        driven = drive(self.pipeline, on, seeds, self.listened)
        return driven, driven

    def _noise(
        self, on: Mapping[str, Any], _off: Mapping[str, Any], seeds: Sequence[int]
    ) -> tuple[list[Step], list[Step]]:
        """Forward noise on the teacher's own pictures; the first state stays the pipeline's."""
        last = drive(self.pipeline, on, seeds, self.listened)[-1]
        clean = unpack(last.next_state, last.shapes)

        def redirect(
            index: int, _state: torch.Tensor, following: torch.Tensor, part: int = 0
        ) -> torch.Tensor:
            own = [derive_seed(seed, "part", part) for seed in seeds] if part else seeds
            scheduler = self.pipeline.scheduler
            return add_noise(scheduler, clean[part], index + 1, own).to(following)

        driven = drive(self.pipeline, on, seeds, self.listened, redirect=redirect)
        return driven, driven

    def _student(
        self, on: Mapping[str, Any], off: Mapping[str, Any], seeds: Sequence[int]
    ) -> tuple[list[Step], list[Step]]:
        """The student visits the states; the teacher follows and gives the targets."""
        driven = self._drive_student(on, off, seeds)
        with self._teacher_mode():
            return driven, follow(self.pipeline, on, seeds, self.listened, driven)

    def _drive_student(
        self, on: Mapping[str, Any], off: Mapping[str, Any], seeds: Sequence[int]
    ) -> list[Step]:
        assert self.adapter is not None
        guidance = float(on[self.findings.guidance_argument])
        with self.adapter.student_mode(self.dial.trained_strength(guidance), train=False):
            return drive(self.pipeline, off, seeds, self.listened)

    def _few_steps(
        self,
        source: StateSource,
        on: Mapping[str, Any],
        off: Mapping[str, Any],
        seeds: Sequence[int],
        grid: StepGrid,
    ) -> tuple[DryRun, list[torch.Tensor]]:
        """The student's arguments at coarse states, and the outputs that reach the teacher's next.

        Args:
            source: ``teacher`` or ``student``.
            on: The teacher's call arguments, with its number of steps.
            off: The student's, with its own.
            seeds: One per sample.
            grid: The student's steps among the teacher's.
        """
        call = self.pipeline, on, seeds, self.listened
        if source == "teacher":
            driven = led = coarse_steps(drive(*call), grid.indices)
        else:
            driven = self._drive_student(on, off, seeds)
            with self._teacher_mode():
                led = restart(*call, driven, grid.indices)
        solver = SolverProbe()
        dry_run = self._dry_run(off, seeds, driven, before_step=solver)
        outputs = solver.outputs_that_reach(led)
        return dry_run, [o.to(s.model_output) for o, s in zip(outputs, driven, strict=True)]

    def _teacher_mode(self) -> AbstractContextManager[None]:
        return nullcontext() if self.adapter is None else self.adapter.teacher_mode()

    def _dry_run(
        self,
        off: Mapping[str, Any],
        seeds: Sequence[int],
        driven: Sequence[Step],
        **listening: Any,
    ) -> DryRun:
        """Find the student's arguments at the driven states.

        Raises:
            CaptureError: The output map is not the probed one.
        """
        call = self.pipeline, off, seeds, self.listened
        with self._teacher_mode():  # for the stub's templates
            dry_run = follow_stubbed(*call, driven, self.stub, **listening)
        if dry_run.output_map != self.findings.output_map:
            raise CaptureError(
                f"output map '{dry_run.output_map}' instead of '{self.findings.output_map}'"
            )
        return dry_run

    def _keep(
        self, plan: Plan, row: int, count: int, dry_run: DryRun, targets: Sequence[torch.Tensor]
    ) -> list[KeptState]:
        """One sample's kept states, spread over the trajectory."""
        kept = []
        for index in kept_indices(plan, self.states, len(targets)):
            target = dry_run.training_target(index, targets[index])
            kept.append(
                KeptState(
                    arguments=self._one(dry_run.arguments[index], row, count),
                    target=target.tensor_split(count)[row].cpu(),
                    timestep=dry_run.timesteps[index],
                    index=index,
                    shapes=dry_run.shapes,
                )
            )
        return kept

    def _one(self, arguments: Tree, row: int, count: int) -> Tree:
        chosen = arguments if count == 1 else split(arguments, self.findings.layout, count)[row]
        return tree_map(torch.Tensor.cpu, chosen)


def _line(
    plan: Plan, entry: Mapping[str, Any], recorder: Recorder, source: StateSource, seconds: float
) -> TrajectoryLine:
    few: dict[str, Any] = {}
    if plan.student_steps is not None:  # a field that other runs' manifests do not have
        few["student_steps"] = plan.student_steps
    return TrajectoryLine(
        index=plan.index,
        split=plan.split,
        prompt=plan.prompt.label,
        prompt_sha256=plan.prompt.digest,
        seed=plan.seed,
        guidance=plan.guidance,
        steps=recorder.teacher_steps(plan),
        **recorder.stamp(source),
        **entry,
        seconds=seconds,
        **few,
    )


def _check_line(
    line: TrajectoryLine, plan: Plan | None, recorder: Recorder, source: StateSource, folder: Path
) -> None:
    expected: dict[str, Any] = recorder.stamp(source)
    if plan is not None:
        expected |= {"prompt_sha256": plan.prompt.digest, "seed": plan.seed, "split": plan.split}
        expected |= {"guidance": plan.guidance, "steps": recorder.teacher_steps(plan)}
        expected |= {"student_steps": plan.student_steps}
    for name, value in expected.items():
        recorded = getattr(line, name)
        if recorded != value or plan is None:
            raise MismatchError(
                f"{folder / line.file}: recorded with another {name} ('{recorded}', now '{value}')",
                "Its pipeline or prompts have changed since. Choose another run=FOLDER.",
            )
