"""Pictures of a run's pipeline as it stands.

One request, one call that counts passes, one cache that keeps what was drawn, grids, previews
while training, and the dial in pictures.
"""

from guidefold.draw.dial_pictures import draw_student, draw_teacher
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
    "draw_student",
    "draw_teacher",
    "grid",
    "heading",
    "picture_requests",
    "picture_seeds",
    "png",
    "read_picture",
]
