"""The picture page: whole at every stage of a run, and trusting nothing that it shows."""

import base64
import hashlib
import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pages import (
    COLOURS,
    HOSTILE,
    PROMPTS,
    STEPS,
    begun,
    draw,
    levels,
    measured,
    previewed,
    recorded,
    trained,
    write,
)
from PIL import Image, ImageColor

from guidefold.ground.errors import CorruptFileError, RunError
from guidefold.ground.progress import evenly_chosen
from guidefold.run.config import dump_toml, load_settings
from guidefold.run.costs import readable_duration
from guidefold.run.files import append_line, read_json
from guidefold.run.folder import RunFolder
from guidefold.run.paths import without_paths
from guidefold.run.settings import KINDS
from guidefold.show.report import _smooth, gather, render, report
from guidefold.show.report_pictures import LARGEST, MANY, SHOWN_STEPS
from guidefold.show.summary import speed_in_words

FIXTURE = Path(__file__).parents[1] / "fixtures" / "run-0.1.0"
SECONDS = ["seconds", "seconds, LoRA not fused"]
VOID = {"meta", "link", "img", "input", "source", "br", "hr"}
REFERENCES = ("src", "srcset", "href", "action", "poster", "data")


class Page(HTMLParser):
    """A document taken apart.

    Attributes:
        elements: Every tag with its attributes.
        texts: What is written inside each kind of tag.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"{tag} has an attribute twice"
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open:
            self.texts.setdefault(self._open[-1], []).append(data.strip())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, tag: str) -> list[str]:
        return [text for text in self.texts.get(tag, []) if text]

    def shape(self) -> list[tuple[str, tuple[str, ...]]]:
        """The document without what is written in it."""
        return [(tag, tuple(attributes)) for tag, attributes in self.elements]


def html(run: Path) -> str:
    return render(gather(RunFolder(run)))


def page(run: Path) -> Page:
    return Page(html(run))


def finished(run: Path, prompts: tuple[str, ...] = PROMPTS, text: str = "") -> Path:
    previewed(trained(recorded(begun(run, text))), prompts[:2])
    return measured(run, prompts)


STAGES: dict[str, Callable[[Path], Path]] = {
    "begun": begun,
    "recording": lambda run: recorded(begun(run)),
    "training": lambda run: previewed(trained(recorded(begun(run)), steps=20)),
    "trained": lambda run: trained(recorded(begun(run))),
    "measured": finished,
    "measured without a judge": lambda run: measured(trained(begun(run)), judged=False),
    "measured, large": lambda run: measured(previewed(begun(run), size=600), size=600),
}
SAID = {
    "begun": "begun",
    "recording": "recording: 3 trajectories so far",
    "training": "training: step 20 of 40",
    "trained": "trained; 'guidefold evaluate' measures it",
    "measured": "measured on 3 held-out prompts, guidance 5 against strength 1, 20 steps",
}
SECTIONS = {
    "begun": ["settings"],
    "recording": ["run", "settings"],
    "training": ["previews", "charts", "run", "settings"],
    "trained": ["charts", "run", "settings"],
    "measured": ["pictures", "dial", "previews", "charts", "table", "run", "settings"],
    "measured without a judge": ["pictures", "dial", "charts", "table", "run", "settings"],
}


@dataclass
class Shown:
    """A run as it is shown: leave its folder as it is."""

    stage: str
    run: Path
    facts: dict[str, Any] = field(init=False)
    html: str = field(init=False)
    page: Page = field(init=False)

    def __post_init__(self) -> None:
        self.facts = gather(RunFolder(self.run))
        self.html = render(self.facts)
        self.page = Page(self.html)


@pytest.fixture(scope="module", params=STAGES)
def shown(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    return Shown(request.param, STAGES[request.param](tmp_path_factory.mktemp("shown") / "my run"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """A finished run with everything in it."""
    return Shown("measured", finished(tmp_path_factory.mktemp("whole") / "run"))


@pytest.fixture
def run(whole: Shown, tmp_path: Path) -> Path:
    """A copy of it, to spoil."""
    return Path(shutil.copytree(whole.run, tmp_path / "run"))


# Stages


def test_a_page_says_how_far_its_run_has_come(shown: Shown) -> None:
    assert shown.page.text("h1") == ["my run"]
    said = shown.page.text("p")[1]
    assert said == SAID.get(shown.stage, said)


def test_a_page_shows_what_there_is_and_links_to_it(shown: Shown) -> None:
    ids = [attributes["id"] for attributes in shown.page.all("h2")]
    assert ids == SECTIONS.get(shown.stage, ids)
    assert [link["href"] for link in shown.page.all("a")] == [f"#{name}" for name in ids]


def test_a_run_is_left_as_it_was_but_for_the_page(run: Path) -> None:
    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    before = contents()
    path = report(load_settings(run))
    after = contents()
    assert path == run / "report.html"
    assert after.pop(path).decode() == html(run)
    assert after == before


def test_the_same_run_gives_the_same_page(whole: Shown) -> None:
    assert html(whole.run) == whole.html


# A sound document


def test_names_are_unique_and_everything_that_refers_to_one_finds_it(shown: Shown) -> None:
    found = shown.page
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in found.elements:
        for name in ("for", "aria-labelledby", "list"):
            assert attributes.get(name, "") in {"", *ids}, (tag, attributes)
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in ids


def test_every_picture_has_words_and_every_control_a_name(shown: Shown) -> None:
    found = shown.page
    labelled = {attributes.get("for") for attributes in found.all("label")}
    for attributes in found.all("img"):
        assert attributes["alt"].strip()
        assert int(attributes["width"]) > 0
        assert int(attributes["height"]) > 0
    for attributes in found.all("input"):
        in_a_label = attributes["type"] == "radio"
        assert in_a_label or attributes.get("aria-label") or attributes.get("id") in labelled
    assert len(found.all("title")) == len(found.all("h1")) == len(found.all("main")) == 1
    assert found.all("html") == [{"lang": "en"}]


def test_headings_go_down_one_level_at_a_time(shown: Shown) -> None:
    levels = [int(tag[1]) for tag, _ in shown.page.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def luminance(colour: str) -> float:
    """Of an sRGB colour, after WCAG 2.2."""
    parts = [value / 255 for value in ImageColor.getrgb(colour)[:3]]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("ground", ["paper", "panel"])
@pytest.mark.parametrize("ink", ["ink", "faint", "accent", "right", "wrong"])
def test_text_stands_out_from_what_it_is_written_on(theme: int, ground: str, ink: str) -> None:
    """WCAG 2.2, 1.4.3 at level AA: a contrast of at least 4.5."""
    css = files("guidefold.show").joinpath("page", "page.css").read_text(encoding="utf-8")
    palettes = [
        dict(re.findall(r"--(\w+): (#\w{6});", block))
        for block in re.findall(r":root \{([^}]*)\}", css)
    ]
    light, dark = sorted((luminance(palettes[theme][name]) for name in (ground, ink)), reverse=True)
    assert len(palettes) == 2
    assert (light + 0.05) / (dark + 0.05) >= 4.5


# Trusting nothing


def test_the_page_refers_to_nothing_outside_itself(shown: Shown) -> None:
    found = shown.page
    for tag, attributes in found.elements:
        for name in REFERENCES:
            assert attributes.get(name, "data:").startswith(("data:", "#")), (tag, attributes)
    for text in (*found.text("style"), *found.text("script")):
        assert not re.search(r"url\(|@import|https?:|//\w|fetch|XMLHttp|import\(", text)
    assert {tag for tag, _ in found.elements} & {
        "iframe",
        "object",
        "embed",
        "form",
        "base",
    } == set()


def test_only_the_pages_own_style_and_script_may_run(shown: Shown) -> None:
    found = shown.page
    (policy,) = (m["content"] for m in found.all("meta") if "http-equiv" in m)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    for tag in ("style", "script"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", shown.html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert rules.pop(f"{tag}-src") == f"'sha256-{digest}'"
        assert found.all(tag) == [{}]
    assert rules == {
        "default-src": "'none'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    for _, attributes in found.elements:
        assert not [name for name in attributes if name == "style" or name.startswith("on")]


def test_whatever_a_user_wrote_is_text_and_nothing_else(tmp_path: Path) -> None:
    """The same elements with the same attributes as on a page of harmless words."""
    harmless = finished(tmp_path / "a" / "run", text="word")
    prompts = tuple(f"{HOSTILE} {k}" for k in range(3))
    hostile = finished(tmp_path / "b" / HOSTILE.replace("/", "|"), prompts, HOSTILE)
    for folder in ("previews", "evaluation"):
        assert (hostile / folder).is_dir()
    found = page(hostile)
    assert found.shape() == page(harmless).shape()
    assert found.text("h1") == [HOSTILE.replace("/", "|")]
    assert set(found.text("h3")) > set(prompts)  # the pictures
    assert Counter(found.text("h4")) == dict.fromkeys(prompts[:2], 6 + 3)  # strengths, previews
    assert {option.get("value") for option in found.all("option")} > {
        f"category={prompt}" for prompt in prompts
    }
    assert [card["data-category"] for card in found.all("article")[:3]] == list(prompts)
    alts = " ".join(image["alt"] for image in found.all("img"))
    assert all(alts.count(prompt) >= 3 + 12 for prompt in prompts[:2])
    assert HOSTILE in "".join(found.text("dd"))  # findings, versions, machine, hint
    shown = without_paths(load_settings(hostile / "config.toml"))
    assert found.text("pre")[0] == dump_toml(shown).strip()


# Pictures


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def images(page: Page) -> dict[str, list[tuple[str, Image.Image]]]:
    """Every picture by its words, with its kind of file; charts left out."""
    found: dict[str, list[tuple[str, Image.Image]]] = {}
    for image in page.all("img"):
        kind = image["src"].split(";")[0]
        if kind != "data:image/svg+xml":
            found.setdefault(image["alt"], []).append((kind, decoded(image["src"])))
    return found


def test_every_prompt_stands_with_its_three_pictures(whole: Shown) -> None:
    found = images(whole.page)
    names = {"teacher": "CFG teacher", "unguided": "unguided", "student": "student"}
    for kind in KINDS:
        for prompt in PROMPTS:
            file, picture = found[f"{names[kind]}: {prompt}"][0]
            assert file == "data:image/png"
            assert picture.convert("RGB").getcolors() == [(256, ImageColor.getrgb(COLOURS[kind]))]


def test_every_strength_stands_with_the_guidance_it_is_for(whole: Shown) -> None:
    found = images(whole.page)
    assert [text for text in whole.page.text("h3") if text.startswith("strength")] == [
        f"strength {s:g} = guidance {1 + 4 * s:g}" for s in (0, 0.25, 0.5, 0.75, 1, 1.25)
    ]
    for shade, strength in enumerate((0, 0.25, 0.5, 0.75, 1, 1.25)):
        teacher = f"{'CFG teacher' if strength else 'unguided'} at guidance {1 + 4 * strength:g}"
        for words, colour in (
            (f"student at strength {strength:g}", (0, 40 * shade, 200)),
            (teacher, (200, 40 * shade, 0)),
        ):
            for prompt in PROMPTS[:2]:
                ((_, picture),) = found[f"{words}: {prompt}"]
                assert picture.convert("RGB").getpixel((0, 0)) == colour


def test_every_preview_stands_under_its_step(whole: Shown) -> None:
    found = images(whole.page)
    assert [text for text in whole.page.text("h3") if text.startswith("step")] == [
        f"step {step}" for step in STEPS
    ]
    for shade, step in enumerate(STEPS):
        ((_, picture),) = found[f"student at step {step}: {PROMPTS[1]}"]
        assert picture.convert("RGB").getpixel((0, 0)) == (0, 40 * shade, 200)


def test_of_many_steps_the_first_and_the_last_are_among_those_shown(run: Path) -> None:
    about = read_json(run / "previews" / "previews.json")
    write(run / "previews" / "previews.json", {**about, "steps": list(range(0, 300, 10))})
    for step in range(0, 300, 10):
        for k in (0, 1):
            draw(run / "previews" / f"student-{k}-step-{step:06d}.png", "navy", 16)
    found = page(run)
    steps = [text for text in found.text("h3") if text.startswith("step")]
    assert len(steps) == 12
    assert (steps[0], steps[-1]) == ("step 0", "step 290")
    assert {i["id"]: i["max"] for i in found.all("input") if "max" in i and "id" in i} == {
        "all": "100",
        "dial-slider": "5",
        "previews-slider": "11",
    }


def test_the_dial_opens_at_strength_1_and_the_previews_at_the_last_step(whole: Shown) -> None:
    sliders = {i["id"]: i for i in whole.page.all("input") if "data-slides" in i}
    assert (sliders["dial-slider"]["value"], sliders["dial-slider"]["max"]) == ("4", "5")
    assert (sliders["previews-slider"]["value"], sliders["previews-slider"]["max"]) == ("2", "2")


def test_an_adapter_without_a_dial_is_not_called_one(tmp_path: Path) -> None:
    run = measured(begun(tmp_path / "run", dial=False))
    assert "trained at strength 1 alone" in html(run)
    assert "trained at strength 1 alone" not in html(measured(begun(tmp_path / "other")))


@pytest.mark.parametrize(("size", "kind", "shown"), [(128, "png", 128), (600, "webp", LARGEST)])
def test_large_pictures_are_made_smaller(tmp_path: Path, size: int, kind: str, shown: int) -> None:
    run = previewed(measured(begun(tmp_path / "run"), size=size), size=size)
    draw(run / "evaluation" / "teacher-1.png", "black", size)
    Image.new("RGB", (size, size // 2)).save(run / "evaluation" / "teacher-1.png")
    found = images(page(run))
    for pictures in found.values():
        for file, picture in pictures:
            assert file == f"data:image/{kind}"
            assert picture.width == shown
    assert found[f"CFG teacher: {PROMPTS[1]}"][0][1].height == shown // 2


@pytest.mark.parametrize(("size", "shown"), [(16, MANY), (160, 12)])
def test_the_first_prompts_are_shown_fewer_where_pictures_are_large(
    tmp_path: Path, size: int, shown: int
) -> None:
    prompts = [f"prompt {k}" for k in range(MANY + 2)]
    run = measured(begun(tmp_path / "run"), prompts, size)
    found = [text for text in page(run).text("h3") if text.startswith("prompt")]
    assert found == prompts[:shown]
    assert f"The first {shown} of {MANY + 2} held-out prompts" in html(run)


# Damage


@pytest.mark.parametrize(
    "picture",
    [
        "evaluation/student-2.png",
        "evaluation/teacher-s0.5.png",
        "previews/student-1-step-000020.png",
    ],
)
@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_picture_that_cannot_be_shown_is_named(run: Path, picture: str, damage: str) -> None:
    whole = (run / picture).read_bytes()
    (run / picture).unlink()
    if damage == "damaged":
        (run / picture).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptFileError, match=rf"{picture}: the picture is {damage}") as caught:
        gather(RunFolder(run))
    assert "guidefold" in caught.value.remedy


@pytest.mark.parametrize(
    "name", ["results.json", "probe.json", "evaluation/index.json", "previews/previews.json"]
)
def test_a_file_that_is_not_json_is_named(run: Path, name: str) -> None:
    text = (run / name).read_text()
    (run / name).write_text(text[:-1])
    with pytest.raises(CorruptFileError, match=f"{name}: not valid JSON") as caught:
        gather(RunFolder(run))
    assert caught.value.remedy


@pytest.mark.parametrize("content", ["[]", "5", "null"])
@pytest.mark.parametrize("name", ["results.json", "probe.json", "evaluation/index.json"])
def test_a_file_that_holds_no_table_is_named_with_the_remedy(
    run: Path, name: str, content: str
) -> None:
    (run / name).write_text(content)
    with pytest.raises(CorruptFileError, match=f"{name}: holds no table") as caught:
        gather(RunFolder(run))
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("results.json", "adapter_bytes"),
        ("evaluation/index.json", "dial"),
        ("previews/previews.json", "steps"),
    ],
)
def test_a_file_without_what_the_page_needs_is_named(run: Path, name: str, key: str) -> None:
    value = read_json(run / name)
    del value[key]
    write(run / name, value)
    with pytest.raises(CorruptFileError, match=f"{name}: '{key}' is not in it"):
        gather(RunFolder(run))


def test_a_folder_without_a_run_gets_no_page(whole: Shown, tmp_path: Path) -> None:
    settings = load_settings(whole.run).model_copy(update={"run": str(tmp_path / "empty")})
    with pytest.raises(RunError, match="no run has begun here"):
        report(settings)
    assert not (tmp_path / "empty").exists()


# Numbers


def test_the_headline_holds_the_results_figures(whole: Shown) -> None:
    found = whole.facts["headline"]
    assert [figure for figure, _ in found] == ["20 passes", "4x", "95.0%", "88%"]
    assert "makes 40" in found[0][1]
    assert "0.25 s to 0.0625 s per picture" in found[1][1]
    assert found[1][1].endswith("not fused it is 2 times as fast as the teacher")
    assert "over 3 paired prompts (95% interval 90% to 100%)" in found[2][1]


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        (1.94, "is 1.9 times as fast as the teacher"),
        (1.004, "is as fast as the teacher"),
        (0.998, "is as fast as the teacher"),
        (0.86, "is slower than the teacher: it takes 1.2 times as long"),
    ],
)
def test_a_slower_student_is_called_slower(ratio: float, said: str) -> None:
    assert speed_in_words(ratio) == said


def test_without_a_judge_nothing_is_said_of_alignment(tmp_path: Path) -> None:
    run = measured(trained(begun(tmp_path / "run")), judged=False)
    found = gather(RunFolder(run))
    assert [figure for figure, _ in found["headline"]] == ["20 passes", "4x", "88%"]
    assert found["table"][0] == ["kind", "passes", *SECONDS, "saturation"]
    assert [chart.title for chart in found["charts"]] == [
        "Training",
        "Residual guidance by noise level",
    ]
    text = html(run)
    assert "✓" not in text
    assert "where the student is wrong" not in text


def test_marks_follow_the_judges_verdicts(whole: Shown) -> None:
    cards = whole.page.all("article")[:3]
    assert [card["data-wrong"] for card in cards] == ["false", "true", "false"]
    assert [card["data-differs"] for card in cards] == ["false", "true", "false"]
    assert whole.html.count("does not show its prompt") == 3  # two unguided, one student


def test_the_table_says_what_each_kind_costs(whole: Shown) -> None:
    headings, rows = whole.facts["table"]
    measured = ["alignment", "Fréchet distance", "recall", "saturation"]
    assert headings == ["kind", "passes", *SECONDS, *measured]
    assert rows == [
        ["CFG teacher", "40", "0.250", "", "0.800", "-", "-", "0.500"],
        ["unguided", "20", "0.125", "", "0.300", "3.250", "0.500", "0.500"],
        ["student", "20", "0.062", "0.125", "0.760", "0.500", "0.750", "0.500"],
    ]
    assert "each kind's set of pictures" in whole.html.replace("&#39;", "'")


def with_residual(run: Path, residual: float) -> str:
    found = read_json(run / "results.json")
    found["residual_guidance"]["teacher_states"]["mean"] = residual
    write(run / "results.json", found)
    return html(run)


def test_a_run_that_folds_too_little_says_so_and_names_the_settings(run: Path) -> None:
    warned = with_residual(run, 0.71)
    for words in ("Only 29% of the guidance is folded", "distill.steps=80 (now 40)"):
        assert words in warned
    assert "adapter.rank (now 32)" in warned
    assert "is folded: train longer" not in with_residual(run, 0.45)


def test_a_run_that_still_trains_is_not_called_undertrained(tmp_path: Path) -> None:
    assert "train longer" not in html(trained(begun(tmp_path / "one"), steps=20))
    done = trained(begun(tmp_path / "two"))
    line = {"step": 40, "residual_guidance": 0.9, "levels": levels(0.9)}
    append_line(done / "log.jsonl", line)
    assert "Only 10% of the guidance" in html(done)


def test_an_adapter_stands_with_code_for_each_client(run: Path) -> None:
    findings = read_json(FIXTURE / "probe.json")
    about = {"usage_hint": "guidance_scale=1", "findings": findings}
    write(run / "adapter" / "guidefold.json", about)
    found = gather(RunFolder(run))
    uses = {use.client: use for use in found["uses"]}
    assert {"Python", "ComfyUI", "Forge", "AUTOMATIC1111"} <= uses.keys()
    code = uses["Python"].code
    compile(code, "code", "exec")
    for words in ('"adapter"', "fuse_lora()", "guidance_scale=1.0"):
        assert words in code
    assert uses["ComfyUI"].code == "guidefold export . --format all"
    assert "models/loras" in uses["ComfyUI"].note
    assert render(found).count("data-copy") == len(uses) + 1  # and once in the script


def test_the_run_says_what_it_took(whole: Shown) -> None:
    assert dict(whole.facts["costs"]) == {
        "trajectories": "3 recorded, 3.0 MiB on disk",
        "recording": "1 min 30 s",
        "training": "2 min 0 s for 40 steps of 8 states",
        "peak memory": "3.0 GiB resident, the whole process",
        "adapter": "1.0 MiB, 10.0% of the denoiser's 10.0 MiB",
        "measured on": f"cpu {PROMPTS[0]}",
    }


def test_the_dial_is_drawn_as_it_was_measured(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    marks = [
        {"guidance": 2.0, "strength": 0.3, "residual": 0.4},
        {"guidance": 5.0, "strength": 1.1, "residual": 0.5},
    ]
    dial = {"g_ref": 5.0, "dial": True, "dial_table": marks, "guidance_range": [2.0, 8.0]}
    about = {"usage_hint": "", "findings": {"origin": 1.0}, **dial}
    write(run / "adapter" / "guidefold.json", about)
    *_, dial, left = gather(RunFolder(run))["charts"]
    assert dial.title == "The dial, measured"
    assert dial.rows == [
        ["nearest to the teacher", "2", "0.3"],
        ["nearest to the teacher", "5", "1.1"],
        ["as the dial stands", "2", "0.25"],
        ["as the dial stands", "5", "1"],
    ]
    assert [row[1:] for row in left.rows] == [["2", "0.4"], ["5", "0.5"]]


def test_curves_are_the_logs_lines(whole: Shown) -> None:
    training, residual, categories = whole.facts["charts"]
    assert training.rows == [
        *(["training loss", f"{step}", f"{1 - step / 100:g}"] for step in (10, 20, 30, 40)),
        *(["residual guidance, held out", f"{step}", f"{1 - step / 80:g}"] for step in (20, 40)),
    ]
    expected = [[f"{100 * k + 45}", "0.125"] for k in range(5)]
    assert [row[1:] for row in residual.rows] == expected * 2
    assert categories.rows == [[prompt, "0.800", "0.300", "0.760"] for prompt in PROMPTS]


def test_before_measuring_residual_guidance_is_the_last_validations(tmp_path: Path) -> None:
    _, residual = gather(RunFolder(trained(begun(tmp_path / "run"))))["charts"]
    assert {row[0] for row in residual.rows} == {"held out, teacher's states"}
    assert {row[2] for row in residual.rows} == {"0.25"}


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (3599.7, "1 h 0 min"),
        (7380, "2 h 3 min"),
    ],
)
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert readable_duration(seconds) == said


def test_of_many_previews_some_are_shown_from_the_first_to_the_last() -> None:
    assert evenly_chosen([0, 500, 1000], SHOWN_STEPS) == [0, 500, 1000]
    assert evenly_chosen(list(range(12)), SHOWN_STEPS) == list(range(12))
    assert evenly_chosen(list(range(0, 23 * 500, 500)), SHOWN_STEPS) == [
        *range(0, 11 * 1000, 1000),
        11000,
    ]
    assert evenly_chosen(list(range(200)), SHOWN_STEPS)[::11] == [0, 199]


def test_smoothing_keeps_few_points_as_they_are_and_averages_many() -> None:
    few = [(k, float(k)) for k in range(100)]
    assert _smooth(few) == few
    assert _smooth([]) == []
    many = [(k, float(k % 2)) for k in range(200)]
    assert _smooth(many) == [(k, 0.5) for k in range(1, 200, 2)]
    assert len(_smooth([(k, 0.0) for k in range(12345)])) <= 100


def test_a_measurement_of_an_earlier_step_says_so(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    assert gather(RunFolder(run))["state"] == "measured"
    results = read_json(run / "results.json")
    (run / "results.json").write_text(json.dumps({**results, "trained_steps": 10}))
    assert gather(RunFolder(run))["state"] == "measured at step 10, trained to step 40 since"
