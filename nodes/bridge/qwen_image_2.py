"""A Qwen-Image 2.x transformer as ComfyUI's MODEL.

ComfyUI calls `DiffusionModel.forward` once per step and conditioning. The conditioning carries a `PromptPrefix`:
the first call fills it with the prefix's keys and values, later ones reuse them. It lives as long as one sampling
run, so a new prompt, reference, size or LoRA strength cannot meet old keys.
"""
import logging
import weakref
from collections.abc import Callable

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.supported_models_base
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...messages import Message, Refusal
from ...model.qwen_image_2 import latents, schedule
from ...model.qwen_image_2.prefix_cache import Condition, PrefixCache
from ...model.qwen_image_2.spec import TransformerSpec
from ...model.qwen_image_2.transformer import Transformer, prefix_end
from ...model.runtime.kernels import Kernels
from ...model.runtime.offload import Plan
from .keys import PLACE_KEY, REPORT_KEY
from .prefix_cond import PrefixCond, PromptPrefix, condition_from, prefix_tokens
from .quant.quantize import Origin
from .runtime import budget, prefix_placement
from .runtime.kernels import comfy_attention
from .runtime.prefix_placement import Place

log = logging.getLogger(__name__)

# Values alive per token at a block's peak, in units of the width: residual stream, its norm, and the MLP's gate,
# projection and product of three widths each make 11; the rest is room for the allocator.
ACTIVATION_WIDTHS = 16


class LatentFormat(comfy.latent_formats.LatentFormat):
    latent_channels = 64
    spacial_downscale_ratio = 16
    latent_rgb_factors = [list(row) for row in latents.PREVIEW_FACTORS]
    latent_rgb_factors_bias = list(latents.PREVIEW_BIAS)

    def process_in(self, latent: Tensor) -> Tensor:
        return latents.normalise(latent)

    def process_out(self, latent: Tensor) -> Tensor:
        return latents.denormalise(latent)


class ModelConfig(comfy.supported_models_base.BASE):
    latent_format = LatentFormat
    supported_inference_dtypes = [torch.bfloat16, torch.float16, torch.float32]
    unet_extra_config = {}  # core's are for a UNet
    # Core's schedulers know no picture size: they get the shift of 1024 x 1024. QwenImage2Sigmas has the right one.
    sampling_settings = {"shift": schedule.shift_for(1024 * 1024 // schedule.PIXELS_PER_TOKEN)}


class DiffusionModel(Transformer):
    """The transformer, called the way ComfyUI calls a diffusion model."""

    def __init__(self, spec: TransformerSpec, kernels: Kernels, dtype: torch.dtype, device, operations):
        super().__init__(spec, operations, kernels, device=device, dtype=dtype)
        self.dtype = dtype

    def forward(self, x, timestep, context=None, control=None, transformer_options=None, **kwargs):
        options = transformer_options or {}
        return comfy.patcher_extension.WrapperExecutor.new_class_executor(
            self._velocity, self, comfy.patcher_extension.get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        ).execute(x, timestep, context, control, options, **kwargs)

    def _velocity(self, x, timestep, context, control, transformer_options, prefix: PromptPrefix, weights_key=None,
                  first_place: Place = Place.DEVICE, others: int = 0):
        """others: bytes of video memory that the run's other prefixes keep."""
        if self.streamer is not None:
            self.streamer.expect(weights_key)
        # Without causal_condition the prefix changes with the timestep.
        time_key = None if self.spec.causal_condition else tuple(timestep.tolist())
        cache = prefix.cache((weights_key, x.device, x.dtype, time_key), lambda: self._keep(
            prefix, x, timestep, transformer_options, first_place, others))
        return super().forward(x, timestep, cache, comfy_attention(transformer_options))

    @torch.compiler.disable  # run once, at a length of its own: compiling anew for each prompt would never pay
    def _keep(self, prefix: PromptPrefix, x, timestep, transformer_options, first_place: Place,
              others: int) -> PrefixCache:
        """Compute the keys and values of a prefix, and tell where they are kept."""
        condition = _moved(prefix.condition, x.device)
        sigma = None if self.spec.causal_condition else timestep
        attention = comfy_attention(transformer_options)
        tokens = prefix_tokens(condition)
        needed = kept_bytes(self.spec, tokens, x.element_size())
        cache, prefix.place = prefix_placement.keep(
            lambda: self.prefix_layers(condition, sigma, x.dtype, attention), prefix_end(condition), needed,
            working_bytes(self.spec, tokens + x[:, 0].numel(), x.element_size()), x.device, first_place, others)
        if prefix.place not in prefix.told:  # hooks that change the weights make it anew, again and again
            prefix.told.add(prefix.place)
            report = transformer_options.get(REPORT_KEY, log.info)
            report(Message("cache_size", "{tokens} tokens of prompt and references: their keys and values ({size} MiB) "
                           "are {place}.", tokens=f"{tokens:,}", size=f"{needed / 2**20:,.1f}",
                           place=prefix_placement.in_words(prefix.place, first_place)))
            if prefix_placement.waits(cache, prefix.place):
                report(Message("cache_unpinned", "RAM could not be pinned for keys and values: each block waits for "
                               "its copy."))
        return cache


def kept_bytes(spec: TransformerSpec, prefix: int, element: int) -> int:
    """Keys and values of so many prefix tokens in all blocks; element: bytes of a value."""
    return prefix * 2 * spec.heads * spec.head_dim * spec.layers * element


def working_bytes(spec: TransformerSpec, tokens: int, element: int) -> int:
    """What a pass over so many tokens needs at its peak, beside weights and kept keys and values."""
    return tokens * ACTIVATION_WIDTHS * spec.dim * element


def _moved(condition: Condition, device: torch.device) -> Condition:
    references = tuple(latent.to(device) for latent in condition.references)
    return Condition(condition.text.to(device), condition.slots, references)


class QwenImage2(comfy.model_base.QwenImage):
    """Core's QwenImage lends its LoRA key forms (`transformer.`, bare, lycoris); everything else is BaseModel's."""

    def __init__(self, config: ModelConfig, variant: str, label: str):
        # Quantised layers put their weights where they were built, so they are; they hold nothing before.
        device = torch.device("cpu" if config.quant_config else "meta")
        comfy.model_base.BaseModel.__init__(self, config, comfy.model_base.ModelType.FLUX, device=device,
                                            unet_model=DiffusionModel)
        self.variant = variant
        self.label = label
        self.weights = ""  # how they are stored, for people
        self.origin: Origin | None = None
        self.plan: Plan | None = None  # see runtime/budget.py
        self.stand_in = None           # the copy of a model that ComfyUI places by itself, see runtime/budget.py
        self.prefixes: weakref.WeakSet[PromptPrefix] = weakref.WeakSet()  # of the run at hand
        self.crowded = False           # whether the run at hand has been out of memory
        self.ignored: set[str] = set()  # kinds of other nodes' patches that the run at hand has reported
        self.kept_tokens: int | None = None  # of the run at hand: how many keep keys and values beside the model

    @property
    def spec(self) -> TransformerSpec:
        return self.diffusion_model.spec

    def extra_conds(self, **kwargs):
        prefix = PromptPrefix(condition_from(kwargs, self.spec, self.process_latent_in))
        self.prefixes.add(prefix)
        return {"prefix": PrefixCond(prefix)}

    def extra_conds_shapes(self, **kwargs):
        condition = condition_from(kwargs, self.spec, self.process_latent_in)
        return {"prefix": [1, 1, prefix_tokens(condition)]}

    def memory_required(self, input_shape, cond_shapes=None):
        """Bytes beside the weights for latents of input_shape (B, 64, h, w) and prefixes of so many tokens.

        In a run the keys and values of all its prefixes count. ComfyUI asks for the least that it needs with the
        longest prefix alone, and would fill up the rest with weights.
        """
        element = comfy.model_management.dtype_size(self.get_dtype_inference())
        target = input_shape[0] * input_shape[-2] * input_shape[-1]
        prefix = sum(shape[-1] for shape in (cond_shapes or {}).get("prefix", ()))
        kept = prefix if self.kept_tokens is None else self.kept_tokens
        return working_bytes(self.spec, target + prefix, element) + kept_bytes(self.spec, kept, element)

    def _apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, prefix=None,
                     **kwargs):
        if prefix is None:
            raise Refusal("prompt_missing", "Qwen-Image 2 needs a prompt: connect Encode Prompt (Qwen-Image 2) to the "
                          "sampler.")
        options = transformer_options or {}
        report = options.get(REPORT_KEY, log.info)
        self._tell_of_patches(options, report)

        def step():
            first_place = options.get(PLACE_KEY, Place.DEVICE)
            if self.crowded and first_place is Place.DEVICE:
                first_place = Place.RAM
            others = sum(each.video_memory for each in self.prefixes if each is not prefix)
            return super(QwenImage2, self)._apply_model(x, t, c_concat, c_crossattn, control, options, prefix=prefix,
                                                        weights_key=self._weights_key(), first_place=first_place,
                                                        others=others, **kwargs)

        return budget.with_relief(self, step, report)

    def _tell_of_patches(self, options: dict, report: Callable[[str], None]) -> None:
        """Patches of attention layers, blocks and positions are made for other transformers, which ask for them."""
        found = {name for kind in ("patches", "patches_replace")
                 for name, patch in options.get(kind, {}).items() if patch}
        found |= {"rope_options"} & options.keys()
        if new := sorted(found - self.ignored):
            self.ignored.update(new)
            report(Message("patches_ignored", "Another node patches the model's layers ({layers}), but this model has "
                           "no places for such patches: they have no effect.", layers=new))

    def begin_run(self, kept_tokens: int) -> None:
        self.crowded, self.kept_tokens, self.ignored = False, kept_tokens, set()

    def end_run(self) -> None:
        """Free what a run has allocated. A guider that outlives a cancelled run would keep it, out of reach of
        ComfyUI's memory management."""
        self.kept_tokens = None
        self.clear_prefixes()
        budget.rest(self)

    def clear_prefixes(self) -> None:
        for prefix in self.prefixes:
            prefix.clear()

    def _weights_key(self):
        """Changes whenever a LoRA or a hook changes the weights, even in the middle of a run."""
        hooks = self.current_patcher.current_hooks if self.current_patcher is not None else None
        strengths = tuple((hook.hook_ref, hook.strength) for hook in hooks.hooks) if hooks else ()
        return self.current_weight_patches_uuid, strengths


def reporting_to(report: Callable[[str], None], model: comfy.model_patcher.ModelPatcher):
    """A clone of the MODEL whose runs tell where they keep the prefix, instead of writing it to the log."""
    clone = model.clone()
    clone.model_options["transformer_options"][REPORT_KEY] = report
    return clone
