"""A step that runs out of memory is repeated, once in a run, with less of it in use."""
from collections.abc import Callable

import comfy.model_management
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....messages import Message
from . import block_prefetch
from .budget import BudgetPatcher, beside, gib
from .run_state import RunState


def retry_on_oom(step: Callable[[], Tensor], run: RunState, patcher: ModelPatcher | None,
                 report: Callable[[str], None]) -> Tensor:
    """step(), and a second time where memory has run out and something can be given up.

    patcher: the one whose weights are loaded; report is told what has been given up. Raises ComfyUI's out-of-memory
    error with advice where there is nothing left to give up.
    """
    try:
        return step()
    except Exception as error:
        if not comfy.model_management.is_oom(error):
            raise
        if run.oom_retried or not (run.keeps_beside_model or _with_resident_blocks(patcher)):
            raise _out_of_memory(patcher) from error
    # Outside of the handler: the error holds on to every tensor of the step that failed.
    report(_give_up(run, patcher))
    try:
        return step()
    except Exception as error:
        if comfy.model_management.is_oom(error):
            raise _out_of_memory(patcher) from error
        raise


def _with_resident_blocks(patcher: ModelPatcher | None) -> list[BudgetPatcher]:
    """The model, where it has a budget, and the control networks beside it, as far as they keep blocks on the device
    and could let some of them go."""
    every = [] if patcher is None else [patcher, *beside(patcher)]
    return [each for each in every if isinstance(each, BudgetPatcher) and each.resident_blocks]


def _give_up(run: RunState, patcher: ModelPatcher | None) -> Message:
    """Keys and values beside the model, and half of the resident blocks of each network. Returns what it was, in words.
    """
    kept, networks = run.keeps_beside_model, _with_resident_blocks(patcher)
    before = sum(each.resident_blocks for each in networks)
    run.oom_retried = True
    block_prefetch.forget()
    run.clear_prefixes()
    after = sum(each.halve() for each in networks)
    comfy.model_management.soft_empty_cache()
    if not before:
        return Message("oom_retry_cache", "Out of memory. Retrying this step with the KV cache moved out of VRAM.")
    if not kept:
        return Message("oom_retry_blocks", "Out of memory. Retrying this step with {after} instead of {before} blocks "
                       "in VRAM.", before=before, after=after)
    return Message("oom_retry_both", "Out of memory. Retrying this step with the KV cache moved out of VRAM and "
                   "{after} instead of {before} blocks in VRAM.",
                   before=before, after=after)


def _out_of_memory(patcher: ModelPatcher | None) -> Exception:
    advice = Message("choose_smaller", "use a smaller image, a smaller batch or fewer references")
    if not isinstance(patcher, BudgetPatcher):
        advice = Message("choose_budget", "add a Memory Budget node between loader and sampler and set its VRAM for "
                         "weights, or {other}", other=advice)
    elif patcher.resident_blocks:
        advice = Message("choose_lower_budget", "lower VRAM for weights on Memory Budget (the weights last used "
                         "{taken}, the minimum is {least}), or {other}", taken=gib(patcher.plan.on_device),
                         least=gib(patcher.plan_for(0).on_device), other=advice)
    return comfy.model_management.OOM_EXCEPTION(str(Message(
        "out_of_memory", "Out of memory, even with the KV cache out of VRAM: {advice}.", advice=advice)))
