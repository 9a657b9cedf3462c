"""Checkpoints with any header, configuration, index or marks, opened as the loaders open them.

Their values are zeros that take no room on the disk: nothing is said here of damaged values.
"""
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

import gguf
import numpy as np
import torch

from qwen_image_2.model.language import llama_cpp
from qwen_image_2.model.qwen_image_1.spec import VAESpec as VAESpec1
from qwen_image_2.model.qwen_image_1.vae import VAE as VAE1
from qwen_image_2.model.qwen_image_2.spec import TransformerSpec, VAESpec
from qwen_image_2.model.qwen_image_2.transformer import Transformer
from qwen_image_2.model.qwen_image_2.vae import VAE
from qwen_image_2.tools import tiny

from . import mutation
from .attempt import Kind

SPEC = TransformerSpec(layers=1, dim=32, heads=1, head_dim=32, mlp_dim=64, context_dim=16, rope_axes=(4, 14, 14))
SIZES = {"F32": 4, "BF16": 2, "F16": 2, "I8": 1, "U8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I32": 4, "I64": 8, "BOOL": 1}
MARKED = ("to_q.weight", "q_proj.weight", "conv.weight")  # ends of matrices that stand for all


class Part(NamedTuple):
    """A kind of checkpoint. state: names and shapes; config: one that has every entry; open: as its loader does, or as
    much of it as is quick."""

    state: dict
    config: dict
    open: Callable[[Path], None]


# ---------------------------------------------------------------- parts

def multiply(network: torch.nn.Module) -> None:
    """A product with every matrix, as a step begins: what is wrong with the marks of a layer shows here at last."""
    with torch.inference_mode():
        for layer in network.modules():
            if isinstance(layer, torch.nn.Linear):
                layer(torch.ones(1, layer.in_features))


def transformer() -> Part:
    from qwen_image_2.nodes.bridge.loading import load_model

    def load(path: Path) -> None:
        multiply(load_model(path, path.name, "base").model.diffusion_model)

    return Part(tiny.shapes(Transformer(SPEC)),
                {"axes_dims_rope": list(SPEC.rope_axes), "eps": SPEC.eps, "causal_condition": True,
                 "quantization_config": {"quant_method": ""}}, load)


def vae() -> Part:
    from qwen_image_2.nodes.bridge.vae import load_vae

    def load(path: Path) -> None:
        load_vae(path, path.name)

    spec = VAESpec()
    return Part(tiny.shapes(VAE(VAESpec(base_dim=8, decoder_base_dim=12))),
                {"temperal_downsample": list(spec.video_levels), "latents_mean": list(spec.latent_mean),
                 "latents_std": list(spec.latent_std)}, load)


def vae_1() -> Part:
    """Of Qwen-Image 1.x, with a video's kernels."""
    spec = VAESpec1(base_dim=8)
    state = {name: value.unsqueeze(2).expand(-1, -1, 3, -1, -1) if name.endswith(("conv1.weight", "conv2.weight"))
             else value for name, value in tiny.shapes(VAE1(spec)).items()}
    return Part(state, {"latents_mean": list(spec.latent_mean), "latents_std": list(spec.latent_std)}, vae().open)


def text_encoder() -> Part:
    """Only opened: to load one takes a second, for its vocabulary."""
    from qwen_image_2.nodes.bridge.text_encoders.families import open_text_encoder

    def load(path: Path) -> None:
        open_text_encoder(path, path.name)

    return Part(tiny.text_encoder_state(),
                {"model_type": "qwen3_vl", "text_config": tiny.TEXT_CONFIG, "vision_config": tiny.VISION_CONFIG}, load)


def text_encoder_1() -> Part:
    """Of the first family."""
    from qwen_image_2.nodes.bridge.text_encoders.families import open_text_encoder

    def load(path: Path) -> None:
        open_text_encoder(path, path.name)

    return Part(tiny.text_encoder_1_state(), {"model_type": "qwen2_5_vl", "text_config": tiny.TEXT_CONFIG_1,
                                              "vision_config": tiny.VISION_CONFIG_1}, load)


def enhancer() -> Part:
    from qwen_image_2.nodes.bridge.text_encoders.qwen3_5 import open_enhancer

    def load(path: Path) -> None:
        open_enhancer(path, path.name)

    return Part(tiny.enhancer_state(),
                {"text_config": tiny.ENHANCER_TEXT_CONFIG, "vision_config": tiny.ENHANCER_VISION_CONFIG}, load)


# ---------------------------------------------------------------- safetensors

def header_of(state: dict, metadata: dict[str, str]) -> dict:
    """Of a safetensors file with these shapes in fp32."""
    header, begin = {"__metadata__": metadata}, 0
    for name, value in state.items():
        end = begin + 4 * value.numel()
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [begin, end]}
        begin = end
    return header


def encoded(header: dict) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


def size_of(state: dict) -> int:
    return sum(4 * value.numel() for value in state.values())


def write(path: Path, head: bytes, values: int) -> None:
    """A file with this beginning and so many more bytes, which are zero and take no room on the disk."""
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + values)


def reshaped(header: dict, rng: Random) -> dict:
    """One tensor with as many bytes in another shape or dtype, or with none, or under another name, or not there."""
    name = rng.choice([name for name in header if name != "__metadata__"])
    entry = dict(header[name])
    if rng.random() < 0.3:
        rest = {other: value for other, value in header.items() if other != name}
        renamed = rng.choice(["", name + ".", "model." + name, name[:-1], "x" * 30_000, "\ud800", name.upper()])
        return rest if rng.random() < 0.4 else rest | {renamed: entry}
    count = (entry["data_offsets"][1] - entry["data_offsets"][0]) // 4
    entry |= rng.choice(({"shape": [count]}, {"shape": [1, count]}, {"shape": [count, 1, 1, 1, 1, 1]},
                         {"shape": [0, 2**61]}, {"shape": [], "dtype": "F32"}, {"dtype": "I32"}, {"dtype": "F4"},
                         {"shape": [count * 4], "dtype": "F8_E4M3"}, {"shape": [count * 2], "dtype": "BF16"},
                         {"shape": [1] * 5000 + [count]}, {"shape": [-1, count]}, {"shape": [count // 2, 2]}))
    return {**header, name: entry}


class Attack(NamedTuple):
    """A checkpoint as it is written: the file, and a config.json beside it."""

    content: bytes
    config: bytes | None = None
    values: int = 0  # zeros that follow the content


def safetensors(part: Part) -> Callable[[Path], Kind]:
    """Header, metadata and config.json of a file."""
    layer = next(name for name in part.state if name.endswith(MARKED)).removesuffix(".weight")
    settings = {"layers": {layer: {"format": "int8_tensorwise", "convrot_groupsize": 16}}}
    metadata = {"config": json.dumps(part.config), "_quantization_metadata": json.dumps(settings)}
    plain, size = header_of(part.state, {}), size_of(part.state)
    header = header_of(part.state, metadata)

    def attack(rng: Random) -> Attack:
        how = rng.random()
        if how < 0.35:
            return Attack(encoded(plain), mutation.json_file(part.config, rng), size)
        if how < 0.5:
            return Attack(mutation.damaged(encoded(header), rng, 0, rng.choice((8, 400, None))), None, size)
        if how < 0.7:
            inside = {name: mutation.json_file(json.loads(text), rng).decode("latin-1")
                      for name, text in metadata.items() if rng.random() < 0.7}
            return Attack(encoded({**header, "__metadata__": inside}), None, size)
        if how < 0.9:
            return Attack(encoded(reshaped(plain, rng)), json.dumps(part.config).encode(), size)
        return Attack(rng.choice(NO_SAFETENSORS), None, rng.choice((0, 8, 10**8)))

    def kind(folder: Path) -> Kind:
        path, config = folder / "model.safetensors", folder / "config.json"

        def try_it(given: Attack) -> list[str]:
            write(path, given.content, given.values)
            config.unlink(missing_ok=True)
            if given.config is not None:
                config.write_bytes(given.config)
            part.open(path)
            return []

        return Kind(attack, try_it)
    return kind


NO_SAFETENSORS = [*mutation.NO_FILES, struct.pack("<Q", 90_000_000), struct.pack("<Q", 2**63), encoded({}),
                  encoded({f"t{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
                           for number in range(20_000)})]


# ---------------------------------------------------------------- folders

class FolderAttack(NamedTuple):
    """What lies in a folder, and which of it is opened: the folder itself or one of its files."""

    files: dict[str, tuple[bytes, int]]  # name -> beginning, and zeros that follow it
    opened: str = ""
    pipes: tuple[str, ...] = ()  # names under which there is no file but a pipe


def folder_of(part: Part) -> Callable[[Path], Kind]:
    """Shards, index and config.json as diffusers writes them."""
    names = list(part.state)
    halves = [{name: part.state[name] for name in half} for half in (names[::2], names[1::2])]
    shards = [f"model-{number:05}-of-00002.safetensors" for number in (1, 2)]
    index = {"metadata": {"total_size": size_of(part.state)},
             "weight_map": {name: shard for shard, half in zip(shards, halves) for name in half}}
    config = {"_class_name": "QwenImageTransformer2DModel", **part.config}
    whole = {shard: (encoded(header_of(half, {"format": "pt"})), size_of(half)) for shard, half in zip(shards, halves)}
    described = {"model.safetensors.index.json": (json.dumps(index).encode(), 0),
                 "config.json": (json.dumps(config).encode(), 0)}

    def attack(rng: Random) -> FolderAttack:
        files, opened = whole | described, rng.choice(("", "", *shards))
        how = rng.random()
        if how < 0.3:
            return FolderAttack(files | {"model.safetensors.index.json": (mutation.json_file(index, rng), 0)}, opened)
        if how < 0.5:
            return FolderAttack(files | {"config.json": (mutation.json_file(config, rng), 0)}, opened)
        if how < 0.6:
            elsewhere = rng.choice(("../../../etc/passwd", "/dev/zero", "a/b.safetensors", "", ".", "x" * 5000, "\x00"))
            moved = {**index, "weight_map": index["weight_map"] | {rng.choice(names): elsewhere}}
            return FolderAttack(files | {"model.safetensors.index.json": (json.dumps(moved).encode(), 0)}, opened)
        name = rng.choice(list(files))
        if how < 0.7:
            return FolderAttack({other: value for other, value in files.items() if other != name}, opened, (name,))
        if how < 0.8:
            return FolderAttack({other: value for other, value in files.items() if other != name}, opened)
        if how < 0.9:
            more = rng.choice(("model-00001-of-00003.safetensors", "model-00003-of-00002.safetensors",
                               "b.safetensors.index.json", "b.safetensors", "model-99999-of-99999.safetensors"))
            return FolderAttack(files | {more: files[name]}, rng.choice((opened, more)))
        head, values = files[name]
        return FolderAttack(files | {name: (mutation.damaged(head, rng), values)}, opened)

    def kind(folder: Path) -> Kind:
        place = folder / "transformer"

        def try_it(given: FolderAttack) -> list[str]:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            for name, (head, values) in given.files.items():
                write(place / name, head, values)
            for name in given.pipes:
                os.mkfifo(place / name)
            part.open(place / given.opened if given.opened else place)
            return []

        return Kind(attack, try_it)
    return kind


# ---------------------------------------------------------------- quantized layers

FORMATS = ("int8_tensorwise", "float8_e4m3fn", "float8_e5m2", "mxfp8", "nvfp4", "convrot_w4a4")
ENTRIES = ("format", "convrot", "convrot_groupsize", "full_precision_matrix_mult", "linear_dtype", "params",
           "no_input_scale", "type")  # of a mark
GROUPS = (0, -1, -16, 1, 3, 4, 7, 32, 64, 256, 2**31, True, "16", 16.0, {"convrot": True, "convrot_groupsize": 7})


def quantized(part: Part) -> Callable[[Path], Kind]:
    """A transformer whose matrices of attention are int8, fp8 or nvfp4, with marks and scales of any content."""
    layers = [name.removesuffix(".weight") for name in part.state if name.endswith((".to_q.weight", ".to_k.weight"))]
    formats = {"int8_tensorwise": "I8", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "mxfp8": "F8_E4M3",
               "nvfp4": "U8", "convrot_w4a4": "I8", "gguf": "U8", "int4": "U8"}

    def entries(rng: Random) -> list[tuple[str, str, list[int], bytes]]:
        """Name, dtype, shape and first bytes of every tensor."""
        found, odd = [], rng.choice((0.0, 0.1, 0.5))  # how likely each part is another one than it should be
        for name, value in part.state.items():
            layer, shape = name.removesuffix(".weight"), list(value.shape)
            if layer not in layers:
                found.append((name, "F32", shape, b""))
                continue
            form = rng.choice(list(formats) if rng.random() < odd else FORMATS)
            dtype = rng.choice(list(SIZES)) if rng.random() < odd else formats[form]
            columns = shape[1] // 2 if form in ("nvfp4", "convrot_w4a4") else shape[1]
            found.append((name, dtype, [shape[0], columns], b""))
            found += scales(layer, form, shape, odd, rng)
            mark = {"format": form, "convrot": rng.random() < 0.5, "convrot_groupsize": 16,
                    "full_precision_matrix_mult": rng.random() < 0.3}
            if rng.random() < odd:
                mark |= {rng.choice(ENTRIES): rng.choice((*GROUPS, *mutation.JUNK))}
            text = mutation.json_file(mark, rng) if rng.random() < odd / 4 else json.dumps(mark).encode()
            found.append((f"{layer}.comfy_quant", "U8", [len(text)], text))
        if rng.random() < odd / 4:
            found.append(("scaled_fp8", rng.choice(list(SIZES)), rng.choice(([], [0], [2], [1, 1])), b""))
        return found

    def scales(layer: str, form: str, shape: list[int], odd: float, rng: Random
               ) -> list[tuple[str, str, list[int], bytes]]:
        rows, columns = shape
        block = {"mxfp8": 32, "nvfp4": 16}.get(form)
        fitting = [rows, columns // block] if block else rng.choice(([], [rows], [rows, 1]))
        needed = {"weight_scale": fitting} | ({"weight_scale_2": []} if form == "nvfp4" else {})
        other = ("weight_scale_2", "input_scale", "pre_quant_scale", "scale_weight", "scale_input")
        needed |= {name: [] for name in other if rng.random() < odd}
        shapes = ([], [1], [rows], [rows, 1], [0], [128, 4], [1, columns], [2, 2, 2])
        return [(f"{layer}.{name}", rng.choice(("BF16", "U8", "F8_E4M3", "I64")) if rng.random() < odd else
                 "U8" if block and name == "weight_scale" else "F32",
                 rng.choice(shapes) if rng.random() < odd else fits, b"")
                for name, fits in needed.items() if rng.random() >= odd / 3]

    def attack(rng: Random) -> Attack:
        header, body = {"__metadata__": {}}, bytearray()
        if rng.random() < 0.1:
            marks = {"layers": {layer: {"format": rng.choice(list(formats))} for layer in layers}}
            header["__metadata__"]["_quantization_metadata"] = mutation.json_file(marks, rng).decode("latin-1")
        for name, dtype, shape, first in entries(rng):
            begin, size = len(body), SIZES[dtype] * int(np.prod(shape))
            body += first.ljust(size, b"\0")[:size]
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, len(body)]}
        settings = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
        if rng.random() < 0.1:
            settings["quantization_config"] = mutation.changed(settings["quantization_config"], rng)
        config = part.config | (settings if rng.random() < 0.05 else {})
        return Attack(encoded(header) + bytes(body), json.dumps(config).encode())

    def kind(folder: Path) -> Kind:
        return safetensors(part)(folder)._replace(attack=attack)
    return kind


# ---------------------------------------------------------------- GGUF

def write_gguf(path: Path, tensors: dict[str, np.ndarray], known: llama_cpp.Known = llama_cpp.QWEN3_VL) -> None:
    """A file with a header that has every kind of entry."""
    architecture = known.architectures[0]
    config = tiny.TEXT_CONFIG if known is llama_cpp.QWEN3_VL else tiny.TEXT_CONFIG_1
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_uint32(f"{architecture}.block_count", 1)
    writer.add_float32(f"{architecture}.rope.freq_base", 5e6)
    writer.add_array(f"{architecture}.rope.dimension_sections", [*config["rope_parameters"]["mrope_section"], 0])
    writer.add_string("clip.projector_type", known.projector)
    if known is llama_cpp.QWEN2_5_VL:
        writer.add_uint32(f"{architecture}.attention.head_count", config["num_attention_heads"])
        writer.add_uint32("clip.vision.attention.head_count", tiny.VISION_CONFIG_1["num_heads"])
        writer.add_uint32("clip.vision.n_wa_pattern", 2)
    for name, value in tensors.items():
        packed = value.ndim == 2 and value.shape[1] % 32 == 0
        kind = gguf.GGMLQuantizationType.Q8_0 if packed else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def header_and_values(path: Path, last_tensor: str) -> tuple[bytes, int]:
    """A GGUF file's header, to its last tensor's entry, and how many bytes follow."""
    content = path.read_bytes()
    end = content.rindex(last_tensor.encode()) + 60
    return content[:end], len(content) - end


def gguf_file(part: Part) -> Callable[[Path], Kind]:
    """A transformer's."""
    def kind(folder: Path) -> Kind:
        path = folder / "model.gguf"
        write_gguf(path, {name: np.zeros(value.shape, np.float32) for name, value in part.state.items()})
        head, values = header_and_values(path, list(part.state)[-1])

        def attack(rng: Random) -> Attack:
            if rng.random() < 0.1:
                return Attack(rng.choice(NO_GGUF), None, rng.choice((0, 8, 10**9)))
            change = rng.choice((mutation.damaged, mutation.one_byte, mutation.one_byte))
            return Attack(change(head, rng, 0, rng.choice((24, 300, None))), None, values)

        def try_it(given: Attack) -> list[str]:
            write(path, given.content, given.values)
            part.open(path)
            return []

        return Kind(attack, try_it)
    return kind


BEGIN = b"GGUF" + struct.pack("<I", 3)
NO_GGUF = [*mutation.NO_FILES, BEGIN + struct.pack("<QQ", 2**40, 0), BEGIN + struct.pack("<QQ", 0, 2**40),
           BEGIN + struct.pack("<QQ", 0, 1) + struct.pack("<Q", 10**9),
           BEGIN + struct.pack("<QQ", 0, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 8, 10**8),
           BEGIN + struct.pack("<QQ", 0, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 9, 1) * 1000,
           BEGIN + struct.pack("<QQQ", 1, 0, 1) + b"a" + struct.pack("<I", 100_000)]


class PairAttack(NamedTuple):
    """A language model of llama.cpp and its projector, of which one is damaged."""

    damaged: str
    content: bytes
    projector: bool  # whether it is asked for


def apart(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Queries, keys and values each on their own, as a projector of Qwen2.5-VL has them."""
    return {name.replace("attn_qkv", f"attn_{part}"): rows for name, value in tensors.items()
            for part, rows in (zip("qkv", np.split(value, 3)) if "attn_qkv" in name else [("", value)])}


def llama_cpp_files(part: Part, known: llama_cpp.Known = llama_cpp.QWEN3_VL) -> Callable[[Path], Kind]:
    """Two files that become one, whose metadata is what others have in a configuration."""
    def kind(folder: Path) -> Kind:
        from qwen_image_2.nodes.bridge.text_encoders.families import open_text_encoder
        state = {known.names.to(name): value for name, value in part.state.items()}
        paths = {"language": folder / "language.gguf", "mmproj": folder / "mmproj.gguf"}
        whole = {}
        for name, begins in (("language", ("token", "blk", "output")), ("mmproj", ("v.", "mm."))):
            tensors = {key: np.zeros(value.shape, np.float32) for key, value in state.items() if key.startswith(begins)}
            if name == "mmproj":
                both = tensors.pop("v.patch_embd.weight")
                tensors |= {"v.patch_embd.weight": both[:, :, 0], "v.patch_embd.weight.1": both[:, :, 1]}
                tensors = apart(tensors) if known is llama_cpp.QWEN2_5_VL else tensors
            write_gguf(paths[name], tensors, known)
            whole[name] = header_and_values(paths[name], list(tensors)[-1])
            write(paths[name], *whole[name])

        def attack(rng: Random) -> PairAttack:
            name = rng.choice(list(whole))
            head = whole[name][0]
            change = rng.choice((mutation.damaged, mutation.one_byte, mutation.one_byte))
            return PairAttack(name, change(head, rng, 0, rng.choice((300, None))), rng.random() < 0.7)

        def try_it(given: PairAttack) -> list[str]:
            try:
                write(paths[given.damaged], given.content, whole[given.damaged][1])
                open_text_encoder(paths["language"], "language.gguf", paths["mmproj"] if given.projector else None)
            finally:
                write(paths[given.damaged], *whole[given.damaged])
            return []

        return Kind(attack, try_it)
    return kind


def llama_cpp_files_1(part: Part) -> Callable[[Path], Kind]:
    return llama_cpp_files(part, llama_cpp.QWEN2_5_VL)
