"""A ComfyUI workflow that draws teacher and student side by side: one graph, two files."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from guidefold.deliver.layer_names import LayerNames

DEFAULT = ("euler", "normal")
"""Of a solver without a sure name in ComfyUI."""
CHOOSE = "choose: "
GAP, WIDTH, HEIGHT = 60, 320, 200


@dataclass(frozen=True)
class Comparison:
    """What the workflow draws.

    Attributes:
        names: The denoiser's layers and configuration.
        base: The base, for people.
        encoders: How many text encoders its pipeline has.
        lora: The LoRA's file name.
        prompt: A prompt.
        negative_prompt: The teacher's; folded into the student.
        seed: Of both pictures.
        steps: Of both pictures.
        size: Width and height in pixels.
        cfg: The teacher's, as ComfyUI counts it: 1 is off.
        strength: The adapter's that stands for it.
        prediction_type: What the denoiser predicts.
        scheduler: The class of the pipeline's scheduler.
        grid: That scheduler's configuration.
        embedded_guidance: Where guidance is also embedded into the denoiser: to what.
        remarks: What the teacher does that the workflow does not.
    """

    names: LayerNames
    base: str
    encoders: int
    lora: str
    prompt: str
    negative_prompt: str
    seed: int
    steps: int
    size: tuple[int, int]
    cfg: float
    strength: float
    prediction_type: str
    scheduler: str
    grid: Mapping[str, Any]
    embedded_guidance: float | None = None
    remarks: Sequence[str] = ()


@dataclass(frozen=True)
class Socket:
    """An output of a node: the node's number, and the output's place."""

    node: int
    slot: int = 0


@dataclass(frozen=True)
class Node:
    """A node of the graph.

    Attributes:
        kind: Its type in ComfyUI.
        title: What stands over it; empty for ComfyUI's own word.
        place: Column and row.
        joined: Where each input comes from.
        written: What each widget holds.
    """

    kind: str
    title: str
    place: tuple[int, int]
    joined: Mapping[str, Socket]
    written: Mapping[str, Any]

    @property
    def about(self) -> Mapping[str, Any]:
        """``inputs``, ``widgets`` and ``outputs`` of its type."""
        known: Mapping[str, Any] = facts()["nodes"][self.kind]
        return known


@dataclass(frozen=True)
class Graph:
    """Nodes in the order in which they run, numbered from 1."""

    nodes: list[Node] = field(default_factory=list)

    def add(
        self, kind: str, title: str, column: int, row: int, /, **values: Socket | str | float | bool
    ) -> Socket:
        """Add a node, every input and widget by its name; returns its first output."""
        joined = {n: v for n, v in values.items() if isinstance(v, Socket)}
        written = {n: v for n, v in values.items() if not isinstance(v, Socket)}
        node = Node(kind, title, (column, row), joined, written)
        assert joined.keys() == node.about.get("inputs", {}).keys(), kind
        assert written.keys() == set(node.about.get("widgets", ())), kind
        self.nodes.append(node)
        return Socket(len(self.nodes))


def graph(asked: Comparison) -> Graph:
    """The nodes of a comparison: loaders, LoRA, two samplers, two pictures, a note."""
    made = Graph()
    model, clip, vae = _loaders(made, asked)
    if asked.names.original and asked.prediction_type == "v_prediction":
        zsnr = bool(asked.grid.get("rescale_betas_zero_snr"))
        model = made.add(
            "ModelSamplingDiscrete", "", 1, 0, model=model, sampling="v_prediction", zsnr=zsnr
        )
    strength = round(asked.strength, 4)
    student = made.add(
        "LoraLoaderModelOnly",
        "the student's LoRA",
        1,
        1,
        model=model,
        lora_name=asked.lora,
        strength_model=strength,
    )
    positive = made.add("CLIPTextEncode", "prompt", 2, 0, clip=clip, text=asked.prompt)
    negative = made.add(
        "CLIPTextEncode",
        "the teacher's negative prompt",
        2,
        1,
        clip=clip,
        text=asked.negative_prompt,
    )
    embeds = base_entry(asked.names).get("embedded_guidance")
    if embeds and asked.embedded_guidance is not None:
        value = asked.embedded_guidance
        positive = made.add(embeds, "", 2, 2, conditioning=positive, guidance=value)
        negative = made.add(embeds, "", 2, 3, conditioning=negative, guidance=value)
    width, height = asked.size
    latent = made.add("EmptyLatentImage", "", 1, 2, width=width, height=height, batch_size=1)
    sampler, grid, _ = solver(asked.scheduler, asked.grid)
    rows = (("teacher", model, asked.cfg), ("student", student, 1.0))
    for row, (who, denoiser, cfg) in enumerate(rows):
        drawn = made.add(
            "KSampler",
            who,
            3,
            row,
            model=denoiser,
            positive=positive,
            negative=negative,
            latent_image=latent,
            seed=asked.seed,
            control_after_generate="fixed",
            steps=asked.steps,
            cfg=cfg,
            sampler_name=sampler,
            scheduler=grid,
            denoise=1.0,
        )
        picture = made.add("VAEDecode", "", 4, row, samples=drawn, vae=vae)
        prefix = f"guidefold/{who}"
        made.add("SaveImage", who, 5, row, images=picture, filename_prefix=prefix)
    made.add("Note", "What to set", 0, 3, text=note(asked))
    return made


def to_ui(made: Graph) -> dict[str, Any]:
    """The file that one drags into ComfyUI.

    Source: docs.comfy.org, Workflow JSON 0.4; a link is ``[number, from node, from output, to node,
    to input, type]``.
    """
    links = [
        [source.node, source.slot, number, place, kind]
        for number, node in enumerate(made.nodes, 1)
        for place, (name, kind) in enumerate(node.about.get("inputs", {}).items())
        for source in [node.joined[name]]
    ]
    numbered = [[k, *link] for k, link in enumerate(links, 1)]
    return {
        "last_node_id": len(made.nodes),
        "last_link_id": len(numbered),
        "nodes": [_ui_node(k, node, numbered) for k, node in enumerate(made.nodes, 1)],
        "links": numbered,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def to_api(made: Graph) -> dict[str, Any]:
    """The same for ComfyUI's server: what is queued, without places or the UI's own nodes."""
    return {
        str(number): {
            "class_type": node.kind,
            "inputs": {n: v for n, v in node.written.items() if n != "control_after_generate"}
            | {name: [str(source.node), source.slot] for name, source in node.joined.items()},
            "_meta": {"title": node.title or node.kind},
        }
        for number, node in enumerate(made.nodes, 1)
        if node.kind != "Note"
    }


def note(asked: Comparison) -> str:
    """What the workflow's note says."""
    sampler, grid, sure = solver(asked.scheduler, asked.grid)
    where = "models/checkpoints" if asked.names.original else "models/diffusion_models"
    lines = [
        f"Above: the teacher at CFG {asked.cfg:g}, two passes a step. Below: the student at CFG 1, "
        "where ComfyUI leaves the second pass out.",
        f"Choose in the loaders: {asked.base} ({where}, and what belongs to it). "
        f"Put {asked.lora} into models/loras.",
        "Seed, steps, sampler and scheduler must be the same in both samplers.",
        f"The LoRA's strength is the dial: {asked.strength:g} stands for CFG {asked.cfg:g}, "
        "0 for CFG 1. The student's CFG stays 1.",
    ]
    if asked.negative_prompt:
        lines.append("The negative prompt is folded into the LoRA; at CFG 1 nobody reads it.")
    said = f"sampler {sampler}, scheduler {grid}"
    lines.append(
        f"{asked.scheduler} is {said} here; where it steps may differ a little."
        if sure
        else f"{asked.scheduler} has no sure name in ComfyUI: {said} stands in for it, and the "
        "pictures are others than in diffusers."
    )
    if asked.names.original and not _known_sizes(asked.names):
        lines.append(
            "ComfyUI knows a UNet by its sizes, and this one has those of no released model: it "
            "may refuse the checkpoint."
        )
    return "\n\n".join([*lines, *asked.remarks])


def solver(scheduler: str, config: Mapping[str, Any]) -> tuple[str, str, bool]:
    """ComfyUI's sampler and scheduler for a scheduler of diffusers.

    Returns:
        ``(sampler, scheduler, whether the solver is surely the same)``.
    """
    for entry in facts()["sampler"]:
        if entry["class"] == scheduler and _fits(entry.get("when", {}), config):
            grid = next(e["name"] for e in facts()["grid"] if _fits(e["when"], config))
            return entry["name"], grid, True
    return *DEFAULT, False


def base_entry(names: LayerNames) -> Mapping[str, Any]:
    """What is known of a transformer's kind; empty of UNets, and where nothing is."""
    kind = names.layout.architecture if names.layout else None
    found = [entry for entry in facts()["transformer"] if entry["architecture"] == kind]
    return found[0] if found else {}


@cache
def facts() -> dict[str, Any]:
    """The tables of ``workflow.toml``."""
    return tomllib.loads((files("guidefold") / "workflow.toml").read_text(encoding="utf-8"))


def _loaders(made: Graph, asked: Comparison) -> tuple[Socket, Socket, Socket]:
    """The nodes that load the base: model, text encoders, autoencoder."""
    wanted = f"{CHOOSE}{asked.base}"
    if asked.names.original:
        first = made.add("CheckpointLoaderSimple", "the base", 0, 0, ckpt_name=wanted)
        return first, Socket(first.node, 1), Socket(first.node, 2)
    model = made.add("UNETLoader", "the base", 0, 0, unet_name=wanted, weight_dtype="default")
    count = asked.encoders
    kind = {1: "CLIPLoader", 2: "DualCLIPLoader", 3: "TripleCLIPLoader"}[count]
    names = ["clip_name"] if count == 1 else [f"clip_name{k + 1}" for k in range(count)]
    said = {name: f"{CHOOSE}text encoder {k}" for k, name in enumerate(names, 1)}
    if "type" in facts()["nodes"][kind]["widgets"]:
        said["type"] = base_entry(asked.names)["type"]
    clip = made.add(kind, "its text encoders", 0, 1, **said)
    return model, clip, made.add("VAELoader", "its VAE", 0, 2, vae_name=f"{CHOOSE}its VAE")


def _ui_node(number: int, node: Node, links: Sequence[Sequence[Any]]) -> dict[str, Any]:
    column, row = node.place
    into = {link[4]: link[0] for link in links if link[3] == number}
    outputs = list(node.about.get("outputs", ()))
    outof = [[k[0] for k in links if k[1:3] == [number, slot]] for slot in range(len(outputs))]
    return {
        "id": number,
        "type": node.kind,
        "pos": [column * (WIDTH + GAP), row * (HEIGHT + GAP)],
        "size": [WIDTH, HEIGHT],
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "inputs": [
            {"name": name, "type": kind, "link": into[place]}
            for place, (name, kind) in enumerate(node.about.get("inputs", {}).items())
        ],
        "outputs": [
            {"name": kind, "type": kind, "links": outof[slot], "slot_index": slot}
            for slot, kind in enumerate(outputs)
        ],
        "properties": {"Node name for S&R": node.kind},
        "widgets_values": [node.written[name] for name in node.about.get("widgets", ())],
        **({"title": node.title} if node.title else {}),
    }


def _known_sizes(names: LayerNames) -> bool:
    plain = {n: list(v) if isinstance(v, tuple) else v for n, v in names.config.items()}
    return any(_fits(entry, plain) for entry in facts()["unet"])


def _fits(wanted: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    return all(config.get(name) == value for name, value in wanted.items())
