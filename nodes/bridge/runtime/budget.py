"""A budget for the transformer's weights on the device, on ComfyUI's ModelPatcher.

Blocks within the budget are loaded and patched as ComfyUI does it; the others stay in RAM and stream
(model/runtime/offload.py), their LoRAs computed on the device as each one passes.
"""
import math
from collections.abc import Iterator, Sequence

import comfy.model_management
import comfy.utils
import torch
from comfy.model_patcher import LowVramPatch, ModelPatcher, move_weight_functions, wipe_lowvram_weight
from comfy.patcher_extension import CallbacksMP
from torch import nn

from ....messages import Message, Refusal
from ....model.runtime import offload
from ....model.runtime.offload import Plan, Streamer
from ..adapters.places import PlacingPatcher
from ..adapters.plain_casts import is_plain_cast
from ..quant.gguf_ops import is_packed
from ..quant.in_use import is_patched_in_use

# The attachment that holds it, in bytes; ComfyUI copies it into every clone. Models that a MODEL brings have their part
# of it there.
BUDGET = "qwen_image_2_budget"


class BudgetedModel:
    """What a family's BaseModel has in addition when a budget can place its weights: all patchers share it.

    Its diffusion_model has `transformer_blocks`, and a `streamer` where some of them stream.
    """

    # What a budget keeps where; None where nothing is loaded, or ComfyUI's own patcher has loaded it.
    plan: Plan | None = None
    # Of a model that ComfyUI's dynamic patcher places by itself: the copy that a budget places instead.
    static_clone: tuple | None = None

    def forget_plan(self) -> None:
        """End all streaming: every block has its own weights again, on the device or in RAM."""
        self.release_buffers()
        self.diffusion_model.streamer = self.plan = None

    def release_buffers(self) -> None:
        """Give the buffers of what streams back until the next pass."""
        if self.diffusion_model.streamer is not None:
            self.diffusion_model.streamer.release()


class BudgetPatcher(PlacingPatcher, ModelPatcher):
    """Loads no more of its transformer onto the device than the budget, or less where ComfyUI has less room.

    ComfyUI has no seam for a patcher of another kind, and its own rules are bent here in three ways, each for a reason.
    The class of a clone is assigned: `clone()` copies all of a patcher's state into an object of the class that it
    finds, and a constructor of our own would have to know that state, anew in every version. The methods that place
    weights are overridden: ComfyUI decides layer by layer, in an order of its own, and knows no block that visits the
    device; hooks change weights in place, so buffers that stand for them must be given back before. And the account of
    what is loaded, which ComfyUI keeps in attributes of the model and of its layers, is written here too, because its
    memory management reads it there when other models need room. All of that belongs to this patcher's own model: no
    class or module of ComfyUI is changed.
    """

    @classmethod
    def of(cls, model: ModelPatcher, budget: float) -> "BudgetPatcher":
        """A clone of a MODEL under a budget in bytes; infinity leaves it to the room that ComfyUI finds."""
        if model.is_dynamic():
            # ComfyUI's dynamic patcher places weights by itself: here another copy is made from the same file, once.
            clone = model.clone(disable_dynamic=True, model_override=model.model.static_clone)
            model.model.static_clone = clone.get_clone_model_override()
        else:
            clone = model.clone()
        clone.__class__ = cls  # clone() makes objects of the class that it finds
        clone.size = 0  # of the model without a budget, to be counted anew
        clone.set_attachments(BUDGET, budget)
        clone.divide()
        return clone

    @property
    def budget(self) -> float:
        """Its own part, of what it may have together with the models that it brings."""
        return self._parts()[0]

    def divide(self) -> None:
        """Give the models that it brings their parts: whenever they or the budget are others than before."""
        for patcher, part in zip(beside(self), self._parts()[1:], strict=True):
            patcher.set_attachments(BUDGET, part)

    def check(self) -> None:
        """Raises Refusal where it is too small for one of its models."""
        least = sum(_least(each.model) for each in (self, *beside(self)))
        if self.attachments[BUDGET] < least:
            raise Refusal("budget_low", "VRAM for weights is {budget}, but this model needs at least {least}: two "
                          "streaming buffers and the weights outside the blocks. Set it to {setting} or more, or to 0 "
                          "(automatic).", budget=gib(self.attachments[BUDGET]), least=gib(least),
                          setting=str(math.ceil(least / 2**30 * 100) / 100))

    def _parts(self) -> list[float]:
        return divided(self.attachments[BUDGET], [each.model for each in (self, *beside(self))])

    @property
    def plan(self) -> Plan | None:
        """What is loaded, see BudgetedModel."""
        return self.model.plan

    @property
    def resident_blocks(self) -> int:
        """How many blocks stay on the device; none where it is not loaded."""
        return 0 if self.plan is None else len(self.plan.sizes) - len(self.plan.streamed)

    def plan_for(self, room: float) -> Plan:
        """Bytes of room on the device -> what to keep there."""
        return offload.plan(*_sizes(self.model), min(self.budget, room))

    # ------------------------------------------------------------ what ComfyUI calls

    def model_size(self):
        """At most what may be on the device: ComfyUI makes room for so much before it loads."""
        return min(super().model_size(), self.budget)

    def load(self, device_to=None, lowvram_model_memory=0, force_patch_weights=False, full_load=False):
        with self.use_ejected():
            self.unpatch_hooks()
            room = math.inf if full_load else lowvram_model_memory
            self._place(self._keep_if_close(self.plan_for(room), room), device_to, force_patch_weights)
            for callback in self.get_all_callbacks(CallbacksMP.ON_LOAD):
                callback(self, device_to, lowvram_model_memory, force_patch_weights, full_load)
            self.apply_hooks(self.forced_hooks, force_apply=True)

    def partially_load(self, device_to, extra_memory=0, force_patch_weights=False):
        with self.use_ejected(skip_and_inject_on_exit_only=True):
            before = self.loaded_size()
            fits = self.plan is not None and self.model.current_weight_patches_uuid == self.patches_uuid
            self.unpatch_model(self.offload_device, unpatch_weights=force_patch_weights or not fits)
            self.patch_model(load_weights=False)
            try:
                self.load(device_to, before + extra_memory, force_patch_weights)
            except BaseException:
                self.detach()
                raise
            return self.loaded_size() - before

    def partially_unload(self, device_to, memory_to_free=0, force_patch_weights=False):
        with self.use_ejected():
            if self.plan is None:
                return super().partially_unload(device_to, memory_to_free, force_patch_weights)
            self.unpatch_hooks()
            before = self.loaded_size()
            self._place(self.plan_for(self.plan.on_device - memory_to_free), self.model.device, force_patch_weights)
            return before - self.loaded_size()

    def unpatch_model(self, device_to=None, unpatch_weights=True):
        if unpatch_weights:
            self.model.forget_plan()
        super().unpatch_model(device_to, unpatch_weights)

    def patch_hooks(self, hooks):
        self.model.release_buffers()  # a hook changes the weights in RAM, in place: no block may be bound to its buffer
        super().patch_hooks(hooks)

    def unpatch_hooks(self, whitelist_keys_set=None):
        if self.hook_backup:
            self.model.release_buffers()
        super().unpatch_hooks(whitelist_keys_set)

    # ------------------------------------------------------------ placing

    def _keep_if_close(self, wanted: Plan, room: float) -> Plan:
        """The plan that is in force where it is as good: free memory is never twice the same, and for one block more
        or less nothing moves."""
        plan = self.plan
        if plan and plan.on_device <= min(self.budget, room) and len(plan.streamed) - len(wanted.streamed) <= 1:
            return plan
        return wanted

    def halve(self) -> int:
        """Keep half as many blocks on the device. Returns how many."""
        count, hooks = self.resident_blocks // 2, self.current_hooks
        self.unpatch_hooks()
        self._place(self.plan.keeping(count), self.model.device)
        self.cached_hook_patches.clear()  # made of weights as they were placed before
        self.apply_hooks(hooks)
        return count

    def _place(self, plan: Plan, device: torch.device, force_patch_weights: bool = False) -> None:
        network = self.model.diffusion_model
        self.model.forget_plan()
        streamed = [network.transformer_blocks[number] for number in plan.streamed]
        inside = {id(module) for block in streamed for module in block.modules()}
        layers = [(name, module) for name, module in self.model.named_modules() if module._parameters]
        for name, module in layers:
            if id(module) in inside:  # these first: they make room
                self._offload(name, module, force_patch_weights)
        for name, module in layers:
            if id(module) not in inside:
                self._load_resident(name, module, device)
        if streamed:
            network.streamer = Streamer(network.transformer_blocks, plan, offload.transfer_for(device))
        model = self.model
        model.plan, model.device, model.current_weight_patches_uuid = plan, device, self.patches_uuid
        model.model_lowvram, model.model_loaded_weight_memory = bool(streamed), plan.resident
        model.model_offload_buffer_memory = plan.buffers

    def _load_resident(self, name: str, module: nn.Module, device: torch.device) -> None:
        """Patch a layer and bring it to the device."""
        if getattr(module, "comfy_patched_weights", False):
            return
        wipe_lowvram_weight(module)
        # A LoRA that is merged into GGUF's blocks makes them as large as Q8_0's, which no plan has counted.
        in_use = is_patched_in_use(module)
        for last in list(module._parameters):
            key = f"{name}.{last}"
            self.unpin_weight(key)
            if not in_use:
                self.patch_weight_to_device(key, device_to=device)
        module.to(device)
        self._set_functions(name, module, in_use, device)
        module.comfy_patched_weights = True

    def _offload(self, name: str, module: nn.Module, force_patch_weights: bool) -> None:
        """Leave a layer in RAM with its own weights, and note what a LoRA does to them as they pass."""
        if getattr(module, "comfy_patched_weights", False):
            for last in module._parameters:
                if (backup := self.backup.pop(f"{name}.{last}", None)) is not None:
                    comfy.utils.set_attr_param(self.model, f"{name}.{last}", backup.weight)
            module.to(torch.device("cpu"))  # ComfyUI's place for what is not in use may be the card itself
            module.comfy_patched_weights = False
        if force_patch_weights:
            for last in module._parameters:
                self.patch_weight_to_device(f"{name}.{last}")
        self._set_functions(name, module, True, self.load_device)
        for last in module._parameters:
            self.pin_weight_to_device(f"{name}.{last}")

    def _set_functions(self, name: str, module: nn.Module, patched_in_use: bool, device: torch.device) -> None:
        """What ComfyUI's layers do to weight and bias before they use them. patched_in_use: LoRAs, too."""
        if not hasattr(module, "comfy_cast_weights"):
            return
        for last in ("weight", "bias"):
            key = f"{name}.{last}"
            in_use = patched_in_use and key in self.patches and key not in self.backup
            loras = [LowVramPatch(key, self.patches)] if in_use else []
            setattr(module, f"{last}_function", loras + self.weight_wrapper_patches.get(key, []))
        module.comfy_force_cast_weights = self.force_cast_weights
        if self.force_cast_weights and not hasattr(module, "prev_comfy_cast_weights"):
            module.prev_comfy_cast_weights, module.comfy_cast_weights = module.comfy_cast_weights, True
        move_weight_functions(module, device)


def beside(patcher: ModelPatcher) -> list[BudgetPatcher]:
    """The models that a MODEL brings into a run and whose blocks can stream: its control networks."""
    return [each for each in patcher.get_additional_models() if isinstance(each, BudgetPatcher)]


def divided(budget: float, models: Sequence[BudgetedModel]) -> list[float]:
    """Each model's part of a budget in bytes: what it needs at least, and of the rest as its other weights are large.
    """
    if len(models) == 1 or math.isinf(budget):
        return [budget] * len(models)
    least = [_least(model) for model in models]
    more = [max(0, offload.plan(*_sizes(model), math.inf).on_device - needed)
            for model, needed in zip(models, least, strict=True)]
    rest = max(0, budget - sum(least)) / max(1, sum(more))
    return [needed + rest * other for needed, other in zip(least, more, strict=True)]


def _least(model: BudgetedModel) -> int:
    return offload.plan(*_sizes(model), 0).on_device


def _sizes(model: BudgetedModel) -> tuple[int, list[int]]:
    """Bytes of what is in no block, and of each block."""
    blocks = [sum(map(offload.size_of, offload.entries(block)))
              for block in model.diffusion_model.transformer_blocks]
    return sum(map(offload.size_of, offload.entries(model))) - sum(blocks), blocks


def on_load(patcher: ModelPatcher, *_) -> None:
    """ComfyUI's own patcher has placed the weights of a model that a budget may have placed before."""
    if not isinstance(patcher, BudgetPatcher):
        patcher.model.forget_plan()


# ---------------------------------------------------------------- in words

def gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def run_costs(patcher: ModelPatcher) -> Iterator[Message]:
    """What each pass of a run of this MODEL has paid for memory, for itself and for the models that it brings."""
    yield from costs(patcher.model)
    for each in beside(patcher):
        if each.plan is not None and each.plan.streamed:
            yield control_in_words(each.plan, each.model.device)


def costs(model: BudgetedModel) -> Iterator[Message]:
    """What each pass of a run has paid for memory."""
    if model.plan is not None and model.plan.streamed:
        yield in_words(model.plan, model.device)
    merged = [module for module in model.diffusion_model.modules()
              if any(isinstance(function, LowVramPatch) for function in getattr(module, "weight_function", ()))]
    if packed := sum(map(is_packed, merged)):
        yield Message("lora_gguf", "LoRA-patched GGUF weights are re-patched every time they are used (weights: "
                      "{count}).",
                      count=packed)
    if plain := sum(map(is_plain_cast, merged)):
        yield Message("lora_plain_cast", "LoRAs on fp8 weights without scales are computed every time a weight is "
                      "used (weights: {count}), because fp8 would round them. A bf16 or int8 file avoids that work.",
                      count=plain)
    if others := len(merged) - packed - plain:
        yield Message("lora_repatched", "Streamed weights with a LoRA are re-patched every step (weights: {count}); "
                      "resident weights are patched once.", count=others)


def division_in_words(patcher: ModelPatcher) -> Iterator[Message]:
    """What a budget in force leaves to a MODEL and to the models that it brings; nothing where there is none."""
    if isinstance(patcher, BudgetPatcher) and math.isfinite(patcher.budget):
        yield in_words(patcher.plan_for(math.inf), patcher.load_device)
        for each in beside(patcher):
            yield control_in_words(each.plan_for(math.inf), each.load_device)


def control_in_words(plan: Plan, device: torch.device) -> Message:
    return Message("control_blocks", "Control network: {plan}", plan=in_words(plan, device))


def in_words(plan: Plan, device: torch.device) -> Message:
    blocks, moving = len(plan.sizes), len(plan.streamed)
    memory = Message("memory_ram", "system RAM") if device.type == "cpu" else Message("memory_vram", "VRAM")
    if not moving:
        return Message("blocks_resident", "All {blocks} blocks stay in {memory} ({size}).", blocks=blocks,
                       memory=memory, size=gib(plan.on_device))
    return Message("blocks_streamed", "{staying} of {blocks} blocks and all other weights stay in {memory} "
                   "({resident}). {moving} blocks are streamed through {buffers} buffers ({room}), {moved} per step.",
                   staying=blocks - moving, blocks=blocks, memory=memory, resident=gib(plan.resident),
                   moving=moving, buffers=offload.BUFFERS, room=gib(plan.buffers), moved=gib(plan.moved))
