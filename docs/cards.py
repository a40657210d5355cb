"""Write docs/cards.md: which card a preset fits, and how. ``python docs/cards.py [PRESET ...]``.

With names, only these presets are computed anew; the others stay as cards.json has them, which
``guidefold doctor`` reads as well.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from guidefold.run import load_settings, presets

HERE = Path(__file__).parent
HEAD = """# Cards

The fastest settings with which each preset fits a card, by the estimate of `guidefold plan`, from
the models' own configurations (`pipeline/descriptions`; no weights, no network, no device). For one
preset:

    guidefold plan qwen-image --cards        # this table's rows
    guidefold plan qwen-image --memory 24    # one card, with the settings as section.key=value
    guidefold distill qwen-image --fit       # with those that fit what is free on this device

The whole page, in one thread: `python docs/cards.py`. *Nothing here was measured on a card.*

Settings are tried from the fastest on: first those that change nothing in what is learnt (no
checkpointing, then checkpointing; a batch in as few pieces as fit; nothing offloaded, then
components, then layers), then frozen weights in 8 and 4 bits while the student trains, then a
quantised teacher. Rank, targets, precision, picture size and batch are the preset's. A card *fits*
with a tenth of its memory to spare. Peaks are bounds from above, in GiB; what is offloaded lies in
the host's memory (last column: the pipeline's weights as they are stored). Decoding of pictures is
not counted.
"""
COLUMNS = (
    *("card", "quantization", "frozen weights", "offload", "checkpointing", "batch"),
    *("encoding", "recording", "training", "host"),
)


def compute(name: str) -> dict[str, Any]:
    """A preset's rows, and the processor time that they took."""
    from guidefold.bench.memory import CARDS, GIB, Choices, fit_to_json

    start, settings = time.process_time(), load_settings(name)
    choices = Choices(settings)
    rows = {}
    for card in CARDS:
        fit = choices.fastest(card * GIB)
        row = fit_to_json(fit, settings)
        if row is not None and row["offload"] != "none":
            row["host_bytes"] = choices.stored_bytes(row["quantization"])
        rows[str(card)] = row
    return {
        "source": settings.pipeline.source,
        "dtype": settings.pipeline.dtype,
        "batch": settings.distill.batch_size,
        "call": settings.pipeline.call,
        "rank": settings.adapter.rank,
        "targets": settings.adapter.targets,
        "denoiser_parameters": choices.parameters,
        "rows": rows,
        "processor_seconds": round(time.process_time() - start),
    }


def page(found: dict[str, Any]) -> str:
    """The whole page."""
    return "\n".join(
        [HEAD, *(line for name, preset in found.items() for line in part(name, preset))]
    )


def summary(found: dict[str, Any]) -> str:
    """The table of the README: how each preset fits each card, in a word."""
    cards = list(next(iter(found.values()))["rows"])
    head = [f"| preset | {' | '.join(f'{card} GiB' for card in cards)} |"]
    head.append(f"|{'---|' * (len(cards) + 1)}")
    rows = [
        f"| `{name}` | {' | '.join(word(row) for row in preset['rows'].values())} |"
        for name, preset in found.items()
    ]
    return "\n".join([*head, *rows])


def word(row: dict[str, Any] | None) -> str:
    """What a card asks for: offloading, fewer bits, or nothing of the kind."""
    if row is None:
        return "no"
    storage = {row["quantization"], row["frozen_weights"]} - {"none", "same"}
    offload = {f"offload {row['offload']}"} - {"offload none"}
    return ", ".join(sorted(storage) + sorted(offload)) or "yes"


def part(name: str, preset: dict[str, Any]) -> list[str]:
    """A preset's table."""
    size = " x ".join(
        f"{preset['call'][key]}"
        for key in ("width", "height", "num_frames")
        if key in preset["call"]
    )
    return [
        f"## `{name}`",
        "",
        f"{preset['source']}, {preset['denoiser_parameters']:,} parameters in the denoiser, "
        f"{size}, {preset['dtype']}, rank {preset['rank']} on '{preset['targets']}' "
        f"({preset['processor_seconds']} s of processor time).",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
        *(f"| {card} | {' | '.join(cells(row, preset))} |" for card, row in preset["rows"].items()),
        "",
    ]


def cells(row: dict[str, Any] | None, preset: dict[str, Any]) -> list[str]:
    """The cells behind the card's."""
    if row is None:
        return ["does not fit", *[""] * (len(COLUMNS) - 2)]
    pieces = row["accumulation"]
    peaks = (row["encoding_bytes"], row["recording_bytes"], row["peak_bytes"])
    return [
        row["quantization"],
        row["frozen_weights"],
        row["offload"],
        "yes" if row["checkpointing"] else "no",
        f"{pieces} x {preset['batch'] // pieces}",
        *(f"{size / 2**30:.1f}" for size in peaks),
        f"{row['host_bytes'] / 2**30:.1f}" if "host_bytes" in row else "",
    ]


def main(names: list[str]) -> None:
    """Compute presets and write both files."""
    path = HERE.parent / "src" / "guidefold" / "cli" / "cards.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known = [name for name in presets() if name != "demo"]
    for name in names or known:
        print(name, flush=True)
        found[name] = compute(name)
        found = {name: found[name] for name in known if name in found}
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (HERE / "cards.md").write_text(page(found), encoding="utf-8")
    print(summary(found))


if __name__ == "__main__":
    main(sys.argv[1:])
