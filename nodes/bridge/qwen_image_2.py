"""A Qwen-Image 2.x transformer as ComfyUI's MODEL.

A step: ComfyUI calls `QwenImage2._apply_model` once per conditioning, and that `DiffusionModel.forward`. The
conditioning carries a `PromptPrefix`: the first step fills it with the prefix's keys and values, later ones reuse them
(model/qwen_image_2/transformer.py). It lives as long as one sampling run, so a new prompt, reference, size or LoRA
strength cannot meet old keys.
"""
import logging
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from weakref import WeakSet

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_sampling
import comfy.patcher_extension
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...messages import Message, Refusal
from ...model.qwen_image_2 import key_maps, latents, schedule
from ...model.qwen_image_2.spec import TransformerSpec
from ...model.qwen_image_2.transformer import Transformer, prefix_end
from ...model.runtime.kernels import Kernels
from . import saving
from .adapters.places import Place
from .keys import CACHE_LOCATION_KEY, REPORT_KEY
from .prefix_cond import PrefixCond, PromptPrefix, condition_from, prefix_count, prefix_shape, prefix_tokens
from .quant.quantize import Origin
from .runtime import attention, prefix_placement
from .runtime.budget import BudgetedModel
from .runtime.oom import retry_on_oom
from .runtime.prefix_placement import CacheLocation
from .runtime.run_state import RunState

log = logging.getLogger(__name__)

# Values alive per token at a block's peak, in units of the width: residual stream, its norm, and the MLP's gate,
# projection and product of three widths each make 11; the rest is room for the allocator.
ACTIVATION_WIDTHS = 16


class LatentFormat(comfy.latent_formats.LatentFormat):
    latent_channels = 64
    spacial_downscale_ratio = 16
    latent_rgb_factors = [list(row) for row in latents.PREVIEW_FACTORS]
    latent_rgb_factors_bias = list(latents.PREVIEW_BIAS)

    def __init__(self):
        """With the tiny decoder for previews that core names for these latents, if it does: it can read that one."""
        core = getattr(comfy.latent_formats, "QwenImage21", comfy.latent_formats.LatentFormat)
        self.taesd_decoder_name = core().taesd_decoder_name

    def process_in(self, latent: Tensor) -> Tensor:
        return latents.normalize(latent)

    def process_out(self, latent: Tensor) -> Tensor:
        return latents.denormalize(latent)


class NoUNet(dict):
    """A configuration. What other nodes ask of it and is not there belongs to a UNet, as FreeU's model_channels."""

    def __missing__(self, name: str):
        raise Refusal("node_for_unets", "A node in this workflow needs the UNet of Stable Diffusion ({name}); "
                      "Qwen-Image 2 is a transformer. Remove the node.", name=name)


class Sampling(comfy.model_sampling.ModelSamplingFlux, comfy.model_sampling.CONST):
    """What core makes for ModelType.FLUX."""

    @property
    def multiplier(self):
        """Of core's ModelSamplingDiscreteFlow, whose nodes take every model for one: ModelNoiseScale, and HiDream O1's.
        """
        raise Refusal("node_for_discrete_flow", "A node in this workflow (such as ModelNoiseScale, or one for HiDream "
                      "O1) needs a sampling multiplier, which Qwen-Image 2 does not have. Remove the node.")


class ModelConfig(comfy.supported_models_base.BASE):
    latent_format = LatentFormat
    unet_extra_config = {}  # core's are for a UNet
    # Core's schedulers know no image size: they get the shift of 1024 x 1024. QwenImage2Sigmas has the right one.
    sampling_settings = {"shift": schedule.SHIFT.mu(1024 * 1024 // schedule.PIXELS_PER_TOKEN)}

    def __init__(self, unet_config: Mapping):
        super().__init__(unet_config)
        self.unet_config = NoUNet(self.unet_config)


class DiffusionModel(Transformer):
    """The transformer, called the way ComfyUI calls a diffusion model."""

    default_ref_method = None  # core's FluxKVCache writes it, into any model, and fails where it is not there

    def __init__(self, spec: TransformerSpec, kernels: Kernels, dtype: torch.dtype, device, operations):
        super().__init__(spec, operations, kernels, device=device, dtype=dtype)
        self.dtype = dtype
        self.in_channels = spec.channels  # core's RenormCFG asks for it

    def forward(self, x, timestep, context=None, control=None, transformer_options=None, **kwargs):
        options = transformer_options or {}
        return comfy.patcher_extension.WrapperExecutor.new_class_executor(
            self._velocity, self, comfy.patcher_extension.get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        ).execute(x, timestep, context, control, options, **kwargs)

    def _velocity(self, x, timestep, context, control, transformer_options, prefix: PromptPrefix,
                  weights_key: Hashable = None, first_location: CacheLocation = CacheLocation.VRAM, others: int = 0):
        """Velocity like x (B, 64, h, w). The prefix runs only where its keys and values are not there yet.

        weights_key: changes whenever the weights do; first_location: where keys and values are to be kept if there is
        room; others: bytes of video memory that the run's other prefixes keep.
        """
        if self.streamer is not None:
            self.streamer.expect(weights_key)
        # Without causal_condition the prefix changes with the timestep.
        time_key = None if self.spec.causal_condition else tuple(timestep.tolist())
        key = (weights_key, x.device, x.dtype, time_key)
        if not prefix.is_valid(key):
            self._fill(prefix, key, x, timestep, transformer_options, first_location, others)
        return super().forward(x, timestep, prefix.cache, attention.attention_for(transformer_options))

    @torch.compiler.disable  # run once, at a length of its own: compiling anew for each prompt would never pay
    def _fill(self, prefix: PromptPrefix, key: Hashable, x, timestep, transformer_options,
              first_location: CacheLocation, others: int) -> None:
        """Compute the keys and values of a prefix, and tell where they are kept."""
        prefix.clear()  # before the new ones are made
        spec, tokens = self.spec, prefix_tokens(prefix.condition, self.spec, len(timestep))
        needed = kept_bytes(spec, tokens, x.element_size())
        working = working_bytes(spec, tokens + x[:, 0].numel(), x.element_size())
        condition, sigma = prefix.condition.to(x.device), None if spec.causal_condition else timestep
        attend = attention.attention_for(transformer_options)
        start_pass = partial(self.prefix_layers, condition, sigma, x.dtype, attend)
        cache, location = prefix_placement.allocate_prefix_cache(
            start_pass, prefix_end(condition), needed, working, x.device, first_location, others)
        prefix.fill(key, cache, location)
        if location not in prefix.reported:  # hooks that change the weights make it anew, again and again
            prefix.reported.add(location)
            report = transformer_options.get(REPORT_KEY, log.info)
            for sentence in prefix_placement.in_words(cache, location, first_location, tokens, needed, x.device):
                report(sentence)
            if sentence := attention.in_words(x.device, transformer_options):
                report(sentence)


def kept_bytes(spec: TransformerSpec, prefix: int, element: int) -> int:
    """Keys and values of so many prefix tokens in all blocks; element: bytes of a value."""
    return prefix * 2 * spec.heads * spec.head_dim * spec.layers * element


def working_bytes(spec: TransformerSpec, tokens: int, element: int) -> int:
    """What a pass over so many tokens needs at its peak, beside weights and kept keys and values."""
    return tokens * ACTIVATION_WIDTHS * spec.dim * element


class QwenImage2(BudgetedModel, comfy.model_base.QwenImage):
    """Core's QwenImage lends its LoRA key forms (`transformer.`, bare, lycoris); everything else is BaseModel's."""

    def __init__(self, config: ModelConfig, variant: str, label: str):
        # Quantized layers put their weights where they were built, so they are; they hold nothing before.
        device = torch.device("cpu" if config.quant_config else "meta")
        comfy.model_base.BaseModel.__init__(self, config, comfy.model_base.ModelType.FLUX, device=device,
                                            unet_model=DiffusionModel)
        self.model_sampling = Sampling(config)
        self.variant = variant
        self.label = label
        self.weights = ""  # how they are stored, for people
        self.origin: Origin | None = None
        self.needed_config: Mapping = {}  # see matching.needed_config
        self.run_state = RunState()
        self.finite_adapters = WeakSet()  # those whose values were looked at, see run_checks.py

    @property
    def spec(self) -> TransformerSpec:
        return self.diffusion_model.spec

    def state_dict(self, *args, **kwargs):
        """With the names of the MLPs' halves, for ComfyUI's LoRA loaders (adapters/places.py); nothing stands there."""
        state = super().state_dict(*args, **kwargs)
        state.update({half: torch.empty(0) for key in list(state) if key.endswith(".weight")
                      for half in key_maps.rows_of(key) if half != key})
        return state

    def place_of(self, key: str) -> Place:
        """The parameter of this name; for one of the MLP's halves, its rows of the matrix where the model has one."""
        whole = key_maps.fused_mlp(key)
        if whole == key or not self.spec.fused_mlp or not key.endswith(".weight"):
            return Place(key)
        rows = comfy.utils.get_attr(self, whole).shape[0] // len(key_maps.SPLIT_MLP)
        return Place(whole, (0, key_maps.rows_of(whole).index(key) * rows, rows))

    def extra_conds(self, **kwargs):
        return {"prefix": PrefixCond(PromptPrefix(condition_from(kwargs, self.spec, self.process_latent_in)))}

    def extra_conds_shapes(self, **kwargs):
        condition = condition_from(kwargs, self.spec, self.process_latent_in)
        return {"prefix": prefix_shape(condition)}

    def state_dict_for_saving(self, unet_state_dict, *args, **kwargs):
        """For core's ModelSave and CheckpointSave."""
        beside = saving.beside_weights(self.diffusion_model, self.needed_config, self.label)
        return super().state_dict_for_saving({**unet_state_dict, **beside}, *args, **kwargs)

    def memory_required(self, input_shape, cond_shapes=None, **_):
        """Bytes beside the weights for latents of input_shape (B, 64, h, w) and prefixes, see prefix_shape.

        In a run the keys and values of all its prefixes count. ComfyUI asks for the least that it needs with the
        longest prefix alone, and would fill up the rest with weights. Newer versions also say
        whether attention is memory-efficient, which this estimate takes for granted.
        """
        element = comfy.model_management.dtype_size(self.get_dtype_inference())
        target = input_shape[0] * input_shape[-2] * input_shape[-1]
        images = self.run_state.images or input_shape[0]  # ComfyUI asks for two branches as for twice as many
        prefix = sum(prefix_count(prompts, self.spec, images) * tokens
                     for _, prompts, tokens in (cond_shapes or {}).get("prefix", ()))
        kept = prefix if self.run_state.cached_tokens is None else self.run_state.cached_tokens
        return working_bytes(self.spec, target + prefix, element) + kept_bytes(self.spec, kept, element)

    def _apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, prefix=None,
                     **kwargs):
        """One step of one conditioning: ComfyUI's own, which calls DiffusionModel.forward."""
        if prefix is None:
            raise Refusal("prompt_missing", "Qwen-Image 2 needs a prompt. Connect Encode Prompt (Qwen-Image 2) to the "
                          "sampler.")
        options = transformer_options or {}
        run, report = self.run_state, options.get(REPORT_KEY, log.info)
        run.prefixes.add(prefix)
        self._report_ignored_patches(options, report)

        def step() -> Tensor:
            return super(QwenImage2, self)._apply_model(
                x, t, c_concat, c_crossattn, control, options, prefix=prefix, weights_key=self._weights_key(),
                first_location=run.first_location(options.get(CACHE_LOCATION_KEY, CacheLocation.VRAM)),
                others=run.video_memory_beside(prefix), **kwargs)

        return retry_on_oom(step, run, self.current_patcher, report)

    def _report_ignored_patches(self, options: dict, report: Callable[[str], None]) -> None:
        """Patches of attention layers, blocks and positions are made for other transformers, which ask for them."""
        found = {name for kind in ("patches", "patches_replace")
                 for name, patch in options.get(kind, {}).items() if patch}
        found |= {"rope_options"} & options.keys()
        if new := sorted(found - self.run_state.reported_patches):
            self.run_state.reported_patches.update(new)
            report(Message("patches_ignored", "Model patches from another node ({layers}) are not supported by this "
                           "model and are ignored.", layers=new))

    def begin_run(self, cached_tokens: int, images: int | None = None) -> None:
        """As RunState has them."""
        self.run_state = self.run_state.begin(cached_tokens, images)

    def end_run(self) -> None:
        """Free what a run has allocated. A guider that outlives a cancelled run would keep it, out of reach of
        ComfyUI's memory management."""
        self.run_state = self.run_state.end()
        self.release_buffers()

    def _weights_key(self) -> Hashable:
        """Changes whenever a LoRA or a hook changes the weights, even in the middle of a run."""
        hooks = self.current_patcher.current_hooks if self.current_patcher is not None else None
        strengths = tuple((hook.hook_ref, hook.strength) for hook in hooks.hooks) if hooks else ()
        return self.current_weight_patches_uuid, strengths


def is_ours(patcher) -> bool:
    """Whether a MODEL is a transformer of this pack."""
    return isinstance(patcher.model, QwenImage2)
