"""What the documents say must be what the code does."""

import json
import re
import runpy
from pathlib import Path

import diffusers
from test_architecture import WINGS

from guidefold import api
from guidefold.deliver.layer_names import client_facts
from guidefold.run.config import load_settings, presets

ROOT = Path(__file__).parent.parent


def test_the_page_of_settings_is_the_one_that_the_settings_write():
    page = runpy.run_path(str(ROOT / "docs" / "configuration.py"))["page"]()
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == page


def test_every_preset_loads_and_names_its_own_command():
    for name in presets():
        path = ROOT / "src" / "guidefold" / "run" / "presets" / f"{name}.toml"
        assert load_settings(name).run == f"runs/{name}"
        assert re.search(rf"#   guidefold (distill )?{name}", path.read_text(encoding="utf-8"))


def test_every_function_that_the_method_names_exists():
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    named = re.findall(r"\(`((?:[a-z_]+\.)?[a-z_]+)\.(\w+)(?:\.\w+)?`[,)]", text)
    assert len(named) > 8
    for module, name in named:
        path = ROOT.joinpath("src", "guidefold", *module.split(".")).with_suffix(".py")
        source = path.read_text(encoding="utf-8")
        assert re.search(rf"^(def|class) {name}\b", source, re.M), f"{module}.{name}"


def test_the_map_of_the_wings_is_in_the_order_of_import():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert re.findall(r"^  (\w+)(?:\.py|/) ", text, re.MULTILINE) == WINGS


def test_every_pipeline_class_of_diffusers_has_a_row_and_at_least_eighty_work():
    text = (ROOT / "docs" / "pipelines.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\w+) \| ([^|]+?) \|", text, re.M))
    rows.pop("pipeline", None)
    exported = runpy.run_path(str(ROOT / "docs" / "pipelines.py"), run_name="page")["classes"]()
    assert rows.keys() == {kind.__name__ for kind in exported}
    states = [state.split(":")[0].split(",")[0] for state in rows.values()]
    assert set(states) <= {"works", "refused", "fails", "not tried"}
    assert states.count("works") >= 80
    counted = re.search(r"^(\d+) classes of (\d+) families work", text, re.M)
    assert int(counted[1]) == states.count("works")
    assert int(counted[2]) >= 35


def test_classes_tried_outside_the_zoo_have_the_rows_that_their_runs_give():
    page = runpy.run_path(str(ROOT / "docs" / "pipelines.py"), run_name="page")
    text = (ROOT / "docs" / "pipelines.md").read_text(encoding="utf-8")
    assert page["TRIED"]["diffusers"] == diffusers.__version__
    assert f"on {page['TRIED']['date']}" in text
    for name, row in page["TRIED"]["classes"].items():
        _, cells = page["cells_of"](getattr(diffusers, name), row, ", outside the zoo")
        assert f"| {name} | {' | '.join(cells)} |  |" in text.splitlines()


def test_the_column_of_few_steps_is_what_the_zoo_walks():
    page = runpy.run_path(str(ROOT / "docs" / "pipelines.py"), run_name="page")
    text = (ROOT / "docs" / "pipelines.md").read_text(encoding="utf-8")
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("| pipeline |"):
            name, cell = line[2:].split(" | ")[0], line.removesuffix(" |").rpartition(" | ")[2]
            assert cell == page["few_steps_cell"](page["few_steps_of"](name)), name
    counted = re.search(r"(\d+) classes of (\d+) families fold steps", text)
    assert int(counted[1]) >= 40
    assert int(counted[2]) >= 20


def test_the_table_of_clients_is_the_one_that_model_cards_show():
    text = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
    for use in client_facts()["use"]:
        formats = ", ".join(f"`{kind}`" for kind in use["formats"])
        row = [use["name"], formats, use["place"], use["set"], use["passes"]]
        assert f"| {' | '.join(row)} |\n" in text


def test_the_page_of_python_has_every_name_of_the_api():
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    named = re.findall(r"^::: (\S+)$", text, re.M)
    exported = [f"{getattr(api, name).__module__}.{name}" for name in api.__all__]
    assert sorted(named) == sorted(exported)


def test_every_page_stands_in_the_sites_contents():
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    left_out = {"package.md"}  # what the index shows
    pages = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")}
    assert set(re.findall(r"\s([\w/-]+\.md)$", site, re.M)) == pages | left_out


def test_the_page_of_cards_is_what_was_computed_for_every_preset():
    page = runpy.run_path(str(ROOT / "docs" / "cards.py"), run_name="page")
    found = json.loads((ROOT / "src/guidefold/cli/cards.json").read_text(encoding="utf-8"))
    assert (ROOT / "docs" / "cards.md").read_text(encoding="utf-8") == page["page"](found)
    assert page["summary"](found) in (ROOT / "README.md").read_text(encoding="utf-8")
    assert list(found) == [name for name in presets() if name != "demo"]
    for name, preset in found.items():
        settings = load_settings(name)
        assert preset["call"] == settings.pipeline.call
        assert (preset["rank"], preset["targets"]) == (
            settings.adapter.rank,
            settings.adapter.targets,
        )
        assert preset["batch"] == settings.distill.batch_size
    assert found["sdxl"]["rows"]["8"]["accumulation"] == found["sdxl"]["batch"]  # one sample
    assert found["qwen-image"]["rows"]["24"] is not None
