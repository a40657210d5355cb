"""A ComfyUI workflow that draws teacher and student side by side: one graph, two files."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from guidefold.deliver import LayerNames, comfyui_solver, fits
from guidefold.ground import plural

GAP, WIDTH, HEIGHT = 60, 320, 200


@dataclass(frozen=True)
class Workflow:
    """All values of the workflow.

    Attributes:
        names: The denoiser's layers and configuration.
        base: The base's name.
        encoders: The number of text encoders of the pipeline.
        lora: The LoRA's file name.
        prompt: The prompt.
        negative_prompt: The teacher's negative prompt, which is folded into the student.
        seed: The seed of both pictures.
        steps: The steps of the teacher's picture.
        student_steps: The steps of the student's picture.
        size: Width and height in pixels.
        cfg: The teacher's guidance scale as ComfyUI counts it: 1 is off.
        strength: The adapter's strength that stands for ``cfg``.
        prediction_type: What the denoiser predicts.
        scheduler: The class of the pipeline's scheduler.
        grid: The scheduler's configuration.
        embedded_guidance: The value of guidance that is embedded into the denoiser besides CFG.
        steps_lora: The file name of the steps LoRA beside it; empty without one.
        remarks: Differences between the run's teacher and the workflow.
    """

    names: LayerNames
    base: str
    encoders: int
    lora: str
    prompt: str
    negative_prompt: str
    seed: int
    steps: int
    student_steps: int
    size: tuple[int, int]
    cfg: float
    strength: float
    prediction_type: str
    scheduler: str
    grid: Mapping[str, Any]
    embedded_guidance: float | None = None
    steps_lora: str = ""
    remarks: Sequence[str] = ()


@dataclass(frozen=True)
class Node:
    """A node of the graph.

    Attributes:
        kind: The type in ComfyUI.
        title: The title; empty for ComfyUI's default.
        at: Column and row.
        values: The value of each widget; for each input, a node's number and the index of one of
            its outputs.
    """

    kind: str
    title: str
    at: tuple[int, int]
    values: Mapping[str, Any]

    @property
    def inputs(self) -> Mapping[str, str]:
        """The types of its inputs, by name."""
        types: Mapping[str, str] = facts()["nodes"][self.kind].get("inputs", {})
        return types

    @property
    def widgets(self) -> Sequence[str]:
        """The names of its widgets, in the UI's order."""
        names: Sequence[str] = facts()["nodes"][self.kind].get("widgets", ())
        return names


Graph = Sequence[Node]
"""Nodes in the order in which they run, numbered from 1."""


def graph(workflow: Workflow) -> Graph:
    """The nodes of a comparison: the template ``workflow.json.jinja``, its nodes numbered."""
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = (files("guidefold.show.hub") / "workflow.json.jinja").read_text(encoding="utf-8")
    sampler, scheduler, _ = comfyui_solver(workflow.scheduler, workflow.grid)
    entry = base_entry(workflow.names)
    filled = environment.from_string(template).render(
        workflow=workflow,
        original=bool(workflow.names.original),
        encoder_type=entry.get("type"),
        embedded_guidance_node=entry.get("embedded_guidance"),
        sampler=sampler,
        scheduler=scheduler,
        note=note(workflow),
    )
    described = json.loads(filled)
    numbers = {name: number for number, name in enumerate(described, 1)}
    nodes = []
    for node in described.values():
        # In the template a list is a link, [name of a node, index of its output].
        links = {n: v for n, v in node["values"].items() if isinstance(v, list)}
        values = node["values"] | {n: [numbers[name], slot] for n, (name, slot) in links.items()}
        nodes.append(Node(node["kind"], node["title"], tuple(node["at"]), values))
        assert values.keys() == {*nodes[-1].inputs, *nodes[-1].widgets}, node["kind"]
    return nodes


def to_ui(nodes: Graph) -> dict[str, Any]:
    """The file for ComfyUI's own window.

    Source: docs.comfy.org, Workflow JSON 0.4; a link is ``[number, from node, from output, to node,
    to input, type]``.
    """
    links = [
        [*node.values[name], number, place, kind]
        for number, node in enumerate(nodes, 1)
        for place, (name, kind) in enumerate(node.inputs.items())
    ]
    numbered = [[k, *link] for k, link in enumerate(links, 1)]
    return {
        "last_node_id": len(nodes),
        "last_link_id": len(numbered),
        "nodes": [_ui_node(k, node, numbered) for k, node in enumerate(nodes, 1)],
        "links": numbered,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def to_api(nodes: Graph) -> dict[str, Any]:
    """The graph as ComfyUI's server takes it: without positions and without the UI's own nodes."""
    return {
        str(number): {
            "class_type": node.kind,
            "inputs": {
                name: [str(value[0]), value[1]] if name in node.inputs else value
                for name, value in node.values.items()
                if name != "control_after_generate"
            },
            "_meta": {"title": node.title or node.kind},
        }
        for number, node in enumerate(nodes, 1)
        if node.kind != "Note"
    }


def note(workflow: Workflow) -> str:
    """The text of the workflow's note."""
    sampler, grid, sure = comfyui_solver(workflow.scheduler, workflow.grid)
    loras = filter(None, (workflow.lora, workflow.steps_lora))
    where = "models/checkpoints" if workflow.names.original else "models/diffusion_models"
    lines = [
        f"Above: the teacher at CFG {workflow.cfg:g}, two passes per step. Below: the student at "
        "CFG 1, where ComfyUI leaves the second pass out.",
        f"Choose in the loaders: {workflow.base} ({where}, and what belongs to it). "
        f"Put {' and '.join(loras)} into models/loras.",
        *_settings_lines(workflow),
    ]
    if workflow.negative_prompt:
        lines.append("The negative prompt is folded into the LoRA; at CFG 1 it has no effect.")
    names = f"sampler {sampler}, scheduler {grid}"
    lines.append(
        f"{workflow.scheduler} is {names} here; where it steps may differ a little."
        if sure
        else f"{workflow.scheduler} has no sure name in ComfyUI: {names} stands in for it, and the "
        "pictures are others than in diffusers."
    )
    return "\n\n".join([*lines, *workflow.remarks])


def _settings_lines(workflow: Workflow) -> list[str]:
    """What must be set alike in both samplers, and what the LoRA's strength means."""
    if workflow.steps_lora:
        return [
            f"The LoRAs are for {workflow.student_steps} steps. The first one's strength is the "
            f"dial: {workflow.strength:g} stands for CFG {workflow.cfg:g}, 0 for CFG 1; the second "
            "one's stays 1, and so does the student's CFG. Seed, sampler and scheduler must be the "
            "same in both samplers.",
        ]
    if workflow.student_steps != workflow.steps:
        return [
            f"The LoRA is for {plural(workflow.student_steps, 'step')} at strength "
            f"{workflow.strength:g}, which stands for CFG {workflow.cfg:g}; the student's CFG "
            "stays 1. Seed, sampler and scheduler must be the same in both samplers.",
        ]
    return [
        "Seed, steps, sampler and scheduler must be the same in both samplers.",
        f"The LoRA's strength is the dial: {workflow.strength:g} stands for CFG {workflow.cfg:g}, "
        "0 for CFG 1. The student's CFG stays 1.",
    ]


def base_entry(names: LayerNames) -> Mapping[str, Any]:
    """The entry of ``workflow.toml`` for a transformer; empty for UNets and unknown ones."""
    kind = names.layout.architecture if names.layout else None
    return next((e for e in facts()["transformer"] if e["architecture"] == kind), {})


def known_sizes(names: LayerNames) -> bool:
    """Whether ComfyUI knows a denoiser: a UNet by its sizes, a transformer by its keys."""
    if not names.original:
        return True
    plain = {n: list(v) if isinstance(v, tuple) else v for n, v in names.config.items()}
    return any(fits(entry, plain) for entry in facts()["unet"])


@cache
def facts() -> dict[str, Any]:
    """The tables of ``workflow.toml``."""
    text = (files("guidefold.show.hub") / "workflow.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def _ui_node(number: int, node: Node, links: Sequence[Sequence[Any]]) -> dict[str, Any]:
    column, row = node.at
    outputs = facts()["nodes"][node.kind].get("outputs", ())
    # Both ends of a link name it: see to_ui for its fields.
    incoming = {link[4]: link[0] for link in links if link[3] == number}
    outgoing = [[k[0] for k in links if k[1:3] == [number, slot]] for slot in range(len(outputs))]
    return {
        "id": number,
        "type": node.kind,
        "pos": [column * (WIDTH + GAP), row * (HEIGHT + GAP)],
        "size": [WIDTH, HEIGHT],
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "inputs": [
            {"name": name, "type": kind, "link": incoming[place]}
            for place, (name, kind) in enumerate(node.inputs.items())
        ],
        "outputs": [
            {"name": kind, "type": kind, "links": outgoing[slot], "slot_index": slot}
            for slot, kind in enumerate(outputs)
        ],
        "properties": {"Node name for S&R": node.kind},
        "widgets_values": [node.values[name] for name in node.widgets],
        **({"title": node.title} if node.title else {}),
    }
