"""A pipeline that refuses its call is quoted; faults of Guidefold's own code stay as they are."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from zoo import WARNINGS

from guidefold.ground.errors import CallError, MismatchError, PipelineError
from guidefold.listen.capture import drive
from guidefold.listen.probe import probe
from guidefold.listen.refusal import explained_call, naming_rows
from guidefold.pipeline.prompts import Prompt

pytestmark = pytest.mark.filterwarnings(*WARNINGS)

CALL = {"prompt": "a cat", "num_inference_steps": 2, "guidance_scale": 3.0}
SIZE = {"height": 16, "width": 16}


@pytest.fixture
def pipeline(built: Callable[[str], DiffusionPipeline]) -> DiffusionPipeline:
    return built("sd15")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            {"height": -16, "width": 16},
            r"refuses the call \(pipeline\.call and rows: height=-16, width=16\)|fails in its call",
        ),
        ({"height": 17, "width": 16}, "have to be divisible by 8 but are 17 and 16"),
        (
            SIZE | {"clip_skip": 99},
            r"fails in its call \(pipeline\.call and rows: .*clip_skip=99\): IndexError: ",
        ),
        (SIZE | {"prompt": 3}, r"refuses the call .*`prompt` has to be of type"),
        (SIZE | {"timesteps": [1, 1]}, "refuses the call"),
        (SIZE | {"latents": torch.zeros(1)}, "latents=Tensor"),
    ],
)
def test_its_own_words_and_the_arguments_are_one_sentence(
    pipeline: DiffusionPipeline, arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(CallError, match=said) as caught:
        drive(pipeline, {**CALL, **arguments}, [0], {})
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.message
    assert "[pipeline.call]" in caught.value.remedy
    assert caught.value.__cause__ is not None  # for who looks for a fault of the pipeline's


def test_a_row_that_is_refused_is_named_by_its_line(pipeline: DiffusionPipeline) -> None:
    row = Prompt("a cat", "rows.jsonl:3", (("height", 17), ("width", 16)))
    with pytest.raises(CallError, match=r"^rows\.jsonl:3: StableDiffusionPipeline refuses"):
        probe(pipeline, {}, 5.0, rows=[row])
    with pytest.raises(CallError, match=r"^StableDiffusionPipeline refuses"), naming_rows([]):
        drive(pipeline, {**CALL, **SIZE, "height": 17}, [0], {})


@pytest.mark.parametrize(
    "error",
    [
        IndexError("a fault of ours"),
        ValueError("a fault of ours"),
        MismatchError("known already", ""),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_what_guidefold_raises_while_it_listens_is_not_blamed_on_the_call(
    pipeline: DiffusionPipeline, error: Exception
) -> None:
    with pytest.raises(type(error)) as caught:
        drive(pipeline, {**CALL, **SIZE}, [0], {}, on_step=_as_of("guidefold.show.live", error))
    assert caught.value is error


def _as_of(module: str, error: Exception) -> Callable[[], None]:
    """A function that raises as if it were a module's own."""
    names: dict[str, Any] = {"__name__": module, "error": error}
    exec("def fail(*_, **__):\n    raise error", names)
    made: Callable[[], None] = names["fail"]
    return made


def test_without_an_argument_of_the_user_s_a_fault_of_the_library_keeps_its_traceback(
    pipeline: DiffusionPipeline,
) -> None:
    broken = _as_of("diffusers.pipelines.broken", IndexError("a fault of theirs"))
    with pytest.raises(IndexError, match="theirs"), explained_call(pipeline, CALL):
        broken()
    with pytest.raises(CallError, match="theirs"), explained_call(pipeline, {**CALL, **SIZE}):
        broken()


@pytest.mark.parametrize("error", [NameError("name 'ftfy' is not defined"), ImportError("bs4")])
def test_a_library_that_is_missing_is_named(pipeline: DiffusionPipeline, error: Exception) -> None:
    broken, said = _as_of("diffusers.pipelines.broken", error), "needs a library that is not here"
    with pytest.raises(PipelineError, match=said), explained_call(pipeline, CALL):
        broken()
