"""Train the bundled teacher from scratch: `python -m teacher.train_teacher --out FOLDER`.

Stages, one after the other: the autoencoder, twice, the second time with more coloured backgrounds;
a short lesson for the text encoder; the denoiser together with the text encoder; and the decoder
once more, which leaves the latents as they are. A run that ran out of `--minutes` goes on with
`--resume`; `--start FOLDER` begins with a published teacher and trains its denoiser on. What comes
out is an ordinary diffusers pipeline folder.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from teacher.autoencoder_stage import autoencoder_stage
from teacher.components import (
    BUNDLED,
    TINY,
    TeacherSize,
    make_autoencoder,
    make_denoiser,
    make_pipeline,
    make_text_encoder,
    make_tokenizer,
)
from teacher.dataset import load_or_make_dataset
from teacher.denoiser_stage import denoiser_stage
from teacher.measure_teacher import open_teacher
from teacher.stage import Stage, train
from teacher.text_stage import caption_tokens, text_stage


@dataclass(frozen=True, slots=True)
class StagePlan:
    """Steps, pictures or captions a step, and the highest learning rate of one stage."""

    steps: int
    batch: int
    rate: float


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides which teacher comes out; the defaults made the bundled one.

    Attributes:
        seed: Decides weights to begin with, pictures, captions and noise.
        size: Width and depth of the parts.
        autoencoder: Plan of the autoencoder's first stage.
        backgrounds: Plan of its second stage.
        decoder: Plan of its last stage.
        text: Plan of the text encoder's stage of its own.
        denoiser: Plan of the denoiser's stage.
        hard_share: Share of extra pictures with coloured backgrounds in the later two stages of
            the autoencoder.
        stock: Number of pictures that the denoiser learns from.
        spoiled_share: Share of them, 0..1, whose caption is partly wrong, so that the unguided
            prediction doubts its caption and guidance has something to sharpen.
    """

    seed: int = 0
    size: TeacherSize = BUNDLED
    autoencoder: StagePlan = StagePlan(steps=2000, batch=24, rate=2e-3)
    backgrounds: StagePlan = StagePlan(steps=700, batch=24, rate=1.5e-3)
    decoder: StagePlan = StagePlan(steps=2000, batch=24, rate=1.5e-3)
    text: StagePlan = StagePlan(steps=800, batch=64, rate=1e-3)
    denoiser: StagePlan = StagePlan(steps=22000, batch=32, rate=1e-3)
    hard_share: float = 0.5
    stock: int = 50_000
    spoiled_share: float = 0.1


TINY_RECIPE = Recipe(
    size=TINY,
    autoencoder=StagePlan(2, 4, 1e-3),
    backgrounds=StagePlan(2, 4, 1e-3),
    decoder=StagePlan(2, 4, 1e-3),
    text=StagePlan(2, 4, 1e-3),
    denoiser=StagePlan(2, 4, 1e-3),
    stock=16,
)
"""For tests: two steps of each stage."""


class _OutOfTimeError(Exception):
    """Time ran out before a stage was finished."""


class _Training:
    """The stages of one call, and what they share."""

    def __init__(
        self, recipe: Recipe, work: Path, deadline: float, device: torch.device, start: Any = None
    ) -> None:
        self.recipe, self.work = recipe, work
        self.deadline, self.device = deadline, device
        self.start = start

    def _plan(self, plan: StagePlan, offset: int) -> dict[str, Any]:
        """Arguments that every stage takes; each has seeds of its own."""
        seed = self.recipe.seed + offset
        return {"folder": self.work, "seed": seed, **asdict(plan)}

    def _finish(self, stage: Stage) -> None:
        if not train(stage, self.deadline):
            raise _OutOfTimeError

    def autoencoder(self) -> Any:
        recipe = self.recipe
        if self.start is not None:
            return self.start.vae.to(self.device)
        torch.manual_seed(recipe.seed)
        autoencoder = make_autoencoder(recipe.size).to(self.device)
        plan = self._plan(recipe.autoencoder, 0)
        self._finish(autoencoder_stage(autoencoder, "autoencoder", **plan))
        plan = self._plan(recipe.backgrounds, 40) | {"hard_share": recipe.hard_share}
        self._finish(autoencoder_stage(autoencoder, "backgrounds", **plan))
        return autoencoder

    def text_encoder(self, tokens: Tensor) -> Any:
        if self.start is not None:
            return self.start.text_encoder.to(self.device)
        torch.manual_seed(self.recipe.seed + 1)
        text_encoder = make_text_encoder(self.recipe.size).to(self.device)
        self._finish(text_stage(text_encoder, tokens, **self._plan(self.recipe.text, 10)))
        return text_encoder

    def denoiser(self, autoencoder: Any, text_encoder: Any, tokens: Tensor) -> Any:
        recipe = self.recipe
        dataset = load_or_make_dataset(
            self.work / "stock",
            autoencoder,
            count=recipe.stock,
            spoiled_share=recipe.spoiled_share,
            seed=recipe.seed + 20,
        )
        autoencoder.register_to_config(scaling_factor=dataset.scaling_factor)
        torch.manual_seed(recipe.seed + 2)
        denoiser = make_denoiser(recipe.size) if self.start is None else self.start.unet
        denoiser = denoiser.to(self.device)
        plan = self._plan(recipe.denoiser, 30)
        self._finish(denoiser_stage(denoiser, text_encoder, dataset, tokens, **plan))
        return denoiser

    def polish(self, autoencoder: Any) -> None:
        if self.start is not None:
            return
        plan = self._plan(self.recipe.decoder, 50) | {"hard_share": self.recipe.hard_share}
        self._finish(autoencoder_stage(autoencoder, "decoder", **plan, decoder_only=True))


def train_teacher(
    recipe: Recipe, *, work: Path, deadline: float, device: torch.device, start: Any = None
) -> Any | None:
    """Train as far as time allows, going on from what `work` holds.

    Args:
        recipe: The recipe.
        work: Folder of the states between calls.
        deadline: Value of `time.monotonic()` at which to stop.
        device: The device to train on.
        start: A trained pipeline to begin with; its denoiser and text encoder learn on, with a
            fresh optimizer, and its autoencoder stays. None: from scratch.

    Returns:
        The pipeline, on `device` in float32, or None when time ran out first.
    """
    training = _Training(recipe, work, deadline, device, start)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = make_tokenizer(Path(folder))
    tokens = caption_tokens(tokenizer)
    try:
        autoencoder = training.autoencoder()
        text_encoder = training.text_encoder(tokens)
        denoiser = training.denoiser(autoencoder, text_encoder, tokens)
        training.polish(autoencoder)
    except _OutOfTimeError:
        return None
    return make_pipeline(autoencoder.eval(), denoiser.eval(), text_encoder.eval(), tokenizer)


def publish(pipeline: Any, out: Path) -> None:
    """Write the pipeline in half precision: into a folder beside `out`, which then takes its name.

    A model card in `out` is kept.

    Args:
        pipeline: The pipeline from `train_teacher`.
        out: Its final folder.
    """
    fresh = out.with_name(out.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    pipeline.to(dtype=torch.float16).save_pretrained(fresh, safe_serialization=True)
    for config in fresh.rglob("*.json"):
        _forget_origin(config)
    make_tokenizer(fresh / "tokenizer")  # transformers before 5 opens these two files
    for weights in fresh.rglob("*.safetensors"):
        weights.chmod(0o644)  # safetensors writes files that only their owner may read
    if out.exists():
        card = out / "README.md"
        if card.exists():
            shutil.copy2(card, fresh)
        shutil.rmtree(out)
    fresh.rename(out)


def _forget_origin(config: Path) -> None:
    """Remove the path that a part was opened from: it means nothing on another machine."""
    values = json.loads(config.read_text(encoding="utf-8"))
    if values.pop("_name_or_path", None) is not None:
        config.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    defaults = Recipe()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished pipeline")
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="minutes until it stops and saves"
    )
    parser.add_argument("--resume", action="store_true", help="resume from the states in --work")
    parser.add_argument("--work", type=Path, help="folder of the states; default: OUT.work")
    parser.add_argument("--start", type=Path, help="a pipeline folder to begin with")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="processor threads; default: torch's")
    parser.add_argument(
        "--steps", type=int, default=defaults.denoiser.steps, help="steps of the denoiser's stage"
    )
    parser.add_argument(
        "--stock", type=int, default=defaults.stock, help="number of pictures for the denoiser"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, and publish what came out if there was time enough.

    Args:
        argv: Command line; the process's own by default.

    Returns:
        0 when the pipeline was published, 3 when time ran out and `--resume` goes on.
    """
    began = time.monotonic()
    given = _arguments(argv)
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    work = given.work or given.out.with_name(given.out.name + ".work")
    if work.exists() and not given.resume:
        shutil.rmtree(work)
    recipe = Recipe(seed=given.seed, stock=given.stock)
    recipe = replace(recipe, denoiser=replace(recipe.denoiser, steps=given.steps))
    deadline = began + 60 * given.minutes
    pipeline = train_teacher(
        recipe,
        work=work,
        deadline=deadline,
        device=torch.device(given.device),
        start=None if given.start is None else open_teacher(given.start),
    )
    if pipeline is None:
        print(f"out of time; the same command with --resume goes on from {work}")
        return 3
    publish(pipeline, given.out)
    print(f"published {given.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
