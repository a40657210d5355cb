"""What Guidefold needs of other libraries' insides is there, in the libraries themselves."""

from importlib.util import find_spec

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import (
    ClassifierFreeGuidance,
    GGUFQuantizationConfig,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.hooks import HookRegistry, ModelHook
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

from guidefold.ground import compat
from guidefold.ground.errors import LibraryError


def test_what_guides_is_of_the_class() -> None:
    assert isinstance(ClassifierFreeGuidance(), compat.guidance_class())


def test_a_single_file_is_recognised_by_its_keys(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import save_file

    path = f"{tmp_path}/file.safetensors"
    save_file({"model.diffusion_model.unknown.weight": torch.zeros(1)}, path)
    assert "/" in compat.single_file_config(path)
    assert issubclass(compat.single_file_error(), Exception)


def test_diffusers_lists_pipelines_by_task() -> None:
    assert "StableDiffusionPipeline" in compat.pipelines_for("TEXT2IMAGE")


def test_the_hubs_own_error_is_a_network_error() -> None:
    kinds = compat.network_errors()
    assert kinds
    assert issubclass(HfHubHTTPError, kinds)
    assert Exception not in kinds


def test_the_hub_checks_names() -> None:
    compat.check_repository_name("owner/name")
    with pytest.raises(HFValidationError):
        compat.check_repository_name("a//b")


def test_accelerate_names_its_trackers() -> None:
    assert {"tensorboard", "wandb"} <= set(compat.tracker_names())


def test_an_accelerator_is_forgotten() -> None:
    Accelerator(cpu=True)
    assert AcceleratorState().initialized
    compat.reset_accelerator()
    assert not AcceleratorState._shared_state


def test_gradient_checkpointing_is_known_of_a_model() -> None:
    with torch.device("meta"):
        model = UNet2DModel(
            block_out_channels=(4,),
            down_block_types=("DownBlock2D",),
            up_block_types=("UpBlock2D",),
            norm_num_groups=2,
            add_attention=False,
        )
    assert compat.supports_checkpointing(model)
    assert not compat.supports_checkpointing(nn.Linear(1, 1))


def test_a_pipeline_says_what_loras_are_for() -> None:
    assert "unet" in compat.lora_components(StableDiffusionPipeline)
    assert not compat.lora_components(object())


def test_diffusers_forgets_an_adapter() -> None:
    assert UNet2DConditionModel._hf_peft_config_loaded is False
    module = nn.Linear(1, 1)
    module._hf_peft_config_loaded = True
    module.peft_config = {}
    compat.remove_adapters(module)
    assert not module._hf_peft_config_loaded
    assert not hasattr(module, "peft_config")


def test_a_pipeline_names_its_callbacks_tensors_and_its_guidance() -> None:
    assert "latents" in compat.callback_tensors(StableDiffusionPipeline)
    pipeline = object.__new__(StableDiffusionPipeline)
    compat.set_guidance(pipeline, "guidance_scale", 3.0)
    assert pipeline.guidance_scale == 3.0


def test_a_pipelines_source_names_latents() -> None:
    assert compat.names_latents(object.__new__(StableDiffusionPipeline))
    assert not compat.names_latents(LibraryError("it names none"))


def test_a_compiled_module_gives_its_own() -> None:
    module = nn.Linear(1, 1)
    assert compat.uncompiled(torch.compile(module, backend="eager")) is module
    assert compat.uncompiled(module) is module


def test_fake_tensors_have_storages_and_no_memory() -> None:
    with compat.fake_tensor_mode():
        first, second = torch.empty(2), torch.empty(2)
    assert compat.is_fake(first)
    assert not compat.is_fake(torch.empty(2))
    keys = [compat.storage_key(t.untyped_storage()) for t in (first, first[:1], second)]
    assert keys[0] == keys[1] != keys[2]


def test_the_operation_of_item_is_known() -> None:
    assert compat.reads_number(torch.ops.aten._local_scalar_dense.default)
    assert not compat.reads_number(torch.ops.aten.add.Tensor)


def test_the_operation_that_reads_a_fake_tensors_device_is_known() -> None:
    assert compat.reads_device(torch.ops.prim.device.default)
    assert not compat.reads_device(torch.ops.aten.add.Tensor)


def test_a_pipeline_names_the_device_that_computes() -> None:
    assert compat.execution_device(object()) == torch.device("cpu")


@pytest.mark.skipif(find_spec("gguf") is not None, reason="it can be used here")
def test_diffusers_says_whether_it_can_quantise_here() -> None:
    with pytest.raises(ImportError, match="gguf"):
        compat.check_quantizer(GGUFQuantizationConfig())


def test_group_offloading_is_taken_off_and_nothing_else() -> None:
    model = UNet2DModel(
        block_out_channels=(4,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=2,
        add_attention=False,
    )
    compat.remove_group_offloading(model)
    assert not hasattr(model, "_diffusers_hook")
    HookRegistry.check_if_exists_or_initialize(model).register_hook(ModelHook(), "other")
    model.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    assert list(model._diffusers_hook.hooks) == ["other"]
    assert model.conv_in._diffusers_hook.hooks
    compat.remove_group_offloading(model)
    assert list(model._diffusers_hook.hooks) == ["other"]
    assert not model.conv_in._diffusers_hook.hooks


def test_tensors_within_a_tensor_of_another_class_are_named() -> None:
    assert compat.inner_tensors(torch.zeros(1)) == []
    two = TwoTensor(torch.zeros(1), torch.ones(1))
    assert compat.inner_tensors(two) == ["a", "b"]


def test_a_missing_name_is_told_with_library_and_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("accelerate.tracking.LOGGER_TYPE_TO_CLASS")
    told = r"accelerate \d\S* has no accelerate.tracking.LOGGER_TYPE_TO_CLASS"
    with pytest.raises(LibraryError, match=told):
        compat.tracker_names()
    monkeypatch.delattr(AcceleratorState, "_reset_state")
    with pytest.raises(
        LibraryError, match=r"accelerate \d\S* has no AcceleratorState._reset_state"
    ):
        compat.reset_accelerator()
