"""What a card says of itself to the hub, and the code it gives, for every kind of base."""

import ast
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from diffusers import DDIMScheduler, PNDMScheduler
from markdown_it import MarkdownIt

from guidefold.listen.findings import Findings
from guidefold.pipeline.noise_schedule import set_schedule
from guidefold.pipeline.prompts import Prompt
from guidefold.run.paths import hub_id, public_name, without_paths
from guidefold.run.settings import Settings
from guidefold.show.hub.card import front_matter, pipeline_tag, plain
from guidefold.show.hub.card_code import code, opening_lines

Found = Callable[[str], Findings]


def session(
    findings: Findings, source: str = "owner/base", prompt: str = "a cat", **more: Any
) -> Any:
    """As much of a session as code is written from."""
    pipeline = {"source": source, "dtype": "bf16", "call": {"width": 64, "style": 'a "b"'}, **more}
    settings = Settings.model_validate({"run": "runs/mine", "pipeline": pipeline})
    held_out = [Prompt(prompt, "prompt")]
    pipeline = SimpleNamespace(
        scheduler=DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    )
    return SimpleNamespace(
        settings=settings, findings=findings, held_out=held_out, pipeline=pipeline
    )


def calls(text: str) -> dict[str, ast.Call]:
    """Every call in the code by what is called."""
    found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    return {ast.unparse(call.func): call for call in found}


def test_the_base_is_named_where_the_hub_has_it(found: Found) -> None:
    front = front_matter(found("sd15"), "owner/base", {"license": "mit"}, None, [])
    assert front["base_model"] == "owner/base"
    assert front["base_model_relation"] == "adapter"
    none = front_matter(found("sd15"), None, {}, None, [])
    assert not none["base_model"]
    assert not none["base_model_relation"]
    assert front_matter(found("pixart"), None, {}, None, [])["library_name"] == "peft"


def test_a_task_is_named_only_where_diffusers_lists_the_pipeline() -> None:
    assert pipeline_tag("StableDiffusionPipeline") == "text-to-image"
    assert pipeline_tag("StableDiffusionImg2ImgPipeline") == "image-to-image"
    assert pipeline_tag("WanPipeline") == "text-to-video"
    assert pipeline_tag("NobodysPipeline") is None


@pytest.mark.parametrize(
    "text", ["a *b* _c_ `d`", "[a](b)", "x | y", "<b>&amp;</b>", "$x$ # ~~y~~"]
)
def test_text_is_shown_as_it_is(text: str) -> None:
    shown = MarkdownIt("gfm-like", {"linkify": False}).renderInline(plain(text))
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert shown == escaped


def test_code_opens_the_base_from_where_it_is(found: Found, tmp_path: Path) -> None:
    findings = found("sd15")
    (opened,) = calls(code(session(findings), images=True))[
        "DiffusionPipeline.from_pretrained"
    ].args
    assert ast.literal_eval(opened) == "owner/base"
    file = tmp_path / "base.safetensors"
    text = code(session(findings, str(file)), images=True)
    assert 'StableDiffusionPipeline.from_single_file("base.safetensors", dtype=torch.bfloat16)' in (
        text
    )
    assert str(tmp_path) not in text
    bundled = code(session(findings, "bundled"), images=True)
    assert "api.open_pipeline" in calls(bundled)


def test_code_opens_a_single_file_with_the_run_s_configuration_and_prediction_type(
    found: Found, tmp_path: Path
) -> None:
    file, config = str(tmp_path / "base.safetensors"), str(tmp_path / "v-config")
    made = calls(code(session(found("sd15"), file, config=config), images=True))
    opened = made["StableDiffusionPipeline.from_single_file"]
    words = {k.arg: ast.unparse(k.value) for k in opened.keywords}
    assert words["config"] == "'v-config'"
    (scheduler,) = (call for name, call in made.items() if name.endswith(".from_config"))
    values = {k.arg: ast.literal_eval(k.value) for k in scheduler.keywords}
    assert (values["prediction_type"], values["rescale_betas_zero_snr"]) == ("v_prediction", True)


@pytest.mark.parametrize(
    "described",
    [
        {"prediction_type": "v_prediction"},
        {"prediction_type": "v_prediction", "zero_terminal_snr": True},
        {"zero_terminal_snr": False},
    ],
)
@pytest.mark.parametrize("source", ["owner/base", "base.safetensors", "bundled"])
def test_code_makes_the_scheduler_that_the_run_s_settings_made(
    found: Found, tmp_path: Path, source: str, described: dict[str, Any]
) -> None:
    source = str(tmp_path / source) if source.endswith(".safetensors") else source
    zero = bool(described.get("zero_terminal_snr"))
    predicts = described.get("prediction_type", "epsilon")
    findings = replace(found("sd15"), prediction_type=predicts, zero_terminal_snr=zero)
    base = DDIMScheduler(timestep_spacing="leading")
    ours = set_schedule(base, predicts, described.get("zero_terminal_snr"))
    session_of = session(findings, source, **described)
    session_of.pipeline.scheduler = ours
    unopened = opening_lines(session_of.settings, findings)
    for text in (code(session_of, images=True), "\n".join(unopened)):
        (made,) = (call for name, call in calls(text).items() if name.endswith(".from_config"))
        words = {k.arg: ast.literal_eval(k.value) for k in made.keywords}
        theirs = DDIMScheduler.from_config(base.config, **words)
        for field in ("prediction_type", "rescale_betas_zero_snr", "timestep_spacing"):
            assert theirs.config[field] == ours.config[field]


@pytest.mark.parametrize("source", ["owner/base", "base.safetensors", "bundled"])
def test_code_makes_a_scheduler_of_the_class_that_the_run_s_settings_name(
    found: Found, source: str
) -> None:
    base = PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    session_of = session(found("sd15"), source, scheduler="DDIMScheduler")
    ours = session_of.pipeline.scheduler = set_schedule(base, None, None, "DDIMScheduler")
    text = code(session_of, images=True)
    made = calls(text)["DDIMScheduler"]
    words = {k.arg: ast.literal_eval(k.value) for k in made.keywords}
    assert words["clip_sample"] is False
    assert dict(DDIMScheduler(**words).config) | {"_use_default_values": 0} == dict(ours.config) | {
        "_use_default_values": 0
    }
    (imported,) = (
        line for line in text.splitlines() if "DDIMScheduler" in line and "import" in line
    )
    assert imported.startswith("from diffusers import DDIMScheduler")
    unopened = "\n".join(opening_lines(session_of.settings, found("sd15")))
    (named,) = (k for k in calls(unopened)["api.open_pipeline"].keywords if k.arg == "scheduler")
    assert ast.literal_eval(named.value) == "DDIMScheduler"


def test_the_page_s_code_opens_a_base_as_the_run_did_and_names_no_folder_of_this_machine(
    found: Found, tmp_path: Path
) -> None:
    described = {"scheduler": "DDIMScheduler", "dtype": "bf16", "config": str(tmp_path / "folder")}
    (tmp_path / "folder").mkdir()
    settings = session(found("sd15"), str(tmp_path / "base.safetensors"), **described).settings
    lines = "\n".join(opening_lines(settings, found("sd15")))
    opened = calls(lines)["api.open_pipeline"]
    given = {k.arg: ast.unparse(k.value).strip("'") for k in opened.keywords}
    wanted = {"config": "folder", "scheduler": "DDIMScheduler", "dtype": "torch.bfloat16"}
    assert given == wanted and str(tmp_path) not in lines


def test_code_leaves_a_base_s_own_scheduler_alone(found: Found) -> None:
    assert "scheduler" not in code(session(found("sd15")), images=True)


def test_code_gives_what_the_run_was_called_with(found: Found) -> None:
    prompt = 'say "hi"\n\\ ```'
    call = calls(code(session(found("sd15"), prompt=prompt), images=True))["pipeline"]
    assert ast.literal_eval(call.args[0]) == prompt
    values = {k.arg: k.value for k in call.keywords}
    assert ast.literal_eval(values["guidance_scale"]) == 1.0
    assert ast.literal_eval(values["style"]) == 'a "b"'
    assert ast.literal_eval(values["num_inference_steps"]) == 25


def test_code_loads_every_denoiser_s_adapter(found: Found) -> None:
    two = replace(found("sd3"), denoisers=("transformer", "transformer_2"))
    made = calls(code(session(two), images=False))
    assert {"pipeline.load_lora_weights", "pipeline.transformer_2.load_lora_adapter"} <= made.keys()
    words = {
        k.arg: ast.literal_eval(k.value)
        for k in made["pipeline.transformer_2.load_lora_adapter"].keywords
    }
    file = "transformer_2/pytorch_lora_weights.safetensors"
    assert (words["weight_name"], words["prefix"]) == (file, "transformer")
    plain_peft = calls(code(session(found("pixart")), images=True))
    assert "PeftModel.from_pretrained" in plain_peft


def test_of_a_path_only_its_last_part_is_published(tmp_path: Path) -> None:
    for source, wanted in (
        (str(tmp_path / "base"), "base"),
        ("owner/base", "owner/base"),
        ("./base", "base"),
        ("bundled", "bundled"),
        (None, None),
    ):
        assert public_name(source) == wanted
    assert hub_id("owner/base") == "owner/base"
    assert hub_id("bundled") is None
    assert hub_id(str(tmp_path)) is None
    asked = {"run": str(tmp_path / "run"), "pipeline": {"source": str(tmp_path / "base")}}
    shown = without_paths(Settings.model_validate(asked))
    assert (shown.run, shown.pipeline.source) == ("run", "base")
    assert shown.prompts.path == "general"
