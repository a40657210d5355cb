"""Small pipelines, modules and findings written here, of no library and no family."""

from dataclasses import replace
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from diffusers.guiders.guider_utils import BaseGuidance
from torch import nn

from guidefold.listen.findings import Findings
from guidefold.listen.output_map import OutputMap


class BrokeError(Exception):
    """Raised inside a run on purpose."""


def breaks() -> None:
    raise BrokeError


class Net(torch.nn.Module):
    """A denoiser that can break in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.broken = False
        self.inner, self.outer = torch.nn.Linear(4, 8), torch.nn.Linear(8, 4)

    def forward(self, state):
        hidden = self.inner(state).tanh()
        if self.broken:
            breaks()
        return self.outer(hidden)


class Steered(DiffusionPipeline):
    """A component guides it, and it draws from torch's own state too."""

    def __init__(
        self, unet: torch.nn.Module, scheduler: DDIMScheduler, guider: BaseGuidance
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, guider=guider)

    @torch.no_grad()
    def __call__(self, prompt, num_inference_steps=3, generator=None, output_type="pil"):
        state = torch.randn((1, 4), generator=generator) + torch.randn(1)
        self.scheduler.set_timesteps(num_inference_steps)
        for index, timestep in enumerate(self.scheduler.timesteps):
            self.guider.set_state(index, num_inference_steps, timestep)
            halves = self.guider.prepare_inputs({"state": (state, state.roll(1, 1))})
            for half in halves:
                self.guider.prepare_models(self.unet)
                half.noise_pred = self.unet(half.state)
                self.guider.cleanup_models(self.unet)
            output = self.guider(halves).pred
            state = self.scheduler.step(output, timestep, state).prev_sample
        return state


class Plain(DiffusionPipeline):
    """The least a pipeline can be."""

    def __init__(self, unet: torch.nn.Module, scheduler: DDIMScheduler) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    def __call__(self, prompt, num_inference_steps=2, generator=None, output_type="pil"):
        state = torch.randn((1, 4), generator=generator)
        scheduler = self.own_scheduler()
        scheduler.set_timesteps(num_inference_steps)
        for timestep in scheduler.timesteps:
            state = self.move(scheduler, self.unet(state), timestep, state)
        return state

    def own_scheduler(self):
        return self.scheduler

    def move(self, scheduler, output, timestep, state):
        return scheduler.step(output, timestep, state).prev_sample


class ToyAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x)


class Scaled(nn.Linear):
    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return scale * super().forward(x)


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(4, 4)
        self.block = nn.ModuleDict({"attn": ToyAttention(), "proj": nn.Linear(4, 4)})
        self.first = nn.Conv1d(4, 4, 1)
        self.grouped = nn.Conv1d(4, 4, 1, groups=2)
        self.named, self.odd = Scaled(4, 4), nn.ModuleDict({"proj": Scaled(4, 4)})
        self.norm = nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block["proj"](self.block["attn"](self.proj(x)))
        x = self.grouped(self.first(x[..., None]))[..., 0]
        return self.norm(self.named(x=x) + self.odd["proj"](x, scale=0.5))


LEFT_OUT = {
    "block.attn.unused": "not called in a pass",
    "named": "called with more than one plain argument",
    "odd.proj": "called with more than one plain argument",
    "grouped": "grouped convolution",
}


TAKEN = {
    "attention": {"block.attn.proj"},
    "linear": {"block.attn.proj", "block.proj", "proj"},
    "portable": {"block.attn.proj", "block.proj", "proj", "first"},  # of no family that is known
    "all": {"block.attn.proj", "block.proj", "proj", "first"},
}


NAMED = {"attention": {"block.attn.unused"}, "linear": LEFT_OUT.keys() - {"grouped"}}


def left_out(preset: str) -> dict[str, str]:
    """What a preset names and cannot take, with the reasons."""
    return {name: LEFT_OUT[name] for name in NAMED.get(preset, LEFT_OUT.keys())}


def some_findings(**changes: Any) -> Findings:
    """Of no pipeline at all: every field tells itself from the others."""
    found = Findings(
        pipeline="SomePipeline",
        scheduler="SomeScheduler",
        prediction_type="epsilon",
        denoisers=("unet",),
        denoiser_class="SomeModel",
        fingerprint="0123456789abcdef",
        guidance_argument="guidance_scale",
        off=1.0,
        also_off={},
        origin=1.0,
        linear=True,
        passes_on=2.0,
        passes_off=1.0,
        output_map=OutputMap("whole"),
        layout={"axis": 0},
        mixed_lengths=True,
        loader="diffusers",
        targets={"attention": 4, "linear": 8, "all": 16},
        left_out=0,
    )
    return replace(found, **changes)
