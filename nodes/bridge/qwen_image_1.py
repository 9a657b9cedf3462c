"""A Qwen-Image 1.x transformer as ComfyUI's MODEL.

A step: ComfyUI calls `QwenImage1._apply_model` once per conditioning, and that `DiffusionModel.forward`. Nothing of a
prompt can be kept between steps, but the modulation of all blocks depends on sigma alone: the first step of a run
evaluates it for the whole schedule (model/qwen_image_1/modulation.py), so its matrices, a third of all weights, never
stay on the device and ComfyUI does not count them.
"""
import logging
import math
from collections.abc import Iterator, Mapping

import comfy.latent_formats
import comfy.ldm.flux.layers
import comfy.model_management
import torch
from comfy.model_patcher import LowVramPatch
from torch import Tensor, nn

from ...messages import Refusal
from ...model.qwen_image_1 import schedule
from ...model.qwen_image_1.detect import ZERO_COND_ENTRY, ZERO_COND_MARK
from ...model.qwen_image_1.spec import TransformerSpec
from ...model.qwen_image_1.transformer import Condition, Step, Transformer, patches
from ...model.runtime.kernels import Kernels
from ...model.runtime.rope import image_positions
from ...model.runtime.sigmas import PIXELS_PER_TOKEN
from . import pack_model
from .keys import FAMILY_1, REPORT_KEY
from .pack_model import PackModel, WholeCond, check_prompt, check_prompts, no_prompt, through_wrappers
from .reference_weights import weights_from
from .runtime import attention, block_prefetch
from .runtime.oom import retry_on_oom

log = logging.getLogger(__name__)

# Values alive per token at a block's peak, in units of the width: residual stream, its norm, and the MLP's four widths
# before and after GELU make 10; attention's queries, keys and values, joined and apart, 8. The rest is for the
# allocator.
ACTIVATION_WIDTHS = 16
BLOCK = "double_block"  # what core calls a block of this network, in patches of other nodes


class ModelConfig(pack_model.ModelConfig):
    latent_format = comfy.latent_formats.Wan21
    # Core's schedulers know no image size: they get the shift of 1024 x 1024. QwenImage2Sigmas has the right one.
    sampling_settings = {"shift": schedule.SHIFT.mu(1024 * 1024 // PIXELS_PER_TOKEN)}


class DiffusionModel(Transformer):
    """The transformer, called the way ComfyUI calls a diffusion model, and as its Fun ControlNets ask their base."""

    _modulation = torch.compiler.disable(Transformer._modulation)  # it looks at sigma's value, and hardly computes
    default_ref_method = None  # core's FluxKVCache writes it, into any model, and fails where it is not there

    def __init__(self, spec: TransformerSpec, kernels: Kernels, dtype: torch.dtype, device, operations):
        super().__init__(spec, operations, kernels, device=device, dtype=dtype)
        self.dtype = dtype
        self.in_channels = spec.channels  # core's RenormCFG asks for it
        self.patch_size = spec.patch
        self.pe_embedder = comfy.ldm.flux.layers.EmbedND(dim=spec.head_dim, theta=spec.rope_theta,
                                                         axes_dim=list(spec.rope_axes))
        for _, layer in self.modulation_layers():
            layer.comfy_cast_weights = True  # they are where no patcher sees them, and come when they are used

    def modulation_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """ComfyUI's layers that are kept apart, by their names here."""
        for number, block in enumerate(self.transformer_blocks):
            yield from ((f"transformer_blocks.{number}.{name}", module) for name, module in block.apart_modules()
                        if hasattr(module, "comfy_cast_weights"))

    def forward(self, x, timestep, context=None, attention_mask=None, ref_latents=None, additional_t_cond=None,
                transformer_options=None, **kwargs):
        options = transformer_options or {}  # the last one in its place, where other nodes' wrappers look for it
        return through_wrappers(self, self._velocity, options, x, timestep, context, attention_mask, ref_latents,
                                additional_t_cond, options, **kwargs)

    def _velocity(self, x, timestep, context, attention_mask=None, ref_latents=None, additional_t_cond=None,
                  transformer_options=None, control=None, reference_weights=(), **kwargs):
        options = dict(transformer_options or {})
        references = tuple(reference[:, :, 0] for reference in ref_latents or ())
        options["reference_image_num_tokens"] = [reference[0, 0].numel() // self.spec.patch ** 2
                                                 for reference in references]
        options["total_blocks"], options["block_type"] = self.spec.layers, "double"
        visible = None if attention_mask is None else attention_mask.bool()
        return super().forward(x, timestep, Condition(context, visible, references, reference_weights),
                               attention.attention_for(options), Around(x, control or {}, options),
                               block_prefetch.in_turn(x.device, options))

    def process_img(self, x: Tensor, index: int = 0) -> tuple[Tensor, Tensor, torch.Size]:
        """Tokens of latents (B, C, 1, h, w), their positions (B, N, 3) and the latents' shape, for Fun ControlNets.
        Rows and columns are centred as the weights were trained, which core's are not where their number is odd."""
        grid = (side // self.spec.patch for side in x.shape[-2:])
        positions = image_positions(index, *grid).to(x.device, torch.float32)
        return patches(x[:, :, 0], self.spec.patch), positions.expand(len(x), -1, -1), x.shape


class Around:
    """What other nodes do around a block: ControlNets add to the target's tokens, model patches replace blocks or
    change both streams after one."""

    def __init__(self, x: Tensor, control: Mapping, options: dict):
        self.x, self.options = x, options
        self.residuals = control.get("input") or ()
        self.replacing = options.get("patches_replace", {}).get("dit", {})
        self.patching = options.get("patches", {}).get(BLOCK, ())

    def __call__(self, number: int, step: Step, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        self.options["block_index"] = number
        replacement = self.replacing.get((BLOCK, number))
        if replacement is None:
            image, text = step(image, text)
        else:
            out = replacement({"img": image, "txt": text, "vec": None, "pe": None, "transformer_options": self.options},
                              {"original_block": lambda given: dict(zip(("img", "txt"), step(
                                  given["img"], given["txt"]), strict=True))})
            image, text = out["img"], out["txt"]
        for patch in self.patching:
            out = patch({"img": image, "txt": text, "x": self.x, "block_index": number,
                         "transformer_options": self.options})
            image, text = out["img"], out["txt"]
        if number < len(self.residuals) and self.residuals[number] is not None:
            image[:, :self.residuals[number].shape[1]] += self.residuals[number]
        return image, text


class QwenImage1(PackModel):
    family = FAMILY_1
    pixels_per_latent = 8
    presets, shift, few_step = schedule.PRESETS, schedule.SHIFT, schedule.FEW_STEP
    rescales_guidance = True
    honoured_patches = frozenset({BLOCK, "dit"})
    marked_entries = frozenset({ZERO_COND_ENTRY})

    def __init__(self, config: ModelConfig, variant: str, label: str):
        super().__init__(config, variant, label, DiffusionModel)
        self.memory_usage_factor_conds = ()

    def state_dict(self, *args, **kwargs):
        """What ComfyUI counts and places; of the modulation only the names, for its LoRA loaders."""
        state = super().state_dict(*args, **kwargs)
        return state | {name: torch.empty(0) for name in state if is_modulation(name)}

    def marks(self) -> Mapping[str, Tensor]:
        """Whether references are modulated at t = 0, which no other tensor shows."""
        return {ZERO_COND_MARK: torch.empty(0)} if self.spec.zero_cond_t else {}

    def check_latent_shape(self, shape: tuple[int, ...]) -> None:
        spec = self.spec
        if len(shape) not in (4, 5) or shape[1] != spec.channels:
            raise Refusal("latent_shape_1", "The latent has shape {shape}; Qwen-Image 1.x expects [batch, {channels}, "
                          "height/8, width/8]. Create it with Empty Latent (Qwen-Image 2) or with VAE Encode "
                          "(Qwen-Image 2) and the VAE of this family.", shape=str(list(shape)), channels=spec.channels)
        if len(shape) == 5 and shape[2] > 1 and not spec.layered:
            raise Refusal("latent_frames", "The latent has {frames} frames, but {file} paints one picture at a time. "
                          "Choose the Layered model, or connect an image latent.", frames=shape[2], file=self.label)
        if any(side % spec.patch for side in shape[-2:]):
            raise Refusal("latent_sides", "The latent is {width} x {height} pixels; Qwen-Image 1.x needs multiples of "
                          "{multiple}. Choose another size.", width=8 * shape[-1], height=8 * shape[-2],
                          multiple=8 * spec.patch)

    def check_conditioning(self, cond: dict, images: int) -> None:
        check_prompt(cond.get("cross_attn"), self.spec.context_dim)
        check_prompts(cond["cross_attn"], images)
        for latent in cond.get("reference_latents") or ():
            if latent.shape[1] != self.spec.channels or latent.ndim not in (4, 5):
                raise Refusal("reference_latent_shape", "A reference latent has shape {shape}, but Qwen-Image 1.x "
                              "expects [1, {channels}, height/8, width/8]. Encode it with the VAE of this family.",
                              shape=str(list(latent.shape)), channels=self.spec.channels)
        weights_from(cond)

    def extra_conds(self, **kwargs):
        """As core's; references of four axes get the fifth that its latent format asks for, and odd sides lose one
        latent, which core would fill up with the opposite border."""
        if references := kwargs.get("reference_latents"):
            kwargs["reference_latents"] = [self._trimmed(latent) for latent in references]
        conds = super().extra_conds(**kwargs)
        if weights := weights_from(kwargs):
            conds["reference_weights"] = WholeCond(weights)
        return conds

    def _trimmed(self, latent: Tensor) -> Tensor:
        height, width = (side // self.spec.patch * self.spec.patch for side in latent.shape[-2:])
        return (latent.unsqueeze(2) if latent.ndim == 4 else latent)[..., :height, :width]

    def extra_conds_shapes(self, **kwargs):
        shapes = super().extra_conds_shapes(**kwargs)
        if (text := kwargs.get("cross_attn")) is not None:
            shapes["c_crossattn"] = list(text.shape)
        return shapes

    def memory_required(self, input_shape, cond_shapes=None, **_):
        """Bytes beside the weights for latents of input_shape (B, 16, F, h, w), with texts and references."""
        input_shape = self.run_state.of_pass(input_shape)
        element = comfy.model_management.dtype_size(self.get_dtype_inference())
        per_token = self.spec.channels * self.spec.patch ** 2
        shapes = cond_shapes or {}
        tokens = math.prod(input_shape) // per_token
        tokens += sum(math.prod(shape) // per_token for shape in shapes.get("ref_latents", ()))
        tokens += sum(shape[0] * shape[1] for shape in shapes.get("c_crossattn", ()))
        return tokens * ACTIVATION_WIDTHS * self.spec.dim * element

    def _apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        """One step of one conditioning: ComfyUI's own, which calls DiffusionModel.forward."""
        if c_crossattn is None:
            raise no_prompt()
        options = transformer_options or {}
        report = options.get(REPORT_KEY, log.info)
        self.report_ignored_patches(options, report)
        self._begin_modulation()
        return retry_on_oom(lambda: super(QwenImage1, self)._apply_model(
            x, t, c_concat, c_crossattn, control, options, **kwargs), self.run_state, self.current_patcher, report)

    def _begin_modulation(self) -> None:
        """Its matrices take their LoRAs as they are used: no patcher loads them."""
        patches = {} if self.current_patcher is None else self.current_patcher.patches
        for name, layer in self.diffusion_model.modulation_layers():
            layer.weight_function = passing_patches(f"diffusion_model.{name}.weight", patches)
            layer.bias_function = passing_patches(f"diffusion_model.{name}.bias", patches)
        self.diffusion_model.modulations.begin(self.weights_key(), self.run_state.sigmas)

    def end_run(self) -> None:
        super().end_run()
        self.diffusion_model.modulations.clear()


def is_modulation(name: str) -> bool:
    """Whether a parameter of a MODEL, or what stands beside it, belongs to the modulation."""
    return ".img_mod." in name or ".txt_mod." in name


def passing_patches(key: str, patches: Mapping) -> list[LowVramPatch]:
    return [LowVramPatch(key, patches)] if key in patches else []
