"""What a measurement left in a run: results, the index of its pictures, and the pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from guidefold.ground import CorruptFileError
from guidefold.run.files import sha256
from guidefold.run.folder import RunFolder
from guidefold.run.lines import PictureLine
from guidefold.run.paths import within
from guidefold.run.records import AGAIN, PictureIndex, Results


def read_measured(
    run: RunFolder, remedy: str = AGAIN
) -> tuple[Results, PictureIndex] | tuple[None, None]:
    """The results and the index of pictures of a run; None before its first measurement.

    Args:
        run: The run's folder.
        remedy: What to do where they are damaged.

    Raises:
        CorruptFileError: One is damaged, or the index is lost.
    """
    results, index = Results.read(run.results, remedy), PictureIndex.read(run.index, remedy)
    if results is None:  # an index alone: the measurement stopped between the two
        return None, None
    if index is None:
        raise CorruptFileError(f"{run.index}: missing, though {run.results} is there", remedy)
    return results, index


def picture_digests(run: RunFolder) -> dict[str, str]:
    """The SHA-256 of each picture of a measurement, by its name in ``RUN/evaluation``."""
    return {line.file: line.sha256 for line in PictureLine.read_lines(run.pictures)}


def find_picture(index: Path, name: str, digests: Mapping[str, str], remedy: str) -> Path:
    """A picture that an index names.

    Args:
        index: The index; the picture lies in its folder.
        name: The picture's name there.
        digests: SHA-256 by name; pictures of old files have none.
        remedy: What to do where it is damaged.

    Raises:
        CorruptFileError: It is missing, altered, or lies elsewhere.
    """
    path = within(index.parent, name, index, remedy)
    if not path.is_file():
        raise CorruptFileError(f"{path}: the picture is missing", remedy)
    if digests.get(name, "") not in ("", sha256(path)):
        raise CorruptFileError(f"{path}: the picture is not the one that was drawn", remedy)
    return path
