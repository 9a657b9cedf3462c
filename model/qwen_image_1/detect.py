"""Which network of Qwen-Image 1.x a checkpoint holds: its names and shapes -> spec and key table.

Pure functions of a `Checkpoint`; no tensor is read. A file that holds something else gives one sentence that says what.
"""
import re
from dataclasses import replace

from ...messages import Message
from ..checkpoints import quantization
from ..checkpoints.checkpoint import Checkpoint, TensorInfo
from ..checkpoints.config_json import COUNT, FLAG, NUMBER, POSITIVE
from ..checkpoints.matching import (
    TRANSFORMER_NAME,
    VAE_NAME,
    Detected,
    Part,
    detected,
    match,
    needed_config,
    refuse_other_tools,
    refuse_quantized,
    refuse_unexplained,
    shapes,
    sized,
    wrong_file,
)
from ..runtime.rope import published_axes
from . import key_maps
from .spec import TransformerSpec, VAESpec
from .transformer import Transformer
from .vae import VAE

TRANSFORMER = Part(
    TRANSFORMER_NAME,
    Message("choose_transformer_1", "choose a diffusion model of Qwen-Image, for example "
            "qwen_image_2512_bf16.safetensors"))
AUTOENCODER = Part(
    VAE_NAME,
    Message("choose_vae_1", "choose the VAE of Qwen-Image 1.x, for example qwen_image_vae.safetensors"))


# ---------------------------------------------------------------- transformer

# Of its blocks; no other model in circulation modulates two streams under these names.
BLOCK_MARK = "transformer_blocks.0.img_mod.1."
# Marks a file of Edit-2511 in some repackers' files: an empty tensor, or one number. Nothing reads its value.
ZERO_COND_MARK = "__index_timestep_zero__"
ZERO_COND_ENTRY = "zero_cond_t"  # of a diffusers folder's configuration; written is the mark, which ComfyUI knows too
TWINFLOW_MARK = "time_text_embed_2."
CONTROLNET_MARK = "controlnet_x_embedder.weight"


def is_transformer(checkpoint: Checkpoint) -> bool:
    """Whether the file says that it is one, plain or quantized by whatever tool."""
    return any(BLOCK_MARK in name for name in checkpoint.tensors)


def detect_transformer(checkpoint: Checkpoint) -> Detected[TransformerSpec]:
    """Spec and key table of a transformer: any prefix, any number of blocks, plain, cast to fp8 or quantized.

    Sizes are read from shapes. That it modulates references at t = 0 shows in a mark or in the configuration of a
    diffusers folder, and in most files of Edit-2511 nowhere. Raises CheckpointError.
    """
    refuse_other_tools(checkpoint)
    prefix = checkpoint.prefix_of("transformer_blocks.0.img_mod.1.weight")
    if prefix is None:
        raise wrong_file(checkpoint, TRANSFORMER)
    stored = checkpoint.below(prefix)
    _refuse_relatives(stored)
    stored = stored.with_tensors({name: info for name, info in stored.tensors.items() if name != ZERO_COND_MARK})
    plain, companions = quantization.unpack(stored)
    refuse_unexplained(plain)
    marked = any(name.endswith(ZERO_COND_MARK) for name in checkpoint.tensors)
    found = sized(plain, transformer_spec, plain, marked)
    unsaid = replace(plain, config={name: value for name, value in plain.config.items() if name != ZERO_COND_ENTRY})
    expected = sized(plain, lambda: shapes(Transformer(found, device="meta")))
    table = match(plain, expected, {name: (name,) for name in expected})
    return detected(prefix, stored, companions, found, expected, table,
                    needed_config(unsaid, transformer_spec, replace(found, zero_cond_t=False)))


def transformer_spec(checkpoint: Checkpoint, zero_cond_t: bool = False) -> TransformerSpec:
    shape, config = checkpoint.shape, checkpoint.configuration
    dim, token = shape("img_in.weight", 2)
    head_dim, = shape("transformer_blocks.0.attn.norm_q.weight")
    if token != TransformerSpec().token_channels:
        raise checkpoint.fail("token_channels", "{file} takes {channels} values for a token, as Mage-Flow does with "
                              "128; Qwen-Image 1.x has {expected}: {advice}.", channels=token,
                              expected=TransformerSpec().token_channels, advice=TRANSFORMER.advice)
    return TransformerSpec(
        layers=checkpoint.count("transformer_blocks.{}.attn.norm_q.weight"),
        dim=dim,
        heads=shape("transformer_blocks.0.attn.to_q.weight")[0] // head_dim,
        head_dim=head_dim,
        mlp_dim=shape("transformer_blocks.0.img_mlp.net.0.proj.weight", 2)[0],
        context_dim=shape("txt_norm.weight")[0],
        rope_axes=config.several("axes_dims_rope", COUNT, published_axes(head_dim), length=3),
        zero_cond_t=zero_cond_t or config.one(ZERO_COND_ENTRY, FLAG, False),
        layered="time_text_embed.addition_t_embedding.weight" in checkpoint.tensors,
    )


def _refuse_relatives(stored: Checkpoint) -> None:
    """Networks with the same blocks that need another pipeline."""
    if CONTROLNET_MARK in stored.tensors:
        raise stored.fail("is_controlnet", "{file} is a ControlNet of Qwen-Image, not a transformer. Put it into "
                          "models/controlnet and load it with ComfyUI's Load ControlNet Model.")
    if any(name.startswith(TWINFLOW_MARK) for name in stored.tensors):
        raise stored.fail("is_twinflow", "{file} is a TwinFlow model, which takes a second time and a sampler of its "
                          "own. Choose a Qwen-Image model, with a Lightning LoRA for few steps.")


# ---------------------------------------------------------------- autoencoder

_VAE_MARKS = ("decoder.mid_block.resnets.0.norm1.gamma", "decoder.middle.0.residual.0.gamma")
# The encoder's blocks are one list; those of Qwen-Image 2.x and Wan 2.2 lie in a list for each level.
_FLAT_ENCODER = re.compile(r"encoder\.(down_blocks\.\d+\.conv1|downsamples\.\d+\.residual)\.")
TAPS = 3  # of a video kernel; a single frame meets the last
PIXEL_CHANNELS = (3, 4)  # RGB, RGBA


def is_vae(checkpoint: Checkpoint) -> bool:
    """Whether a file's names are those of this family's VAE, and of no other family's."""
    prefix = checkpoint.prefix_of(*_VAE_MARKS)
    return prefix is not None and any(map(_FLAT_ENCODER.match, checkpoint.below(prefix).tensors))


def detect_vae(checkpoint: Checkpoint) -> Detected[VAESpec]:
    """Spec and key table of the VAE: any prefix, diffusers or Wan names, RGB or RGBA; convolutions 5-D with three
    temporal taps or one, or 4-D as core's save nodes write our network.

    Raises CheckpointError.
    """
    prefix = checkpoint.prefix_of(*_VAE_MARKS)
    if prefix is None:
        raise wrong_file(checkpoint, AUTOENCODER)
    stored = checkpoint.below(prefix)
    refuse_quantized(stored)
    wan = _VAE_MARKS[1] in stored.tensors
    ours, theirs = (key_maps.VAE_WAN.back, key_maps.VAE_WAN.to) if wan else (str, str)
    living = {ours(name): info for name, info in stored.tensors.items() if key_maps.VAE_UNUSED not in name}
    named = stored.with_tensors({name: _single_frame(info) for name, info in living.items()})
    spec = sized(named, vae_spec, named)
    expected = sized(named, lambda: shapes(VAE(spec, device="meta")))
    table = match(named, expected, {name: (name,) for name in expected})
    return Detected(spec, {name: (prefix + theirs(name),) for name in table}, expected,
                    config=needed_config(named, vae_spec, spec),
                    last_taps=frozenset(name for name in expected if _has_taps(living[name])))


def vae_spec(checkpoint: Checkpoint) -> VAESpec:
    """checkpoint: in our names, with kernels for a single frame."""
    shape, config = checkpoint.shape, checkpoint.configuration
    base, pixels = shape("encoder.conv_in.weight", 2)[:2]
    decoded, latent = shape("decoder.conv_out.weight")[0], shape("decoder.conv_in.weight", 2)[1]
    if pixels not in PIXEL_CHANNELS or decoded != pixels or latent != VAESpec.latent_channels:
        raise checkpoint.fail("vae_channels_1", "{file} is a VAE with {pixels} pixel channels ({decoded} decoded) and "
                              "{latent} latent channels; Qwen-Image 1.x needs 3 or 4, as many decoded, and {expected}: "
                              "{advice}.", pixels=pixels, decoded=decoded, latent=latent,
                              expected=VAESpec.latent_channels, advice=AUTOENCODER.advice)
    per_level = VAESpec.res_blocks + 1  # its residual blocks and a halving
    widths = [shape(f"encoder.down_blocks.{per_level * level}.norm2.gamma")[0]
              for level in range(len(VAESpec.dim_mult))]
    return VAESpec(
        base_dim=base,
        dim_mult=(widths[0] // base, widths[1] // base, widths[2] // base, widths[3] // base),
        latent_channels=latent,
        pixel_channels=pixels,
        latent_mean=config.several("latents_mean", NUMBER, VAESpec.latent_mean),
        latent_std=config.several("latents_std", POSITIVE, VAESpec.latent_std),
    )


def _has_taps(info: TensorInfo) -> bool:
    return len(info.shape) == 5 and info.shape[2] == TAPS


def _single_frame(info: TensorInfo) -> TensorInfo:
    return info._replace(shape=info.shape[:2] + info.shape[3:]) if _has_taps(info) else info
