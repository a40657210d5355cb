"""The comparison's graph: sound for every kind of base, and honest about what it cannot say."""

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from graphs import CHOICES, SIGNATURES, check, check_api

from guidefold.deliver.comfyui_names import comfyui_solver
from guidefold.deliver.layer_names import LayerNames, Layout, client_facts
from guidefold.show.hub.workflow import Workflow, facts, graph, note, to_api, to_ui

SD = {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768}
UNET = LayerNames(frozenset(["conv_in"]), original={"conv_in": "input_blocks.0.0"}, config=SD)


def transformer(architecture: str, **config: Any) -> LayerNames:
    layout = Layout(architecture, "", frozenset(), {}, {})
    return LayerNames(frozenset(["proj_out"]), layout=layout, config=config)


def compared(names: LayerNames = UNET, **values: Any) -> Workflow:
    asked = Workflow(
        names=names,
        base="base.safetensors",
        encoders=1,
        lora="lora.safetensors",
        prompt="a cat",
        negative_prompt="",
        seed=3,
        steps=20,
        student_steps=20,
        size=(512, 768),
        cfg=7.5,
        strength=1.0,
        prediction_type="epsilon",
        scheduler="DDIMScheduler",
        grid={"timestep_spacing": "leading"},
    )
    return replace(asked, **values)


BASES = {
    "a UNet": compared(),
    "a UNet that predicts v": compared(
        prediction_type="v_prediction", grid={"rescale_betas_zero_snr": True}
    ),
    "three encoders": compared(transformer("stable-diffusion-3"), encoders=3),
    "embedded guidance": compared(transformer("flux-1"), encoders=2, embedded_guidance=3.5),
    "one encoder": compared(transformer("pixart"), encoders=1),
}


@pytest.mark.parametrize("name", BASES)
def test_every_link_joins_like_to_like(name: str) -> None:
    made = graph(BASES[name])
    check(to_ui(made))
    check_api(to_api(made), to_ui(made))


PINNED = {
    "a UNet": "d8840fa20bbc18e1",
    "a UNet that predicts v": "f8be80584ca9977c",
    "three encoders": "29d2b8012082d714",
    "embedded guidance": "944577bee20e866e",
    "one encoder": "c1a2a79e5fb6230c",
}
"""SHA-256 of both files as JSON, from when each node was added by a call of its own; since then the
note says "per step" where it said "a step"."""


@pytest.mark.parametrize("name", BASES)
def test_the_template_gives_the_files_that_code_gave(name: str) -> None:
    made = graph(BASES[name])
    written = json.dumps([to_ui(made), to_api(made)]).encode()
    assert hashlib.sha256(written).hexdigest()[:16] == PINNED[name]


def test_text_of_any_kind_stands_in_the_files_as_it_was() -> None:
    text = "a \"cat\" <b> & 'x' \\ 🐈\n{{ no }} {% if %}"
    queued = to_api(graph(compared(prompt=text, negative_prompt=text, base=text, lora=text)))
    held = [v for node in queued.values() for v in node["inputs"].values() if isinstance(v, str)]
    assert held.count(text) == 3
    assert f"choose: {text}" in held


def test_the_table_of_nodes_is_the_one_in_comfyui_s_sources() -> None:
    known = facts()["nodes"]
    assert known.keys() == SIGNATURES.keys()
    for kind, (inputs, widgets, outputs) in SIGNATURES.items():
        assert list(known[kind].get("inputs", {}).items()) == list(inputs.items())
        assert len(known[kind].get("widgets", [])) == len(widgets)
        assert known[kind].get("outputs", []) == outputs


def test_every_name_of_a_sampler_is_comfyui_s() -> None:
    known = client_facts()
    assert {e["name"] for e in known["sampler"]} <= set(CHOICES["sampler_name"].split())
    assert {e["name"] for e in known["grid"]} == set(CHOICES["scheduler"].split())


def test_teacher_and_student_differ_in_the_lora_and_in_cfg_alone() -> None:
    workflow = to_ui(graph(BASES["a UNet"]))
    nodes = {node["id"]: node for node in workflow["nodes"]}
    teacher, student = (n for n in nodes.values() if n["type"] == "KSampler")
    seed, after, steps, cfg, *rest = teacher["widgets_values"]
    assert student["widgets_values"] == [seed, after, steps, 1.0, *rest]
    assert cfg == 7.5
    sources = {link[0]: link[1:3] for link in workflow["links"]}
    ends = [[sources[i["link"]] for i in n["inputs"]] for n in (teacher, student)]
    assert ends[0][1:] == ends[1][1:]
    models = [nodes[end[0][0]]["type"] for end in ends]
    assert models == ["CheckpointLoaderSimple", "LoraLoaderModelOnly"]


def test_a_student_of_few_steps_takes_its_own_number_of_them_where_it_was_trained_to() -> None:
    few = compared(student_steps=5, grid={"timestep_spacing": "trailing"})
    nodes = to_api(graph(few)).values()
    teacher, student = (n["inputs"] for n in nodes if n["class_type"] == "KSampler")
    assert (teacher["steps"], student["steps"]) == (20, 5)
    for sampler in (teacher, student):
        assert (sampler["sampler_name"], sampler["scheduler"]) == ("ddim", "simple")
    assert (teacher["cfg"], student["cfg"]) == (7.5, 1.0)
    assert "The LoRA is for 5 steps at strength 1" in note(few)


def test_a_unet_that_predicts_v_is_told_so_before_both_samplers() -> None:
    nodes = check(to_ui(graph(BASES["a UNet that predicts v"])))
    (told,) = (node for node in nodes.values() if node["type"] == "ModelSamplingDiscrete")
    assert told["widgets_values"] == ["v_prediction", True]
    assert len(told["outputs"][0]["links"]) == 2


def test_a_solver_without_a_sure_name_is_said_to_be_another() -> None:
    assert comfyui_solver("PNDMScheduler", {}) == ("euler", "normal", False)
    assert "no sure name" in note(compared(scheduler="PNDMScheduler"))
    assert "no sure name" not in note(compared())
    multistep = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}
    kind = "DPMSolverMultistepScheduler"
    karras = {**multistep, "use_karras_sigmas": True, "timestep_spacing": "linspace"}
    assert comfyui_solver(kind, karras) == ("dpmpp_2m", "karras", True)
    assert comfyui_solver(kind, {**multistep, "solver_order": 3})[2] is False


def test_the_note_says_what_to_set_and_what_is_not_carried_over() -> None:
    said = note(compared(negative_prompt="blurry", strength=0.5, remarks=["And more."]))
    for words in ("CFG 7.5", "CFG 1", "base.safetensors", "lora.safetensors", "0.5 stands for"):
        assert words in said
    assert "negative prompt is folded" in said
    assert said.endswith("And more.")
