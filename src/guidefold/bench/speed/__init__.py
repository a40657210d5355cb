"""Time of a picture: teacher, student, fused student, and training-free rivals."""

from guidefold.bench.speed.denoisers import DenoiserAlone, WholePipeline, find_device
from guidefold.bench.speed.methods import FUSED, Options, TimedModel
from guidefold.bench.speed.table import Row, describe, make_rows, to_json, to_tables
from guidefold.bench.speed.time import bench_speed

__all__ = [
    "FUSED",
    "DenoiserAlone",
    "Options",
    "Row",
    "TimedModel",
    "WholePipeline",
    "bench_speed",
    "describe",
    "find_device",
    "make_rows",
    "to_json",
    "to_tables",
]
