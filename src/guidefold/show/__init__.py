"""Show a run.

The report page, the live page, pictures of any prompt, and in ``hub`` the model card, the
ComfyUI workflow and the folder that is uploaded to the hub.
"""

from guidefold.show.charts import curves
from guidefold.show.hub.pack import pack
from guidefold.show.hub.push import Upload, push
from guidefold.show.live import open_live
from guidefold.show.report import report
from guidefold.show.sample import sample
from guidefold.show.summary import (
    folded_share,
    gains_kept,
    seconds_of,
    speed_in_words,
    speed_up,
    undertrained,
)

__all__ = [
    "Upload",
    "curves",
    "folded_share",
    "gains_kept",
    "open_live",
    "pack",
    "push",
    "report",
    "sample",
    "seconds_of",
    "speed_in_words",
    "speed_up",
    "undertrained",
]
