"""Settings from TOML and overrides: every complaint names place, field and value."""

import tomllib
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest

from guidefold.ground.errors import ConfigError, MismatchError
from guidefold.pipeline.prompts import BUNDLED
from guidefold.run.changes import FREE, check_same
from guidefold.run.config import (
    dump_toml,
    find_config,
    load_settings,
    make_settings,
    presets,
)
from guidefold.run.paths import PATHS, rooted, without_paths
from guidefold.run.settings import Settings

MINIMAL = 'run = "runs/a"\n\n[pipeline]\nsource = "folder"\n'


def settings(**tables: Any) -> Settings:
    return Settings.model_validate({"run": "r", "pipeline": {"source": "p"}, **tables})


@pytest.mark.parametrize("storage", ["bf16", "int8", "int4"])
def test_a_student_round_after_the_teachers_weights_are_gone_is_refused_by_name(
    toml: Path, storage: str
) -> None:
    rounds = 'record.rounds=["teacher", "student"]'
    said = complaint(toml, rounds, f"distill.frozen_weights={storage}")
    assert said.startswith(
        f"{toml}: distill.frozen_weights: '{storage}' changes the teacher's weights"
    )
    assert "record.rounds is ['teacher', 'student']" in said
    assert "set distill.frozen_weights=same" in said
    load_settings(toml, [rounds])
    load_settings(toml, [f"distill.frozen_weights={storage}"])


def test_linear_layers_are_shrunk_by_one_setting_only(toml: Path) -> None:
    both = "pipeline.quantization=torchao_int8", "distill.frozen_weights=int4"
    said = complaint(toml, *both)
    assert "frozen_weights: 'int4' would shrink weights that pipeline.quantization=" in said
    assert "set distill.frozen_weights=same" in said
    for alone in both:
        load_settings(toml, [alone])


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(MINIMAL, encoding="utf-8")
    return path


def complaint(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(path, list(overrides))
    return caught.value.message


def test_reads_a_file(toml: Path) -> None:
    loaded = load_settings(toml)
    assert (loaded.run, loaded.pipeline.source, loaded.seed) == ("runs/a", "folder", 0)


@pytest.mark.parametrize("name", presets())
def test_a_preset_loads_and_comes_back_from_its_dump(name: str) -> None:
    loaded = load_settings(name, ["pipeline.source=x", "run=r"])
    assert make_settings(tomllib.loads(dump_toml(loaded)), []) == loaded


def test_a_run_folder_is_named_in_place_of_its_file(toml: Path) -> None:
    toml.rename(toml.with_name("config.toml"))
    assert load_settings(toml.parent).pipeline.source == "folder"


def test_a_run_folder_that_was_moved_is_the_run_itself(toml: Path) -> None:
    toml.rename(toml.with_name("config.toml"))
    assert load_settings(toml.parent).run == str(toml.parent)
    assert load_settings(toml.parent, ["run=runs/b"]).run == "runs/b"


@pytest.mark.parametrize(
    ("override", "section", "field", "value"),
    [
        ("seed=7", "", "seed", 7),
        ("run=runs/b", "", "run", "runs/b"),
        ("distill.learning_rate=1e-4", "distill", "learning_rate", 1e-4),
        ("distill.gradient_checkpointing=true", "distill", "gradient_checkpointing", True),
        ("record.rounds=['teacher', 'noise']", "record", "rounds", ["teacher", "noise"]),
        ("record.guidance=[1, 4]", "record", "guidance", (1.0, 4.0)),
        ("pipeline.negative_prompt=blurry, low quality", "pipeline", "negative_prompt", None),
        ("pipeline.call.height=16", "pipeline", "call", {"height": 16}),
        ("pipeline.call={a = {b = 1}}", "pipeline", "call", {"a": {"b": 1}}),
        (" adapter.rank = 4", "adapter", "rank", 4),
    ],
)
def test_an_override_is_toml_or_bare_words(
    toml: Path, override: str, section: str, field: str, value: object
) -> None:
    loaded = load_settings(toml, [override])
    found = getattr(getattr(loaded, section) if section else loaded, field)
    assert found == ("blurry, low quality" if value is None else value)


def test_the_last_override_wins_and_the_file_stays_for_the_rest(toml: Path) -> None:
    loaded = load_settings(toml, ["seed=1", "pipeline.dtype=bf16", "seed=2"])
    assert (loaded.seed, loaded.pipeline.dtype, loaded.pipeline.source) == (2, "bf16", "folder")


STRICT = {
    int: [True, 2.0, "2", [2]],
    float: [True, "2", [2.0]],
    bool: [1, 0, "yes", "true", 1.0],
    str: [1, True, "a\0b", "\ud800"],
}
"""What is no value of a setting of a type, though Python or pydantic would take most of it."""


def plain_fields() -> list[tuple[str, str, type]]:
    """Every setting of a plain type: its table, its name, its type."""
    found = []
    for table, section in [("", Settings), *tables()]:
        for name, field in section.model_fields.items():
            kinds = [kind for kind in STRICT if kind in leaves_of(field.annotation)]
            found += [(table, name, kind) for kind in kinds[:1]]
    return found


def tables() -> list[tuple[str, Any]]:
    fields = Settings.model_fields.items()
    return [(name, field.annotation) for name, field in fields if has_fields(field.annotation)]


def has_fields(annotation: Any) -> bool:
    return hasattr(annotation, "model_fields")


def leaves_of(annotation: Any) -> list[Any]:
    """The types of an annotation without containers: ``Number | None`` is float and None."""
    if get_origin(annotation) in (list, tuple, dict):
        return []
    inner = get_args(annotation)
    return [leaf for part in inner for leaf in leaves_of(part)] if inner else [annotation]


def test_plain_settings_are_found_in_every_table() -> None:
    assert {table for table, _, _ in plain_fields()} == {"", *dict(tables())}
    assert {kind for _, _, kind in plain_fields()} == set(STRICT)
    assert len(plain_fields()) > 40


@pytest.mark.parametrize(("table", "name", "kind"), plain_fields())
def test_no_setting_takes_a_value_of_another_type(table: str, name: str, kind: type) -> None:
    for wrong in STRICT[kind]:
        values: dict[str, Any] = {"run": "r", "pipeline": {"source": "p"}}
        (values.setdefault(table, {}) if table else values)[name] = wrong
        with pytest.raises(ConfigError) as caught:
            make_settings(values, [], "run.toml")
        assert f"run.toml: {table}{'.' if table else ''}{name}: " in caught.value.message


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("distill.steps=true", "distill.steps: must be a whole number (got true)"),
        ("record.steps=[true, 3]", "record.steps.0: must be a whole number (got true)"),
        ("record.guidance=[2, true]", "record.guidance.1: must be a number (got true)"),
        (f"seed={2**70}", f"seed: must be at most {2**63 - 1} (got {2**70})"),
        ("seed=-1", "seed: must be at least 0 (got -1)"),
        (f"record.trajectories={10**23}", "trajectories: must be at most 1000000"),
        ("threads=100000", "threads: must be at most 1024 (got 100000)"),
        (f"seed={'9' * 5000}", "a whole number of 5,000 characters"),
        (f"pipeline.call.a={'[' * 100_000}", "brackets nested too deep"),
        (f"pipeline.call.{'a.' * 5000}b=1", "settings are nested too deeply"),
        ("pipeline.call={height=0,width=0}", "height must be a whole number of at least 1 (got 0)"),
        ("pipeline.call.width=-16", "width must be a whole number of at least 1 (got -16)"),
        ("pipeline.call.num_frames=true", "num_frames must be a whole number of at least 1"),
        ('pipeline.call.negative_prompt="a\\u0000"', "pipeline.call: holds a NUL character"),
        ("pipeline.negative_prompt=\udcff", "not valid Unicode"),
        (f"run={'a' * 256}", "too long for a file system: names have at most 255 bytes"),
        (f"prompts.path={'a/' * 2100}", "paths 4096"),
    ],
)
def test_what_no_run_can_work_with_is_refused_by_name(toml: Path, override: str, said: str) -> None:
    found = complaint(toml, override)
    assert said in found
    assert len(found) < 700


def test_the_largest_seed_is_taken(toml: Path) -> None:
    assert load_settings(toml, [f"seed={2**63 - 1}"]).seed == 2**63 - 1


WRONG_LINES = [
    ("[distill]\nsteps = 0", 6, "distill.steps", "(got 0)"),
    ("[distill]\nsteps = 5\nsteps_more = 1", 7, "distill.steps_more", "no such setting"),
    ("[distil]\nsteps = 5", 5, "distil", "no such setting"),
    ("[distill]\n# a comment\nloss = 'squared'", 7, "distill.loss", "(got 'squared')"),
    ("[record]\nguidance = [2.0, inf]", 6, "record.guidance.1", "(got inf)"),
    ("[record]\nguidance = [8.0, 2.0]", 5, "record", "8.0 to 2.0 is no range"),
    ("[record]\nrounds = ['student']", 5, "record", "first round cannot be 'student'"),
    ("[record]\nrounds = []", 6, "record.rounds", "(got [])"),
    ("[record]\nsteps = [3, 'x']", 6, "record.steps.1", "(got 'x')"),
    ("[adapter]\nrank = 2.5", 6, "adapter.rank", "(got 2.5)"),
    ("[prompts]\nheld_out_share = 1.0", 6, "prompts.held_out_share", "(got 1.0)"),
    ("[distill]\nbatch_size = 8\naccumulation = 3", 5, "distill", "3 does not divide batch_size 8"),
    ("[evaluate]\ngrid_prompts=-1", 6, "evaluate.grid_prompts", "(got -1)"),
    ("  [ evaluate ]\n  guidance = nan", 6, "evaluate.guidance", "(got nan)"),
]


@pytest.mark.parametrize(("text", "line", "field", "said"), WRONG_LINES)
def test_a_wrong_setting_is_named_with_file_line_field_and_value(
    toml: Path, text: str, line: int, field: str, said: str
) -> None:
    toml.write_text(MINIMAL + text, encoding="utf-8")
    message = complaint(toml)
    assert message.startswith(f"{toml}:{line}: {field}: ")
    assert said in message


def test_every_wrong_setting_is_named_at_once(toml: Path) -> None:
    toml.write_text(MINIMAL + "[distill]\nsteps = 0\nwarmup = -1", encoding="utf-8")
    assert [line.split(": ")[1] for line in complaint(toml).splitlines()] == [
        "distill.steps",
        "distill.warmup",
    ]


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("distill.steps=0", "distill.steps"),
        ("distil.steps=5", "distil"),
        ("distill.stepz=5", "distill.stepz"),
        ("record.guidance=[8, 2]", "record"),
        ("record.guidance=[8, 'x']", "record.guidance.1"),
        ("seed=-1", "seed"),
        ("adapter=all", "adapter"),
    ],
)
def test_a_wrong_override_is_named(toml: Path, override: str, field: str) -> None:
    assert complaint(toml, "threads=1", override).startswith(f"override '{override}': {field}: ")


@pytest.mark.parametrize(
    ("overrides", "wrong"),
    [
        (["distill.steps=30", "distill.accumulation=7"], "distill.accumulation=7"),
        (["record.trajectories=24", "record.steps=[7, 6]"], "record.steps=[7, 6]"),
        (["distill.steps=30", "distill=3"], "distill=3"),
        (["record.trajectories=24", 'record.rounds=["student"]'], 'record.rounds=["student"]'),
    ],
)
def test_of_several_overrides_the_wrong_one_is_named(
    toml: Path, overrides: list[str], wrong: str
) -> None:
    assert complaint(toml, *overrides).startswith(f"override '{wrong}': ")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("distill.steps", "not key=value"),
        ("=5", "not key=value"),
        ("distill..steps=5", "not key=value"),
        ("run.name=5", "'run' is not a table"),
    ],
)
def test_what_is_no_override_is_named(toml: Path, override: str, said: str) -> None:
    assert complaint(toml, override) == f"override '{override}': {said}"


def test_a_missing_setting_is_named_with_its_file(toml: Path) -> None:
    toml.write_text("[pipeline]\n", encoding="utf-8")
    assert complaint(toml).splitlines() == [
        f"{toml}: run: not set, but needed: run=runs/NAME",
        f"{toml}:1: pipeline.source: not set, but needed: pipeline.source=FOLDER",
    ]


def test_a_file_without_a_pipeline_is_answered_in_our_words_after_its_misspelt_names(
    toml: Path,
) -> None:
    toml.write_text("run = 'r'\n[pipelin]\nsource = 'p'\n", encoding="utf-8")
    assert complaint(toml).splitlines() == [
        f"{toml}:2: pipelin: no such setting. Did you mean pipeline?",
        f"{toml}: pipeline: not set, but needed: pipeline.source=FOLDER",
    ]


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("distill.step=5", "distill.steps"),
        ("distil.steps=5", "distill"),
        ("adapter.gref=5", "adapter.g_ref"),
        ("steps=5", "record.steps or student.steps or distill.steps or evaluate.steps"),
        ("rank=5", "adapter.rank or student.rank"),
    ],
)
def test_a_misspelt_setting_is_answered_with_the_one_that_was_meant(
    toml: Path, override: str, meant: str
) -> None:
    assert complaint(toml, override).endswith(f": no such setting. Did you mean {meant}?")


def test_a_setting_like_no_other_is_answered_without_a_guess(toml: Path) -> None:
    assert complaint(toml, "distill.xyzzy=5").endswith(": no such setting")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("distill=3", "a table of settings: write [distill] in a file, or distill.NAME=value"),
        (
            "pipeline.call=3",
            "a table: write [pipeline.call] in a file, or pipeline.call.NAME=value",
        ),
        ("record.steps=20", "record.steps: must be a pair, the lower and the upper bound"),
        ("record.steps=[20]", "record.steps: must be a pair, the lower and the upper bound"),
        ("record.steps=[]", "record.steps: must be a pair, the lower and the upper bound"),
        ("record.steps=[1, 2, 3]", "record.steps: must be a pair, the lower and the upper bound"),
        ("distill.steps=1e30", "distill.steps: must be a whole number (got 1e+30)"),
        ("distill.steps=0", "distill.steps: must be at least 1 (got 0)"),
        ("distill.steps=few", "distill.steps: must be a whole number (got 'few')"),
        ("distill.learning_rate=0", "must be greater than 0"),
        ("prompts.held_out_share=1", "must be less than 1"),
        ("adapter.rank=5000", "must be at most 1024"),
        ("adapter.dial=2", "must be true or false"),
        ("adapter.g_ref=nan", "must be a finite number"),
        ("run=", "run: must not be empty (got '')"),
        ("run=5", "run: must be text (got 5)"),
        ("distill.loss=best", "must be 'normalised' or 'plain'"),
        ("distill.trackers=wandb", 'must be a list, such as ["one", "two"]'),
    ],
)
def test_a_wrong_value_is_answered_in_our_own_words(toml: Path, override: str, said: str) -> None:
    answer = complaint(toml, override)
    assert said in answer
    assert len(answer.splitlines()) == 1
    assert not any(word in answer for word in ("Input", "valid", "instance", "Field", "parse"))


def test_the_remedy_names_a_command_that_shows_settings(toml: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(toml, ["distill.steps=0"])
    assert "'guidefold config demo'" in caught.value.remedy


def test_a_pipeline_in_the_place_of_a_preset_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").touch()
    for source in (tmp_path, Path("some/model.safetensors")):
        with pytest.raises(ConfigError, match="a pipeline, not a run's settings") as caught:
            load_settings(source)
        assert f"guidefold distill sd15 pipeline.source={source} run=" in caught.value.remedy


def test_a_folder_in_the_place_of_a_run_s_settings_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.toml").mkdir()
    with pytest.raises(ConfigError, match=r"no config\.toml in this folder"):
        load_settings(tmp_path)


@pytest.mark.parametrize("content", [b"run = \n", b"run = 'a'\nrun = 'b'\n"])
def test_a_file_that_is_not_toml_is_named(toml: Path, content: bytes) -> None:
    toml.write_bytes(content)
    assert ": not a TOML file: " in complaint(toml)


def test_a_name_that_stands_twice_is_refused_by_its_line(toml: Path) -> None:
    toml.write_text("run = 'a'\n\nrun = 'b'\n")
    said = complaint(toml)
    assert said.startswith(f"{toml}:3: not a TOML file: a name that stands twice")


def test_an_unknown_source_is_answered_with_the_presets(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file, run folder or preset") as caught:
        find_config("sd99")
    assert all(name in caught.value.remedy for name in presets())
    with pytest.raises(ConfigError, match=r"no config\.toml in this folder"):
        find_config(tmp_path)


TEXTS = [
    "with \"double\" and 'single' quotes",
    "two\nlines\r\nand a\ttab",
    "back\\slash \\n \\u0041",
    "beyond the basic plane: 🐈",
    "controls \x01 \x1f \x7f \x85 \u2028",
    "'''\"\"\"",
    "= [table] # no comment",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_from_its_dump(text: str, toml: Path) -> None:
    before = settings(
        pipeline={"source": text or "folder", "call": {"prompt_2": text, text: [text]}}
    )
    toml.write_bytes(dump_toml(before).encode())
    assert load_settings(toml) == before


def test_nested_tables_lists_and_numbers_come_back_from_their_dump(toml: Path) -> None:
    call = {"a b": {"c.d": {"deep": [1, [2.5, True], {"x": "y"}]}}, "tiny": 1e-300, "big": 1e22}
    before = settings(
        pipeline={"source": "p", "call": call, "negative_prompt": "blurry"},
        record={"guidance": (0.1, 1 / 3), "rounds": ["teacher", "noise"]},
        distill={"learning_rate": 5e-324},
        threads=3,
    )
    toml.write_bytes(dump_toml(before).encode())
    assert load_settings(toml) == before


@pytest.mark.parametrize("value", ["inf", "nan", "[1.0, inf]", "{a = nan}", "1979-05-27"])
def test_a_call_argument_that_no_file_could_give_back_is_refused(toml: Path, value: str) -> None:
    override = f"pipeline.call.x={value}"
    assert complaint(toml, override).startswith(f"override '{override}': pipeline.call")


def test_settings_equal_to_the_stored_ones_are_accepted(tmp_path: Path) -> None:
    check_same(settings(seed=1), settings(seed=1), tmp_path)


FREE_VALUES = {
    "threads": 2,
    "pipeline.device": "cpu",
    "distill.steps": 7,
    "distill.log_every": 7,
    "distill.validate_every": 7,
    "distill.checkpoint_every": 7,
    "distill.keep_checkpoints": 7,
    "distill.preview_prompts": 7,
    "distill.preview_every": 7,
    "distill.trackers": ["tensorboard"],
    "pipeline.offload": "group",
}


def changed(key: str, value: object, **tables: Any) -> Settings:
    """Settings with one more value, at a dotted key."""
    section, _, field = key.rpartition(".")
    tables = tables or {"pipeline": {"source": "p"}}
    table = tables.get(section, {})
    return settings(**tables | ({section: {**table, field: value}} if section else {field: value}))


def test_every_free_setting_is_tried() -> None:
    assert set(FREE_VALUES) == FREE


@pytest.mark.parametrize("key", FREE_VALUES)
def test_a_free_setting_may_change(key: str, tmp_path: Path) -> None:
    check_same(settings(), changed(key, FREE_VALUES[key]), tmp_path)


def test_folder_and_measuring_may_change(tmp_path: Path) -> None:
    check_same(settings(), settings(run="elsewhere", evaluate={"steps": 3}), tmp_path)


def test_every_other_change_is_refused_with_field_and_both_values(tmp_path: Path) -> None:
    other = settings(
        seed=3,
        pipeline={"source": "q", "call": {"height": 16}},
        distill={"batch_size": 4, "steps": 9},
        record={"guidance": (2.0, 5.0)},
    )
    with pytest.raises(MismatchError) as caught:
        check_same(settings(), other, tmp_path)
    assert [line.strip() for line in caught.value.message.splitlines()[1:]] == [
        f"distill.batch_size: 8 in {tmp_path}, 4 given",
        f"pipeline.call.height: not set in {tmp_path}, 16 given",
        f"pipeline.source: 'p' in {tmp_path}, 'q' given",
        f"record.guidance: [2.0, 8.0] in {tmp_path}, [2.0, 5.0] given",
        f"seed: 0 in {tmp_path}, 3 given",
    ]


def test_with_several_rounds_the_number_of_steps_is_fixed(tmp_path: Path) -> None:
    rounds = {"rounds": ["teacher", "student"]}
    with pytest.raises(MismatchError, match=r"distill\.steps: 2000 in .*, 7 given"):
        check_same(settings(record=rounds), settings(record=rounds, distill={"steps": 7}), tmp_path)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a pipeline, prompts, and folders that bear bundled names."""
    for name in ("models/sd", "bundled", "world"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "prompts.txt").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def asked(source: str, path: str, **tables: Any) -> Settings:
    return settings(pipeline={"source": source}, prompts={"path": path}, **tables)


def test_what_is_here_is_kept_by_its_whole_path(home: Path) -> None:
    kept = rooted(
        settings(
            pipeline={"source": "p.safetensors", "config": "models/sd"},
            prompts={"path": "prompts.txt"},
            evaluate={"features": "models", "clip": "owner/clip"},
        )
    )
    assert (kept.pipeline.source, kept.pipeline.config) == ("p.safetensors", f"{home}/models/sd")
    assert kept.prompts.path == f"{home}/prompts.txt"
    assert (kept.evaluate.features, kept.evaluate.clip) == (f"{home}/models", "owner/clip")
    assert without_paths(kept).pipeline.config == "sd"
    assert rooted(kept) == kept


@pytest.mark.parametrize(
    ("source", "path"), [("bundled", "world"), ("owner/base", "general"), ("gone", "gone.txt")]
)
def test_bundled_names_hub_ids_and_what_is_not_here_are_kept_as_they_are(
    home: Path, source: str, path: str
) -> None:
    assert rooted(asked(source, path)) == asked(source, path)


def test_a_link_is_kept_by_its_own_name(home: Path) -> None:
    (home / "blob").touch()
    (home / "a.safetensors").symlink_to(home / "blob")
    kept = rooted(asked("a.safetensors", "general"))
    assert kept.pipeline.source == f"{home}/a.safetensors"


def test_the_names_that_are_no_paths_are_the_bundled_ones() -> None:
    assert set(PATHS["prompts", "path"]) == set(BUNDLED)


def test_one_place_by_two_names_is_one_setting(home: Path) -> None:
    relative, whole = asked("models/sd", "prompts.txt"), asked("./models/sd/", "./prompts.txt")
    for stored, given in [(relative, whole), (relative, rooted(relative)), (rooted(whole), whole)]:
        check_same(stored, given, home)


@pytest.mark.parametrize(
    ("stored", "given"),
    [
        ("models/sd", "world"),
        ("bundled", "./bundled"),
        ("models/sd", "owner/base"),
        ("owner/base", "owner/other"),
    ],
)
def test_two_places_are_two_settings(home: Path, stored: str, given: str) -> None:
    for one, other in [(stored, given), (given, stored)]:
        with pytest.raises(MismatchError, match=r"pipeline\.source"):
            check_same(rooted(asked(one, "general")), asked(other, "general"), home)


def test_a_place_of_another_machine_is_left_to_what_it_held(home: Path) -> None:
    there = asked("/elsewhere/sd", "/elsewhere/prompts.txt")
    check_same(there, asked("models/sd", "prompts.txt"), home)
    check_same(rooted(asked("models/sd", "prompts.txt")), there, home)
    with pytest.raises(MismatchError, match="seed"):
        check_same(there, asked("models/sd", "prompts.txt", seed=1), home)


@pytest.mark.parametrize(("name", "same"), [("mine.txt", True), ("others.txt", False)])
def test_prompts_that_were_moved_keep_their_name(tmp_path: Path, name: str, same: bool) -> None:
    there = tmp_path / "there" / name
    there.parent.mkdir()
    there.write_text("a red cat\n")
    stored, given = (
        Settings.model_validate(
            {"run": "r", "pipeline": {"source": "bundled"}, "prompts": {"path": str(path)}}
        )
        for path in (tmp_path / "gone" / "mine.txt", there)
    )
    if same:
        check_same(stored, given, tmp_path)
    else:
        with pytest.raises(MismatchError, match=r"prompts\.path"):
            check_same(stored, given, tmp_path)
