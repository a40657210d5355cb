"""The Python API: a function for every verb of the command line.

from guidefold import api

settings = api.load_settings("sd15", ["pipeline.source=FOLDER", "run=runs/mine"])
api.distill(settings)
api.export(settings)
results = api.evaluate(settings)
"""

from guidefold.capture import drive, follow
from guidefold.config import load_settings
from guidefold.deliver.convert import convert
from guidefold.deliver.export import deliver, export
from guidefold.deliver.student_pipeline import StockStudent, open_student
from guidefold.deliver.verify import verify
from guidefold.errors import GuidefoldError
from guidefold.evaluate import evaluate
from guidefold.hub import push
from guidefold.pack import pack
from guidefold.pipelines import open_pipeline
from guidefold.probe import probe
from guidefold.prompts import load_prompts
from guidefold.record.gather import gather
from guidefold.record.rounds import record
from guidefold.report import report
from guidefold.settings import Settings
from guidefold.show.sample import sample
from guidefold.train.distill import distill

__all__ = [
    "GuidefoldError",
    "Settings",
    "StockStudent",
    "convert",
    "deliver",
    "distill",
    "drive",
    "evaluate",
    "export",
    "follow",
    "gather",
    "load_prompts",
    "load_settings",
    "open_pipeline",
    "open_student",
    "pack",
    "probe",
    "push",
    "record",
    "report",
    "sample",
    "verify",
]
