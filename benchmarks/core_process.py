"""One process that runs ComfyUI's own classes of Qwen-Image 1.x beside diffusers' and the pack's, on the same tiny
random weights, and says as JSON how far each is from diffusers.

    python benchmarks/core_process.py THREADS [--small]

A process of its own: no other part of a benchmark imports ComfyUI, whose `nodes` would hide the pack's.
"""
import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import NamedTuple

import load_process
import numpy
import torch
from bootstrap import ROOT  # noqa: F401  first, it makes the pack importable
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift
from steps_1 import SIGMA, Networks
from torch import Tensor

from qwen_image_2.model.qwen_image_1 import schedule
from qwen_image_2.model.qwen_image_1.spec import TransformerSpec
from qwen_image_2.model.qwen_image_1.transformer import Condition, latents, patches

SPEC = TransformerSpec(layers=2, dim=256, heads=2, mlp_dim=1024, context_dim=64)
EDIT_SPEC = replace(SPEC, zero_cond_t=True)
PIXELS_PER_LATENT, TOKEN = 8, 16  # pixels along a side
WORDS = 77
STEPS, CFG = 50, 4.0
TEMPLATE_SHIFT = 3.1  # of the node ModelSamplingAuraFlow in ComfyUI's templates of Qwen-Image, 2512 and Edit-2511
SCHEDULE = dict(use_dynamic_shifting=True, time_shift_type="exponential", base_shift=0.5, max_shift=0.9,
                base_image_seq_len=256, max_image_seq_len=8192, shift_terminal=0.02)


class Row(NamedTuple):
    """How far the two are from diffusers: of velocities and guided predictions the largest difference as a fraction of
    the largest value, of sigmas the largest difference."""

    what: str
    core_setting: str
    ours: float
    core: float


class Case(NamedTuple):
    what: str
    spec: TransformerSpec
    target: tuple[int, int]                        # pixels, width and height
    references: tuple[tuple[int, int], ...] = ()
    core_setting: str = ""
    method: str = "index"                          # how core places references


MARKED = "index_timestep_zero"  # what core does where the file has a mark, or where a node says so
CASES = (
    Case("velocity, 1024 x 1024", SPEC, (1024, 1024)),
    Case("velocity, 1328 x 1328", SPEC, (1328, 1328)),
    Case("velocity, 1584 x 1056", SPEC, (1584, 1056)),
    Case("velocity, edit at 1024 x 1024, reference as large", SPEC, (1024, 1024), ((1024, 1024),)),
    Case("velocity, edit at 1024 x 1024, reference of 1248 x 832", SPEC, (1024, 1024), ((1248, 832),)),
    Case("velocity, edit at 1024 x 1024, reference of 1040 x 1008", SPEC, (1024, 1024), ((1040, 1008),)),
    Case("velocity, Edit-2511 at 1024 x 1024, reference as large", EDIT_SPEC, (1024, 1024), ((1024, 1024),),
         "file with the mark, or its reference method node", MARKED),
    Case("velocity, Edit-2511 at 1024 x 1024, reference as large", EDIT_SPEC, (1024, 1024), ((1024, 1024),),
         "file without the mark, no node"),
)


def difference(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


# ---------------------------------------------------------------- velocities

class Compared(Networks):
    """The two of steps_1, and core's class."""

    def __init__(self, spec: TransformerSpec, method: str = "index"):
        super().__init__(spec)
        import comfy.ops
        from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel
        self.core = QwenImageTransformer2DModel(
            num_layers=spec.layers, num_attention_heads=spec.heads, attention_head_dim=spec.head_dim,
            joint_attention_dim=spec.context_dim, axes_dims_rope=spec.rope_axes, default_ref_method=method,
            dtype=torch.float32, operations=comfy.ops.disable_weight_init).eval()
        self.core.load_state_dict(self.theirs.state_dict(), strict=method != MARKED)  # a buffer marks the method

    def core_velocity(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        references = [reference.unsqueeze(2) for reference in condition.references]
        return self.core(x, sigma, condition.text, ref_latents=references or None, transformer_options={})


def latent_of(size: tuple[int, int], smaller: int, seed: int) -> Tensor:
    """(1, 16, h, w). smaller: a divisor of the number of tokens along a side that leaves an odd number odd."""
    width, height = (_fewer(side // TOKEN, smaller) * TOKEN // PIXELS_PER_LATENT for side in size)
    return torch.randn(1, SPEC.channels, height, width, generator=torch.Generator().manual_seed(seed))


def _fewer(tokens: int, smaller: int) -> int:
    return tokens if smaller == 1 else tokens // smaller // 2 * 2 + tokens % 2


def inputs(case: Case, smaller: int) -> tuple[Tensor, Tensor, Condition]:
    text = torch.randn(1, WORDS, case.spec.context_dim, generator=torch.Generator().manual_seed(1))
    references = tuple(latent_of(size, smaller, 3 + number) for number, size in enumerate(case.references))
    return latent_of(case.target, smaller, 2).unsqueeze(2), torch.tensor([SIGMA]), Condition(text,
                                                                                              references=references)


def velocities(smaller: int) -> Iterator[Row]:
    for case in CASES:
        nets, given = Compared(case.spec, case.method), inputs(case, smaller)
        expected = nets.their_velocity(*given)
        yield Row(case.what, case.core_setting, difference(nets.our_velocity(*given), expected),
                  difference(nets.core_velocity(*given), expected))


# ---------------------------------------------------------------- schedule

def their_sigmas(steps: int, tokens: int) -> Tensor:
    scheduler = FlowMatchEulerDiscreteScheduler(**SCHEDULE)
    mu = calculate_shift(tokens, SCHEDULE["base_image_seq_len"], SCHEDULE["max_image_seq_len"], SCHEDULE["base_shift"],
                         SCHEDULE["max_shift"])
    scheduler.set_timesteps(sigmas=numpy.linspace(1, 1 / steps, steps), mu=mu)
    return scheduler.sigmas


def schedules() -> Iterator[Row]:
    from comfy.model_sampling import ModelSamplingDiscreteFlow, ModelSamplingFlux
    from comfy.samplers import simple_scheduler
    template = ModelSamplingDiscreteFlow()
    template.set_parameters(shift=TEMPLATE_SHIFT, multiplier=1.0)
    settings = {"scheduler simple, no node": ModelSamplingFlux(),
                f"scheduler simple, ModelSamplingAuraFlow {TEMPLATE_SHIFT}": template}
    for side in (1024, 1328):
        tokens = (side // TOKEN) ** 2
        expected = their_sigmas(STEPS, tokens)
        ours = (schedule.PRESETS[f"Quality {STEPS}"](tokens) - expected).abs().max().item()
        for setting, sampling in settings.items():
            core = (simple_scheduler(sampling, STEPS) - expected).abs().max().item()
            yield Row(f"sigmas of {STEPS} steps, {side} x {side}", setting, ours, core)


# ---------------------------------------------------------------- guidance

def their_guidance(positive: Tensor, negative: Tensor) -> Tensor:
    """On packed tokens, as the pipelines have it: pipeline_qwenimage.py of diffusers 0.42.1."""
    conditional, guided = (patches(one[:, :, 0], 2) for one in (positive, negative + CFG * (positive - negative)))
    rescaled = guided * (conditional.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
    return latents(rescaled, positive.shape, 2)


class Patched(SimpleNamespace):
    """Stands for a MODEL and keeps what core's CFGNorm hangs into one."""

    def clone(self) -> "Patched":
        return self

    def set_model_sampler_cfg_function(self, function: Callable[[Mapping], Tensor]) -> None:
        self.function = function

    def set_model_sampler_post_cfg_function(self, function: Callable[[Mapping], Tensor]) -> None:
        self.function = function


def cfg_norm(pre_cfg: bool) -> Callable[[Mapping], Tensor]:
    from comfy_extras.nodes_cfg import CFGNorm
    model = Patched()
    CFGNorm.execute(model, strength=1.0, pre_cfg=pre_cfg)
    return model.function


def guidances(smaller: int) -> Iterator[Row]:
    """Predictions of the tiny network for two prompts."""
    from qwen_image_2.nodes.bridge.guider import rescaled_guidance
    x, sigma, condition = inputs(CASES[0], smaller)
    nets = Networks(SPEC)
    positive, negative = (nets.our_velocity(x, sigma, Condition(text)) for text in (condition.text,
                                                                                    condition.text.flip(-1)))
    expected = their_guidance(positive, negative)
    given = {"cond": sigma * positive, "uncond": sigma * negative, "cond_scale": CFG}
    plain = negative + CFG * (positive - negative)
    denoised = {"cond_denoised": x - sigma * positive, "denoised": x - sigma * plain}
    found = {"no node": plain,
             "CFGNorm": (x - cfg_norm(pre_cfg=False)(denoised)) / sigma,
             "CFGNorm with pre_cfg": cfg_norm(pre_cfg=True)(given) / sigma}
    ours = difference(rescaled_guidance(given) / sigma, expected)
    for setting, core in found.items():
        yield Row(f"guided velocity, CFG {CFG:g}", setting, ours, difference(core, expected))


# ---------------------------------------------------------------- time in bf16

def times() -> Iterator[Row]:
    """The pipelines round the scheduler's 0 to 1000 to the latents' dtype, and divide then."""
    nets = Compared(SPEC)
    for network in (nets.theirs, nets.ours, nets.core):
        network.bfloat16()
    sigma, like = torch.tensor([SIGMA]), torch.zeros(1, 1, dtype=torch.bfloat16)
    rounded = (sigma * 1000).bfloat16() / 1000
    expected = nets.theirs.time_text_embed(rounded, like).float()
    ours = nets.ours.time_text_embed(sigma, like).float()
    core = nets.core.time_text_embed(sigma.bfloat16(), like).float()
    yield Row(f"time embedding in bf16, sigma {SIGMA}", "", difference(ours, expected), difference(core, expected))


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("threads", type=int)
    parser.add_argument("--small", action="store_true", help="fewer tokens")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    load_process.import_comfyui()
    smaller = 4 if chosen.small else 1
    rows = [*velocities(smaller), *schedules(), *guidances(smaller), *times()]
    print(json.dumps([row._asdict() for row in rows]))


if __name__ == "__main__":
    main()
