"""What the MODELs of both families have in common: ComfyUI's BaseModel around one of the pack's transformers."""
import logging
from collections.abc import Callable, Hashable, Iterable, Mapping
from weakref import WeakSet

import comfy.conds
import comfy.model_base
import comfy.model_sampling
import comfy.patcher_extension
import comfy.supported_models_base
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ...messages import Message, Refusal
from ...model.checkpoints.few_step import FewStep
from ...model.runtime.sigmas import PIXELS_PER_TOKEN, DynamicShift
from . import saving
from .adapters.places import Place
from .keys import FAMILY_1, FAMILY_2
from .quant.quantize import Origin
from .runtime.budget import BudgetedModel
from .runtime.run_state import RunState

log = logging.getLogger(__name__)

# Width of what the text encoders give, by which a prompt tells whose it is.
TEXT_WIDTHS = {3584: FAMILY_1, 4096: FAMILY_2}


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


class WholeCond(comfy.conds.CONDRegular):
    """Hands an object of a prompt through ComfyUI's batching as it is: one for all steps and all images. Two prompts
    run one after the other."""

    def process_cond(self, batch_size, **kwargs):
        return self

    def can_concat(self, other):
        return False

    def concat(self, others):
        return self.cond

    def size(self):
        """For ComfyUI's estimate of memory."""
        return [1]


class ModelConfig(comfy.supported_models_base.BASE):
    """A family's own has latent_format and sampling_settings."""

    unet_extra_config = {}  # core's are for a UNet

    def __init__(self, unet_config: Mapping):
        super().__init__(unet_config)
        self.unet_config = NoUNet(self.unet_config)


def through_wrappers(network: nn.Module, forward: Callable, options: dict, *inputs, **more):
    """forward(*inputs), inside what other nodes have put around ComfyUI's diffusion models."""
    return comfy.patcher_extension.WrapperExecutor.new_class_executor(
        forward, network, comfy.patcher_extension.get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
    ).execute(*inputs, **more)


class PackModel(BudgetedModel, comfy.model_base.QwenImage):
    """Core's QwenImage lends its LoRA key forms (`transformer.`, bare, lycoris)."""

    family: str  # FAMILY_1 or FAMILY_2
    pixels_per_latent: int  # along a side
    presets: Mapping[str, Callable[[int], Tensor]]  # of sigmas, for so many tokens
    shift: DynamicShift
    few_step: Iterable[FewStep]  # the published adapters that make it faster
    rescales_guidance = False  # see guider.py
    marked_entries: frozenset[str] = frozenset()  # of a configuration, which `marks` says instead
    # Other nodes' patches of attention, blocks and positions that the network asks for.
    honoured_patches: frozenset[str] = frozenset()
    # Names of parameters that are rows of one matrix in the official file, and that matrix (quant/quantize.py).
    mlp_halves, fused_mlp = staticmethod(lambda name: (name,)), staticmethod(str)

    def __init__(self, config: ModelConfig, variant: str, label: str, network: Callable[..., nn.Module]):
        # Quantized layers put their weights where they were built, so they are; they hold nothing before.
        device = torch.device("cpu" if config.quant_config else "meta")
        comfy.model_base.BaseModel.__init__(self, config, comfy.model_base.ModelType.FLUX, device=device,
                                            unet_model=network)
        self.model_sampling = Sampling(config)
        self.variant = variant
        self.label = label
        self.weights = ""  # how they are stored, for people
        self.origin: Origin | None = None
        self.needed_config: Mapping = {}  # see matching.needed_config
        self.run_state = RunState()
        self.finite_adapters = WeakSet()  # those whose values were looked at, see run_checks.py

    @property
    def spec(self):
        return self.diffusion_model.spec

    @property
    def split_mlps(self) -> bool:
        """Whether MLPs are in more matrices than in the official file."""
        return False

    def tokens(self, samples: Tensor) -> int:
        """Of one image of latents (..., h, w), as schedules count them: an area of 16 x 16 pixels each."""
        return samples.shape[-2] * samples.shape[-1] * self.pixels_per_latent ** 2 // PIXELS_PER_TOKEN

    # ------------------------------------------------------------ what a family decides

    def check_latent_shape(self, shape: tuple[int, ...]) -> None:
        """Raises Refusal for a latent that it cannot sample."""
        raise NotImplementedError

    def check_conditioning(self, cond: dict, images: int) -> None:
        """Raises Refusal for a conditioning that it cannot sample so many images with."""
        raise NotImplementedError

    def check_patches(self, options: dict) -> None:
        """Raises Refusal for other nodes' patches, in transformer_options, that it must not leave out."""

    def cached_tokens(self, conds: Iterable[dict], images: int) -> int:
        """Tokens whose keys and values a run with these conditionings keeps beside the model."""
        return 0

    def prepare_controls(self, patcher, noise: Tensor) -> tuple:
        """The control networks applied to a MODEL of this kind, for a run with this noise."""
        return ()

    def marks(self) -> Mapping[str, Tensor]:
        """What a file of it holds beside the weights, for whoever reads it."""
        return {}

    def place_of(self, key: str) -> Place:
        """The parameter of this name, or the rows that it names (adapters/places.py)."""
        return Place(key)

    # ------------------------------------------------------------ common to both

    def state_dict_for_saving(self, unet_state_dict, *args, **kwargs):
        """For core's ModelSave and CheckpointSave."""
        beside = saving.beside_weights(self.diffusion_model, self.needed_config, self.label)
        return super().state_dict_for_saving({**unet_state_dict, **self.marks(), **beside}, *args, **kwargs)

    def report_ignored_patches(self, options: dict, report: Callable[[str], None]) -> None:
        """Patches of attention layers, blocks and positions are made for other transformers, which ask for them."""
        found = {name for kind in ("patches", "patches_replace")
                 for name, patch in options.get(kind, {}).items() if patch}
        found |= {"rope_options"} & options.keys()
        if new := sorted(found - self.honoured_patches - self.run_state.reported_patches):
            self.run_state.reported_patches.update(new)
            report(Message("patches_ignored", "Model patches from another node ({layers}) are not supported by this "
                           "model and are ignored.", layers=new))

    def begin_run(self, cached_tokens: int, images: int | None = None, sigmas: Iterable[float] = (),
                  controls: tuple = (), pass_shape: tuple[int, int, int] | None = None) -> None:
        """As RunState has them."""
        self.run_state = self.run_state.begin(cached_tokens, images, sigmas, controls, pass_shape)

    def end_run(self) -> None:
        """Free what a run has allocated. A guider that outlives a cancelled run would keep it, out of reach of
        ComfyUI's memory management."""
        self.run_state = self.run_state.end()
        self.release_buffers()

    def weights_key(self) -> Hashable:
        """Changes whenever a LoRA or a hook changes the weights, even in the middle of a run."""
        hooks = self.current_patcher.current_hooks if self.current_patcher is not None else None
        strengths = tuple((hook.hook_ref, hook.strength) for hook in hooks.hooks) if hooks else ()
        return self.current_weight_patches_uuid, strengths


def check_prompt(text: Tensor | None, width: int) -> None:
    """text: states (prompts, T, C). Raises Refusal for those of another width."""
    if text is None or text.shape[-1] != width:
        found = Message("prompt_absent", "no prompt") if text is None else _of_width(text.shape[-1])
        raise Refusal("conditioning_width", "The conditioning holds {found}, but this transformer expects width "
                      "{width}. Encode the prompt with Encode Prompt (Qwen-Image 2) and its text encoder.", found=found,
                      width=width)


def _of_width(width: int) -> Message:
    if width in TEXT_WIDTHS:
        return Message("prompt_of_family", "a prompt of width {width}, as the text encoder of Qwen-Image {family} "
                       "gives", width=width, family=TEXT_WIDTHS[width])
    return Message("prompt_width", "a prompt of width {width}", width=width)


def no_prompt() -> Refusal:
    return Refusal("prompt_missing", "Qwen-Image 2 needs a prompt. Connect Encode Prompt (Qwen-Image 2) to the "
                   "sampler.")


def check_prompts(text: Tensor, images: int) -> None:
    """text: states (prompts, T, C). Raises Refusal for any number but one, or one for each image."""
    if len(text) not in (1, images):
        raise Refusal("conditioning_count", "The conditioning holds {prompts} prompts for {images} images. It must "
                      "hold one for all images or one per image.", prompts=len(text), images=images)


def is_ours(patcher) -> bool:
    """Whether a MODEL is a transformer of this pack."""
    return isinstance(patcher.model, PackModel)
