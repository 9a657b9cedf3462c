"""Which network of Qwen-Image 2.x a checkpoint holds: its names and shapes -> spec and key table.

Pure functions of a `Checkpoint`; no tensor is read. A file that holds something else gives one sentence that says what.
"""
from collections.abc import Iterable, Mapping
from dataclasses import replace

from ...messages import Message
from ..checkpoints import quantization
from ..checkpoints.checkpoint import Checkpoint, Tensors
from ..checkpoints.config_json import COUNT, FLAG, NUMBER, POSITIVE
from ..checkpoints.matching import (
    TRANSFORMER_NAME,
    VAE_NAME,
    Detected,
    Part,
    Sources,
    can_be_joined,
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
from .control import Control
from .spec import ControlSpec, TransformerSpec, VAESpec
from .transformer import Transformer
from .vae import VAE

TRANSFORMER = Part(
    TRANSFORMER_NAME,
    Message("choose_transformer", "choose the diffusion model of Qwen-Image 2.x, for example "
            "qwen_image_2.1_bf16.safetensors"))
CONTROL = Part(
    Message("part_control", "control network"),
    Message("choose_control", "choose the Fun ControlNet Union of Qwen-Image-2.1, for example "
            "Qwen-Image-2.1-Fun-Controlnet-Union.safetensors"))
AUTOENCODER = Part(
    VAE_NAME,
    Message("choose_vae", "choose the VAE of Qwen-Image 2.x, for example qwen_image_2.1_vae_bf16.safetensors"))


# ---------------------------------------------------------------- transformer

def detect_transformer(checkpoint: Checkpoint) -> Detected[TransformerSpec]:
    """Spec and key table of a transformer: any prefix, fused or split MLP, plain or quantized.

    Sizes are read from shapes; the configuration (of a diffusers folder) adds what shapes cannot tell.
    Raises CheckpointError.
    """
    prefix = checkpoint.prefix_of("txt_in.text_norm.weight")
    if prefix is None:
        raise wrong_file(checkpoint, TRANSFORMER)
    refuse_other_tools(checkpoint)
    stored = checkpoint.below(prefix)
    plain, companions = quantization.unpack(stored)
    refuse_unexplained(plain)
    found = sized(plain, transformer_spec, plain)
    spec = replace(found, fused_mlp=_can_fuse_mlps(stored, companions, "transformer_blocks", found.layers))
    expected = sized(plain, lambda: shapes(Transformer(spec, device="meta")))
    table = match(plain, expected, _transformer_sources(expected, plain.tensors))
    return detected(prefix, stored, companions, spec, expected, table,
                    needed_config(plain, transformer_spec, found))


def transformer_spec(checkpoint: Checkpoint) -> TransformerSpec:
    shape, config = checkpoint.shape, checkpoint.configuration
    dim, channels = shape("img_in.weight")
    head_dim, = shape("transformer_blocks.0.attn.norm_q.weight")
    if channels != TransformerSpec.channels:
        raise checkpoint.fail("latent_channels", "{file} expects {channels} latent channels; Qwen-Image 2 has 64.",
                              channels=channels)
    return TransformerSpec(
        layers=checkpoint.count("transformer_blocks.{}.attn.norm_q.weight"),
        dim=dim,
        heads=shape("transformer_blocks.0.attn.to_q.weight")[0] // head_dim,
        head_dim=head_dim,
        mlp_dim=shape("transformer_blocks.0.img_mlp.out.weight", 2)[1],
        context_dim=shape("txt_in.text_norm.weight")[0],
        channels=channels,
        rope_axes=config.several("axes_dims_rope", COUNT, published_axes(head_dim), length=3),
        eps=config.one("eps", POSITIVE, TransformerSpec.eps),
        causal_condition=config.one("causal_condition", FLAG, True),
    )


def _can_fuse_mlps(stored: Checkpoint, companions: Mapping[str, Mapping[str, str]], blocks: str, count: int) -> bool:
    """Whether gate and projection are one matrix in every block of the file, or can be made one. A network has one form
    for all its blocks."""
    halves = [tuple(f"{blocks}.{block}.{half}.weight" for half in key_maps.SPLIT_MLP) for block in range(count)]
    return all(can_be_joined(stored, companions, pair) for pair in halves if stored.tensors.keys() >= set(pair))


def _transformer_sources(expected: Iterable[str], tensors: Tensors) -> Sources:
    """Each parameter's tensor; where a file has no fused MLP matrix, its halves, gate first."""
    return {name: (name,) if name in tensors else key_maps.rows_of(name) for name in expected}


# ---------------------------------------------------------------- control network

def is_control(checkpoint: Checkpoint) -> bool:
    return checkpoint.prefix_of("control_img_in.weight") is not None


def detect_control(checkpoint: Checkpoint) -> Detected[ControlSpec]:
    """Spec and key table of a Fun ControlNet Union of 2.1: any prefix, fused or split MLP, plain or quantized.

    Raises CheckpointError.
    """
    prefix = checkpoint.prefix_of("control_img_in.weight")
    if prefix is None:
        raise wrong_file(checkpoint, CONTROL)
    refuse_other_tools(checkpoint)
    stored = checkpoint.below(prefix)
    plain, companions = quantization.unpack(stored)
    refuse_unexplained(plain)
    found = sized(plain, control_spec, plain)
    fused = _can_fuse_mlps(stored, companions, "control_blocks", found.blocks)
    spec = replace(found, base=replace(found.base, fused_mlp=fused))
    expected = sized(plain, lambda: shapes(Control(spec, device="meta")))
    table = match(plain, expected, _transformer_sources(expected, plain.tensors))
    return detected(prefix, stored, companions, spec, expected, table)


def control_spec(checkpoint: Checkpoint) -> ControlSpec:
    shape = checkpoint.shape
    dim, channels = shape("control_img_in.weight", 2)
    if channels != ControlSpec(TransformerSpec()).channels:
        raise checkpoint.fail("control_channels", "{file} takes {channels} control channels; the Fun ControlNet of "
                              "Qwen-Image-2.1 takes {expected}. (One of Qwen-Image 1.x takes 132, and is loaded with "
                              "ComfyUI's Load ControlNet Model.)", channels=channels,
                              expected=ControlSpec(TransformerSpec()).channels)
    block = "control_blocks.0."
    head_dim, = shape(f"{block}attn.norm_q.weight")
    base = TransformerSpec(dim=dim, heads=shape(f"{block}attn.to_q.weight")[0] // head_dim, head_dim=head_dim,
                           mlp_dim=shape(f"{block}img_mlp.out.weight", 2)[1], rope_axes=published_axes(head_dim))
    return ControlSpec(base, checkpoint.count("control_blocks.{}.attn.norm_q.weight"), channels)


# ---------------------------------------------------------------- autoencoder

def detect_vae(checkpoint: Checkpoint) -> Detected[VAESpec]:
    """Spec and key table of the RGBA VAE: diffusers or Wan names, convolutions 4-D or 5-D with one temporal tap.

    Raises CheckpointError.
    """
    prefix = checkpoint.prefix_of("decoder.mid_block.resnets.0.norm1.gamma", "decoder.middle.0.residual.0.gamma")
    if prefix is None:
        raise wrong_file(checkpoint, AUTOENCODER)
    stored = checkpoint.below(prefix)
    refuse_quantized(stored)
    wan = "decoder.middle.0.residual.0.gamma" in stored.tensors
    ours, theirs = (key_maps.VAE_WAN.back, key_maps.VAE_WAN.to) if wan else (str, str)
    named = stored.with_tensors({ours(name): info for name, info in stored.tensors.items()})
    spec = sized(named, vae_spec, named)
    expected = sized(named, lambda: shapes(VAE(spec, device="meta")))
    used = {name: info for name, info in named.tensors.items() if key_maps.VAE_UNUSED not in name}
    table = match(named.with_tensors(used), expected, {name: (name,) for name in expected})
    return Detected(spec, {name: (prefix + theirs(name),) for name in table}, expected,
                    config=needed_config(named, vae_spec, spec))


def vae_spec(checkpoint: Checkpoint) -> VAESpec:
    shape, config = checkpoint.shape, checkpoint.configuration
    base, pixels = shape("encoder.conv_in.weight", 2)[:2]
    latent = shape("decoder.conv_in.weight", 2)[1]
    if (pixels, latent) != (VAESpec.pixel_channels, VAESpec.latent_channels):
        raise checkpoint.fail("vae_channels", "{file} is a VAE with {pixels} pixel channels and {latent} latent "
                              "channels; Qwen-Image 2 needs {expected_pixels} and {expected_latent}: {advice}.",
                              pixels=pixels, latent=latent, expected_pixels=VAESpec.pixel_channels,
                              expected_latent=VAESpec.latent_channels, advice=AUTOENCODER.advice)
    taps = shape("decoder.conv_out.weight")[2:-2]
    if taps not in ((), (1,)):
        raise checkpoint.fail("video_vae", "{file} is a video VAE ({taps} temporal taps), not the Qwen-Image 2 VAE: "
                              "{advice}.", taps=taps[0], advice=AUTOENCODER.advice)
    levels = checkpoint.count("encoder.down_blocks.{}.resnets.0.norm1.gamma")
    return VAESpec(
        base_dim=base,
        decoder_base_dim=shape("decoder.norm_out.gamma")[0],
        dim_mult=tuple(shape(f"encoder.down_blocks.{i}.resnets.0.norm2.gamma")[0] // base for i in range(levels)),
        res_blocks=checkpoint.count("encoder.down_blocks.0.resnets.{}.norm1.gamma"),
        latent_channels=latent,
        pixel_channels=pixels,
        video_levels=config.several("temperal_downsample", FLAG, VAESpec.video_levels),
        latent_mean=config.several("latents_mean", NUMBER, VAESpec.latent_mean),
        latent_std=config.several("latents_std", POSITIVE, VAESpec.latent_std),
    )
