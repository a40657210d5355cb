"""Every statement of a checkpoint about its noise schedule is read; none is believed blindly."""

import json
import struct
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffusers import (
    DDIMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
)

import guidefold.pipeline.markers as module
from guidefold.ground.errors import ConfigError, PipelineError
from guidefold.pipeline.markers import Marker, read_markers
from guidefold.pipeline.noise_schedule import check_markers, set_schedule

TABLE = tomllib.loads((Path(module.__file__).parent / "markers.toml").read_text("utf-8"))
STATES = {"prediction_type": str, "zero_terminal_snr": bool, "preconditioned": bool}


def write(path: Path, tensors: dict[str, list[float]], metadata: dict[str, str]) -> Path:
    """A safetensors file by its specification: header, then float32 values."""
    data, entries = b"", {}
    for name, values in tensors.items():
        raw = struct.pack(f"<{len(values)}f", *values)
        entries[name] = {
            "dtype": "F32",
            "shape": [len(values)],
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    header = json.dumps(entries | ({"__metadata__": metadata} if metadata else {})).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def said(path: Path) -> set[tuple[str, Any]]:
    return {(marker.field, marker.value) for marker in read_markers(path)}


def nested(name: str, value: Any) -> Any:
    for key in reversed(name.split(".")):
        value = {key: value}
    return value


KEYS = [(entry["name"], entry["states"]) for entry in TABLE["key"]]
WORDS = [
    (kind, entry["name"], word, states)
    for kind in ("metadata", "yaml")
    for entry in TABLE[kind]
    for word, states in TABLE["values"][entry["values"]].items()
    if word != "field"
]


def test_the_table_says_what_is_known_in_the_words_of_diffusers() -> None:
    every = [states for _, states in KEYS] + [states for *_, states in WORDS]
    assert len(KEYS) >= 6
    assert len(WORDS) >= 40
    for states in every:
        assert all(isinstance(value, STATES[field]) for field, value in states.items())
        assert states.get("prediction_type") in {None, "epsilon", "v_prediction", "sample"}


@pytest.mark.parametrize(("name", "states"), KEYS)
@pytest.mark.parametrize("values", [[], [0.0], [1.0]])
def test_a_key_states_by_being_there_whatever_it_holds(
    tmp_path: Path, name: str, states: dict[str, Any], values: list[float]
) -> None:
    path = write(tmp_path / "a.safetensors", {name: values, "weight": [1.0]}, {})
    assert said(path) == set(states.items())
    assert f"{path}: its key '{name}'" in read_markers(path)[0].where


@pytest.mark.parametrize(("kind", "name", "word", "states"), WORDS)
def test_every_spelling_of_metadata_and_of_the_yaml_beside_is_read(
    tmp_path: Path, kind: str, name: str, word: str, states: dict[str, Any]
) -> None:
    for spelt in (word, word.upper(), f" {word.replace('_', '-')} "):
        metadata = {name: spelt} if kind == "metadata" else {}
        path = write(tmp_path / "a.safetensors", {"weight": [1.0]}, metadata)
        if kind == "yaml":  # JSON is YAML
            path.with_suffix(".yaml").write_text(json.dumps(nested(name, spelt)))
        assert said(path) == set(states.items()), spelt
        assert name in read_markers(path)[0].where


@pytest.mark.parametrize("text", ["parameterization: 'v'", 'parameterization: "v"'])
@pytest.mark.parametrize("ending", [".yaml", ".yml"])
def test_a_yaml_file_beside_is_read_as_its_trainers_write_it(
    tmp_path: Path, text: str, ending: str
) -> None:
    path = write(tmp_path / "a.b.safetensors", {"weight": [1.0]}, {})
    path.with_suffix(ending).write_text(f"model:\n  params:\n    linear_start: 0.1\n    {text}\n")
    assert said(path) == {("prediction_type", "v_prediction")}
    target = "sgm.modules.diffusionmodules.denoiser_scaling.VScaling"
    scaling = nested("model.params.denoiser_config.params.scaling_config.target", target)
    path.with_suffix(ending).write_text(json.dumps(scaling))
    assert said(path) == {("prediction_type", "v_prediction")}


@pytest.mark.parametrize("text", ["{", "a: [", "\x00", "model: !!python/object/apply:os.getcwd []"])
def test_a_yaml_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "a.safetensors", {"weight": [1.0]}, {})
    path.with_suffix(".yaml").write_text(text)
    with pytest.raises(PipelineError, match=r"a\.yaml: the configuration beside a\.safetensors"):
        read_markers(path)


@pytest.mark.parametrize("text", ["", "a: 1", "[]", "model: 3", "model: {params: null}"])
def test_a_yaml_file_about_something_else_states_nothing(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "a.safetensors", {"weight": [1.0]}, {})
    path.with_suffix(".yaml").write_text(text)
    assert said(path) == set()


def test_a_stored_schedule_states_zero_terminal_snr_if_it_ends_at_zero(tmp_path: Path) -> None:
    for end, states in ((0.0, {("zero_terminal_snr", True)}), (0.0047, set())):
        path = write(tmp_path / "a.safetensors", {"alphas_cumprod": [0.99, 0.5, end]}, {})
        assert said(path) == states


@pytest.mark.parametrize("value", ["None", "", "null"])
@pytest.mark.parametrize("entry", TABLE["metadata"], ids=lambda entry: entry["name"])
def test_metadata_without_a_value_states_nothing(
    tmp_path: Path, entry: dict[str, str], value: str
) -> None:
    assert said(write(tmp_path / "a.safetensors", {"w": [1.0]}, {entry["name"]: value})) == set()


def test_an_unknown_value_agrees_with_nothing(tmp_path: Path) -> None:
    name = "modelspec.prediction_type"
    path = write(tmp_path / "a.safetensors", {"w": [1.0]}, {name: "lcm"})
    for predicts in ("epsilon", "v_prediction", "sample"):
        with pytest.raises(PipelineError, match=f"{name} = lcm states lcm") as caught:
            check_markers(
                DDIMScheduler(prediction_type=predicts), read_markers(path), "base", None, None
            )
        assert "pipeline.prediction_type" in caught.value.remedy


# File against configuration

SCHEDULERS: dict[tuple[str, Any], Callable[[], Any]] = {
    ("prediction_type", "epsilon"): lambda: DDIMScheduler(prediction_type="epsilon"),
    ("prediction_type", "v_prediction"): lambda: DDIMScheduler(prediction_type="v_prediction"),
    ("prediction_type", "sample"): lambda: DDIMScheduler(prediction_type="sample"),
    ("zero_terminal_snr", True): lambda: DDIMScheduler(rescale_betas_zero_snr=True),
    ("zero_terminal_snr", False): DDIMScheduler,
    ("preconditioned", True): EDMEulerScheduler,
    ("preconditioned", False): EulerDiscreteScheduler,
}


@pytest.mark.parametrize(("field", "configured"), SCHEDULERS)
@pytest.mark.parametrize(("of", "stated"), SCHEDULERS)
def test_file_and_configuration_agree_or_are_both_named(
    field: str, configured: Any, of: str, stated: Any
) -> None:
    if of != field:
        return
    scheduler, marker = (
        SCHEDULERS[field, configured](),
        Marker(of, stated, "a.safetensors: its key"),
    )
    if stated == configured:
        check_markers(scheduler, [marker], "base", None, None)
        return
    with pytest.raises(PipelineError) as caught:
        check_markers(scheduler, [marker], "base", None, None)
    message, remedy = caught.value.message, caught.value.remedy
    assert "a.safetensors: its key states" in message
    assert f"the scheduler of base ({type(scheduler).__name__})" in message
    if field == "preconditioned":
        assert "pipeline.config" in remedy
        return
    values = [str(v).lower() if isinstance(v, bool) else v for v in (stated, configured)]
    assert f"Set pipeline.{field}={values[0]} if the file is right" in remedy
    assert f"pipeline.{field}={values[1]} if the configuration is" in remedy


@pytest.mark.parametrize("decides", ["epsilon", "v_prediction", "sample"])
def test_a_setting_decides_between_file_and_configuration(decides: str) -> None:
    markers = [
        Marker("prediction_type", "v_prediction", "f"),
        Marker("zero_terminal_snr", True, "f"),
    ]
    check_markers(DDIMScheduler(), markers, "base", decides, False)
    with pytest.raises(PipelineError, match="zero terminal SNR"):
        check_markers(DDIMScheduler(), markers, "base", decides, None)


def test_a_file_that_contradicts_itself_is_refused_whatever_the_configuration_says() -> None:
    markers = [
        Marker("prediction_type", "v_prediction", "key"),
        Marker("prediction_type", "epsilon", "ss"),
    ]
    for predicts in ("epsilon", "v_prediction"):
        with pytest.raises(PipelineError):
            check_markers(DDIMScheduler(prediction_type=predicts), markers, "base", None, None)


def test_flow_matching_has_no_statement_to_contradict() -> None:
    markers = [Marker("prediction_type", "epsilon", "f"), Marker("zero_terminal_snr", False, "f")]
    check_markers(FlowMatchEulerDiscreteScheduler(), markers, "base", None, None)
    check_markers(None, markers, "base", None, None)


# Settings


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler])
def test_a_prediction_type_is_set_and_nothing_else(kind: Any, predicts: str) -> None:
    scheduler = kind(beta_end=0.012, timestep_spacing="leading", steps_offset=1)
    changed = set_schedule(scheduler, predicts, None)
    assert type(changed) is kind
    others = changed.config.keys() - {"_use_default_values", "prediction_type"}
    assert all(changed.config[name] == scheduler.config[name] for name in others)
    assert changed.config.prediction_type == predicts


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_zero_terminal_snr_begins_where_there_is_only_noise(spacing: str) -> None:
    scheduler = DDIMScheduler(timestep_spacing=spacing, prediction_type="v_prediction")
    changed = set_schedule(scheduler, None, True)
    assert float(changed.alphas_cumprod[-1]) == 0
    changed.set_timesteps(4)
    assert int(changed.timesteps[0]) == 999
    assert changed.config.timestep_spacing == "trailing"
    back = set_schedule(changed, None, False)
    assert float(back.alphas_cumprod[-1]) > 0


def test_nothing_is_set_without_a_setting() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    assert set_schedule(scheduler, None, None) is scheduler
    assert set_schedule(None, None, None) is None


@pytest.mark.parametrize(
    ("scheduler", "prediction", "zero", "setting"),
    [
        (FlowMatchEulerDiscreteScheduler(), "epsilon", None, "prediction_type"),
        (FlowMatchEulerDiscreteScheduler(), None, False, "zero_terminal_snr"),
        (None, "epsilon", None, "prediction_type"),
        (PNDMScheduler(), "v_prediction", True, "zero_terminal_snr"),
        (PNDMScheduler(), "sample", None, "prediction_type"),
        (DDIMScheduler(), None, True, "zero_terminal_snr"),
        (DDIMScheduler(prediction_type="v_prediction"), "epsilon", True, "zero_terminal_snr"),
    ],
)
def test_a_choice_that_the_scheduler_does_not_have_is_refused_by_name(
    scheduler: Any, prediction: Any, zero: Any, setting: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^pipeline\.{setting}") as caught:
        set_schedule(scheduler, prediction, zero)
    assert caught.value.remedy
    assert (
        scheduler is None
        or type(scheduler).__name__ in str(caught.value)
        or "epsilon" in str(caught.value)
    )
