"""Settings: frozen, read from TOML and ``key=value`` overrides, checked before anything is loaded."""

from __future__ import annotations

import json
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from guidefold.errors import ConfigError, MismatchError

StateSource = Literal["teacher", "student", "noise"]
Preset = Literal["attention", "linear", "all"]
Precision = Literal["fp32", "fp16", "bf16"]
Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A table of the TOML file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PipelineSettings(Section):
    """Which pipeline, and how it is called.

    Attributes:
        source: A folder, a hub id, a single checkpoint file, or ``"bundled"``.
        config: A diffusers folder that describes a single checkpoint file.
        dtype: Precision of the weights while the teacher is recorded, and of the frozen weights
            while the student is trained.
        device: ``"auto"`` takes the first accelerator, else the CPU.
        negative_prompt: Folded into the adapter: the teacher runs with it.
        call: Further arguments of the pipeline's call, such as ``height`` and ``width``.
    """

    source: str
    config: str | None = None
    dtype: Precision = "fp32"
    device: str = "auto"
    negative_prompt: str | None = None
    call: dict[str, Any] = Field(default_factory=dict)


class PromptSettings(Section):
    """Attributes: path: see ``prompts.load_prompts``; held_out_share: kept for measuring."""

    path: str | None = None
    held_out_share: float = Field(default=0.1, gt=0, lt=1)


class RecordSettings(Section):
    """What is recorded of the teacher.

    Attributes:
        rounds: The state source of each round; ``student`` rounds are recorded while training.
        trajectories: Trajectories per round.
        validation_trajectories: Trajectories on held-out prompts, recorded once.
        states_per_trajectory: How many states of each trajectory are kept.
        guidance: The range (low, high) that guidance scales are drawn from.
        steps: The range (low, high) that step counts are drawn from.
        batch_size: Prompts per pipeline call.
        dtype: Precision of stored floating-point tensors; None keeps the pipeline's.
    """

    rounds: list[StateSource] = Field(default=["teacher"], min_length=1)
    trajectories: Positive = 500
    validation_trajectories: Positive = 16
    states_per_trajectory: Positive = 25
    guidance: tuple[float, float] = (2.0, 8.0)
    steps: tuple[Positive, Positive] = (20, 50)
    batch_size: Positive = 1
    dtype: Precision | None = None

    @model_validator(mode="after")
    def _ordered(self) -> RecordSettings:
        for name in ("guidance", "steps"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(
                    f"{name}: {low} to {high} is no range; write the lower bound first"
                )
        if self.rounds[0] == "student":
            raise ValueError("rounds: the first round cannot be 'student': nothing is trained yet")
        return self


class AdapterSettings(Section):
    """The LoRA.

    Attributes:
        targets: Which layers: ``attention``, ``linear`` or ``all`` (convolutions and the outer
            layers too).
        rank: Rank of every layer's update; alpha equals it.
        g_ref: The guidance scale that strength 1 stands for.
        dial: Train strength in proportion to guidance; off, strength is 1 at every guidance scale.
    """

    targets: Preset = "all"
    rank: Positive = 32
    g_ref: float = 7.5
    dial: bool = True


class DistillSettings(Section):
    """Training.

    Attributes:
        steps: Optimizer steps in all.
        batch_size: States per optimizer step and process.
        accumulation: Pieces that a batch is cut into, to save memory.
        learning_rate: Peak of the schedule.
        warmup: Steps of linear warm-up.
        schedule: What follows the warm-up.
        weight_decay: AdamW's.
        max_grad_norm: Gradients are clipped to this norm.
        loss: ``normalised`` (the loss is residual guidance) or ``plain`` squared error.
        strength_floor: Lowest strength that the normalisation divides by.
        normaliser_states: States that measure the size of the guidance before training.
        mixed_precision: Autocast of the student's passes.
        gradient_checkpointing: Trade time for memory.
        log_every: Steps between log lines.
        validate_every: Steps between validations on held-out prompts.
        checkpoint_every: Steps between checkpoints.
        keep_checkpoints: How many checkpoints stay on the disk.
    """

    steps: Positive = 2000
    batch_size: Positive = 8
    accumulation: Positive = 1
    learning_rate: float = Field(default=5e-4, gt=0)
    warmup: int = Field(default=50, ge=0)
    schedule: Literal["constant", "cosine"] = "cosine"
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    loss: Literal["normalised", "plain"] = "normalised"
    strength_floor: float = Field(default=0.2, gt=0)
    normaliser_states: Positive = 256
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    gradient_checkpointing: bool = False
    log_every: Positive = 10
    validate_every: Positive = 250
    checkpoint_every: Positive = 250
    keep_checkpoints: Positive = 2

    @model_validator(mode="after")
    def _divisible(self) -> DistillSettings:
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"accumulation: {self.accumulation} does not divide batch_size {self.batch_size}"
            )
        return self


class EvaluateSettings(Section):
    """Measuring.

    Attributes:
        prompts: Held-out prompts that pictures are made for.
        steps: Denoising steps per picture.
        guidance: The teacher's guidance scale; None takes ``adapter.g_ref``.
        batch_size: Prompts per pipeline call.
        state_prompts: Held-out prompts whose trajectories measure residual guidance.
        grid_prompts: Rows of the picture grid.
    """

    prompts: Positive = 64
    steps: Positive = 25
    guidance: float | None = None
    batch_size: Positive = 1
    state_prompts: Positive = 16
    grid_prompts: Positive = 8


class Settings(Section):
    """Everything a run depends on.

    Attributes:
        run: The run's folder.
        seed: All randomness follows from it.
        threads: CPU threads; None leaves torch's choice.
    """

    run: str
    seed: int = Field(default=0, ge=0)
    threads: Positive | None = None
    pipeline: PipelineSettings
    prompts: PromptSettings = PromptSettings()
    record: RecordSettings = RecordSettings()
    adapter: AdapterSettings = AdapterSettings()
    distill: DistillSettings = DistillSettings()
    evaluate: EvaluateSettings = EvaluateSettings()


# Settings that a resumed run may change: they decide neither what was recorded nor what was learnt.
FREE = {
    "threads",
    "pipeline.device",
    "distill.steps",
    "distill.log_every",
    "distill.validate_every",
    "distill.checkpoint_every",
    "distill.keep_checkpoints",
}


def load_settings(source: str | Path, overrides: list[str] | None = None) -> Settings:
    """Read settings and apply overrides.

    Args:
        source: A TOML file, a run folder, or the name of a preset.
        overrides: ``section.key=value`` pairs; values as in TOML, bare words are text.

    Returns:
        The settings, checked.

    Raises:
        ConfigError: No such file, not TOML, or a field that is unknown or out of range.
    """
    path = find_config(source)
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from error
    origins: dict[str, str] = {}
    for override in overrides or []:
        key = _apply(values, override)
        origins[key] = f"override '{override}'"
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise ConfigError(*_complaint(error, path, text, origins)) from error


def find_config(source: str | Path) -> Path:
    """The TOML file behind a path, a run folder or a preset's name.

    Raises:
        ConfigError: There is none.
    """
    path = Path(source)
    if path.is_dir():
        path = path / "config.toml"
        if not path.exists():
            raise ConfigError(f"{source}: no config.toml in this folder", "Name a run's folder.")
        return path
    if path.is_file():
        return path
    preset = Path(str(files("guidefold") / "configs" / f"{source}.toml"))
    if preset.is_file():
        return preset
    raise ConfigError(
        f"{source}: no such file, run folder or preset", f"Presets: {', '.join(presets())}."
    )


def presets() -> list[str]:
    """Names of the presets that come with Guidefold."""
    folder = Path(str(files("guidefold") / "configs"))
    return sorted(path.stem for path in folder.glob("*.toml"))


def dump_toml(settings: Settings) -> str:
    """Settings as TOML that :func:`load_settings` reads back to equal settings."""
    values = settings.model_dump(mode="json", exclude_none=True)
    head = {k: v for k, v in values.items() if not isinstance(v, dict)}
    lines = [f"{key} = {_toml(value)}" for key, value in head.items()]
    for name, table in values.items():
        if isinstance(table, dict):
            lines += ["", f"[{name}]", *(f"{key} = {_toml(v)}" for key, v in table.items())]
    return "\n".join(lines) + "\n"


def check_same(stored: Settings, given: Settings, run: Path) -> None:
    """Refuse to go on in a run folder with settings that would change what it holds.

    Raises:
        MismatchError: Names each field with both values.
    """
    before, now = _flat(stored.model_dump(mode="json")), _flat(given.model_dump(mode="json"))
    differing = [
        f"{key}: {before.get(key)!r} in {run}, {now.get(key)!r} given"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
        and key not in FREE
        and key != "run"
        and not key.startswith("evaluate.")
    ]
    if differing:
        raise MismatchError(
            f"{run}: begun with other settings\n  " + "\n  ".join(differing),
            "Choose another folder with run=FOLDER, or go on with the settings of this one: "
            f"name {run} itself as the configuration.",
        )


def _apply(values: dict[str, Any], override: str) -> str:
    """Set one override in nested tables; return its dotted key."""
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise ConfigError(f"override '{override}': not key=value", "Example: distill.steps=500")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    table = values
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"override '{override}': '{part}' is not a table")
    table[parts[-1]] = value
    return ".".join(parts)


def _complaint(
    error: ValidationError, path: Path, text: str, origins: dict[str, str]
) -> tuple[str, str]:
    """Turn pydantic's first errors into messages with place, field and value."""
    lines = []
    for detail in error.errors():
        location = [str(part) for part in detail["loc"]]
        key = ".".join(location)
        named = next((k for k in origins if key == k or key.startswith(k + ".")), None)
        line = None if named else _line_of(text, location)
        where = origins[named] if named else f"{path}:{line}" if line else str(path)
        message = detail["msg"].removeprefix("Value error, ")
        unknown = detail["type"] == "extra_forbidden"
        got = "" if detail["type"] == "missing" or unknown else _value(detail["input"])
        lines.append(f"{where}: {key}: {'no such setting' if unknown else message}{got}")
    return "\n".join(lines), "See docs/configuration.md for every setting."


def _value(value: object) -> str:
    return "" if isinstance(value, dict) else f" (got {value!r})"


def _line_of(text: str, location: list[str]) -> int | None:
    """Line of a dotted key in a TOML file, as near as its plain layout tells."""
    table = ""
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if line.startswith("["):
            table = line.strip("[] ")
        key = line.partition("=")[0].strip()
        full = f"{table}.{key}" if table else key
        if "=" in line and full and ".".join(location).startswith(full):
            return number
    return None


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
