"""The whole road for one pipeline, from its folder to its student in a stock pipeline."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from peft import PeftModel

from guidefold.api import open_run
from guidefold.ground.errors import GuidefoldError, UnfoldableError
from guidefold.listen.call import call_inputs
from guidefold.listen.capture import drive
from guidefold.listen.findings import Findings
from guidefold.listen.memory import EARLIER
from guidefold.listen.probe import probe
from guidefold.lora.adapter import attach
from guidefold.pipeline.denoisers import as_one_module, denoisers
from guidefold.pipeline.open import open_pipeline
from guidefold.pipeline.prompts import load_prompts
from guidefold.record.trajectory_files import StateRef, read_round, state_refs
from guidefold.run.files import read_json, read_lines
from guidefold.run.settings import Settings
from guidefold.run.tensors import read_tensors

from . import REST, WIDE
from .entry import Entry
from .media import write_inputs
from .selection import FACTS, facts_of

PROMPTS = ("a big red cat", "a small blue dog", "an old green house", "a red bird", "a blue boat")
PICTURES = ("cat.png", "dog.png", "frog.png", "cow.png", "owl.png")
STEPS = 3
CLOSE = 0.02  # of how far the adapter moves what the pipeline says


class BrokenVerdictError(AssertionError):
    """A pipeline that the probe found foldable was refused, or failed, at a later stage."""


@dataclass(frozen=True)
class Travelled:
    """What was seen on the road.

    Attributes:
        findings: The probe's.
        facts: The line of ``facts.json`` that the pipeline and the probe give.
        sources: Of the recorded states.
        memory: Whether a recorded state comes with calls that must be made before its own.
        moved: How far the adapter moves the model outputs of a run, at most.
        off_student: How far a stock pipeline that loads the written adapter is from the trained
            student, at most.
    """

    findings: Findings
    facts: dict[str, Any]
    sources: set[str]
    memory: bool
    moved: float
    off_student: float


def travel(entry: Entry, folder: Path) -> Travelled:
    """Fold one pipeline's guidance, and use the result as a client would.

    Raises:
        GuidefoldError: The probe refuses it.
        BrokenVerdictError: A later stage does.
    """
    entry.build().save_pretrained(folder / "pipeline", safe_serialization=True)
    settings = settings_of(entry, folder)
    run = Path(settings.run)
    try:
        with open_run(settings) as opened:
            opened.distill()
            adapter = opened.export()  # reloads what it wrote and compares it with the student
    except GuidefoldError as error:
        if not (run / "probe.json").exists():
            raise
        raise BrokenVerdictError(f"the probe found it foldable, then: {error}") from error
    findings = Findings.from_json(read_json(run / "probe.json"))
    lines = [line for path in run.rglob("manifest.jsonl") for line in read_lines(path)]
    stock = _stock(folder)
    bare = outputs_of(stock, findings, settings)
    ours = student_outputs(stock, findings, settings)
    load_with_libraries(stock, findings, adapter)
    theirs = outputs_of(stock, findings, settings)
    return Travelled(
        findings=findings,
        facts=facts_of(stock, findings),
        sources={line["source"] for line in lines},
        memory=any(EARLIER in ref.read().arguments[1] for ref in _states(run)),
        moved=float((theirs - bare).abs().max()),
        off_student=float((theirs - ours).abs().max()),
    )


def check_road(name: str, folder: Path) -> None:
    """The road's end is what the entry says: an adapter that says in a stock pipeline what it was
    trained to say.
    """
    entry = WIDE[name]
    found = travel(entry, folder)
    findings = found.findings
    assert findings.denoisers == entry.denoisers
    assert findings.guidance_argument == entry.guidance_argument
    assert (findings.passes_on, findings.passes_off) == (entry.passes, 1)
    assert str(findings.output_map) == entry.output_map
    assert found.facts == FACTS[name]
    assert found.sources == set(entry.sources)
    assert found.memory == entry.memory
    assert found.off_student < CLOSE * found.moved


def entries(rooms: str) -> list[str]:
    """The pipelines of some rooms of the wide zoo, by name."""
    return [name for room in REST[rooms] for name in room.ENTRIES]


def settings_of(entry: Entry, folder: Path) -> Settings:
    """A run of a few trajectories and two training steps, from every source of states."""
    columns = {k: f"{v}/" if v == "frames" else v for k, v in entry.inputs.items()}
    rows: list[Mapping[str, Any]]
    if entry.takes_prompt:
        rows = [{"prompt": prompt, **columns} for prompt in PROMPTS]
    else:
        rows = [{**_varied(columns, k), "_row": k} for k in range(len(PROMPTS))]
    left_out = ("output_type",)  # Guidefold's own
    call = {n: v for n, v in entry.call.items() if v is not None and n not in left_out}
    return Settings.model_validate(
        {
            "run": str(folder / "run"),
            "threads": 1,
            "pipeline": {
                "source": str(folder / "pipeline"),
                "device": "cpu",
                "negative_prompt": call.pop("negative_prompt", None),
                "call": call,
            },
            "prompts": {
                "path": str(write_inputs(folder / "inputs.jsonl", rows)),
                "held_out_share": 0.3,
            },
            "record": {
                "rounds": list(entry.sources),
                "trajectories": 1,
                "validation_trajectories": 1,
                "states_per_trajectory": 2,
                "guidance": (3.0, 6.0),
                "steps": (STEPS, STEPS),
            },
            "adapter": {"rank": 2, "g_ref": 5.0},
            "distill": {
                "steps": 3,
                "batch_size": 2,
                "warmup": 0,
                "learning_rate": 0.02,
                "normaliser_states": 4,
                "validate_every": 3,
                "checkpoint_every": 3,
                "preview_prompts": 0,
            },
        }
    )


def _varied(columns: Mapping[str, Any], k: int) -> dict[str, Any]:
    """Rows without words differ in what they hold."""
    return {
        n: [v[0] + k] if isinstance(v, list) and isinstance(v[0], int) else _other(v, k)
        for n, v in columns.items()
    }


def _other(value: Any, k: int) -> Any:
    """Another embedding of the same shape, or another picture."""
    if value in PICTURES:
        return PICTURES[k % len(PICTURES)]
    if isinstance(value, str) and value.endswith(".safetensors"):
        return value.replace(".safetensors", f"-{k}.safetensors")
    return value


def _states(run: Path) -> list[StateRef]:
    """Every recorded state to train on."""
    rounds = [path.parent for path in run.rglob("manifest.jsonl")]
    return [ref for r in rounds for ref in state_refs(r, read_round(r), "training")]


def _stock(folder: Path) -> DiffusionPipeline:
    return open_pipeline(str(folder / "pipeline"))


def load_with_libraries(pipeline: DiffusionPipeline, findings: Findings, folder: Path) -> None:
    """With the libraries' own loaders and nothing of ours."""
    first, *others = findings.denoisers
    if findings.loader == "diffusers":
        pipeline.load_lora_weights(folder)
    else:
        PeftModel.from_pretrained(getattr(pipeline, first), folder)
    for name in others:
        part = getattr(pipeline, name)
        if findings.loader == "diffusers":
            part.load_lora_adapter(
                folder / name, weight_name="pytorch_lora_weights.safetensors", prefix=first
            )
        else:
            PeftModel.from_pretrained(part, folder / name)


def outputs_of(pipeline: DiffusionPipeline, findings: Findings, settings: Settings) -> torch.Tensor:
    """Every model output of the student's call."""
    prompts = load_prompts(settings.prompts.path)
    asked = settings.pipeline
    inputs = {
        **call_inputs(pipeline, prompts[:1], asked.call, asked.negative_prompt),
        **findings.scale_arguments(findings.off),
        "num_inference_steps": STEPS if findings.steps is None else findings.steps.student,
    }
    listened = denoisers(pipeline, findings.denoisers)
    with torch.no_grad():
        return torch.stack([s.model_output for s in drive(pipeline, inputs, [7], listened)])


def student_outputs(
    pipeline: DiffusionPipeline, findings: Findings, settings: Settings
) -> torch.Tensor:
    """The checkpoint's tensors in our own adapter, which is detached again."""
    parts = denoisers(pipeline, findings.denoisers)
    denoiser = as_one_module(parts)
    adapter = attach(
        denoiser,
        settings.adapter.targets,
        settings.adapter.rank,
        0,
        lambda: outputs_of(pipeline, findings, settings),
    )
    (last,) = sorted(Path(settings.run).glob("checkpoints/step-*"))[-1:]
    adapter.load_state_dict(read_tensors(last / "adapter.safetensors"))
    with adapter.student_mode(1.0, train=False):
        outputs = outputs_of(pipeline, findings, settings)
    adapter.detach()
    return outputs


def refusal(entry: Entry, folder: Path) -> tuple[str, str]:
    """The class of a pipeline that cannot be folded, and the probe's reason."""
    pipeline = entry.build()
    settings = settings_of(entry, folder)
    asked, prompts = settings.pipeline, load_prompts(settings.prompts.path)
    rows = [prompt for prompt in prompts[:2] if prompt.columns]
    try:
        probe(pipeline, asked.call, 5.0, asked.negative_prompt, rows=rows)
    except UnfoldableError as error:
        return type(pipeline).__name__, error.message
    raise AssertionError(f"{type(pipeline).__name__} can be folded")
