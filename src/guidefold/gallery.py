"""Pictures of a measurement, kept as they are drawn, so that a stopped measurement goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from PIL import Image

from guidefold.pipelines import fingerprint, modules
from guidefold.progress import Task
from guidefold.prompts import Prompt
from guidefold.run.records import PictureLine
from guidefold.runs import MANIFEST, append_line, read_json, sha256, write_bytes
from guidefold.sample import Drawn, draw_session, png
from guidefold.session import Session
from guidefold.settings import Kind


class Gallery:
    """A folder of pictures, each known by all that it depends on.

    Args:
        session: Whose pictures.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.folder, self.file = session.run.evaluation, session.run.pictures
        self.folder.mkdir(exist_ok=True)
        self._pipeline = _describe(session.pipeline)
        self.lines = {
            _name(line.of): line
            for line in PictureLine.read_lines(self.file)
            if _stands(self.folder / line.file, line.sha256)
        }

    def draw(
        self,
        kind: Kind,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        progress: Task,
        *,
        guidance: float | None = None,
        strength: float | None = None,
    ) -> Drawn:
        """Pictures of one kind: those that stand already, and the rest drawn now.

        Args:
            kind: Who draws; for the student its adapter is loaded, at the given strength.
            prompts: One per picture.
            seeds: One per picture.
            progress: Told of every step.
            guidance: The guidance scale; None takes the session's for this kind.
            strength: The student's; None takes the session's.
        """
        asked = self.session.settings.evaluate
        if guidance is None:
            guidance = self.session.guidance_of(kind)
        common = self._common(kind, guidance, strength)
        keys = [{**common, "prompt": p.key, "seed": s} for p, s in zip(prompts, seeds, strict=True)]
        for first in range(0, len(keys), asked.batch_size):
            some = slice(first, first + asked.batch_size)
            if all(_name(key) in self.lines for key in keys[some]):
                progress.advance(asked.steps * len(keys[some]))
                continue
            fresh = draw_session(self.session, prompts[some], seeds[some], guidance, progress)
            for k, key in enumerate(keys[some]):
                self._keep(f"{_stem(common)}-{first + k:04d}.png", key, fresh, k)
        return self._gather([self.lines[_name(key)] for key in keys])

    def _common(self, kind: Kind, guidance: float, strength: float | None) -> dict[str, Any]:
        """What all pictures of a kind depend on, prompt and seed aside."""
        session = self.session
        settings = session.settings
        common = {
            "kind": kind,
            "pipeline": self._pipeline,
            "guidance": guidance,
            "steps": settings.evaluate.steps,
            "call": settings.pipeline.call,
            "negative_prompt": settings.pipeline.negative_prompt,
            "guided_share": settings.pipeline.guided_share,
        }
        if kind == "student":
            manifest = read_json(session.run.adapter / MANIFEST)
            weights = {n: e["sha256"] for n, e in manifest.items() if n.endswith(".safetensors")}
            common |= {
                "adapter": weights,
                "strength": session.compared.strength if strength is None else strength,
            }
        return common

    def _keep(self, file: str, key: dict[str, Any], drawn: Drawn, index: int) -> None:
        write_bytes(self.folder / file, png(drawn.pictures[index]))
        line = PictureLine(
            file=file,
            sha256=sha256(self.folder / file),
            passes=drawn.passes_per_image,
            seconds=drawn.denoiser_seconds_per_image,
            of=key,
        )
        append_line(self.file, line.to_json())
        self.lines[_name(key)] = line

    def _gather(self, lines: Sequence[PictureLine]) -> Drawn:
        return Drawn(
            pictures=[_read(self.folder / line.file) for line in lines],
            files=[line.file for line in lines],
            passes_per_image=sum(line.passes for line in lines) / len(lines),
            denoiser_seconds_per_image=sum(line.seconds for line in lines) / len(lines),
        )


def _describe(pipeline: DiffusionPipeline) -> dict[str, str]:
    """All of a pipeline that a picture depends on: weights, scheduler, precision."""
    parts = {name: fingerprint(module) for name, module in modules(pipeline).items()}
    scheduler = json.dumps(dict(pipeline.scheduler.config), sort_keys=True, default=str)
    return {**parts, "scheduler": f"{type(pipeline.scheduler).__name__} {scheduler}"}


def _stem(common: dict[str, Any]) -> str:
    """How the files of pictures with this much in common begin."""
    parts = {"teacher": f"-g{common['guidance']:g}", "student": f"-s{common.get('strength', 0):g}"}
    kind: Kind = common["kind"]
    return kind + parts.get(kind, "")


def _name(key: dict[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)


def _stands(path: Path, digest: str) -> bool:
    return path.exists() and sha256(path) == digest


def _read(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")
