"""Qwen2.5-VL as ComfyUI's CLIP: core's own modules, sized by the file, with Qwen-Image 1.x's templates and readout.

The transformer reads the states after the final norm, without the tokens of the system turn, the images' own included.
Images have their positions on three axes, as the weights were trained and as core counts; diffusers 0.42.1 forgets to
ask for them. Nothing is cut or padded, so there is never an attention mask. Core's prompt weights and textual
inversions do not apply: the text goes to the tokenizer as it is.
"""
from collections.abc import Sequence

import comfy.text_encoders.llama
import comfy.text_encoders.qwen3vl
import comfy.text_encoders.qwen_image
import comfy.text_encoders.qwen_vl
import torch
from comfy import sd1_clip
from torch import Tensor, nn

from ....messages import Refusal
from ....model.images import references
from ....model.language import key_maps, llama_cpp
from ....model.language.qwen2_5_vl import TextEncoderSpec, VisionSpec, detect_text_encoder, seen_size
from ....model.language.tokens import IMAGE_PAD_TOKEN, PAD_TOKEN
from ....model.qwen_image_1 import prompt
from .. import saving
from ..keys import FAMILY_1
from . import shared

NAME = "qwen25_7b"
STOP_TOKENS = (151643, 151645)  # where it ends a text (generation_config.json)
QUERIES = 1024  # of a long prompt that attend at once


def language_config(spec: TextEncoderSpec):
    """Core's configuration of the language model with the file's sizes."""
    config = comfy.text_encoders.llama.Qwen25_7BVLI_Config(
        vocab_size=spec.vocabulary, hidden_size=spec.dim, intermediate_size=spec.mlp_dim,
        num_hidden_layers=spec.layers, num_attention_heads=spec.heads, num_key_value_heads=spec.kv_heads,
        rms_norm_eps=spec.eps, rope_theta=spec.rope_theta, lm_head=spec.lm_head)
    # Not fields of core's dataclass, but attributes of its class: an instance may have its own.
    config.head_dim = spec.head_dim
    config.rope_dims = list(spec.mrope_section)
    config.stop_tokens = list(STOP_TOKENS)  # which core has for Qwen3-VL alone
    return config


class VisionTower(comfy.text_encoders.qwen_vl.Qwen2VLVisionTransformer):
    def __init__(self, spec: VisionSpec, out_dim: int, dtype, device, operations):
        """out_dim: width of the language model."""
        super().__init__(
            hidden_size=spec.dim, output_hidden_size=out_dim, intermediate_size=spec.mlp_dim, num_heads=spec.heads,
            num_layers=spec.depth, patch_size=spec.patch, temporal_patch_size=spec.temporal_patch,
            spatial_merge_size=spec.merge, window_size=spec.window, device=device, dtype=dtype, ops=operations)
        self.fullatt_block_indexes = list(spec.full_attention)


def attend_by_rows(layer: nn.Module, arguments: tuple, named: dict) -> tuple[tuple, dict]:
    """A hook before an attention layer of core's: long prompts attend in pieces of QUERIES.

    Where ComfyUI does not use PyTorch's attention, as on a CPU, its own (0.30, attention_basic) makes the whole matrix
    of scores: for 32,000 tokens of the published model 114 GB in fp32. Each piece looks at the keys up to its own end,
    which are all that the mask leaves.
    """
    whole = named["optimized_attention"]

    def attend(queries: Tensor, keys: Tensor, values: Tensor, heads: int, mask: Tensor | None = None, **more) -> Tensor:
        length = queries.shape[2]
        if mask is None or length <= QUERIES or keys.shape[2] != length:
            return whole(queries, keys, values, heads, mask=mask, **more)
        ends = [(first, min(first + QUERIES, length)) for first in range(0, length, QUERIES)]
        return torch.cat([whole(queries[:, :, first:last], keys[:, :, :last], values[:, :, :last], heads,
                                mask=mask[..., first:last, :last], **more) for first, last in ends], 1)

    return arguments, {**named, "optimized_attention": attend}


class Qwen25VL(shared.Reader, comfy.text_encoders.llama.Qwen25_7BVLI):
    """Core's Qwen2.5-VL, built from a spec instead of core's one size."""

    known = llama_cpp.QWEN2_5_VL

    def __init__(self, spec: TextEncoderSpec, dtype, device, operations):
        nn.Module.__init__(self)
        self.spec = spec
        self.num_layers = spec.layers
        self.dtype = dtype
        self.model = comfy.text_encoders.llama.Llama2_(language_config(spec), device=device, dtype=dtype,
                                                       ops=operations)
        for layer in self.model.layers:
            layer.self_attn.register_forward_pre_hook(attend_by_rows, with_kwargs=True)
        self.visual = None if spec.vision is None else VisionTower(spec.vision, spec.dim, dtype, device, operations)

    def preprocess_embed(self, embed, device):
        found = self.look_once(embed["data"], device)
        return found.merged, found.grid

    def look(self, image: Tensor, device: torch.device) -> shared.Seen:
        """In fp32, as core's: the tower's rotary embedding would widen queries and keys alone."""
        patches, grid = comfy.text_encoders.qwen_vl.process_qwen2vl_images(image, patch_size=self.spec.vision.patch)
        return shared.Seen(self.visual(patches.to(device, torch.float32), grid), grid)

    def build_image_inputs(self, embeds, embeds_info):
        """For text that it writes: positions on three axes where there are images, and no features inside."""
        return comfy.text_encoders.qwen_vl.qwen2vl_mrope_position_ids(embeds_info, embeds.shape[1],
                                                                       embeds.device), None, None

    def logits(self, x):
        """Core multiplies by the bare weight, which a quantized layer does not have."""
        return self.model.lm_head(x[:, -1:]) if self.spec.lm_head else super().logits(x)


class PromptEncoder(sd1_clip.SDClipModel):
    """Tokens -> the states that the transformer reads."""

    def __init__(self, spec: TextEncoderSpec, device="cpu", dtype=None, model_options=None, **_):
        super().__init__(
            device=device, dtype=dtype, layer="last", layer_norm_hidden_state=False, textmodel_json_config={},
            special_tokens={"pad": PAD_TOKEN}, enable_attention_masks=False, return_attention_masks=False,
            model_options=model_options or {},
            model_class=lambda config, dtype, device, operations: Qwen25VL(spec, dtype, device, operations))

    def forward(self, tokens):
        states, pooled = super().forward(tokens)[:2]
        # A token that is dropped is no image's, so that it is one state.
        return states[:, prompt.tokens_dropped(tokens[0]):], pooled, {}

    # Core's writes text with the images' positions; it needs nothing of its own class.
    generate = comfy.text_encoders.qwen3vl.Qwen3VLClipModel.generate


class Tokenizer(saving.TokenizerBesideWeights, comfy.text_encoders.qwen_image.QwenImageTokenizer):
    """Core's tokenizer files, Qwen-Image 1.x's templates."""

    family = FAMILY_1

    def tokenize_with_weights(self, text, return_word_ids=False, llama_template=None, images: Sequence[Tensor] = (),
                              template: prompt.Template | None = None, **kwargs):
        """text: the bare prompt, or a whole conversation that begins with <|im_start|>.
        images: (1, H, W, 3 or 4) of any size. template: of the prompt, else the one that the images suggest.
        llama_template: another node's own, as of core's TextEncodeQwenImageEditPlus, which has written the images'
        slots into the prompt. Raises Refusal for what cannot be encoded."""
        if text.startswith("<|im_start|>"):
            whole = text
        elif llama_template is not None:
            whole = llama_template.format(text)
        else:
            whole = prompt.render(text, template or prompt.template_for(len(images)), len(images))
        ids = self.hugging_face(whole)["input_ids"]
        if ids.count(IMAGE_PAD_TOKEN) != len(images):
            raise Refusal("image_slots", "The text has {slots} image slots (<|image_pad|>) for {images} images. Remove "
                          "that token from the prompt, or connect as many images.",
                          slots=ids.count(IMAGE_PAD_TOKEN), images=len(images))
        waiting = iter(self.shown(image) for image in images)
        tokens = [{"type": "image", "data": next(waiting), "original_type": "image"}
                  if token == IMAGE_PAD_TOKEN else token for token in ids]
        row = [(token, 1.0, position) if return_word_ids else (token, 1.0) for position, token in enumerate(tokens)]
        return {NAME: [row]}

    @property
    def hugging_face(self):
        return getattr(self, NAME).tokenizer

    def shown(self, image: Tensor) -> Tensor:
        """What the vision tower sees of a picture (1, H, W, 3 or 4), of a batch the first, as core has it. What comes
        back may be shown again, and is the same tensor then.

        Bicubic in 8 bits, by the function that transformers 5 calls; Pillow's differs by up to 2 of 255 in one value of
        a hundred, which moves the states by 4e-3. Core would be bilinear."""
        image = references.over_white(image if len(image) == 1 else image[:1])
        size = seen_size(image.shape[2], image.shape[1])
        if size == (image.shape[2], image.shape[1]):
            return image
        values = (image.clamp(0, 1) * 255).round().to(torch.uint8).cpu().movedim(-1, 1)
        resized = nn.functional.interpolate(values, size[::-1], mode="bicubic", antialias=True)
        return resized.movedim(1, -1).float() / 255


ENCODER = shared.Encoder(NAME, Tokenizer.family, detect_text_encoder, Qwen25VL, PromptEncoder, Tokenizer,
                         key_maps.SAVED_QWEN2_5.back)
