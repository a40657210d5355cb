"""Time, disk and memory in words."""

import pytest

from guidefold.run.costs import readable_size


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3.4 * 2**20, "3.4 MiB"),
        (2**41, "2048.0 GiB"),
    ],
)
def test_sizes_for_people(count: float, text: str) -> None:
    assert readable_size(count) == text
