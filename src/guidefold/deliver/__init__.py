"""LoRA files.

Written once, read once, verified once, under the names that each client reads; what a file says
of itself; other people's files converted; a stock pipeline with the student in it.
"""

from guidefold.deliver.clients import Reading
from guidefold.deliver.comfyui_names import (
    comfyui_solver,
    few_steps_config,
    few_steps_shift,
    steps_usage,
)
from guidefold.deliver.convert import convert
from guidefold.deliver.export import deliver, deliver_kinds, export, title_of_steps, write_adapter
from guidefold.deliver.layer_names import LayerNames, client_facts, fits, layer_names
from guidefold.deliver.lora_file import FILES, write_lora
from guidefold.deliver.metadata import describe_adapter, measured_dial, read_adapter, read_dial
from guidefold.deliver.student_pipeline import (
    StockStudent,
    check_adapter,
    find_adapter,
    open_adapter,
    open_student,
)
from guidefold.deliver.trained import read_trained
from guidefold.deliver.verify import Verdict, verify

__all__ = [
    "FILES",
    "LayerNames",
    "Reading",
    "StockStudent",
    "Verdict",
    "check_adapter",
    "client_facts",
    "comfyui_solver",
    "convert",
    "deliver",
    "deliver_kinds",
    "describe_adapter",
    "export",
    "few_steps_config",
    "few_steps_shift",
    "find_adapter",
    "fits",
    "layer_names",
    "measured_dial",
    "open_adapter",
    "open_student",
    "read_adapter",
    "read_dial",
    "read_trained",
    "steps_usage",
    "title_of_steps",
    "verify",
    "write_adapter",
    "write_lora",
]
