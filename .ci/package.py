"""Try a built package as a stranger would.

python .ci/package.py DIST CONSTRAINTS

Compares the wheel's files with those of the repository, installs it into an environment of its own
in an empty folder, and there runs what the README tells a newcomer first.
"""

import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHORT = [
    *("record.trajectories=4", "record.validation_trajectories=2", "record.batch_size=2"),
    *("record.steps=[10,10]", "distill.steps=4", "distill.batch_size=2"),
    *("distill.preview_prompts=0", "evaluate.prompts=4", "evaluate.steps=10"),
    *("evaluate.state_prompts=1", "evaluate.dial_prompts=1"),
]
"""A demo that shows that everything is there, not that it folds."""


def main(dist: Path, constraints: Path) -> None:
    """Check the wheel in a folder, then install and use it."""
    (wheel,) = dist.glob("*.whl")
    check_files(wheel)
    version = wheel.name.split("-")[1]
    with tempfile.TemporaryDirectory(prefix="guidefold-package-") as name:
        folder = Path(name).resolve()
        programs = install(wheel, constraints, folder / "env")
        use(programs, folder, version)
    print(f"{wheel.name}: installed and used in an empty folder")


def check_files(wheel: Path) -> None:
    """Every file of the package is in the wheel, whatever its kind, and no other."""
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("guidefold/")}
    source = ROOT / "src"
    wanted = {
        path.relative_to(source).as_posix()
        for path in (source / "guidefold").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    if packed != wanted:
        missing, odd = sorted(wanted - packed), sorted(packed - wanted)
        sys.exit(f"{wheel.name}: missing {missing}, not of the repository {odd}")


def install(wheel: Path, constraints: Path, environment: Path) -> Path:
    """Make an environment with the wheel alone; its folder of programs."""
    venv.create(environment, with_pip=True)
    programs = environment / ("Scripts" if os.name == "nt" else "bin")
    pip = [programs / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-compile", "-c", constraints, wheel], check=True)
    return programs


def use(programs: Path, folder: Path, version: str) -> None:
    """Run the first commands of a newcomer, away from the repository."""
    unwanted = ("PYTHONPATH", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def guidefold(*words: str) -> str:
        command = [programs / "guidefold", *words]
        print("$ guidefold", *words, flush=True)
        done = subprocess.run(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=False
        )
        print(done.stdout, flush=True)
        if done.returncode:
            sys.exit(f"guidefold {words[0]}: exit code {done.returncode}")
        return done.stdout

    if guidefold("--version") != f"guidefold {version}\n":
        sys.exit(f"the wheel is of version {version}, the program of another")
    if guidefold("doctor").split()[:2] != ["guidefold", version]:
        sys.exit("guidefold doctor does not know its own version")
    guidefold("demo", *SHORT)
    guidefold("verify", "runs/demo/adapter", "--run", "runs/demo")
    for made in ("report.html", "results.json", "grid.png", "adapter/guidefold.json"):
        if not (folder / "runs" / "demo" / made).exists():
            sys.exit(f"guidefold demo left no {made}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
