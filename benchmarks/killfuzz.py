"""Is anything lost, or silently different, when a command is killed at a random moment?

    python benchmarks/killfuzz.py --kills 100 --seed 0

A tiny Stable Diffusion goes through record (two shards), gather, distill, evaluate, export and
pack. Then each of them in turn, from the state before it, is killed with SIGKILL at a random moment
and run again until it ends, and what it leaves is compared with what was left undisturbed: every
file by its content, but for times, dates and the machine.

Prints one line of JSON: kills that met a command at work, runs that did not come to their end or
lack a file (lost), and runs that end with another content (different).

Each command is a process of its own, forked from one that has the libraries imported already.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tiny import make_settings
from zoo import build

from guidefold.cli import main as cli
from guidefold.run import dump_toml, sha256

STAGES = ("record", "gather", "distill", "evaluate", "export", "pack")
MEASURED = {
    "seconds",
    "training_seconds",
    "peak_memory",
    "denoiser_seconds_per_image",
    "denoiser_seconds_per_image_fused",
    "machine",
    "digest",
    "from",  # a hash over files that hold times
    "modelspec.date",
}
OF_TIMES = {"report.html", "README.md", "MANIFEST.json", ".lock"}  # whether they are there


def main() -> None:
    """Kill, run again, compare, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for wing in ("api", "demo.judge"):  # what the commands import
        importlib.import_module(f"guidefold.{wing}")
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        fuzz = Fuzz(Path(folder))
        fuzz.undisturbed()
        for number in range(options.kills):
            fuzz.kill(STAGES[number % len(STAGES)], chance)
    print(json.dumps({"kills": options.kills, "seed": options.seed, **fuzz.counts()}))


class Fuzz:
    """A tiny pipeline, its undisturbed run, and what became of the disturbed ones.

    Args:
        root: An empty folder.

    Attributes:
        work: Where every run happens: paths stand in a run's files.
        seconds: What each stage took undisturbed.
        left: What each stage left undisturbed.
        hits: Kills, by stage.
        lost: What did not come to its end, or lacks files.
        different: What ended with another content.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.work = root, root / "work"
        self.seconds: dict[str, float] = {}
        self.left: dict[str, dict[str, Any]] = {}
        self.hits = dict.fromkeys(STAGES, 0)
        self.lost: list[str] = []
        self.different: list[str] = []
        build("sd15").save_pretrained(root / "pipeline", safe_serialization=True)
        self.work.mkdir()
        distill = {"steps": 4, "checkpoint_every": 1, "preview_prompts": 1, "preview_every": 2}
        settings = make_settings("sd15", root / "pipeline", self.work, {"distill": distill})
        for name in ("run", "one", "two"):
            own = settings.model_copy(update={"run": str(self.work / name)})
            (self.work / f"{name}.toml").write_text(dump_toml(own), encoding="utf-8")

    def undisturbed(self) -> None:
        """Run every stage, and keep the folder before each."""
        for stage in STAGES:
            shutil.copytree(self.work, self.root / f"before-{stage}")
            began = time.perf_counter()
            code = self.finish(stage)
            assert code == 0, self.said()
            self.seconds[stage] = time.perf_counter() - began
            self.left[stage] = contents(self.work)

    def kill(self, stage: str, chance: random.Random) -> None:
        """Kill one stage at a random moment, run it to its end, and compare."""
        moment = self.killed_at_work(stage, chance)
        where = f"{stage} after {moment:.3f} s"
        if self.finish(stage) != 0:
            self.lost.append(f"{where}: {self.said()}")
            return
        found, told = contents(self.work), self.left[stage]
        missing = sorted(told.keys() - found.keys())
        other = sorted(name for name in found if found[name] != told.get(name))
        if missing:
            self.lost.append(f"{where}: {', '.join(missing)}")
        elif other:
            self.different.append(f"{where}: {', '.join(other)}")

    def killed_at_work(self, stage: str, chance: random.Random) -> float:
        """Kill a stage from the state before it; the moment, in seconds, of a kill that met it."""
        while True:
            shutil.rmtree(self.work)
            shutil.copytree(self.root / f"before-{stage}", self.work)
            moment = chance.uniform(0, self.seconds[stage])
            if self.start(stage, moment):
                self.hits[stage] += 1
                return moment
            self.seconds[stage] = moment  # it was done by then

    def start(self, stage: str, moment: float) -> bool:
        """Run a stage's commands and kill it after so many seconds; whether it was at work."""
        child = self.fork(stage)
        time.sleep(moment)
        ended, _ = os.waitpid(child, os.WNOHANG)
        if not ended:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        return not ended

    def finish(self, stage: str) -> int:
        """Run a stage's commands to their end; the exit code."""
        _, status = os.waitpid(self.fork(stage), 0)
        return os.waitstatus_to_exitcode(status)

    def fork(self, stage: str) -> int:
        """A process that runs a stage's commands; its id."""
        child = os.fork()
        if child:
            return child
        code = 1
        with suppress(BaseException), (self.root / "said").open("w") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            code = max(run_command(words) for words in self.commands(stage))
        os._exit(code)

    def commands(self, stage: str) -> list[list[object]]:
        """A stage's words on the command line."""
        run, one, two = (self.work / name for name in ("run", "one", "two"))
        return {
            "record": [
                ["record", f"{part}.toml", "--shard", f"{number}/2"]
                for number, part in enumerate((one, two), 1)
            ],
            "gather": [["gather", run, one, two]],
            "distill": [["distill", f"{run}.toml"]],
            "evaluate": [["evaluate", run]],
            "export": [["export", run, "--format", "all"]],
            "pack": [["pack", run]],
        }[stage]

    def said(self) -> str:
        """The last lines of the last command."""
        return " ".join((self.root / "said").read_text(encoding="utf-8").split())[-400:]

    def counts(self) -> dict[str, Any]:
        """What became of the kills."""
        return {
            "by_command": self.hits,
            "lost": len(self.lost),
            "different": len(self.different),
            "examples": [*self.lost, *self.different][:5],
        }


def run_command(words: list[object]) -> int:
    """Run the command line in this process; the exit code."""
    sys.argv = ["guidefold", *map(str, words)]
    try:
        cli.main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    return 0


def contents(folder: Path) -> dict[str, Any]:
    """What each file within a folder holds, without what is measured."""
    return {
        path.relative_to(folder).as_posix(): content(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def content(path: Path) -> Any:
    """What a file holds, without what is measured."""
    if path.name in OF_TIMES:
        return True
    if path.suffix == ".safetensors":
        return dict(tensors(path))
    if path.suffix == ".json":
        return timeless(json.loads(path.read_text(encoding="utf-8")))
    if path.suffix == ".jsonl":
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [timeless(json.loads(line)) for line in lines]
        return sorted(rows, key=lambda row: json.dumps(row, sort_keys=True))
    return sha256(path)


def tensors(path: Path) -> Iterator[tuple[str, Any]]:
    """A file's tensors, byte by byte, and its metadata without dates."""
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dictionary
            tensor = file.get_tensor(name)
            data = bytes(tensor.reshape(-1).view(torch.uint8).numpy())
            yield name, (str(tensor.dtype), tensor.shape, data)
        yield "metadata", timeless(file.metadata() or {})


def timeless(value: Any) -> Any:
    """JSON without what is measured."""
    if isinstance(value, Mapping):
        return {key: timeless(item) for key, item in value.items() if key not in MEASURED}
    return [timeless(item) for item in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
