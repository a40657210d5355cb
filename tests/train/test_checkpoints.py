"""Checkpoints appear whole, come back whole, and are never lost to a kill."""

import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from work import Work

from guidefold.ground.errors import CorruptFileError, MismatchError, NonFiniteError
from guidefold.run import files as runs
from guidefold.run.folder import RunFolder
from guidefold.train.checkpoints import (
    optimizer_tensors,
    restore_optimizer,
)

FILES = ("adapter.safetensors", "optimizer.safetensors", "state.json", runs.MANIFEST)


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(t, two[n]) for n, t in one.items())


@pytest.fixture
def work() -> Work:
    work = Work()
    work.train(2)
    return work


def test_parameters_moments_and_state_come_back(work: Work, tmp_path: Path) -> None:
    folder = work.save(tmp_path)
    fresh = Work()
    assert fresh.load(folder) == {"step": 2, "rank": 2, "extra": [1, None]}
    assert same(fresh.tensors(), work.tensors())
    assert {n.split("/")[0] for n in work.tensors() if "/" in n} == {
        "exp_avg",
        "exp_avg_sq",
        "step",
    }


def test_training_goes_on_as_if_it_had_not_stopped(work: Work, tmp_path: Path) -> None:
    fresh = Work()
    fresh.load(work.save(tmp_path))
    fresh.train(2)
    work.train(2)
    assert same(fresh.tensors(), work.tensors())


def test_before_the_first_step_there_are_no_moments_to_save(tmp_path: Path) -> None:
    fresh = Work()
    folder = fresh.save(tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == sorted(set(FILES) - {FILES[1]})
    Work().load(folder)


def test_the_newest_are_kept_in_order(work: Work, tmp_path: Path) -> None:
    for _ in range(3):
        work.save(tmp_path, keep=2)
        work.train(4)
    assert [p.name for p in RunFolder(tmp_path).checkpoints()] == ["step-0000006", "step-0000010"]
    assert RunFolder(tmp_path).checkpoint(10) == RunFolder(tmp_path).checkpoints()[-1]


def test_no_run_has_no_checkpoints(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).checkpoints() == []


@pytest.mark.parametrize("name", FILES[:3])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_file_is_refused_by_name_and_nothing_is_taken_over(
    work: Work, tmp_path: Path, name: str, damage: str
) -> None:
    path = work.save(tmp_path) / name
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :])
    if damage == "truncated":
        path.write_bytes(whole[:-1])
    elif damage == "missing":
        path.unlink()
    fresh = Work()
    before = fresh.tensors()
    with pytest.raises(CorruptFileError, match=name) as caught:
        fresh.load(path.parent)
    assert "rm -r" in caught.value.remedy
    assert same(fresh.tensors(), before)


def test_another_rank_is_refused_with_both_sides(work: Work, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="trained with rank 2, this run asks for 4"):
        Work(rank=4).load(work.save(tmp_path))


@pytest.mark.parametrize(("saved", "asked"), [(1, 2), (2, 1)])
def test_another_set_of_layers_is_refused_by_name(saved: int, asked: int, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=r"tensor '1\.lora_A\.weight'"):
        Work(layers=asked).load(Work(layers=saved).save(tmp_path))


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_moments_that_do_not_fit_are_refused_by_name(work: Work, change: str) -> None:
    parameters = work.adapter.named_parameters()
    moments = optimizer_tensors(parameters, work.optimizer)
    name = "exp_avg/0.lora_A.weight"
    if change == "missing":
        del moments[name]
    else:
        name = "exp_avg/1.lora_A.weight"
        moments[name] = torch.ones(1)
    with pytest.raises(MismatchError, match=f"optimizer: '{name}' is {change}"):
        restore_optimizer(parameters, work.optimizer, moments)


def test_an_adapter_that_is_not_finite_is_not_written(work: Work, tmp_path: Path) -> None:
    before = work.save(tmp_path)
    work.train()
    with torch.no_grad():
        next(iter(work.adapter.named_parameters().values())).view(-1)[0] = float("nan")
    with pytest.raises(NonFiniteError, match="adapter"):
        work.save(tmp_path)
    assert RunFolder(tmp_path).checkpoints() == [before]


KILLED = """
import os, signal, sys
from pathlib import Path
root, tests = Path(sys.argv[1]), sys.argv[2]
sys.path.insert(0, tests)
from work import Work
from guidefold.run import files as runs

Work().save(root / "imports")  # once, before the forks
for name, steps in (("next", 1), ("again", 0)):
    for count in range(1000):
        run = root / f"{name}-{count}"
        child = os.fork()
        if not child:
            work = Work()
            work.train()
            work.save(run, keep=1)
            work.train(steps)
            passed = []
            def reached(point):
                passed.append(point)
                if len(passed) > count:
                    (run / "point").write_text(point)
                    os.kill(os.getpid(), signal.SIGKILL)
            runs.reached = reached
            work.save(run, keep=1)
            os._exit(0)
        if not os.WIFSIGNALED(os.waitpid(child, 0)[1]):
            break
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs killed at every point of writing their second checkpoint, or the first one again."""
    root = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-c", KILLED, str(root), str(Path(inspect.getfile(Work)).parent)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return root


@pytest.mark.parametrize(("scene", "steps", "points"), [("next", 2, 15), ("again", 1, 16)])
def test_a_kill_at_any_point_of_saving_leaves_a_newest_checkpoint_that_loads(
    killed: Path, tmp_path: Path, scene: str, steps: int, points: int
) -> None:
    shutil.copytree(killed, tmp_path / "k")
    expected = []
    for count in range(3):
        work = Work()
        work.train(count)
        expected.append(work.tensors())
    found = [run for run in (tmp_path / "k").glob(f"{scene}-*") if (run / "point").exists()]
    assert len(found) == points
    for run in found:
        fresh = Work()
        step = fresh.load(RunFolder(run).checkpoints()[-1])["step"]
        arrived = (run / "point").read_text() == "folder: after rename"
        assert step == (steps if arrived else 1), run
        assert same(fresh.tensors(), expected[step])
        fresh.step = step
        fresh.train()
        fresh.save(run, keep=1)
        assert [p.name for p in (run / "checkpoints").glob("step-*")] == [f"step-{step + 1:07d}"]
        fresh.load(RunFolder(run).checkpoints()[-1])
