"""Several processes train a run together: one launch of two goes through every case.

On the CPU, which the settings name; ``--multi_gpu`` only means more than one process.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from terminal import ENVIRONMENT
from training import finish
from zoo import WARNINGS

from guidefold.run.config import dump_toml
from guidefold.run.files import read_lines
from guidefold.run.folder import RunFolder
from guidefold.run.settings import Settings
from guidefold.run.tensors import read_tensors

pytestmark = pytest.mark.filterwarnings(*WARNINGS)

Make = Callable[..., Settings]

LAUNCHED = """
import sys
from guidefold.cli.main import main
for config in sys.argv[1:]:
    sys.argv = ["guidefold", "distill", config]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise
"""
PIPELINES = {"sd15": 2, "qwen_image": 2, "z_image": 2, "wan22": 1}
"""Batch size of each process: UNet, transformer whose last block computes what nothing reads, lists
of tensors, and two denoisers of which a process of one state calls one.
"""
HALF: dict[str, Any] = {
    "pipeline": {"dtype": "bf16"},
    "distill": {
        "mixed_precision": "bf16",
        "trackers": ["tensorboard"],
        "steps": 1,
        "preview_prompts": 1,
    },
}


def launch(folder: Path, *runs: Settings) -> str:
    """Distill runs one after another, in two processes."""
    (folder / "launched.py").write_text(LAUNCHED, encoding="utf-8")
    command = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--num_cpu_threads_per_process", "1", "--main_process_port", "0"]
    for k, settings in enumerate(runs):
        (folder / f"{k}.toml").write_text(dump_toml(settings), encoding="utf-8")
    configs = [str(folder / f"{k}.toml") for k in range(len(runs))]
    done = subprocess.run(
        [sys.executable, *command, str(folder / "launched.py"), *configs],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def batches_of(size: int) -> dict[str, Any]:
    return {"distill": {"steps": 3, "batch_size": size, "learning_rate": 1e-3}}


@pytest.fixture(scope="module")
def runs(settings_for: Make, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Settings]:
    """Each pipeline's run by two processes, and one in half precision that draws previews."""
    folder = tmp_path_factory.mktemp("two")
    made = {n: settings_for(n, folder / n, **batches_of(size)) for n, size in PIPELINES.items()}
    made["half"] = settings_for("sd15", folder / "half", **HALF)
    printed = launch(folder, *made.values())
    assert printed.count("The adapter: ") == len(made)
    return made


def trained(settings: Settings) -> dict[str, torch.Tensor]:
    last = RunFolder(settings.run).checkpoints()[-1]
    return {
        f"{name}/{key}": tensor
        for name in ("adapter", "optimizer")
        for key, tensor in read_tensors(last / f"{name}.safetensors").items()
    }


@pytest.mark.parametrize("name", PIPELINES)
def test_two_processes_train_what_one_trains_with_batches_of_twice_the_size(
    runs: dict[str, Settings], settings_for: Make, tmp_path: Path, name: str
) -> None:
    two, one = runs[name], settings_for(name, tmp_path, **batches_of(2 * PIPELINES[name]))
    shutil.copytree(Path(two.run) / "trajectories", Path(one.run) / "trajectories")
    finish(one)
    expected, found = trained(one), trained(two)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-5, atol=1e-5)
    logs = [read_lines(Path(s.run) / "log.jsonl") for s in (two, one)]
    steps = [[line["step"] for line in log] for log in logs]
    assert steps[0] == steps[1] == [1, 2, 2, 3, 3]
    losses = [[line["loss"] for line in log if "loss" in line] for log in logs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_parameter_that_no_process_used_is_left_as_it_is(runs: dict[str, Settings]) -> None:
    """As by one process: zeros in the place of no gradient would begin its moments."""
    tensors = trained(runs["qwen_image"])
    adapter, moments = (
        {key.removeprefix(start) for key in tensors if key.startswith(start)}
        for start in ("adapter/", "optimizer/exp_avg/")
    )
    last_block = {name for name in adapter if name.startswith("transformer_blocks.1.txt_mlp.")}
    assert last_block
    assert not last_block & moments
    assert moments < adapter


def test_the_first_of_two_processes_draws_what_one_alone_draws_in_half_precision_too(
    runs: dict[str, Settings], settings_for: Make, tmp_path: Path
) -> None:
    two, one = runs["half"], settings_for("sd15", tmp_path, **HALF)
    finish(one)
    drawn = [
        {path.name: path.read_bytes() for path in (Path(s.run) / "previews").iterdir()}
        for s in (two, one)
    ]
    assert drawn[0].keys() == drawn[1].keys()
    for name in ("teacher-0.png", "unguided-0.png", "student-0-step-000000.png"):
        assert drawn[0][name] == drawn[1][name]
    assert len(list((Path(two.run) / "trackers" / "guidefold").glob("events.*"))) == 1
