"""What a probe found: kept whole, compared field by field, and said in words."""

import json
from dataclasses import replace
from typing import Any

import pytest
from toys import some_findings
from zoo import ZOO

from guidefold.ground.errors import CorruptFileError, MismatchError, UnfoldableError
from guidefold.listen.findings import Findings, describe_findings
from guidefold.listen.output_map import OutputMap


@pytest.fixture
def findings() -> Findings:
    return some_findings()


def said(findings: Findings) -> dict[str, str]:
    """The table of :func:`describe_findings`."""
    lines = describe_findings(findings)
    return {line[:20].rstrip(): line[20:] for line in lines[: lines.index("")]}


# Stored


@pytest.mark.parametrize("name", [name for name in ZOO if name != "sd15_pag"])
def test_what_was_found_of_a_pipeline_survives_json(found: Any, name: str) -> None:
    findings = found(name)
    assert Findings.from_json(json.loads(json.dumps(findings.to_json()))) == findings


def test_several_denoisers_and_part_maps_survive_json(findings: Findings) -> None:
    two = replace(
        findings,
        denoisers=("transformer", "transformer_2"),
        also_off={"pag_scale": 0.0},
        output_map=OutputMap("last", 2, scaled=True),
        layout=None,
    )
    assert Findings.from_json(json.loads(json.dumps(two.to_json()))) == two


@pytest.mark.parametrize("name", ["denoisers", "output_map", "origin", "left_out"])
def test_stored_findings_with_a_missing_field_are_refused_by_name(
    findings: Findings, name: str
) -> None:
    values = findings.to_json()
    del values[name]
    with pytest.raises(CorruptFileError, match=name) as caught:
        Findings.from_json(values)
    assert "Remove probe.json" in caught.value.remedy


def test_stored_findings_with_an_unknown_field_are_refused_by_name(findings: Findings) -> None:
    with pytest.raises(CorruptFileError, match="denoiser_name"):
        Findings.from_json({**findings.to_json(), "denoiser_name": "unet"})


# Compared


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pipeline", "OtherPipeline"),
        ("denoisers", ("unet_2",)),
        ("denoiser_class", "OtherModel"),
        ("prediction_type", "v_prediction"),
        ("output_map", OutputMap("first", 1)),
        ("guidance_argument", "true_cfg_scale"),
        ("off", 0.0),
        ("also_off", {"pag_scale": 0.0}),
        ("origin", 0.0),
        ("fingerprint", "0" * 16),
    ],
)
def test_another_base_is_refused_by_the_field_with_both_values(
    findings: Findings, field: str, value: Any
) -> None:
    other = replace(findings, **{field: value})
    with pytest.raises(MismatchError) as caught:
        findings.check_same_base(other)
    message = caught.value.message
    assert f"{field} is '{getattr(findings, field)}' in the run and '{value}'" in message


def test_the_same_base_under_another_scheduler_is_the_same_base(
    findings: Findings,
) -> None:
    findings.check_same_base(replace(findings, scheduler="EulerDiscreteScheduler"))


# Used


def test_a_single_denoiser_is_named_and_several_are_refused_by_name(findings: Findings) -> None:
    assert findings.denoiser == "unet"
    several = replace(findings, denoisers=("unet", "unet_2"))
    with pytest.raises(UnfoldableError, match=r"SomePipeline: several denoisers \(unet, unet_2\)"):
        _ = several.denoiser


def test_a_call_at_a_scale_is_the_student_s_where_guidance_is_off(findings: Findings) -> None:
    other = replace(findings, also_off={"pag_scale": 0.0})
    assert other.scale_arguments(5.0) == {"guidance_scale": 5.0}
    assert other.scale_arguments(1.0) == {"guidance_scale": 1.0, "pag_scale": 0.0}
    guided = replace(findings, guidance_argument="guider.guidance_scale")
    assert guided.scale_arguments(5.0)["guider.enabled"] is True
    assert guided.scale_arguments(1.0)["guider.enabled"] is False


# Said


def test_what_was_found_is_said_with_what_follows_from_it(findings: Findings) -> None:
    assert describe_findings(findings)[-2:] == [
        "",
        "Its guidance can be folded: 50% of the passes saved.",
    ]
    assert said(findings) == {
        "pipeline": "SomePipeline, SomeScheduler, epsilon",
        "denoiser": "unet (SomeModel), weights 0123456789abcdef",
        "guidance": "guidance_scale, off at 1",
        "passes per step": "2 with guidance, 1 without",
        "dial": "strength 0 = guidance 1, exact",
        "output map": "whole",
        "batches": "yes",
        "LoRA layers": "attention 4, linear 8, all 16",
        "adapter loads with": "diffusers (load_lora_weights), or fused",
    }


@pytest.mark.parametrize(
    ("changes", "row", "text"),
    [
        ({"denoisers": ("a", "b")}, "denoiser", "a and b (SomeModel), weights 0123456789abcdef"),
        ({"off": 0.0}, "guidance", "guidance_scale, off at 0"),
        ({"also_off": {"pag_scale": 0.0}}, "guidance", "guidance_scale, off at 1, pag_scale=0"),
        ({"origin": 0.0}, "dial", "strength 0 = guidance 0, exact"),
        (
            {"linear": False},
            "dial",
            "strength 0 = guidance 1, approximate: the target is not linear in the scale",
        ),
        ({"passes_on": 3.0}, "passes per step", "3 with guidance, 1 without"),
        ({"mixed_lengths": False}, "batches", "in training; recorded one prompt at a time"),
        ({"layout": None}, "batches", "no: recorded and trained one prompt at a time"),
        (
            {"left_out": 3},
            "LoRA layers",
            "attention 4, linear 8, all 16; 3 others cannot be wrapped",
        ),
        (
            {"loader": "peft"},
            "adapter loads with",
            "plain peft (PeftModel.from_pretrained on the denoiser), or fused",
        ),
    ],
)
def test_what_is_otherwise_is_said_in_its_row_alone(
    findings: Findings, changes: dict[str, Any], row: str, text: str
) -> None:
    assert said(replace(findings, **changes)) == {**said(findings), row: text}


def test_the_passes_saved_are_those_of_the_passes_there_were(findings: Findings) -> None:
    assert "67% of the passes saved" in describe_findings(replace(findings, passes_on=3.0))[-1]
