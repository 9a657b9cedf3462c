"""How much memory a model may take, and what that costs."""
import math

import comfy.model_management
import torch
from comfy_api.latest import io

from ..messages import Message, Refusal
from ..model.runtime import offload
from ..model.runtime.offload import Plan
from .bridge.keys import CACHE_LOCATION_KEY
from .bridge.runtime import budget
from .bridge.runtime.budget import BudgetPatcher, gib
from .bridge.runtime.prefix_placement import CacheLocation
from .common import categories
from .common.checks import check_model, check_vae
from .common.schemas import schema
from .notices import notify

PLACES = {"automatic": CacheLocation.VRAM, "RAM": CacheLocation.RAM, "recompute": CacheLocation.RECOMPUTE}


class QwenImage2Memory(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="QwenImage2Memory",
            display_name="Memory Budget (Qwen-Image 2)",
            category=categories.LOADERS,
            description="Limits the VRAM for the weights. Blocks that do not fit are streamed from RAM, each while the "
                        "block before it computes. The report says what stays, what is streamed, and what it costs.",
            search_aliases=["vram", "offload", "low vram", "block swap", "memory", "budget", "out of memory", "oom"],
            inputs=[
                io.Model.Input("model", tooltip="From Load Qwen-Image 2, before or after LoRAs."),
                io.Float.Input("vram_for_weights", default=0.0, min=0.0, max=1024.0, step=0.1,
                               tooltip="VRAM for the weights of the transformer and its control networks in GiB, "
                                       "streaming buffers included. 0: as much as is free at the start of a run."),
                io.Combo.Input("prefix", list(PLACES), default="automatic",
                               tooltip="Where the KV cache of prompt and references is kept (512 KiB per token in "
                                       "bf16). automatic: VRAM if it fits, else system RAM, else recomputed every "
                                       "step. recompute: no cache, least memory, slowest. Only for Qwen-Image 2.x: 1.x "
                                       "has no such cache."),
                io.Float.Input("vae_peak", default=0.0, min=0.0, max=1024.0, step=0.1,
                               tooltip="VRAM in GiB for encoding or decoding an image, in addition to the VAE's "
                                       "weights. 0: default tiling (under 2 GiB at 2048 x 2048). The image is "
                                       "the same."),
                io.Vae.Input("vae", optional=True, tooltip="The VAE that the limit applies to."),
            ],
            outputs=[
                io.Model.Output(),
                io.Vae.Output(tooltip="The VAE with its limit; empty if none is connected."),
                io.String.Output(display_name="report"),
            ],
        )

    @classmethod
    def execute(cls, model, vram_for_weights, prefix, vae_peak, vae=None):
        check_model(model)
        if vae is None and vae_peak:
            raise Refusal("vae_peak_without_vae", "VRAM for VAE is set, but no VAE is connected. Connect it, and use "
                          "this node's VAE output from here on.")
        budgeted = BudgetPatcher.of(model, vram_for_weights * 2**30 or math.inf)
        budgeted.check()
        budgeted.model_options["transformer_options"][CACHE_LOCATION_KEY] = PLACES[prefix]
        lines = report(budgeted)
        if vae is not None:
            check_vae(vae, ours=True)
            vae = vae.with_peak(int(vae_peak * 2**30) or None)
            lines.append(vae_in_words(vae))
        return io.NodeOutput(budgeted, vae, "\n".join(lines), ui=notify(cls, *lines))


def report(model: BudgetPatcher) -> list[str]:
    """What a run with the memory that is free now would keep, move and wait for."""
    device, lines = model.load_device, []
    room = math.inf
    if device.type == "cpu":
        lines.append(Message("budget_on_cpu", "Running on CPU: the weights are in system RAM already, so a budget has "
                             "no effect."))
    else:
        management = comfy.model_management
        room = management.get_free_memory(device) + model.loaded_size() - management.minimum_inference_memory()
    plan = model.plan_for(room)
    told = budget.in_words(plan, device)
    lines.append(told if model.budget < math.inf else Message(
        "budget_now", "With the memory that is free now: {plan}", plan=told))
    lines += [budget.control_in_words(each.plan_for(room - plan.on_device), device) for each in budget.beside(model)]
    if plan.streamed:
        lines.append(_cost(plan, device))
    return lines


def _cost(plan: Plan, device: torch.device) -> str:
    try:
        rate = offload.copy_rate(offload.transfer_for(device))
    except Exception as error:
        if not comfy.model_management.is_oom(error):
            raise
        return Message("streaming_cost_unknown", "The streaming time could not be measured: the device has no free "
                       "memory for it now.")
    return Message("streaming_cost", "Measured {rate} GB/s: streaming takes at least {time} ms per step, hidden "
                   "wherever compute takes longer.", rate=f"{rate / 1e9:.1f}",
                   time=f"{plan.moved / rate * 1e3:,.0f}")


def vae_in_words(vae) -> str:
    if vae.peak is None:
        return Message("vae_rows", "VAE: default tiling.")
    return Message("vae_peak", "VAE: at most {peak} beside its weights, enough for {side} x {side} pixels.",
                   peak=gib(vae.peak), side=vae.largest_side)
