"""Tiny real diffusers pipelines with seeded random weights, for tests.

Each is the class that users run, with every width cut down: a call takes milliseconds, and what
it does around the denoiser (text, batching, guidance, output) is what the full one does.
"""

from diffusers import DiffusionPipeline

from . import image, stable_diffusion, video
from .entry import Entry

__all__ = ["UNFOLDABLE", "WARNINGS", "WIDE", "ZOO", "Entry", "build"]

CORE = (stable_diffusion, image, video)
REST = ()

ZOO: dict[str, Entry] = {name: entry for room in CORE for name, entry in room.ENTRIES.items()}
"""Foldable pipelines of the families that most people use: every test may run over them."""

WIDE: dict[str, Entry] = {name: entry for room in REST for name, entry in room.ENTRIES.items()}
"""All others that can be folded: ``test_wide.py`` runs over them, the whole road each."""

UNFOLDABLE: dict[str, Entry] = {
    name: entry
    for room in (*CORE, *REST)
    for name, entry in getattr(room, "UNFOLDABLE", {}).items()
}
"""Pipelines with a guidance argument whose guidance cannot be folded."""

WARNINGS = (
    # Schedulers call `numpy.array` on a tensor, whose `__array__` is older than numpy 2.
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning:diffusers.schedulers",
    # Chroma imports its rotary embedding from the old place.
    "ignore:`FluxPosEmbed` is deprecated:FutureWarning:diffusers.models.embeddings",
)
"""What diffusers itself warns of here, for `pytest.mark.filterwarnings(*WARNINGS)`."""


def build(name: str) -> DiffusionPipeline:
    """Build a pipeline of any of the dictionaries afresh."""
    return (ZOO | WIDE | UNFOLDABLE)[name].build()
