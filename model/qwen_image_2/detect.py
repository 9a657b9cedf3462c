"""Names and shapes of a checkpoint -> spec and key table, or one sentence that says what the file is instead.

`detect_*` are pure functions of names, shapes, dtypes and configuration; no tensor is read. `load` then fills a
module, strictly: each parameter has its tensor, each tensor its parameter or a place in the list of unused ones.
"""
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn

from ...messages import Message, reason
from ..checkpoints import finite, gguf, quantization
from ..checkpoints.config_json import COUNT, FLAG, INDEX, NUMBER, POSITIVE, Configuration
from ..checkpoints.files import CheckpointError, CheckpointFiles, TensorInfo, invalid_shape, missing_tensor
from ..checkpoints.known_files import Tensors, describe
from . import key_maps
from .prompt import IMAGE_PAD_TOKEN
from .spec import EnhancerSpec, TextEncoderSpec, TransformerSpec, VAESpec, VisionSpec
from .transformer import Transformer
from .vae import VAE

STORED_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}

# What messages call the parts, and which files are to be chosen for them.
PARTS = {
    "transformer": Message("part_transformer", "transformer"),
    "vae": Message("part_vae", "vae"),
    "text encoder": Message("part_text_encoder", "text encoder"),
    "prompt enhancer": Message("part_enhancer", "prompt enhancer"),
}
ADVICE = {
    "transformer": Message("choose_transformer", "choose the diffusion model of Qwen-Image 2.x, for example "
                           "qwen_image_2.1_bf16.safetensors"),
    "vae": Message("choose_vae", "choose the VAE of Qwen-Image 2.x, for example qwen_image_2.1_vae_bf16.safetensors"),
    "text encoder": Message("choose_text_encoder", "choose Qwen3-VL-8B-Instruct, for example "
                            "qwen3vl_8b_bf16.safetensors"),
    "prompt enhancer": Message("choose_enhancer", "choose one of the official models (Qwen3.5), for example "
                               "qwen3.5_9b_qwen_image_2.1_pe_t2i.int8_convrot.safetensors"),
}

VISION_MARK = "model.visual.deepstack_merger_list.0.linear_fc1.weight"
# The family's other sizes, by the width of their hidden states.
OTHER_WIDTHS = {2048: "Qwen3-VL-2B", 2560: "Qwen3-VL-4B", 5120: "Qwen3-VL-32B"}


class Source(NamedTuple):
    """Where a parameter's values are: a tensor of the file, or some of its rows."""

    name: str
    rows: slice = slice(None)


@dataclass(frozen=True)
class Detected:
    """A recognised file. Shapes are those of the parameters, which a host's modules may not know before loading."""

    spec: TransformerSpec | VAESpec | TextEncoderSpec | EnhancerSpec
    table: dict[str, Source]  # parameter name -> source
    shapes: dict[str, tuple[int, ...]]  # parameter name -> shape
    quantised: dict[str, dict] = field(default_factory=dict)  # layer -> how, see quantization.py


# ---------------------------------------------------------------- what is refused

def _refuse(kind: str, tensors: Tensors, label: str) -> CheckpointError:
    return CheckpointError("wrong_file", "{file} is {found}, not a {kind} for Qwen-Image 2: {advice}.", file=label,
                           found=describe(tensors), kind=PARTS[kind], advice=ADVICE[kind])


def _refuse_other_tools(tensors: Tensors, config: Mapping, label: str) -> None:
    if tool := quantization.other_tool(tensors, config):
        raise CheckpointError("other_tool", "{file} was quantised by {tool}, a layout that only its own software "
                              "reads: choose the bf16 file, one that ComfyUI's tools have quantised, or a GGUF file.",
                              file=label, tool=tool)


def _refuse_unmarked(tensors: Tensors, settings: quantization.Settings, label: str) -> None:
    """Layers that are quantised in a way that nothing explains."""
    _refuse_quantised({name: info for name, info in tensors.items() if layer_of(name) not in settings}, label)


def _refuse_quantised(tensors: Tensors, label: str) -> None:
    marks = sorted(name for name in tensors if name.endswith((".comfy_quant", ".weight_scale", ".scale_weight")))
    odd = sorted({info.dtype for name, info in tensors.items() if name.endswith(".weight")} - set(STORED_DTYPES))
    if marks or odd:
        found = marks[0] if marks else f"dtype {odd[0]}"
        raise CheckpointError("quantization_unknown", "{file} is quantised in a way that this version of the pack does "
                              "not read ({found}): choose the bf16 file, or one that ComfyUI's tools have quantised.",
                              file=label, found=found)


# ---------------------------------------------------------------- the three networks

def detect_transformer(tensors: Tensors, config: Mapping, label: str,
                       settings: quantization.Settings | None = None) -> Detected:
    """Spec and key table of a Qwen-Image 2.x transformer: any prefix, fused or split MLP, plain or quantised.

    Sizes are read from shapes; `config` (of a diffusers folder) adds what shapes cannot tell; `settings` say which
    layers are quantised.
    """
    prefix = _prefix(tensors, "txt_in.text_norm.weight")
    if prefix is None:
        raise _refuse("transformer", tensors, label)
    _refuse_other_tools(tensors, config, label)
    stored = _below(prefix, tensors)
    settings = {layer.removeprefix(prefix): one for layer, one in (settings or {}).items()}
    tensors, companions = quantization.unpacked(stored, settings, label)
    _refuse_unmarked(tensors, settings, label)
    spec = _checked(label, _transformer_spec, tensors, config, label)
    expected = _checked(label, lambda: shapes(Transformer(spec, device="meta")))
    table = match(expected, tensors, _transformer_sources(expected, tensors), label)
    layers = {layer_of(name): settings[layer_of(s.name)] for name, s in table.items()
              if layer_of(s.name) in settings}
    table |= _companion_sources(table, companions, stored, label)
    return Detected(spec, {name: Source(prefix + s.name, s.rows) for name, s in table.items()}, expected, layers)


def layer_of(name: str) -> str:
    return name.removesuffix(".weight")


def _companion_sources(table: Mapping[str, Source], companions: Mapping[str, Mapping], stored: Tensors,
                       label: str) -> dict[str, Source]:
    """Scales of each quantised parameter: the rows that its weight has of a fused one, or the one for all rows."""
    found = {}
    for name, source in table.items():
        rows = stored[source.name].shape[:1]
        for companion, theirs in companions.get(source.name, {}).items():
            own = stored[theirs].shape[:1] == rows and len(rows) and companion != "pre_quant_scale"
            # Scales of one byte are those of blocks, in tiles that cannot be cut.
            tiles = stored[theirs].dtype[:2] in ("F8", "U8")
            if source.rows != slice(None) and rows[0] // 2 % quantization.TILE_ROWS and tiles:
                raise CheckpointError("fused_scales", "{file} has scales for blocks of {tensor}, whose halves of "
                                      "{rows} rows share one: quantise gate and projection apart.", file=label,
                                      tensor=source.name, rows=rows[0] // 2)
            found[f"{layer_of(name)}.{companion}"] = Source(theirs, source.rows if own else slice(None))
    return found


def _prefix(tensors: Tensors, *marks: str) -> str | None:
    """What stands before one of the names that only this network has; repackers choose it freely."""
    return next((name.removesuffix(mark) for name in sorted(tensors) for mark in marks if name.endswith(mark)), None)


def _below(prefix: str, tensors: Tensors) -> dict[str, TensorInfo]:
    return {name.removeprefix(prefix): info for name, info in tensors.items() if name.startswith(prefix)}


def _checked(label: str, build: Callable, *args):
    """Run a function that reads sizes; what it finds impossible is said with the file's name."""
    try:
        return build(*args)
    except CheckpointError:
        raise
    except (ValueError, ZeroDivisionError) as error:
        raise CheckpointError("sizes_inconsistent", "{file} has sizes that do not fit together: {error}", file=label,
                              error=reason(error)) from error


def _transformer_spec(tensors: Tensors, config: Mapping, label: str) -> TransformerSpec:
    shape, said = shape_reader(tensors, label), Configuration(config, label)
    dim, channels = shape("img_in.weight")
    head_dim, = shape("transformer_blocks.0.attn.norm_q.weight")
    if channels != 64:
        raise CheckpointError("latent_channels", "{file} works on {channels} latent channels, Qwen-Image 2 on 64.",
                              file=label, channels=channels)
    return TransformerSpec(
        layers=count(tensors, "transformer_blocks.{}.attn.norm_q.weight"),
        dim=dim,
        heads=shape("transformer_blocks.0.attn.to_q.weight")[0] // head_dim,
        head_dim=head_dim,
        mlp_dim=shape("transformer_blocks.0.img_mlp.out.weight", 2)[1],
        context_dim=shape("txt_in.text_norm.weight")[0],
        channels=channels,
        rope_axes=said.several("axes_dims_rope", COUNT, _rope_axes(head_dim), length=3),
        eps=said.one("eps", POSITIVE, TransformerSpec.eps),
        causal_condition=said.one("causal_condition", FLAG, True),
    )


def _rope_axes(head_dim: int) -> tuple[int, int, int]:
    """The published proportion, 16 : 56 : 56 of 128."""
    frame = head_dim // 8
    return frame, (head_dim - frame) // 2, (head_dim - frame) // 2


def _transformer_sources(expected: Iterable[str], tensors: Tensors) -> dict[str, Source]:
    """Each parameter's tensor; both halves of a fused MLP matrix are rows of it, gate first."""
    sources = {}
    for name in expected:
        sources[name] = Source(name)
        for half, split in enumerate(key_maps.SPLIT_MLP):
            fused = name.replace(split, key_maps.FUSED_MLP)
            if split in name and fused in tensors and tensors[fused].shape:
                rows = tensors[fused].shape[0] // 2
                sources[name] = Source(fused, slice(half * rows, (half + 1) * rows))
    return sources


def detect_vae(tensors: Tensors, config: Mapping, label: str) -> Detected:
    """Spec and key table of the RGBA VAE: diffusers or Wan names, convolutions 4-D or 5-D with one temporal tap."""
    prefix = _prefix(tensors, "decoder.mid_block.resnets.0.norm1.gamma", "decoder.middle.0.residual.0.gamma")
    if prefix is None:
        raise _refuse("vae", tensors, label)
    tensors = _below(prefix, tensors)
    _refuse_quantised(tensors, label)
    wan = "decoder.middle.0.residual.0.gamma" in tensors
    named = {key_maps.VAE_WAN.back(name) if wan else name: info for name, info in tensors.items()}
    spec = _checked(label, _vae_spec, named, config, label)
    expected = _checked(label, lambda: shapes(VAE(spec, device="meta")))
    table = match(expected, {name: info for name, info in named.items() if key_maps.VAE_UNUSED not in name},
                   {name: Source(name) for name in expected}, label)
    theirs = key_maps.VAE_WAN.to if wan else str
    return Detected(spec, {name: Source(prefix + theirs(s.name)) for name, s in table.items()}, expected)


def _vae_spec(tensors: Tensors, config: Mapping, label: str) -> VAESpec:
    shape, said = shape_reader(tensors, label), Configuration(config, label)
    base, pixels = shape("encoder.conv_in.weight", 2)[:2]
    latent = shape("decoder.conv_in.weight", 2)[1]
    if (pixels, latent) != (VAESpec.pixel_channels, VAESpec.latent_channels):
        raise CheckpointError("vae_channels", "{file} is a VAE from {pixels} pixel channels to {latent} latent "
                              "channels, Qwen-Image 2 needs {expected_pixels} to {expected_latent}: {advice}.",
                              file=label, pixels=pixels, latent=latent, expected_pixels=VAESpec.pixel_channels,
                              expected_latent=VAESpec.latent_channels, advice=ADVICE["vae"])
    taps = shape("decoder.conv_out.weight")[2:-2]
    if taps not in ((), (1,)):
        raise CheckpointError("video_vae", "{file} is a video VAE ({taps} temporal taps), not the VAE of Qwen-Image 2: "
                              "{advice}.", file=label, taps=taps[0], advice=ADVICE["vae"])
    levels = count(tensors, "encoder.down_blocks.{}.resnets.0.norm1.gamma")
    return VAESpec(
        base_dim=base,
        decoder_base_dim=shape("decoder.norm_out.gamma")[0],
        dim_mult=tuple(shape(f"encoder.down_blocks.{i}.resnets.0.norm2.gamma")[0] // base for i in range(levels)),
        res_blocks=count(tensors, "encoder.down_blocks.0.resnets.{}.norm1.gamma"),
        latent_channels=latent,
        pixel_channels=pixels,
        video_levels=said.several("temperal_downsample", FLAG, VAESpec.video_levels),
        latent_mean=said.several("latents_mean", NUMBER, VAESpec.latent_mean),
        latent_std=said.several("latents_std", POSITIVE, VAESpec.latent_std),
    )


def detect_text_encoder(stored: Tensors, config: Mapping, label: str,
                        settings: quantization.Settings | None = None) -> Detected:
    """Spec and key table (Hugging Face name -> tensor) of Qwen3-VL; Hugging Face or ComfyUI names; plain or
    quantised."""
    marks = ("model.language_model.layers.0.self_attn.q_norm.weight", VISION_MARK)
    if config.get("model_type") == "qwen3_vl":
        marks = marks[:1]  # it may lack the vision tower, without which other language models have the same names
    return detect_language_model("text encoder", marks, _text_encoder_spec, stored, config, label, settings or {})


def detect_language_model(kind: str, marks: tuple[str, ...], spec_of: Callable, stored: Tensors, config: Mapping,
                          label: str, settings: quantization.Settings) -> Detected:
    """Spec and key table of a language model with a vision tower. marks: names, Hugging Face's, that only this
    architecture has together; spec_of(tensors, config, label): the sizes."""
    _refuse_other_tools(stored, config, label)
    tensors, companions = quantization.unpacked(stored, settings, label)
    named = {key_maps.TEXT_ENCODER_COMFY.back(name): name for name in tensors}
    infos = {name: tensors[theirs] for name, theirs in named.items()}
    if not all(mark in infos for mark in marks):
        raise _refuse(kind, tensors, label)
    _refuse_unmarked(tensors, settings, label)
    table = {name: Source(theirs) for name, theirs in named.items()}
    _refuse_packed_table(named.get("model.language_model.embed_tokens.weight"), settings, label)
    layers = {layer_of(name): settings[layer_of(theirs)] for name, theirs in named.items()
              if layer_of(theirs) in settings}
    return Detected(_checked(label, spec_of, infos, config, label),
                    table | _companion_sources(table, companions, stored, label),
                    {name: info.shape for name, info in infos.items()}, layers)


def _refuse_packed_table(name: str | None, settings: quantization.Settings, label: str) -> None:
    """Words are looked up row by row, which blocks and rotated 4 bits do not allow in ComfyUI's embeddings."""
    found = settings.get(layer_of(name or ""), {}).get("format")
    if found is not None and found not in quantization.ROWS:
        raise CheckpointError("vocabulary_quantised", "In {file} the vocabulary ({tensor}) is quantised as {format}, "
                              "of which no row can be looked up ({formats}): {advice}.", file=label, tensor=name,
                              format=found, formats=", ".join(quantization.ROWS), advice=ADVICE["text encoder"])


def _text_encoder_spec(tensors: Tensors, config: Mapping, label: str) -> TextEncoderSpec:
    shape = shape_reader(tensors, label)
    said = Configuration(config, label)
    text = said.section("text_config")
    rope = text.section("rope_parameters") or text.section("rope_scaling")
    layer = "model.language_model.layers.0."
    head_dim, = shape(layer + "self_attn.q_norm.weight")
    vocabulary, dim = shape("model.language_model.embed_tokens.weight")
    if dim in OTHER_WIDTHS:
        raise CheckpointError("text_encoder_size", "{file} is {model} (width {width}), Qwen-Image 2 reads "
                              "Qwen3-VL-8B's width {expected}: {advice}.", file=label, model=OTHER_WIDTHS[dim],
                              width=dim, expected=TextEncoderSpec.dim, advice=ADVICE["text encoder"])
    if vocabulary <= IMAGE_PAD_TOKEN:
        raise CheckpointError("vocabulary_size", "{file} has a vocabulary of {tokens} tokens, Qwen3-VL one of "
                              "{expected}: {advice}.", file=label, tokens=f"{vocabulary:,}",
                              expected=f"{TextEncoderSpec.vocabulary:,}", advice=ADVICE["text encoder"])
    return TextEncoderSpec(
        layers=count(tensors, "model.language_model.layers.{}.self_attn.q_norm.weight"),
        dim=dim,
        mlp_dim=shape(layer + "mlp.gate_proj.weight")[0],
        heads=shape(layer + "self_attn.q_proj.weight")[0] // head_dim,
        kv_heads=shape(layer + "self_attn.k_proj.weight")[0] // head_dim,
        head_dim=head_dim,
        vocabulary=vocabulary,
        rope_theta=rope.one("rope_theta", POSITIVE, text.one("rope_theta", POSITIVE, TextEncoderSpec.rope_theta)),
        mrope_section=rope.several("mrope_section", COUNT, None, length=3) or _mrope_section(head_dim, label),
        lm_head="lm_head.weight" in tensors,
        vision=(vision_spec(tensors, said.section("vision_config"), label, "text encoder")
                if VISION_MARK in tensors else None),
    )


def _mrope_section(head_dim: int, label: str) -> tuple[int, int, int]:
    if head_dim != TextEncoderSpec.head_dim:
        raise CheckpointError("rope_unknown", "{file} has heads of {head_dim} channels, and no configuration that says "
                              "how its rotary positions are laid out: keep config.json beside it.", file=label,
                              head_dim=head_dim)
    return TextEncoderSpec.mrope_section


def vision_spec(tensors: Tensors, said: Configuration, label: str, kind: str) -> VisionSpec:
    shape = shape_reader(tensors, label)
    depth = count(tensors, "model.visual.blocks.{}.attn.qkv.weight")
    dim = shape("model.visual.blocks.0.norm1.weight")[0]
    if not said and (depth, dim) != (VisionSpec.depth, VisionSpec.dim):
        raise CheckpointError("vision_tower_size", "{file} has a vision tower of depth {depth} and width {width}, not "
                              "the published {expected_depth} and {expected_width}: {advice}.", file=label, depth=depth,
                              width=dim, expected_depth=VisionSpec.depth, expected_width=VisionSpec.dim,
                              advice=ADVICE[kind])
    _, _, temporal_patch, patch, _ = shape("model.visual.patch_embed.proj.weight")
    return VisionSpec(
        depth=depth,
        dim=dim,
        mlp_dim=shape("model.visual.blocks.0.mlp.linear_fc1.weight")[0],
        heads=said.one("num_heads", COUNT, VisionSpec.heads),
        patch=patch,
        temporal_patch=temporal_patch,
        positions=shape("model.visual.pos_embed.weight")[0],
        deepstack_layers=said.several("deepstack_visual_indexes", INDEX, VisionSpec.deepstack_layers),
    )


# ---------------------------------------------------------------- matching and loading

def shape_reader(tensors: Tensors, label: str) -> Callable[[str], tuple[int, ...]]:
    def shape(name: str, axes: int = 1) -> tuple[int, ...]:
        """Of a tensor with at least so many axes, none of them empty."""
        if name not in tensors:
            raise missing_tensor(label, name)
        found = tensors[name].shape
        if len(found) < axes or 0 in found:
            raise invalid_shape(label, name, found)
        return found
    return shape


def count(tensors: Tensors, pattern: str) -> int:
    """How many names the numbered pattern has, from 0 on without a gap."""
    number = 0
    while pattern.format(number) in tensors:
        number += 1
    return number


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def match(expected: Mapping[str, tuple[int, ...]], tensors: Tensors, sources: Mapping[str, Source],
           label: str) -> dict[str, Source]:
    """Check that sources and expected parameters agree one to one, in name and shape."""
    for name, shape in expected.items():
        source = sources[name]
        if source.name not in tensors:
            raise missing_tensor(label, source.name)
        found = _shape_of_rows(tensors[source.name].shape, source.rows)
        if _without_unit_axes(found) != _without_unit_axes(shape):
            raise CheckpointError("tensor_shape", "In {file} the tensor {tensor} has the shape {shape}, expected "
                                  "{expected}.", file=label, tensor=source.name, shape=str(list(found)),
                                  expected=str(list(shape)))
    unknown = sorted(set(tensors) - {source.name for source in sources.values()})
    if unknown:
        raise CheckpointError("tensors_unknown", "{file} has {count} tensors that do not belong to this architecture, "
                              "for example {tensor}.", file=label, count=len(unknown), tensor=unknown[0])
    return dict(sources)


def _shape_of_rows(shape: tuple[int, ...], rows: slice) -> tuple[int, ...]:
    return (len(range(*rows.indices(shape[0]))), *shape[1:]) if shape else shape


def _without_unit_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Layouts differ in axes of length 1: the temporal tap of a 5-D convolution, the axes of a norm's gamma."""
    return tuple(length for length in shape if length != 1)


class Quantising(NamedTuple):
    """What to do with the matrices of a plain file while it is loaded."""

    layers: quantization.Settings
    # (matrix, largest magnitude in all that shares its scale, mark) -> the entries of its layer, by their last name
    quantise: Callable[[torch.Tensor, torch.Tensor, Mapping], Mapping[str, torch.Tensor]]


PLAIN = Quantising({}, lambda value, peak, mark: {})


def load(module: nn.Module, detected: Detected, files: CheckpointFiles, dtype: torch.dtype,
         progress: Callable[[int, int], None] = lambda done, total: None, quantising: Quantising = PLAIN) -> None:
    """Fill a module built on the meta device, strictly.

    Tensors that are stored as `dtype` stay mapped from the file, the others are converted or quantised. Every tensor
    is looked at (whole numbers need no look) and refused if it holds NaN or infinity: a single one turns every picture
    black, and nothing later could name it. progress(done, total) counts tensors and may raise to cancel.
    """
    values = {f"{layer}{quantization.MARK}": quantization.encoded(mark)
              for layer, mark in (detected.quantised | quantising.layers).items()}

    def plain(name: str, read: Callable[[str], torch.Tensor]) -> torch.Tensor:
        source = detected.table[name]
        value, stored = _rows(read(source.name), source.rows), files.tensors[source.name].dtype
        if stored in gguf.BLOCKS:
            value = gguf.dequantise(value, stored)
        return _refuse_infinite(value.reshape(detected.shapes[name]), source.name, files)

    with files.mapped() as mapped:
        for done, (name, source) in enumerate(detected.table.items(), start=1):
            layer = layer_of(name)
            if name not in detected.shapes or layer in detected.quantised:
                values[name] = _rows(mapped(source.name), source.rows)
                _refuse_infinite(quantization.as_numbers(name, values[name], detected.quantised), source.name, files)
            elif layer in quantising.layers:
                peak = quantization.peak(plain(one, files.read) for one in key_maps.mlp_halves(name))
                made = quantising.quantise(plain(name, files.read), peak, quantising.layers[layer])
                values |= {f"{layer}.{last}": value for last, value in made.items()}
            else:
                # A tensor that is converted is mapped on its own, so that its pages go when the copy is there.
                read = mapped if STORED_DTYPES.get(files.tensors[source.name].dtype) == dtype else files.read
                values[name] = plain(name, read).to(dtype)
            progress(done, len(detected.table))
    module.load_state_dict(values, strict=True, assign=True)
    module.requires_grad_(False).eval()


def _rows(value: torch.Tensor, rows: slice) -> torch.Tensor:
    return value if rows == slice(None) else value[rows]


def _refuse_infinite(value: torch.Tensor, name: str, files: CheckpointFiles) -> torch.Tensor:
    """value: of this tensor of the file, packed or not."""
    kind = files.tensors[name].dtype
    packed = kind in gguf.BLOCKS and value.dtype == torch.uint8
    if not (finite.has_finite_scales(value, kind) if packed else finite.is_finite(value)):
        raise CheckpointError("tensor_not_finite", "{file} is damaged: the tensor {tensor} holds NaN or infinite "
                              "values.", file=files.label, tensor=name)
    return value


def stored_dtype(tensors: Tensors) -> torch.dtype:
    """The dtype of most of a file's values, those that are quantised left out. Some repackers keep norms in fp32; a
    network runs in one dtype."""
    values: dict[str, int] = {}
    for shape, dtype in tensors.values():
        if dtype in STORED_DTYPES:
            values[dtype] = values.get(dtype, 0) + math.prod(shape)
    return STORED_DTYPES[max(values, key=values.get)]
