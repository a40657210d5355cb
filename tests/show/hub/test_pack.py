"""A packed run: whole at every stage, true to the run, silent about the machine."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from graphs import check, check_api
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from pages import HOSTILE
from PIL import Image, ImageChops

from guidefold.deliver.export import export
from guidefold.ground.errors import CorruptFileError, InputError, RunError
from guidefold.judge.evaluate import evaluate
from guidefold.run.files import append_line, check_folder, read_json, write_record
from guidefold.run.folder import RunFolder
from guidefold.run.lines import ResumeLine
from guidefold.run.records import Results
from guidefold.run.settings import KINDS, Settings
from guidefold.run.tensors import read_metadata
from guidefold.session import open_session
from guidefold.show.hub.card import PackedContent, card
from guidefold.show.hub.pack import pack, packed_as, stamp
from guidefold.show.hub.workflow import facts
from guidefold.train.distill import distill

MEASURED = "sd15"
FAMILIES = (MEASURED, "sdxl", "sd3")
LOADERS = {
    "sd15": ["CheckpointLoaderSimple"],
    "sdxl": ["CheckpointLoaderSimple"],
    "sd3": ["TripleCLIPLoader", "UNETLoader", "VAELoader"],
}
Run = tuple[Settings, tuple[str, ...]]


@pytest.fixture(scope="module")
def packed(settings_for: Any, tmp_path_factory: Any) -> Callable[[str], Run]:
    """A tiny run, packed once; one of them is measured before."""
    made: dict[str, Run] = {}

    def make(name: str) -> Run:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            settings = settings_for(name, folder, distill={"preview_prompts": 0})
            distill(settings)
            export(settings)
            if name == MEASURED:
                evaluate(settings)
            with pytest.MonkeyPatch.context() as patch:
                # The tiny UNets have the sizes of no released model, by which ComfyUI knows them.
                patch.setitem(facts(), "unet", [{}])
                made[name] = settings, pack(settings, licence="openrail").remarks
        return made[name]

    return make


def hub(run: Run) -> Path:
    return Path(run[0].run) / "hub"


def read_card(folder: Path) -> ModelCard:
    return ModelCard.load(folder / "README.md")


# What lies there


def test_an_adapter_that_folds_too_little_is_published_with_a_warning(
    packed: Callable[[str], Run],
) -> None:
    for run in map(packed, (MEASURED, "sd3")):  # measured, and validated alone
        (remark,) = [remark for remark in run[1] if remark.startswith("The card warns: Only ")]
        assert "is folded: train longer, for example with distill.steps=" in remark
        assert "of the guidance is folded" in read_card(hub(run)).text


@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_holds_all_that_a_repository_needs(
    packed: Callable[[str], Run], name: str
) -> None:
    run = packed(name)
    folder = hub(run)
    check_folder(folder)
    kind = "transformer" if name == "sd3" else "kohya"
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    pictures = {f"images/{k}-{kind}.png" for k in range(2) for kind in KINDS}
    assert files == {
        "README.md",
        "MANIFEST.json",
        "guidefold.json",
        "pytorch_lora_weights.safetensors",
        "comfyui-workflow.json",
        "comfyui-workflow-api.json",
        f"{kind}/run.safetensors",
        f"{kind}/MANIFEST.json",
        *(pictures if name == MEASURED else ()),
    }
    own = (Path(run[0].run) / "adapter" / "pytorch_lora_weights.safetensors").read_bytes()
    assert (folder / "pytorch_lora_weights.safetensors").read_bytes() == own


def test_a_base_that_comfyui_cannot_load_has_no_workflow(
    packed: Callable[[str], Run], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    pack(packed("sdxl")[0], out, "openrail")
    assert not list(out.glob("comfyui-workflow*.json"))
    text = read_card(out).text
    assert "drag it into its window" not in text
    assert "sizes, and this one has those of no released model" in text


def test_the_card_names_the_clients_that_read_a_file_in_part(packed: Callable[[str], Run]) -> None:
    text = read_card(hub(packed("sdxl"))).text
    assert "- diffusers before 0.39, of kohya/run.safetensors: refuses the file." in text
    assert "--layers portable" in text


@pytest.mark.parametrize("name", FAMILIES)
def test_the_workflow_is_sound(packed: Callable[[str], Run], name: str) -> None:
    folder = hub(packed(name))
    workflow = read_json(folder / "comfyui-workflow.json")
    nodes = check(workflow)
    check_api(read_json(folder / "comfyui-workflow-api.json"), workflow)
    kinds = sorted(n["type"] for n in nodes.values() if "Loader" in n["type"])
    assert kinds == sorted([*LOADERS[name], "LoraLoaderModelOnly"])
    (lora,) = (n for n in nodes.values() if n["type"] == "LoraLoaderModelOnly")
    assert lora["widgets_values"] == ["run.safetensors", 1.0]
    samplers = [n["widgets_values"] for n in nodes.values() if n["type"] == "KSampler"]
    assert [values[3] for values in samplers] == [5.0, 1.0]


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_names_the_machine(packed: Callable[[str], Run], name: str) -> None:
    run = packed(name)
    places = [run[0].run, run[0].pipeline.source, run[0].prompts.path]
    for path in hub(run).rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        assert not any(str(Path(place).parent).encode() in data for place in places), path
    file = hub(run) / "pytorch_lora_weights.safetensors"
    assert read_metadata(file)["base"] == Path(run[0].pipeline.source).name


# The card


@pytest.mark.parametrize("name", FAMILIES)
def test_the_front_matter_is_the_hub_s(packed: Callable[[str], Run], name: str) -> None:
    said = read_card(hub(packed(name))).data.to_dict()
    widget = said.pop("widget", [])
    assert said == {
        "library_name": "diffusers",
        "license": "openrail",
        "pipeline_tag": "text-to-image",
        "tags": ["lora", "guidance-distillation", "classifier-free-guidance", "guidefold"],
    }
    assert [row["output"]["url"] for row in widget] == (
        ["images/0-student.png", "images/1-student.png"] if name == MEASURED else []
    )


def test_a_measured_run_shows_its_table_and_the_first_pictures(
    packed: Callable[[str], Run],
) -> None:
    run = packed(MEASURED)
    text = read_card(hub(run)).text
    index = read_json(Path(run[0].run) / "evaluation" / "index.json")
    results = read_json(Path(run[0].run) / "results.json")
    for k, entry in enumerate(index["pictures"]):
        for kind in KINDS:
            kept = Path(run[0].run) / "evaluation" / entry["files"][kind]
            assert (hub(run) / f"images/{k}-{kind}.png").read_bytes() == kept.read_bytes()
    assert "<Gallery />" in text
    passes = f"{results['teacher']['passes_per_image']:g}"
    assert f"| CFG teacher | {passes} | 1.00 |" in text
    assert f"is {results['residual_guidance']['teacher_states']['mean']:.2f} at" in text
    assert not any("not measured" in remark for remark in run[1])


def test_an_unmeasured_run_says_how_to_measure_it(packed: Callable[[str], Run]) -> None:
    run = packed("sdxl")
    text = read_card(hub(run)).text
    assert "Gallery" not in text
    assert "`guidefold evaluate RUN` measures it" in text
    assert any("is not measured yet" in remark for remark in run[1])


def test_the_card_names_the_settings_that_were_changed_on_the_way(
    packed: Callable[[str], Run], tmp_path: Path
) -> None:
    settings = packed("sdxl")[0]
    assert "changed on the way" not in read_card(hub(packed("sdxl"))).text
    run = RunFolder(shutil.copytree(settings.run, tmp_path / "run"))
    changed = {"distill.learning_rate": (0.01, 0.02), "pipeline.source": ("/home/me/a", "b")}
    append_line(run.log, ResumeLine(step=1, changed=changed).to_json())
    pack(settings.model_copy(update={"run": str(run)}), tmp_path / "out", "openrail")
    text = (tmp_path / "out" / "README.md").read_text()
    shown = "from step 1 on distill.learning\\_rate = 0.02, until there 0.01."
    assert f"They were changed on the way: {shown}" in text
    assert "/home/me" not in text


def test_the_clients_are_those_that_read_the_file_whole(packed: Callable[[str], Run]) -> None:
    named = {
        name: re.findall(
            r"^\| (\S.*?) \| \w+/run\.safetensors", read_card(hub(packed(name))).text, re.M
        )
        for name in FAMILIES
    }
    unets = ["ComfyUI", "Forge", "AUTOMATIC1111", "InvokeAI, UNets"]
    assert named == {"sd15": unets, "sdxl": unets, "sd3": ["ComfyUI"]}


def test_the_code_in_the_card_draws_the_student_s_picture(
    packed: Callable[[str], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = packed(MEASURED)
    (code,) = re.findall(r"```python\n(.*?)```", read_card(hub(run)).text, re.S)
    (tmp_path / "OWNER").mkdir()
    (tmp_path / "OWNER" / "NAME").symlink_to(hub(run).resolve())
    (tmp_path / "pipeline").symlink_to(run[0].pipeline.source)
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(compile(code, "the card", "exec"), found)
    with Image.open(hub(run) / "images" / "0-student.png") as wanted:
        apart = ImageChops.difference(found["picture"].convert("RGB"), wanted.convert("RGB"))
    assert max(high for _, high in apart.getextrema()) <= 1


NASTY = (
    HOSTILE,
    "---\nlicense: mit\n---\n# a heading",
    "```\n~~~ | a | cell | <Gallery /> <!-- ",
    "[a](javascript:alert(1)) ![b](http://evil.example/x) <http://evil.example> www.evil.example",
    "{% raw %} {{ about }} $x$ **bold** `code` @somebody :smile: </details> &lt;b&gt;",
)


@pytest.mark.parametrize("text", NASTY)
def test_no_text_of_a_user_s_becomes_markup(packed: Callable[[str], Run], text: str) -> None:
    settings = packed(MEASURED)[0]
    about = read_json(Path(settings.run) / "adapter" / "guidefold.json")
    row = {"prompt": text, "seed": 1, **{kind: f"images/0-{kind}.png" for kind in KINDS}}
    results = Results.read(RunFolder(settings.run).results)

    def made(said: str) -> ModelCard:
        held = PackedContent(
            {**about, "negative_prompt": said}, {"license": "mit"}, results, 1,
            [{**row, "prompt": said}], (), f"no {said}", f"no {said}",
        )  # fmt: skip
        with open_session(settings) as session:
            return ModelCard(card(session, held))

    hostile, plain = made(text), made("a plain cat")
    assert hostile.data.to_dict().keys() == plain.data.to_dict().keys()
    assert hostile.data.to_dict()["widget"][0]["text"] == " ".join(text.split())
    tags = [
        re.findall(r"<[^>]*>", MarkdownIt("gfm-like", {"linkify": False}).render(c.text))
        for c in (hostile, plain)
    ]
    assert tags[0] == tags[1]
    assert "www.evil" not in hostile.text


# Refusals


def test_an_edited_card_and_a_stranger_s_folder_are_not_lost(
    packed: Callable[[str], Run], tmp_path: Path
) -> None:
    settings = packed("sdxl")[0]
    (tmp_path / "mine").write_text("a thesis")
    with pytest.raises(InputError, match="something else"):
        pack(settings, tmp_path)
    assert (tmp_path / "mine").read_text() == "a thesis"
    out = tmp_path / "out"
    pack(settings, out, "openrail")
    assert packed_as(out)["license"] == "openrail"
    pack(settings, out)
    assert read_card(out).data.license == "openrail"
    with (out / "README.md").open("a") as file:
        file.write("My own words.\n")
    with pytest.raises(InputError, match="was edited"):
        pack(settings, out)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"trained_steps": 1}, "before it was trained further"),
        ({"strength": 0.615}, "at strength 0.615, and the card is for strength 1"),
    ],
)
def test_what_is_not_of_the_adapter_as_the_card_calls_it_is_not_shown(
    packed: Callable[[str], Run], tmp_path: Path, changed: dict[str, float], reason: str
) -> None:
    settings = packed(MEASURED)[0]
    path = Path(settings.run) / "results.json"
    kept, before = path.read_text(), stamp(RunFolder(settings.run))
    try:
        write_record(path, {**json.loads(kept), **changed})
        assert stamp(RunFolder(settings.run)) != before
        made = pack(settings, tmp_path / "out")
    finally:
        path.write_text(kept)
    assert any(reason in remark for remark in made.remarks)
    assert not (tmp_path / "out" / "images").exists()


def test_a_run_without_its_last_adapter_is_not_packed(
    settings_for: Any, tmp_path: Path, packed: Callable[[str], Run]
) -> None:
    settings = settings_for("sd15", tmp_path, distill={"preview_prompts": 0})
    with pytest.raises(RunError, match="no run has begun"):
        pack(settings)
    distill(settings)
    with pytest.raises(RunError, match="no adapter yet"):
        pack(settings)
    export(settings)
    weights = Path(settings.run) / "adapter" / "pytorch_lora_weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CorruptFileError, match="not the ones that were written"):
        pack(settings)
    weights.write_bytes(whole)
    last = RunFolder(settings.run).checkpoints()[-1]
    last.rename(last.with_name("step-0000009"))
    with pytest.raises(RunError, match="trained on since"):
        pack(settings)
    assert not (Path(settings.run) / "hub").exists()
