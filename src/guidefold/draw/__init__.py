"""Draw pictures with a run's pipeline.

Picture requests, one call that draws them and counts passes, a cache of finished pictures,
grids, previews during training, and pictures at each strength of the dial.
"""

from guidefold.draw.dial_pictures import draw_dial
from guidefold.draw.draw import PictureRequest, draw, picture_requests, picture_seeds
from guidefold.draw.picture_cache import EvaluationPictures, PictureCache
from guidefold.draw.pictures import Drawn, Picture, animation, grid, heading, png, read_picture
from guidefold.draw.previews import Previews

__all__ = [
    "Drawn",
    "EvaluationPictures",
    "Picture",
    "PictureCache",
    "PictureRequest",
    "Previews",
    "animation",
    "draw",
    "draw_dial",
    "grid",
    "heading",
    "picture_requests",
    "picture_seeds",
    "png",
    "read_picture",
]
