"""Tables of JSON that carry their own digest, so that an altered one is not taken for the written.

The digest is the key ``digest``: the first 16 hexadecimal digits of the SHA-256 of the table's
canonical JSON (keys sorted, no spaces) without that key. Files of version 0.1.0 carry none and are
read as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from guidefold.ground import CorruptFileError

DIGEST = "digest"


def with_digest(table: Mapping[str, Any]) -> dict[str, Any]:
    """A table as it is written: its digest is the last key.

    Raises:
        ValueError: A number is not finite.
    """
    content = {name: value for name, value in table.items() if name != DIGEST}
    return {**content, DIGEST: _digest(content)}


def checked(table: Mapping[str, Any], place: object, remedy: str) -> dict[str, Any]:
    """A table that was read, without its digest.

    Args:
        table: The table; one of an old file has no digest, and is taken as it is.
        place: Where it was read, for messages.
        remedy: What to do where it is damaged.

    Raises:
        CorruptFileError: The digest is not the table's.
    """
    content = {name: value for name, value in table.items() if name != DIGEST}
    if DIGEST in table and table[DIGEST] != _digest(content):
        raise CorruptFileError(f"{place}: altered since it was written (its digest)", remedy)
    return content


def _digest(content: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps(content, allow_nan=False))  # as read: keys are text, no tuples
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
