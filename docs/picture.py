"""Write the README's first picture from the demo's two runs.

guidefold demo
python docs/picture.py runs/demo docs/images/demo.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from guidefold.demo.few_steps import STEPS
from guidefold.draw import Picture, grid, png, read_picture
from guidefold.run import Kind, PictureIndex, Results, RunFolder

ROWS = 6  # the first held-out prompts, not hand-picked


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="folder of the demo's first run")
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    first, few = RunFolder(given.run), RunFolder(f"{given.run}-{STEPS}-steps")
    shown: list[tuple[RunFolder, Kind, str]] = [
        (first, "teacher", "CFG teacher"),
        (first, "student", "student"),
        (few, "student", f"student, {STEPS} steps"),
        (first, "unguided", "unguided"),
    ]
    columns = [_column(run, kind) for run, kind, _ in shown]
    headings = [f"{name}\n{_passes(run, kind)} passes" for run, kind, name in shown]
    rows = [list(row) for row in zip(*columns, strict=True)]
    captions = [entry.prompt for entry in _index(first).pictures[:ROWS]]
    given.out.write_bytes(png(grid(rows, headings, captions)))


def _index(run: RunFolder) -> PictureIndex:
    index = PictureIndex.read(run.index)
    assert index is not None, f"{run} is not evaluated"
    return index


def _column(run: RunFolder, kind: Kind) -> list[Picture]:
    entries = _index(run).pictures[:ROWS]
    return [read_picture(run.evaluation / entry.files[kind]) for entry in entries]


def _passes(run: RunFolder, kind: Kind) -> str:
    results = Results.read(run.results)
    assert results is not None, f"{run} is not evaluated"
    return f"{results.of(kind).passes_per_image:g}"


if __name__ == "__main__":
    main()
