"""Which network of Qwen-Image 1.x a checkpoint holds: its names and shapes -> spec and key table.

Pure functions of a `Checkpoint`; no tensor is read. A file that holds something else gives one sentence that says what.
"""
from ...messages import Message
from ..checkpoints import quantization
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.config_json import COUNT, FLAG
from ..checkpoints.matching import (
    Detected,
    Part,
    companion_sources,
    match,
    needed_config,
    records_of,
    refuse_other_tools,
    refuse_unexplained,
    shapes,
    sized,
    wrong_file,
)
from .spec import TransformerSpec
from .transformer import Transformer

TRANSFORMER = Part(
    Message("part_transformer", "transformer"),
    Message("choose_transformer_1", "choose a diffusion model of Qwen-Image, for example "
            "qwen_image_2512_bf16.safetensors"))

# Of its blocks; no other model in circulation modulates two streams under these names.
BLOCK_MARK = "transformer_blocks.0.img_mod.1."
# Marks a file of Edit-2511 in some repackers' files: an empty tensor, or one number. Nothing reads its value.
ZERO_COND_MARK = "__index_timestep_zero__"
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
    expected = sized(plain, lambda: shapes(Transformer(found, device="meta")))
    table = match(plain, expected, {name: (name,) for name in expected})
    records = records_of(stored, table)
    table |= companion_sources(stored, companions, table)
    return Detected(found, {name: tuple(prefix + tensor for tensor in source) for name, source in table.items()},
                    expected, records, needed_config(plain, transformer_spec, found))


def transformer_spec(checkpoint: Checkpoint, zero_cond_t: bool = False) -> TransformerSpec:
    shape, config = checkpoint.shape, checkpoint.configuration
    dim, token = shape("img_in.weight", 2)
    head_dim, = shape("transformer_blocks.0.attn.norm_q.weight")
    if token != TransformerSpec().token_channels:
        raise checkpoint.fail("token_channels", "{file} takes {channels} values for a token; Qwen-Image has "
                              "{expected}.", channels=token, expected=TransformerSpec().token_channels)
    return TransformerSpec(
        layers=checkpoint.count("transformer_blocks.{}.attn.norm_q.weight"),
        dim=dim,
        heads=shape("transformer_blocks.0.attn.to_q.weight")[0] // head_dim,
        head_dim=head_dim,
        mlp_dim=shape("transformer_blocks.0.img_mlp.net.0.proj.weight", 2)[0],
        context_dim=shape("txt_norm.weight")[0],
        rope_axes=config.several("axes_dims_rope", COUNT, _rope_axes(head_dim), length=3),
        zero_cond_t=zero_cond_t or config.one("zero_cond_t", FLAG, False),
        layered="time_text_embed.addition_t_embedding.weight" in checkpoint.tensors,
    )


def _rope_axes(head_dim: int) -> tuple[int, int, int]:
    """The published proportion, 16 : 56 : 56 of 128."""
    frame = head_dim // 8
    return frame, (head_dim - frame) // 2, (head_dim - frame) // 2


def _refuse_relatives(stored: Checkpoint) -> None:
    """Networks with the same blocks that need another pipeline."""
    if CONTROLNET_MARK in stored.tensors:
        raise stored.fail("is_controlnet", "{file} is a ControlNet of Qwen-Image, not a transformer. Put it into "
                          "models/controlnet and load it with ComfyUI's Load ControlNet Model.")
    if any(name.startswith(TWINFLOW_MARK) for name in stored.tensors):
        raise stored.fail("is_twinflow", "{file} is a TwinFlow model, which takes a second time and a sampler of its "
                          "own. Choose a Qwen-Image model, with a Lightning LoRA for few steps.")
