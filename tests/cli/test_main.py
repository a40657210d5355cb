"""The command line: answers at once, names mistakes, ends with the right code, stops politely."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import signalled
import torch
from pages import begun
from terminal import ENVIRONMENT, Answer, run_here
from zoo import UNFOLDABLE, WARNINGS

import guidefold
from guidefold import api
from guidefold.cli import main as cli
from guidefold.ground.errors import CorruptFileError, GuidefoldError, PromptError
from guidefold.ground.progress import Stopped
from guidefold.listen.findings import Findings
from guidefold.run.config import dump_toml, find_config, presets
from guidefold.run.folder import RunFolder
from guidefold.run.settings import Settings
from guidefold.run.tensors import read_tensors

pytestmark = pytest.mark.filterwarnings(*WARNINGS)

Make = Callable[..., Settings]
COMMANDS = (
    "demo",
    "doctor",
    "probe",
    "record",
    "gather",
    "distill",
    "export",
    "verify",
    "convert",
    "pack",
    "push",
    "evaluate",
    "report",
    "compare",
    "sample",
    "config",
    "plan",
    "reproduce",
)


Guidefold = Callable[..., Answer]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Guidefold:
    """``run("distill", FILE)``: the command line in this process."""
    monkeypatch.setattr(cli, "_quiet", lambda: None)

    def command(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["guidefold", *map(str, arguments)])
        capsys.readouterr()  # what fixtures printed is not the command's
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        code = ended.value.code
        return Answer(code if isinstance(code, int) else 0, captured.out, captured.err)

    return command


@pytest.fixture
def config(settings_for: Make, tmp_path: Path) -> Path:
    """The file of a tiny run."""
    return write_config(settings_for("sd15", tmp_path), tmp_path)


def write_config(settings: Settings, folder: Path) -> Path:
    path = folder / "run.toml"
    path.write_text(dump_toml(settings), encoding="utf-8")
    return path


HELP = """
import contextlib, sys
from guidefold.cli.main import main
for words in {words}:
    sys.argv = ["guidefold", *words, "--help"]
    with contextlib.suppress(SystemExit):
        main()
print("heavy:", sorted({{"torch", "diffusers", "transformers", "peft"}} & sys.modules.keys()))
"""


def test_help_answers_without_importing_torch() -> None:
    words = [[], *([command] for command in COMMANDS)]
    done = subprocess.run(
        [sys.executable, "-c", HELP.format(words=words)],
        capture_output=True,
        text=True,
        check=True,
        env=ENVIRONMENT,
    )
    assert done.stdout.splitlines()[-1] == "heavy: []"
    assert done.stdout.count("Usage: guidefold") == 1 + len(COMMANDS)


MISTYPED = """
import contextlib, sys
from guidefold.cli.main import main
for words in {words}:
    sys.argv = ["guidefold", *words]
    with contextlib.suppress(SystemExit):
        main()
print("heavy:", sorted({{"torch", "diffusers", "transformers", "peft"}} & sys.modules.keys()))
"""


def test_a_mistyped_folder_is_named_without_importing_torch(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(f'run = "{tmp_path / "run"}"\n[pipeline]\nsource = "./no/such/folder"\n')
    words = [["probe", "no/such/folder"], ["distill", str(mine)], ["record", str(mine)]]
    words += [["plan", str(mine)], ["probe", str(tmp_path / "absent.safetensors")]]
    done = subprocess.run(
        [sys.executable, "-c", MISTYPED.format(words=words)],
        capture_output=True,
        text=True,
        check=True,
        env=ENVIRONMENT,
    )
    assert done.stdout == "heavy: []\n"
    assert done.stderr.count("no such pipeline") == len(words)
    assert not (tmp_path / "run").exists()


def test_every_command_is_known(run: Guidefold) -> None:
    answer = run("--help")
    assert answer.code == 0
    names = {c.name or c.callback.__name__ for c in cli.app.registered_commands if c.callback}
    assert names == set(COMMANDS)
    assert all(name in answer.out for name in names)


def test_prints_its_version(run: Guidefold) -> None:
    answer = run("--version")
    assert (answer.code, answer.out) == (0, f"guidefold {guidefold.__version__}\n")


@pytest.mark.parametrize("name", presets())
def test_prints_a_preset_as_it_is(run: Guidefold, name: str) -> None:
    answer = run("config", name)
    assert (answer.code, answer.out) == (0, find_config(name).read_text(encoding="utf-8"))


def test_probe_prints_json_and_nothing_else(run: Guidefold, config: Path) -> None:
    source = api.load_settings(config).pipeline.source
    answer = run("probe", source, "--json", "pipeline.call.height=16", "pipeline.call.width=16")
    assert answer.code == 0
    said = json.loads(answer.out)
    assert said.pop("foldable") is True
    assert said.pop("signs_of_distillation") == []
    assert said.pop("few_steps")
    found = Findings.from_json(said)
    assert (found.denoiser, found.guidance_argument, found.off) == ("unet", "guidance_scale", 1.0)


def test_report_writes_the_page_of_an_unfinished_run_and_says_where(
    run: Guidefold, tmp_path: Path
) -> None:
    folder = begun(tmp_path / "run")
    answer = run("report", folder)
    assert answer.code == 0
    assert "".join(answer.out.split()) == f"Written:{folder}/report.html"
    assert "<h1>run</h1>" in (folder / "report.html").read_text("utf-8")


def test_probe_says_what_is_saved(run: Guidefold, config: Path) -> None:
    source = api.load_settings(config).pipeline.source
    answer = run("probe", source, "pipeline.call.height=16", "pipeline.call.width=16")
    assert "2 with guidance, 1 without" in answer.out
    assert "50% of the passes saved" in answer.out


MISTAKES: dict[str, str] = {
    "no such file, run folder or preset": "distill nosuch",
    "broken.toml:1: not a TOML file": "record {here}/broken.toml",
    "distill.steps: must be at least 1": "distill {config} distill.steps=0",
    "override 'steps': not key=value": "distill {config} steps",
    "bad.txt:2: not valid UTF-8 at byte 2": "distill {config} prompts.path={here}/bad.txt",
    "absent.txt: no such file or folder": "record {config} prompts.path=absent.txt",
    "no such pipeline": "probe {here}/nosuch",
    "no model_index.json in this folder": "probe {here}/empty",
    "holds Python code (pipeline.py)": "probe {here}/code",
    "holds pickled weights (weights.bin)": "probe {here}/pickle",
    "may be a pickle": "probe {here}/weights.ckpt",
    "pipeline.device: 'nosuch' cannot be used": "distill {config} pipeline.device=nosuch",
    "pipeline.device: 'meta' cannot be used": "record {config} pipeline.device=meta",
    "pipeline.device: 'cuda:9' cannot be used": "probe bundled pipeline.device=cuda:9",
    "nosuch: no such pipeline": "distill {config} pipeline.source=./nosuch",
    "takes no argument hight": "distill {config} pipeline.call.hight=16",
    "refuses the call": "distill {config} pipeline.call.height=17",
    "where guidance is off": "distill {config} record.guidance=[1,1]",
    "no config.toml in this folder": "export {here}",
    "Name a run's folder.": "report {here}",
    "--kind painter: no such kind": "sample {here} -p cat -k painter",
    "config: no such file": "config config",
    "nosuch: no such run": "evaluate {here}/nosuch",
    "demo: no such run": "report demo",
    "a pipeline, not a run's settings": "distill {here}/code",
    "prompt: an empty one": "sample {config} --prompt=",
}
"""What must be said of commands that cannot work."""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder of things that cannot be used."""
    for name, file in {"code": "pipeline.py", "pickle": "weights.bin"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / file).touch()
        index = '{"_class_name": "StableDiffusionPipeline"}'
        (tmp_path / name / "model_index.json").write_text(index)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.toml").write_text("run =")
    (tmp_path / "weights.ckpt").touch()
    (tmp_path / "bad.txt").write_bytes(b"a cat\na \xff\n")
    return tmp_path


@pytest.mark.parametrize("said", MISTAKES)
def test_a_foreseeable_mistake_ends_in_a_message_and_code_2(
    run: Guidefold, here: Path, config: Path, said: str
) -> None:
    answer = run(*MISTAKES[said].format(here=here, config=config).split())
    assert answer.code == 2, answer.err
    assert answer.err.startswith("Error: ")
    assert said in answer.err
    assert "Traceback" not in answer.err


@pytest.mark.parametrize(
    ("arguments", "choices"),
    [
        ("export x --format", "diffusers kohya transformer original peft fused all"),
        ("export x --dtype", "fp32 fp16 bf16"),
        ("convert x --to", "diffusers kohya transformer original peft"),
        ("sample x --kind", "teacher unguided student"),
        ("bench memory --how", "estimate cpu cuda"),
        ("bench speed --targets", "attention linear portable all"),
    ],
)
def test_choices_are_listed_in_the_help_and_completed_by_the_shell(
    run: Guidefold, monkeypatch: pytest.MonkeyPatch, arguments: str, choices: str
) -> None:
    assert choices.replace(" ", "|") in run(*arguments.partition(" --")[0].split(), "--help").out
    assert completed(run, monkeypatch, f"guidefold {arguments} ") == choices.split()
    first, *_ = choices.split()
    assert first in completed(run, monkeypatch, f"guidefold {arguments} {first[:3]}")


def test_commands_and_presets_are_completed_by_the_shell(
    run: Guidefold, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert completed(run, monkeypatch, "guidefold ev") == ["evaluate"]
    assert completed(run, monkeypatch, "guidefold config ") == presets()
    assert completed(run, monkeypatch, "guidefold distill sdx") == ["sdxl"]


def completed(run: Guidefold, monkeypatch: pytest.MonkeyPatch, line: str) -> list[str]:
    """What bash is told of a line that ends where the cursor stands."""
    with monkeypatch.context() as shell:
        shell.setenv("_GUIDEFOLD_COMPLETE", "complete_bash")
        shell.setenv("COMP_WORDS", line)
        shell.setenv("COMP_CWORD", str(line.count(" ")))
        return run().out.split()


def test_sample_takes_settings_as_every_command_does_and_as_it_did(
    run: Guidefold, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(api, "sample", lambda settings, *_, **__: seen.append(settings) or ["x"])
    for overrides in (["threads=3"], ["--set", "threads=3"]):
        assert run("sample", config, *overrides, "-p", "a cat").code == 0
    assert [settings.threads for settings in seen] == [3, 3]
    assert "--set" not in run("sample", "--help").out


def test_the_commands_are_listed_whole_and_in_the_order_of_their_use(
    run: Guidefold, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = run("--help").out.partition("Commands:")[2]
    listed = [line.split()[0] for line in out.splitlines() if line.startswith("  ")]
    road = ["demo", "doctor", "probe", "plan", "config", "record", "gather", "distill", "sample"]
    assert listed[: len(road)] == road
    assert "..." not in out


@pytest.mark.parametrize("verb", ["export", "evaluate", "sample"])
def test_a_run_that_trained_nothing_yet_says_so(run: Guidefold, config: Path, verb: str) -> None:
    from guidefold.session import open_session

    settings = api.load_settings(config)
    with open_session(settings):
        pass
    answer = run(verb, settings.run, *(["-p", "a cat", "-k", "student"] * (verb == "sample")))
    assert answer.code == 2
    assert "Run 'guidefold distill' first." in answer.err


@pytest.mark.parametrize("arguments", [["nosuch"], ["distill"], ["sample", "x"], ["--nosuch"]])
def test_a_wrong_command_line_is_answered_with_its_usage(
    run: Guidefold, arguments: list[str]
) -> None:
    answer = run(*arguments)
    assert answer.code == 2
    assert "Usage: " in answer.err


def test_what_cannot_be_folded_is_said(run: Guidefold, tmp_path: Path) -> None:
    UNFOLDABLE["lcm"].build().save_pretrained(tmp_path, safe_serialization=True)
    answer = run("probe", tmp_path, "pipeline.call.height=16", "pipeline.call.width=16")
    assert answer.code == 2
    assert "there is no second pass to fold away" in answer.err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            PromptError("a.txt:1: [red] wrong", "Mend it."),
            2,
            "Error: a.txt:1: [red] wrong\nMend it.",
        ),
        (CorruptFileError("a: damaged"), 1, "Error: a: damaged"),
        (GuidefoldError("a"), 1, "Error: a"),
        (OSError(28, "No space left on device", "runs/a"), 1, "runs/a: No space left on device"),
        (RuntimeError("CUDA out of memory. Tried\nmore"), 1, "Try pipeline.dtype=bf16"),
        (Stopped(signal.SIGINT, "Stopped: saved."), 130, "Stopped: saved.\nThe same command goes"),
        (Stopped(signal.SIGTERM, "Stopped: saved."), 143, "Stopped: saved.\nThe same command goes"),
    ],
)
def test_what_ends_the_work_decides_the_code(
    run: Guidefold,
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    said: str,
) -> None:
    def fail(_settings: Settings) -> None:
        raise error

    monkeypatch.setattr(api, "open_run", fail)
    answer = run("distill", config)
    assert answer.code == code
    assert said in answer.err
    assert "Traceback" not in answer.err


def test_what_nobody_foresaw_keeps_its_traceback(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_settings: Settings) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(cli, "_quiet", lambda: None)
    monkeypatch.setattr(api, "open_run", fail)
    monkeypatch.setattr(sys, "argv", ["guidefold", "distill", str(config)])
    with pytest.raises(RuntimeError, match="a fault of ours"):
        cli.main()


def test_a_damaged_checkpoint_is_code_1_and_named(run: Guidefold, config: Path) -> None:
    settings = api.load_settings(config)
    path = api.distill(settings) / "adapter.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    answer = run("distill", config, "distill.steps=3")
    assert answer.code == 1
    assert f"{path}: its bytes are not the ones that were written" in answer.err


# Real signals.


def in_a_process(*words: object) -> Answer:
    """The command line of ``signalled.py`` as a process of its own."""
    done = subprocess.run(
        [sys.executable, signalled.__file__, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def in_this_one(place: str, number: signal.Signals, times: int, *words: object) -> Answer:
    """The same in this process, which spends no seconds on imports."""
    with pytest.MonkeyPatch.context() as patch:
        signalled.signal_at(patch, place, number, times)
        return run_here(*words)


def trained(run_folder: str) -> dict[str, torch.Tensor]:
    last = RunFolder(run_folder).checkpoints()[-1]
    return {
        f"{name}/{key}": tensor
        for name in ("adapter", "optimizer")
        for key, tensor in read_tensors(last / f"{name}.safetensors").items()
    }


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(t, two[n]) for n, t in one.items())


@pytest.fixture(scope="module")
def uninterrupted(
    settings_for: Make, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, torch.Tensor]:
    settings = settings_for("sd15", tmp_path_factory.mktemp("uninterrupted"))
    api.distill(settings)
    return trained(settings.run)


@pytest.mark.parametrize(
    ("run_signalled", "place", "number", "said"),
    [
        (in_a_process, "training", signal.SIGINT, "a checkpoint of step 1 is saved"),
        (in_this_one, "recording", signal.SIGTERM, "2 of 4 trajectories recorded"),
    ],
)
def test_a_signal_ends_politely_and_the_same_command_goes_on(
    config: Path,
    uninterrupted: dict[str, torch.Tensor],
    run_signalled: Callable[..., Answer],
    place: str,
    number: signal.Signals,
    said: str,
) -> None:
    run_folder = api.load_settings(config).run
    stopped = run_signalled(place, int(number), 1, "distill", config)
    assert stopped.code == 128 + number, stopped.err
    assert said in stopped.err
    assert "The same command goes on from there" in stopped.err
    assert "Traceback" not in stopped.err
    assert not list(Path(run_folder).rglob(".*.part"))
    again = run_here("distill", config)
    assert again.code == 0, again.err
    assert "The adapter: " in again.out
    assert equal(trained(run_folder), uninterrupted)


INTERRUPTED = """
import runpy, signal, sys

class Interrupt:
    def find_spec(self, name, path, target=None):
        if name == "{module}":
            signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupt())
sys.argv = ["guidefold", "probe", "bundled"]
runpy.run_module("guidefold", run_name="__main__")
"""


@pytest.mark.parametrize("module", ["guidefold.cli.main", "rich.console", "typer", "torch"])
def test_ctrl_c_ends_quietly_while_it_is_imported(module: str) -> None:
    words = [sys.executable, "-c", INTERRUPTED.format(module=module)]
    stopped = subprocess.run(words, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert stopped.returncode == 130
    assert stopped.stderr in (
        "",
        "Stopped. What was saved stands; the same command goes on from there.\n",
    )


def test_a_second_signal_ends_at_once(config: Path) -> None:
    stopped = in_this_one("training", signal.SIGINT, 2, "distill", config)
    assert stopped.code == 130, stopped.err
    assert "What was saved stands" in stopped.err
    assert "Traceback" not in stopped.err
