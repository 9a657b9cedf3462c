"""A Qwen-Image 2.x transformer as ComfyUI's MODEL.

ComfyUI calls `DiffusionModel.forward` once per step and conditioning. The conditioning carries a `PromptPrefix`:
the first call fills it with the prefix's keys and values, later ones reuse them. It lives as long as one sampling
run, so a new prompt, reference, size or LoRA strength cannot meet old keys.
"""
import logging
import math
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.patcher_extension
import comfy.samplers
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor

from ...messages import Message, Refusal
from ...model.checkpoints import loading, quantization
from ...model.checkpoints.checkpoint import StoredCheckpoint
from ...model.checkpoints.errors import CheckpointError
from ...model.checkpoints.files import open_checkpoint
from ...model.checkpoints.matching import Detected
from ...model.qwen_image_2 import key_maps, latents, schedule
from ...model.qwen_image_2.detect import detect_transformer
from ...model.qwen_image_2.prefix_cache import Condition, PrefixCache
from ...model.qwen_image_2.spec import TransformerSpec
from ...model.qwen_image_2.transformer import Transformer, prefix_end
from ...model.runtime.kernels import Kernels
from ...model.runtime.offload import Plan
from .progress import loading_progress
from .quant.gguf_ops import keep_packed, with_blocks
from .quant.quantize import Network, Origin, patches_below
from .quant.weight_format import DTYPES, conversion
from .runtime import budget, prefix_placement
from .runtime.kernels import comfy_attention, kernels_for
from .runtime.prefix_placement import Place

log = logging.getLogger(__name__)

# The conditioning's entry that says which states of the prompt are image slots: ((first, count), ...).
SLOTS_KEY = "qwen_image_2_slots"
# The entry of transformer_options that takes sentences about a run: a function of one string.
REPORT_KEY = "qwen_image_2_report"
# The entry that says which place for keys and values is tried first.
PLACE_KEY = "qwen_image_2_prefix_place"

# Formats that are dequantised on every device: torch multiplies no two e5m2 matrices. And those of whole numbers.
NEVER_NATIVE = {"gguf", "float8_e5m2"}
INTEGERS = {"int8_tensorwise", "convrot_w4a4"}

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


class PromptPrefix:
    """One conditioning on its way through a sampling run, with its keys and values once they are known."""

    def __init__(self, condition: Condition):
        self.condition = condition
        self.place: Place | None = None  # of its keys and values, None where there are none
        self.told: set[Place] = set()    # the places that its run has reported
        self._cache: PrefixCache | None = None
        self._key = None

    def cache(self, key, compute) -> PrefixCache:
        """The keys and values for this state of the weights; `compute()` them where there are none yet."""
        if self._cache is None or self._key != key:
            self.clear()  # before the new one is made
            self._cache, self._key = compute(), key
        return self._cache

    def clear(self) -> None:
        if self._cache is not None:
            self._cache.release()
        self._cache = self._key = self.place = None

    @property
    def video_memory(self) -> int:
        """Bytes that its keys and values take on a graphics card."""
        layers = self._cache.layers if self._cache is not None else ()
        return sum(t.nbytes for pair in layers for t in pair if t.device.type != "cpu")


class PrefixCond(comfy.conds.CONDRegular):
    """Hands its PromptPrefix through ComfyUI's batching as it is: one object for all steps and all images."""

    def process_cond(self, batch_size, **kwargs):
        return self

    def can_concat(self, other):
        # Two prompts differ in length; they run one after the other rather than padded.
        return False

    def concat(self, others):
        return self.cond

    def size(self):
        return [1, 1, prefix_tokens(self.cond.condition)]


def prefix_tokens(condition: Condition) -> int:
    """Tokens of text and references, over all prompts of the conditioning."""
    return len(condition.text) * list(condition.segments())[-1].end


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


def is_ours(patcher) -> bool:
    """Whether a MODEL is a transformer of this pack."""
    return isinstance(patcher.model, QwenImage2)


def condition_from(cond: dict, spec: TransformerSpec, normalise) -> Condition:
    """A conditioning's entries -> Condition. Raises ValueError where the encoder or the references do not fit."""
    text = cond.get("cross_attn")
    if text is None or text.shape[-1] != spec.context_dim:
        found = (Message("prompt_absent", "no prompt") if text is None else
                 Message("prompt_width", "a prompt of width {width}", width=text.shape[-1]))
        raise Refusal("conditioning_width", "The conditioning holds {found}, but this transformer reads width {width}: "
                      "encode the prompt with Encode Prompt (Qwen-Image 2) and its text encoder.", found=found,
                      width=spec.context_dim)
    slots = tuple(cond.get(SLOTS_KEY, ()))
    references = tuple(normalise(latent) for latent in cond.get("reference_latents") or ())
    if len(references) != len(slots):
        raise Refusal("conditioning_slots", "The conditioning has {references} reference latents and {slots} image "
                      "slots in its prompt: references need both, from Encode Edit (Qwen-Image 2).",
                      references=len(references), slots=len(slots))
    return Condition(text, slots, references)


def reporting_to(report: Callable[[str], None], model: comfy.model_patcher.ModelPatcher):
    """A clone of the MODEL whose runs tell where they keep the prefix, instead of writing it to the log."""
    clone = model.clone()
    clone.model_options["transformer_options"][REPORT_KEY] = report
    return clone


# ---------------------------------------------------------------- loading

def load_model(path: Path, label: str, variant: str, weight_format: str = "as stored", disable_dynamic: bool = False):
    """A checkpoint file or folder -> MODEL (ComfyUI's ModelPatcher). variant: base or turbo."""
    patcher = model_from(*open_model(path, label), variant, weight_format, disable_dynamic)
    # ComfyUI loads a second copy through this for other devices.
    patcher.cached_patcher_init = (load_model, (path, label, variant, weight_format))
    return patcher


def model_from(checkpoint: StoredCheckpoint, detected: Detected[TransformerSpec], variant: str, weight_format: str,
               disable_dynamic: bool = False):
    """What open_model has found -> MODEL."""
    detected, to_do = conversion(checkpoint, in_full_precision(detected), weight_format, key_maps.mlp_halves)
    dtype = DTYPES.get(weight_format) or loading.stored_dtype(checkpoint.tensors)
    device = comfy.model_management.get_torch_device()
    layers = {**detected.quantization, **to_do.layers}
    model = QwenImage2(_model_config(detected.spec, layers, dtype, device), variant, checkpoint.label)
    model.weights, model.origin = weights_in_words(layers, dtype, device), Origin(checkpoint.config, dtype)
    loading.load(model.diffusion_model, detected, checkpoint, dtype, loading_progress(len(detected.table)), to_do)
    comfy.model_management.archive_model_dtypes(model.diffusion_model)
    model.device = comfy.model_management.unet_offload_device()
    patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = patcher_class(model, load_device=device, offload_device=comfy.model_management.unet_offload_device())
    patcher.add_wrapper(WrappersMP.OUTER_SAMPLE, check_run)
    patcher.add_callback(CallbacksMP.ON_LOAD, budget.on_load)
    patcher.add_callback(CallbacksMP.ON_LOAD, keep_packed)
    return patcher


def diffusion_network(patcher) -> Network:
    """The transformer of a MODEL, to be written. Raises ValueError for another kind of model."""
    if not is_ours(patcher):
        raise Refusal("not_our_model", "This MODEL is not a Qwen-Image 2 transformer of this pack: load it with Load "
                      "Diffusion Model (Qwen-Image 2).")
    model = patcher.model
    return Network(model.diffusion_model, patches_below("diffusion_model.", patcher), str, model.origin,
                   comfy.model_management.module_size(model))


def open_model(path: Path, label: str) -> tuple[StoredCheckpoint, Detected[TransformerSpec]]:
    """What the file is, without reading a tensor. Raises CheckpointError where it is something else."""
    checkpoint = open_checkpoint(path, label)
    return checkpoint, detect_transformer(checkpoint)


def computed_in_integers(weights: str) -> Message:
    return Message("weights_integers", "{weights}, computed in integers", weights=weights)


def weights_in_words(settings: quantization.Settings, dtype: torch.dtype, device) -> str:
    """How the weights are stored, and what the device makes of it."""
    if not settings:
        return str(dtype).removeprefix("torch.")
    management = comfy.model_management
    native = {"nvfp4": management.supports_nvfp4_compute, "mxfp8": management.supports_mxfp8_compute,
              "float8_e4m3fn": management.supports_fp8_compute}
    formats = {one["format"] for one in settings.values()}
    words = quantization.in_words(settings)
    if formats & NEVER_NATIVE:
        return Message("weights_no_device", "{weights}, dequantised layer by layer as no device has such arithmetic",
                       weights=words)
    if any(name in native and not native[name](device) for name in formats):
        return Message("weights_this_device", "{weights}, dequantised layer by layer because this device has no such "
                       "arithmetic", weights=words)
    if any(one.get("full_precision_matrix_mult") for one in settings.values()):
        return Message("weights_by_file", "{weights}, dequantised layer by layer because the file asks for it",
                       weights=words)
    if formats <= INTEGERS:
        return computed_in_integers(words)
    return Message("weights_native", "{weights}, computed in that format", weights=words)


def in_full_precision(detected: Detected) -> Detected:
    """The same, with ComfyUI told to dequantise what no device multiplies: it would round the activations first."""
    layers = {layer: {**one, "full_precision_matrix_mult": True} if one["format"] in NEVER_NATIVE - {"gguf"} else one
              for layer, one in detected.quantization.items()}
    return replace(detected, quantization=layers)


def _model_config(spec: TransformerSpec, layers: quantization.Settings, dtype: torch.dtype, device) -> ModelConfig:
    config = ModelConfig({"spec": spec, "kernels": kernels_for(device)})
    supported = config.supported_inference_dtypes
    stored = dtype
    if layers:
        config.quant_config = {"mixed_ops": True}  # core's way to ask for layers that may be quantised
        stored = None  # their own dtype says nothing about the one to compute in: core decides for the device
    cast = comfy.model_management.unet_manual_cast(stored, device, supported)
    config.set_inference_dtype(dtype, cast, device=device)
    if any(one["format"] == "gguf" for one in layers.values()):
        config.custom_operations = with_blocks(comfy.ops.mixed_precision_ops({}, cast or dtype, full_precision_mm=True))
    return config


# ---------------------------------------------------------------- checks before a run

def is_latent(shape: tuple[int, ...], channels: int) -> bool:
    """Whether this is a batch of latents (B, channels, h, w); it may be empty."""
    return len(shape) == 4 and shape[1] == channels


def check_latent_shape(shape: tuple[int, ...], channels: int) -> None:
    """Raises Refusal for a latent that this model, with so many latent channels, cannot sample."""
    if not is_latent(shape, channels):
        raise Refusal("latent_shape", "The latent has the shape {shape}, Qwen-Image 2 works on [batch, {channels}, "
                      "height/16, width/16]: make it with Empty Latent (Qwen-Image 2) or VAE Encode (Qwen-Image 2).",
                      shape=str(list(shape)), channels=channels)


def check_run(executor, noise, latent_image, *args, **kwargs):
    """Refuse what cannot work before any weight moves: called by every sampler, core's included."""
    guider = executor.class_obj
    model = guider.model_patcher.model
    check_latent_shape(noise.shape, model.spec.channels)
    if noise.shape[0] == 0:
        raise Refusal("latent_batch_empty", "The latent batch is empty: it holds no picture to sample.")
    check_lora_shapes(guider.model_patcher)
    for conds in guider.conds.values():
        for cond in conds:
            if "control" in cond:
                raise Refusal("controlnet", "ControlNets do not work on Qwen-Image 2: give the picture as a reference "
                              "instead.")
            text = condition_from(cond, model.spec, model.process_latent_in).text
            if len(text) not in (1, len(noise)):
                raise Refusal("conditioning_count", "The conditioning holds {prompts} prompts for {images} pictures: "
                              "it must be one for all, or one for each.", prompts=len(text), images=len(noise))
    model.begin_run(_kept_tokens(guider))
    try:
        result = executor(noise, latent_image, *args, **kwargs)
        for sentence in budget.costs(model):
            guider.model_options["transformer_options"].get(REPORT_KEY, log.info)(sentence)
        return result
    finally:
        model.end_run()


def _kept_tokens(guider) -> int:
    """Tokens of all prefixes whose keys and values a run is to keep beside the model."""
    model, options = guider.model_patcher.model, guider.model_options
    if options["transformer_options"].get(PLACE_KEY, Place.DEVICE) is not Place.DEVICE:
        return 0
    # As in core's sampling_function; a guider of another class may have other rules, then everything counts.
    unguided = (type(guider) is comfy.samplers.CFGGuider and math.isclose(guider.cfg, 1.0)
                and not options.get("disable_cfg1_optimization"))
    return sum(prefix_tokens(condition_from(cond, model.spec, model.process_latent_in))
               for name, conds in guider.conds.items() if not (unguided and name == "negative") for cond in conds)


def check_lora_shapes(patcher) -> None:
    """Refuse LoRAs made for another width: ComfyUI would log a line per layer and sample without them."""
    for key, patches in (item for applied in (patcher.patches, *patcher.hook_patches.values())
                         for item in applied.items()):
        for patch in patches:
            # Not the state dict's: that of a quantised layer holds packed values.
            found, expected = _adapter_shape(patch[1]), tuple(comfy.utils.get_attr(patcher.model, key).shape)
            if found is not None and patch[3] is None and found != expected:
                older = Message("lora_family", "; it was made for Qwen-Image 1.x (width 3072)")
                family = older if 3072 in found else ""
                raise CheckpointError("lora_shape", "A LoRA does not fit this model: for {tensor} it makes a matrix of "
                                      "{shape}, the model has {expected}{family}.", tensor=key, shape=str(list(found)),
                                      expected=str(list(expected)), family=family)


def _adapter_shape(adapter) -> tuple[int, int] | None:
    """Rows and columns that a plain low-rank adapter (up, down, ...) makes, None for other kinds."""
    weights = getattr(adapter, "weights", None)
    if getattr(adapter, "name", None) != "lora" or weights is None or weights[3] is not None:
        return None
    return weights[0].shape[0], weights[1].flatten(1).shape[1]

