"""A Qwen-Image 2.x transformer as ComfyUI's MODEL.

A step: ComfyUI calls `QwenImage2._apply_model` once per conditioning, and that `DiffusionModel.forward`. The
conditioning carries a `PromptPrefix`: the first step fills it with the prefix's keys and values, later ones reuse them
(model/qwen_image_2/transformer.py). It lives as long as one sampling run, so a new prompt, reference, size or LoRA
strength cannot meet old keys.
"""
import logging
from collections.abc import Hashable, Iterable, Sequence
from functools import partial

import comfy.latent_formats
import comfy.model_management
import comfy.utils
import torch
from torch import Tensor

from ...messages import Refusal
from ...model.qwen_image_2 import key_maps, latents, schedule
from ...model.qwen_image_2.control import PrefixControl, prefix_controls
from ...model.qwen_image_2.spec import TransformerSpec
from ...model.qwen_image_2.transformer import Transformer, prefix_end
from ...model.runtime.kernels import Kernels
from ...model.runtime.sigmas import PIXELS_PER_TOKEN
from . import control, pack_model
from .adapters.places import Place
from .control import PreparedControl
from .keys import CACHE_LOCATION_KEY, FAMILY_2, REPORT_KEY, TILES_KEY
from .pack_model import PackModel, check_prompts, no_prompt, through_wrappers
from .prefix_cond import PrefixCond, PromptPrefix, condition_from, prefix_count, prefix_shape, prefix_tokens
from .reference_weights import weights_from
from .runtime import attention, block_prefetch, prefix_placement
from .runtime.oom import retry_on_oom
from .runtime.prefix_placement import CacheLocation

log = logging.getLogger(__name__)

# Values alive per token at a block's peak, in units of the width: residual stream, its norm, and the MLP's gate,
# projection and product of three widths each make 11; the rest is room for the allocator.
ACTIVATION_WIDTHS = 16
# Where ComfyUI's own nodes put a control network, by ComfyUI's version: in the place of blocks, or after them. (Not
# "post_input", which its newer node has beside them: FluxKVCache, which nothing misses here, is there too.)
CONTROL_PATCHES = frozenset({"single_block", "double_block"})


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


class ModelConfig(pack_model.ModelConfig):
    latent_format = LatentFormat
    # Core's schedulers know no image size: they get the shift of 1024 x 1024. QwenImage2Sigmas has the right one.
    sampling_settings = {"shift": schedule.SHIFT.mu(1024 * 1024 // PIXELS_PER_TOKEN)}


class DiffusionModel(Transformer):
    """The transformer, called the way ComfyUI calls a diffusion model."""

    default_ref_method = None  # core's FluxKVCache writes it, into any model, and fails where it is not there

    def __init__(self, spec: TransformerSpec, kernels: Kernels, dtype: torch.dtype, device, operations):
        super().__init__(spec, operations, kernels, device=device, dtype=dtype)
        self.dtype = dtype
        self.in_channels = spec.channels  # core's RenormCFG asks for it

    def forward(self, x, timestep, context=None, control=None, transformer_options=None, **kwargs):
        options = transformer_options or {}
        return through_wrappers(self, self._velocity, options, x, timestep, context, control, options, **kwargs)

    def _velocity(self, x, timestep, context, control, transformer_options, prefix: PromptPrefix,
                  weights_key: Hashable = None, first_location: CacheLocation = CacheLocation.VRAM, others: int = 0,
                  controls: Sequence[PreparedControl] = ()):
        """Velocity like x (B, 64, h, w). The prefix runs only where its keys and values are not there yet.

        weights_key: changes whenever the weights do; first_location: where keys and values are to be kept if there is
        room; others: bytes of video memory that the run's other prefixes keep; controls: of the run, of which those
        count that are in force at this timestep.
        """
        if self.streamer is not None:
            self.streamer.expect(weights_key)
        # Without causal_condition the prefix changes with the timestep.
        time_key = None if self.spec.causal_condition else tuple(timestep.tolist())
        in_force = controls_at(controls, timestep)
        along = prefix_controls([each.controlling for each in in_force], any(each.reference_rows for each in in_force))
        parity = tuple(side % 2 for side in x.shape[-2:]) if prefix.condition.centred else None
        key = (weights_key, x.device, x.dtype, time_key, along, parity)
        if not prefix.is_valid(key):
            self._fill(prefix, key, x, timestep, transformer_options, first_location, others, along)
        return super().forward(x, timestep, prefix.cache, attention.attention_for(transformer_options),
                               [each.controlling for each in in_force], prefix.weights_on(x.device),
                               block_prefetch.in_turn(x.device, transformer_options))

    @torch.compiler.disable  # run once, at a length of its own: compiling anew for each prompt would never pay
    def _fill(self, prefix: PromptPrefix, key: Hashable, x, timestep, transformer_options,
              first_location: CacheLocation, others: int, controls: Sequence[PrefixControl]) -> None:
        """Compute the keys and values of a prefix, and tell where they are kept."""
        prefix.clear()  # before the new ones are made
        spec, tokens = self.spec, prefix_tokens(prefix.condition, self.spec, len(timestep))
        needed = kept_bytes(spec, tokens, x.element_size(), sum(each.network.spec.blocks for each in controls))
        working = working_bytes(spec, tokens + x[:, 0].numel(), x.element_size())
        condition, sigma = prefix.condition.to(x.device), None if spec.causal_condition else timestep
        attend = attention.attention_for(transformer_options)
        start_pass = partial(self.prefix_layers, condition, sigma, x.dtype, attend, controls, x.shape[-2:])
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


def kept_bytes(spec: TransformerSpec, prefix: int, element: int, more_layers: int = 0) -> int:
    """Keys and values of so many prefix tokens in all blocks; element: bytes of a value; more_layers: the blocks of
    control networks."""
    return prefix * 2 * spec.heads * spec.head_dim * (spec.layers + more_layers) * element


def controls_at(controls: Sequence[PreparedControl], timestep: Tensor) -> list[PreparedControl]:
    """Those in force. Only a run that has any looks at the timestep's value, for which a card is waited for."""
    return [each for each in controls if each.is_in_force(timestep[0].item())] if controls else []


def working_bytes(spec: TransformerSpec, tokens: int, element: int) -> int:
    """What a pass over so many tokens needs at its peak, beside weights and kept keys and values."""
    return tokens * ACTIVATION_WIDTHS * spec.dim * element


class QwenImage2(PackModel):
    family = FAMILY_2
    pixels_per_latent = 16
    presets, shift, few_step = schedule.PRESETS, schedule.SHIFT, schedule.FEW_STEP
    mlp_halves, fused_mlp = staticmethod(key_maps.mlp_halves), staticmethod(key_maps.fused_mlp)

    def __init__(self, config: ModelConfig, variant: str, label: str):
        super().__init__(config, variant, label, DiffusionModel)

    @property
    def split_mlps(self) -> bool:
        return not self.spec.fused_mlp

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
        condition = condition_from(kwargs, self.spec, self.process_latent_in)
        return {"prefix": PrefixCond(PromptPrefix(condition, weights_from(kwargs)))}

    def extra_conds_shapes(self, **kwargs):
        condition = condition_from(kwargs, self.spec, self.process_latent_in)
        return {"prefix": prefix_shape(condition)}

    def check_latent_shape(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 4 or shape[1] != self.spec.channels:
            raise Refusal("latent_shape", "The latent has shape {shape}; Qwen-Image 2 expects [batch, {channels}, "
                          "height/16, width/16]. Create it with Empty Latent (Qwen-Image 2) or VAE Encode (Qwen-Image "
                          "2).", shape=str(list(shape)), channels=self.spec.channels)

    def check_conditioning(self, cond: dict, images: int) -> None:
        if "control" in cond:
            raise Refusal("controlnet", "ControlNets of other models are not supported by Qwen-Image 2. Use Load "
                          "Control and Apply Control (Qwen-Image 2) with the control network of Qwen-Image-2.1, or "
                          "connect the control image as a reference.")
        check_prompts(condition_from(cond, self.spec, self.process_latent_in).text, images)
        weights_from(cond)

    def check_patches(self, options: dict) -> None:
        patched = {name for name in CONTROL_PATCHES if options.get("patches", {}).get(name)}
        patched |= {key[0] for key in options.get("patches_replace", {}).get("dit", {}) if key[0] in CONTROL_PATCHES}
        if patched:
            raise Refusal("control_of_core", "A node of ComfyUI's own applies a control network to this MODEL "
                          "({layers}), which the pack's transformer has no place for: the image would not follow it. "
                          "Use Load Control and Apply Control (Qwen-Image 2) instead.", layers=sorted(patched))

    def prepare_controls(self, patcher, noise: Tensor) -> tuple[PreparedControl, ...]:
        return control.prepare(patcher, noise)

    def end_run(self) -> None:
        for each in self.run_state.controls:
            each.release_buffers()
        super().end_run()

    def cached_tokens(self, conds: Iterable[dict], images: int) -> int:
        return sum(prefix_tokens(condition_from(cond, self.spec, self.process_latent_in), self.spec, images)
                   for cond in conds)

    def memory_required(self, input_shape, cond_shapes=None, **_):
        """Bytes beside the weights for latents of input_shape (B, 64, h, w) and prefixes, see prefix_shape.

        In a run the keys and values of all its prefixes count. ComfyUI asks for the least that it needs with the
        longest prefix alone, and would fill up the rest with weights. Newer versions also say
        whether attention is memory-efficient, which this estimate takes for granted.
        """
        input_shape = self.run_state.of_pass(input_shape)
        element = comfy.model_management.dtype_size(self.get_dtype_inference())
        target = input_shape[0] * input_shape[-2] * input_shape[-1]
        images = self.run_state.images or input_shape[0]  # ComfyUI asks for two branches as for twice as many
        prefix = sum(prefix_count(prompts, self.spec, images) * tokens
                     for _, prompts, tokens in (cond_shapes or {}).get("prefix", ()))
        kept = prefix if self.run_state.cached_tokens is None else self.run_state.cached_tokens
        beside = {each.controlling.network for each in self.run_state.controls}
        return working_bytes(self.spec, target + prefix, element) + kept_bytes(
            self.spec, kept, element, sum(network.spec.blocks for network in beside))

    def _apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, prefix=None,
                     **kwargs):
        """One step of one conditioning: ComfyUI's own, which calls DiffusionModel.forward."""
        if prefix is None:
            raise no_prompt()
        options = transformer_options or {}
        run, report = self.run_state, options.get(REPORT_KEY, log.info)
        tiles = options.get(TILES_KEY)
        controls = run.controls
        if tiles is not None:
            prefix = prefix.for_tile(tiles.first, tiles.reference)
            controls = [each.of_tiles(tiles.boxes) for each in controls]
        run.prefixes.add(prefix)
        self.report_ignored_patches(options, report)

        def step() -> Tensor:
            return super(QwenImage2, self)._apply_model(
                x, t, c_concat, c_crossattn, control, options, prefix=prefix, weights_key=self.weights_key(),
                first_location=run.first_location(options.get(CACHE_LOCATION_KEY, CacheLocation.VRAM)),
                others=run.video_memory_beside(prefix), controls=controls, **kwargs)

        return retry_on_oom(step, run, self.current_patcher, report)
