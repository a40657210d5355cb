"""Listen to a pipeline at its scheduler's step and its denoiser's calls.

Drive, follow, dry run; how it is guided, what becomes of the denoiser's output, and whether its
guidance can be folded.
"""

from guidefold.listen.arguments import (
    Layout,
    NotBatchableError,
    Tree,
    join,
    split,
    tensors_of,
    tree_map,
)
from guidefold.listen.call import (
    call_inputs,
    check_rows,
    guidance_argument,
    run_inputs,
    steps_taken,
)
from guidefold.listen.capture import GUIDER, denoisers_of, drive, follow, guiders, run
from guidefold.listen.dry_run import DryRun, RandomStub, follow_stubbed
from guidefold.listen.few_step_options import FewStepOptions, find_few_step_options
from guidefold.listen.few_steps import coarse_steps, restart, space_trailing
from guidefold.listen.findings import Findings, describe_findings
from guidefold.listen.guidance import OFF_VALUES, scale_arguments, stop_guiding
from guidefold.listen.listener import Call, Listener, Step
from guidefold.listen.memory import call_recorded
from guidefold.listen.output_map import fit_rows, output_tensor, predictions, rows_of
from guidefold.listen.parts import Shapes, unpack
from guidefold.listen.probe import lora_loader, probe
from guidefold.listen.probe_checks import PROMPT, SEED, STEPS, check_tokenizers
from guidefold.listen.probe_record import read_findings, still_valid, write_findings
from guidefold.listen.refusal import naming_rows
from guidefold.listen.solver_step import SolverProbe
from guidefold.listen.step_grid import StepGrid
from guidefold.listen.stored import flatten, unflatten

__all__ = [
    "GUIDER",
    "OFF_VALUES",
    "PROMPT",
    "SEED",
    "STEPS",
    "Call",
    "DryRun",
    "FewStepOptions",
    "Findings",
    "Layout",
    "Listener",
    "NotBatchableError",
    "RandomStub",
    "Shapes",
    "SolverProbe",
    "Step",
    "StepGrid",
    "Tree",
    "call_inputs",
    "call_recorded",
    "check_rows",
    "check_tokenizers",
    "coarse_steps",
    "denoisers_of",
    "describe_findings",
    "drive",
    "find_few_step_options",
    "fit_rows",
    "flatten",
    "follow",
    "follow_stubbed",
    "guidance_argument",
    "guiders",
    "join",
    "lora_loader",
    "naming_rows",
    "output_tensor",
    "predictions",
    "probe",
    "read_findings",
    "restart",
    "rows_of",
    "run",
    "run_inputs",
    "scale_arguments",
    "space_trailing",
    "split",
    "steps_taken",
    "still_valid",
    "stop_guiding",
    "tensors_of",
    "tree_map",
    "unflatten",
    "unpack",
    "write_findings",
]
