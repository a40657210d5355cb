"""Pack a run's adapter as a hub repository: files, card, pictures and workflow in one folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from guidefold import __version__
from guidefold.deliver import Verdict, deliver_kinds, find_adapter, read_trained
from guidefold.ground import InputError, RunError
from guidefold.run import (
    KINDS,
    MANIFEST,
    METADATA,
    Format,
    PictureIndex,
    PromptPictures,
    Record,
    Results,
    RunFolder,
    Settings,
    check_file,
    check_replaceable,
    find_picture,
    finished_folder,
    hub_id,
    picture_digests,
    read_json,
    read_log,
    read_measured,
    require_run,
    restore_folder,
    sha256,
    within,
    write_bytes,
    write_json,
    write_record,
    write_text,
)
from guidefold.session import Session, open_session
from guidefold.show.hub.card import WORKFLOW, PackedContent, card
from guidefold.show.hub.comfyui import describe_workflow, file_for_comfyui, unsuitable
from guidefold.show.hub.licences import licence_for
from guidefold.show.hub.workflow import graph, to_api, to_ui
from guidefold.show.summary import folded_share, undertrained

CARD = "README.md"
WORKFLOW_API = "comfyui-workflow-api.json"
PICTURES = 4
AGAIN = "Write it again with 'guidefold export RUN'."
MEASURE_AGAIN = "Write it anew with 'guidefold evaluate RUN'."


@dataclass(frozen=True)
class Packed:
    """A folder with the content of a hub repository.

    Attributes:
        folder: The folder.
        remarks: Remarks for its owner.
    """

    folder: Path
    remarks: tuple[str, ...]


def pack(settings: Settings, out: Path | None = None, licence: str | None = None) -> Packed:
    """Write the content of a hub repository: adapter, other formats, card, pictures, workflow.

    Args:
        settings: The run's settings.
        out: The folder; by default ``RUN/hub``. A packed folder is replaced.
        licence: The base's licence as the hub's identifier, where its card is not available.

    Raises:
        InputError: The folder cannot be made, holds something else, or its card was edited; or the
            licence differs from the base's.
        RunError: There is no adapter, or training has gone on since it was written.
        CorruptFileError: A file of the run is damaged.
        VerifyError: A written file differs from what was trained.
    """
    run = require_run(settings.run)
    folder = out or run.hub
    check_writable(folder)
    metadata = current_adapter(run)
    licence = licence or packed_as(folder).get("license")
    allowed = licence_for(settings.pipeline.source, licence)
    with open_session(settings) as session, finished_folder(folder) as temporary:
        _copy_adapter(run, temporary, metadata, {"from": stamp(run), "license": licence})
        verdicts, unfit = _for_clients(session, temporary)
        results, index = _evaluation(run, metadata)
        entries = index.pictures if index else []
        pictures = list(_pictures(run, entries[:PICTURES]))
        for row in pictures:
            for kind in KINDS:
                write_bytes(temporary / row[kind], row[f"{kind} file"].read_bytes())
        reason = "there is no file for it" if unfit else unsuitable(session, verdicts)
        if not reason:
            _write_workflow(session, temporary, file_for_comfyui(verdicts), pictures)
        content = PackedContent(
            metadata, allowed, results, len(entries), pictures, verdicts, unfit, reason
        )
        write_text(temporary / CARD, card(session, content))
    return Packed(folder, tuple(_remarks(settings, content, run)))


def packed_as(folder: Path) -> Mapping[str, Any]:
    """The stamp and licence of a packed folder; empty where there is none."""
    restore_folder(folder)
    metadata = Record.read(folder / METADATA, "Remove the folder.")
    packed: Mapping[str, Any] = metadata.to_json().get("packed", {}) if metadata else {}
    return packed


def stamp(run: RunFolder) -> str:
    """A hash of all that a packed folder is made from: adapter, settings, results, version."""
    files = (run.adapter / MANIFEST, run.config, run.results, run.index)
    parts = [__version__, *(f"{path.name} {sha256(path)}" for path in files if path.exists())]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def check_writable(folder: Path) -> None:
    """Refuse to replace a folder that was not packed, or whose card was edited.

    Raises:
        InputError: The folder cannot be made, holds something else, or its card was edited.
    """
    check_replaceable(folder)
    if not (folder / MANIFEST).exists():
        return
    if not packed_as(folder):
        raise InputError(
            f"{folder}: holds something else, which would be lost", "Name a new folder with --out."
        )
    manifest, card = read_json(folder / MANIFEST), folder / CARD
    if card.exists() and manifest.get(CARD, {}).get("sha256") != sha256(card):
        raise InputError(
            f"{card}: was edited since it was written, and would be lost",
            "Move it away, or name another folder with --out.",
        )


def check_packed(folder: Path) -> None:
    """Compare a packed folder's files with its manifest; its card may be edited, files be added.

    Raises:
        CorruptFileError: A file is missing or altered.
    """
    remedy, manifest = f"Remove {folder}: it is packed again.", folder / MANIFEST
    for name, entry in read_json(manifest, remedy).items():
        if name != CARD:
            place = within(folder, name, manifest, remedy)
            check_file(place, entry["sha256"], entry["size"], remedy)


def current_adapter(run: RunFolder) -> dict[str, Any]:
    """The metadata of a run's adapter, which must be intact and of the last checkpoint.

    Raises:
        RunError: There is no adapter, or training has gone on since.
        CorruptFileError: A file is not the one that was written and verified.
    """
    folder, metadata = find_adapter(run)
    last, step = run.checkpoints()[-1:], metadata["step"]
    if last and int(last[0].name.rpartition("-")[2]) != step:
        raise RunError(f"{folder}: written at step {step}, and trained on since", AGAIN)
    return metadata


def _for_clients(session: Session, folder: Path) -> tuple[tuple[Verdict, ...], str]:
    """Write and verify a file per denoiser for other clients; or return why there are none."""
    transformer = session.findings.denoisers[0] == "transformer"
    kinds: tuple[Format, ...] = ("transformer", "original") if transformer else ("kohya",)
    made = deliver_kinds(session, read_trained(session), {kind: folder / kind for kind in kinds})
    return made.verdicts, "" if made.verdicts else made.unfit.get(kinds[0], "")


def _copy_adapter(
    run: RunFolder, folder: Path, metadata: Mapping[str, Any], packed: Mapping[str, Any]
) -> None:
    for path in sorted(run.adapter.rglob("*")):
        name = path.relative_to(run.adapter)
        if path.is_file() and path.name not in (MANIFEST, METADATA):
            write_bytes(folder / name, path.read_bytes())
    write_record(folder / METADATA, {**metadata, "packed": dict(packed)})


def _evaluation(
    run: RunFolder, metadata: Mapping[str, Any]
) -> tuple[Results | None, PictureIndex | None]:
    """The evaluation of this adapter at strength 1, for which the card is written."""
    results, index = read_measured(run, MEASURE_AGAIN)
    if results is None or _mismatch(results, metadata):
        return None, None
    return results, index


def _pictures(run: RunFolder, entries: Sequence[PromptPictures]) -> Iterator[dict[str, Any]]:
    """For each prompt, the pictures' paths in the packed folder, and their files."""
    digests = picture_digests(run)
    for k, entry in enumerate(entries):
        row: dict[str, Any] = {"prompt": entry.prompt, "seed": entry.seed}
        for kind in KINDS:
            path = find_picture(run.index, entry.files[kind], digests, MEASURE_AGAIN)
            row |= {kind: f"images/{k}-{kind}.png", f"{kind} file": path}
        yield row


def _mismatch(results: Results, metadata: Mapping[str, Any]) -> str:
    """Why results do not belong to the adapter of the card; empty where they do."""
    if results.trained_steps != metadata["step"]:
        return "was measured before it was trained further"
    if results.strength != 1:
        return f"was measured at strength {results.strength:.3g}, and the card is for strength 1"
    return ""


def _write_workflow(
    session: Session, folder: Path, verdict: Verdict | None, pictures: list[dict[str, Any]]
) -> None:
    assert verdict is not None
    size = None
    if pictures:
        with Image.open(folder / pictures[0]["student"]) as picture:
            size = picture.size
    made = graph(describe_workflow(session, verdict.path.name, size))
    write_json(folder / WORKFLOW, to_ui(made))
    write_json(folder / WORKFLOW_API, to_api(made))


def _remarks(settings: Settings, content: PackedContent, run: RunFolder) -> Iterator[str]:
    """Remarks for the owner of a packed folder."""
    if not content.licence:
        yield (
            "No licence: the base's card is not available, or names none. Name the base's licence "
            "with --license."
        )
    source = settings.pipeline.source
    if hub_id(source) is None and source != "bundled":
        yield (
            "No base_model in the card's front matter: the base is no repository of the hub here. "
            f"If it is one, write base_model: OWNER/NAME into {CARD}."
        )
    if warning := undertrained(folded_share(content.results, read_log(run.log)), settings):
        yield f"The card warns: {warning}"
    if content.results is None:
        older = Results.read(run.results, AGAIN)
        what = _mismatch(older, content.metadata) if older else "is not measured yet"
        yield f"No table and no pictures: the adapter {what}. 'guidefold evaluate {run}' measures."
    if content.unfit:
        yield f"No file for other clients: {content.unfit}."
    elif content.no_workflow:
        yield f"No ComfyUI workflow: {content.no_workflow}."
