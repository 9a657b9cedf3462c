"""Qwen3-VL as ComfyUI's CLIP: core's own modules, sized by the file, with Qwen-Image 2's template and readout.

The transformer reads the last decoder layer's output before the final norm, without the 14 tokens of the system turn
and without the images' own, whose place their latents take. Core's prompt weights and textual inversions do not apply:
the text goes to the tokenizer as it is.
"""
import comfy.text_encoders.llama
import comfy.text_encoders.qwen3vl
import torch
from comfy import sd1_clip
from torch import Tensor, nn

from ....messages import Refusal
from ....model.images import references
from ....model.language import key_maps, llama_cpp
from ....model.language.qwen3_vl import TextEncoderSpec, VisionSpec, detect_text_encoder
from ....model.language.tokens import IMAGE_PAD_TOKEN, PAD_TOKEN
from ....model.qwen_image_2 import prompt
from .. import saving
from ..keys import FAMILY_2, SLOTS_KEY
from . import shared

NAME = "qwen3vl_8b"
# In an image's token: whether its states stay. Core keeps that beside the tokens, where its own encoder alone looks.
KEEP_VISION = "keep_vision"


def language_config(spec: TextEncoderSpec):
    """Core's configuration of the language model with the file's sizes."""
    config = comfy.text_encoders.llama.Qwen3VL_8BConfig(
        vocab_size=spec.vocabulary, hidden_size=spec.dim, intermediate_size=spec.mlp_dim,
        num_hidden_layers=spec.layers, num_attention_heads=spec.heads, num_key_value_heads=spec.kv_heads,
        rms_norm_eps=spec.eps, rope_theta=spec.rope_theta, lm_head=spec.lm_head)
    # Not fields of core's dataclass, but attributes of its class: an instance may have its own.
    config.head_dim = spec.head_dim
    config.rope_dims = list(spec.mrope_section)
    return config


class VisionTower(comfy.text_encoders.qwen3vl.Qwen3VLVisionModel):
    def fast_pos_embed_interpolate(self, grid_thw):
        """In what the tower computes in: positions that a file has in fp32, as mmproj files do, would widen all."""
        return super().fast_pos_embed_interpolate(grid_thw).to(shared.compute_dtype(grid_thw.device))


class Qwen3VL(shared.Reader, comfy.text_encoders.qwen3vl.Qwen3VL):
    """Core's Qwen3-VL, built from a spec instead of core's table of known sizes."""

    known = llama_cpp.QWEN3_VL

    def __init__(self, spec: TextEncoderSpec, dtype, device, operations):
        nn.Module.__init__(self)
        self.spec = spec
        self.num_layers = spec.layers
        self.dtype = dtype
        self.model = comfy.text_encoders.llama.Llama2_(language_config(spec), device=device, dtype=dtype,
                                                       ops=operations)
        self.visual = None if spec.vision is None else VisionTower(
            shared.vision_config(spec.vision, spec.dim), device=device, dtype=dtype, ops=operations)

    def preprocess_embed(self, embed, device):
        """Core would resize small images here; their size must stay what the VAE encodes."""
        found = self.look_once(embed["data"], device)
        return found.merged, {"grid": found.grid, "deepstack": list(found.deepstack)}

    def look(self, image: Tensor, device: torch.device) -> shared.Seen:
        patches, grid = image_patches(image, self.spec.vision)
        merged, deepstack = self.visual(patches.to(device, shared.compute_dtype(device)), grid.to(device))
        return shared.Seen(merged, grid, tuple(deepstack))


def image_patches(image: Tensor, spec: VisionSpec) -> tuple[Tensor, Tensor]:
    """IMAGE (1, H, W, 3) in [0, 1], sides multiples of 32 -> patches (tokens, values) and their grid (1, 3).

    The order is the vision tower's: merge x merge neighbouring patches follow each other.
    (transformers 5, Qwen2VLImageProcessor with mean and deviation 0.5)
    """
    _, height, width, _ = image.shape
    rows, columns = height // spec.patch, width // spec.patch
    pixels = image[0].float() * 2 - 1
    pixels = pixels.reshape(rows // spec.merge, spec.merge, spec.patch, columns // spec.merge, spec.merge,
                            spec.patch, 3).permute(0, 3, 1, 4, 6, 2, 5)  # (R, C, r, c, channel, y, x)
    frames = pixels.unsqueeze(5).expand(*pixels.shape[:5], spec.temporal_patch, spec.patch, spec.patch)
    return frames.reshape(rows * columns, -1), torch.tensor([[1, rows, columns]])


class PromptEncoder(sd1_clip.SDClipModel):
    """Tokens -> states that the transformer reads, and where the references go among them."""

    def __init__(self, spec: TextEncoderSpec, device="cpu", dtype=None, model_options=None, **_):
        super().__init__(
            device=device, dtype=dtype, layer="hidden", layer_idx=-1, layer_norm_hidden_state=False,
            textmodel_json_config={}, special_tokens={"pad": PAD_TOKEN}, enable_attention_masks=False,
            return_attention_masks=False, model_options=model_options or {},
            model_class=lambda config, dtype, device, operations: Qwen3VL(spec, dtype, device, operations))

    def forward(self, tokens):
        states, pooled = super().forward(tokens)[:2]
        keep = torch.ones(states.shape[1], dtype=torch.bool)
        keep[:prompt.SYSTEM_TOKENS] = False
        slots = []
        for first, count in image_slots(tokens[0], self.transformer.spec.vision):
            keep[first:first + count] = False
            slots.append(int(keep[:first].sum()))
        return states[:, keep.to(states.device)], pooled, {SLOTS_KEY: slots} if slots else {}

    # Core's writes text with the images' positions and features; it needs nothing of its own class.
    generate = comfy.text_encoders.qwen3vl.Qwen3VLClipModel.generate


def image_slots(tokens: list, spec: VisionSpec) -> list[tuple[int, int]]:
    """(first state, number of states) of each image whose latents are to come, among the encoder's states. An image is
    one entry of `tokens`."""
    slots, position = [], 0
    for token in tokens:
        length = 1
        if isinstance(token, dict):
            side = spec.patch * spec.merge
            length = (token["data"].shape[1] // side) * (token["data"].shape[2] // side)
            if not token[KEEP_VISION]:
                slots.append((position, length))
        position += length
    return slots


class Tokenizer(saving.TokenizerBesideWeights, comfy.text_encoders.qwen3vl.Qwen3VLTokenizer):
    """Core's tokenizer files, Qwen-Image 2's template."""

    family = FAMILY_2

    def tokenize_with_weights(self, text, return_word_ids=False, images=(), skip_template=False, keep_vision=False,
                              **kwargs):
        """text: the bare prompt, or without the template a whole conversation.
        images: references (1, H, W, 3 or 4), sides multiples of 32. Raises Refusal for what cannot be encoded.
        keep_vision: no latents of them will come, so the transformer reads the images' own states (core's
        TextEncodeQwenImage21 without a VAE)."""
        if images and kwargs.get("llama_template") is not None:  # core's TextEncodeQwenImageEditPlus
            raise Refusal("other_template", "Another node sets its own prompt template for references, that of "
                          "Qwen-Image 1.x (as TextEncodeQwenImageEditPlus does), but this text encoder is Qwen-Image "
                          "2's. Use Encode Edit (Qwen-Image 2) instead.")
        ids = self.hugging_face(text if skip_template else prompt.render(text, len(images)))["input_ids"]
        waiting = iter(self.shown(image) for image in images)
        tokens = [{"type": "image", "data": next(waiting), "original_type": "image", KEEP_VISION: keep_vision}
                  if token == IMAGE_PAD_TOKEN else token for token in ids]
        row = [(token, 1.0, position) if return_word_ids else (token, 1.0) for position, token in enumerate(tokens)]
        return {NAME: [row]}

    @property
    def hugging_face(self):
        return getattr(self, NAME).tokenizer

    def shown(self, image: Tensor) -> Tensor:
        """What the vision tower sees of a reference; what comes back may be shown again, and is the same tensor then.
        """
        if image.shape[1] % 32 or image.shape[2] % 32:
            raise Refusal("reference_multiple", "Reference sides must be multiples of 32 pixels, got {width} x "
                          "{height}. Use Encode Edit (Qwen-Image 2), which resizes references.",
                          width=image.shape[2], height=image.shape[1])
        return references.over_white(image)


ENCODER = shared.Encoder(NAME, Tokenizer.family, detect_text_encoder, Qwen3VL, PromptEncoder, Tokenizer,
                         key_maps.COMFY.back)
