"""The tensors of two LoRAs on the same layers, told apart by their names."""

import torch

from guidefold.lora.two_loras import guidance_of, steps_of, stored_name


def test_a_layer_may_bear_the_name_of_the_steps_lora() -> None:
    guidance, steps = torch.zeros(1), torch.ones(1)
    plain = "blocks.steps.0.lora_A.weight"
    both = {stored_name(plain, "guidefold"): guidance, stored_name(plain, "steps"): steps}
    assert len(both) == 2
    assert guidance_of(both) == {plain: guidance}
    assert steps_of(both) == {plain: steps}
