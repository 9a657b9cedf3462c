"""A prompt enhancer (Qwen3.5) as ComfyUI's CLIP: core's own modules, sized by the file.

It is there to write text, not to condition images. Beside the sizes two things differ from core's (0.30): images
have their positions on three interleaved axes, and their pixels lie in [-1, 1], as the models were trained.
"""
import functools
from pathlib import Path

import comfy.model_management
import comfy.sd
import comfy.text_encoders.llama
import comfy.text_encoders.qwen3vl
import comfy.text_encoders.qwen35
import comfy.text_encoders.qwen_vl
import torch
from comfy import sd1_clip
from torch import nn

from ....model.checkpoints import loading
from ....model.checkpoints.checkpoint import StoredCheckpoint
from ....model.checkpoints.files import open_checkpoint
from ....model.checkpoints.matching import Detected
from ....model.language.qwen3_5 import EnhancerSpec, detect_enhancer
from .. import saving
from ..quant.formats import check_device
from . import shared

NAME = "qwen35_9b"
PAD_TOKEN = 248044


def language_config(spec: EnhancerSpec) -> comfy.text_encoders.qwen35.Qwen35Config:
    """Core's configuration of the language model with the file's sizes."""
    kinds = ["full_attention" if attention else "linear_attention" for attention in spec.attention_layers]
    return comfy.text_encoders.qwen35.Qwen35Config(
        vocab_size=spec.vocabulary, hidden_size=spec.dim, intermediate_size=spec.mlp_dim,
        num_hidden_layers=len(kinds), layer_types=kinds, num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads, head_dim=spec.head_dim, partial_rotary_factor=spec.rotary_share,
        linear_num_key_heads=spec.linear_key_heads, linear_num_value_heads=spec.linear_value_heads,
        linear_key_head_dim=spec.linear_key_dim, linear_value_head_dim=spec.linear_value_dim,
        conv_kernel_size=spec.conv_taps, rms_norm_eps=spec.eps, rope_theta=spec.rope_theta,
        mrope_section=list(spec.mrope_section), lm_head=spec.lm_head)


class LanguageModel(comfy.text_encoders.qwen35.Qwen35Transformer):
    def compute_freqs_cis(self, position_ids, device):
        """Rotary pairs take turns between time, height and width (transformers 5, modeling_qwen3_5.py)."""
        rotary_dim = int(self.config.head_dim * self.config.partial_rotary_factor)
        return comfy.text_encoders.llama.precompute_freqs_cis(
            rotary_dim, position_ids, self.config.rope_theta, rope_dims=self.config.mrope_section,
            interleaved_mrope=True, device=device)


class Qwen35(comfy.text_encoders.qwen35.Qwen35):
    """Core's Qwen3.5, built from a spec instead of core's table of known sizes."""

    def __init__(self, spec: EnhancerSpec, dtype, device, operations):
        nn.Module.__init__(self)
        self.spec = spec
        self.num_layers = len(spec.attention_layers)
        self.dtype = dtype
        self.model = LanguageModel(language_config(spec), device=device, dtype=dtype, ops=operations)
        # The second head that drafts tokens: core's generation (from about 0.38 on) asks for it, this one has none.
        self.mtp = None
        self.visual = comfy.text_encoders.qwen35.Qwen35VisionModel(
            shared.vision_config(spec.vision, spec.dim), device=device, dtype=dtype, ops=operations)

    def preprocess_embed(self, embed, device):
        """Any size, which core's Generate Text hands over as it is: sides are rounded to 32 pixels."""
        patches, grid = comfy.text_encoders.qwen_vl.process_qwen2vl_images(
            embed["data"], patch_size=self.spec.vision.patch, image_mean=[0.5] * 3, image_std=[0.5] * 3)
        return self.visual(patches.to(device), grid.to(device)), grid

    def build_image_inputs(self, embeds, embeds_info):
        """Positions on three axes where there are images; no features are added inside, as Qwen3-VL's are."""
        return comfy.text_encoders.qwen_vl.qwen2vl_mrope_position_ids(embeds_info, embeds.shape[1],
                                                                       embeds.device), None, None

    def logits(self, x):
        """Core multiplies by the bare weight, which a quantized layer does not have."""
        return self.model.lm_head(x[:, -1:]) if self.spec.lm_head else super().logits(x)


class Enhancer(sd1_clip.SDClipModel):
    def __init__(self, spec: EnhancerSpec, device="cpu", dtype=None, model_options=None, **_):
        super().__init__(
            device=device, dtype=dtype, layer="hidden", layer_idx=-1, layer_norm_hidden_state=False,
            textmodel_json_config={}, special_tokens={"pad": PAD_TOKEN}, model_options=model_options or {},
            model_class=lambda config, dtype, device, operations: Qwen35(spec, dtype, device, operations))

    generate = comfy.text_encoders.qwen3vl.Qwen3VLClipModel.generate


class Tokenizer(saving.TokenizerBesideWeights, comfy.text_encoders.qwen35.Qwen35ImageTokenizer):
    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(embedding_directory, tokenizer_data or {}, model_type=NAME)


def load_enhancer(path: Path, label: str, disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """A Qwen3.5 checkpoint, one file, shards or a folder -> CLIP."""
    checkpoint, detected = open_enhancer(path, label)
    dtype = loading.stored_dtype(checkpoint.tensors)
    check_device(checkpoint, detected.quantization, comfy.model_management.text_encoder_device())
    operations = shared.quantized_operations(dtype) if detected.quantization else None
    clip = shared.empty_clip(NAME, functools.partial(Enhancer, detected.spec), Tokenizer, dtype, operations,
                             disable_dynamic=disable_dynamic)
    shared.fill(clip, NAME, checkpoint, detected, dtype)
    clip.patcher.cached_patcher_init = (shared.load_patcher, (load_enhancer, path, label))
    return clip


def open_enhancer(path: Path, label: str) -> tuple[StoredCheckpoint, Detected[EnhancerSpec]]:
    """What the file is, with the names of core's modules and without reading a tensor."""
    checkpoint = open_checkpoint(path, label)
    detected = detect_enhancer(checkpoint)
    detected = shared.for_comfy(checkpoint, detected, Qwen35(detected.spec, None, torch.device("meta"), nn))
    return checkpoint.only(detected.tensors), detected
