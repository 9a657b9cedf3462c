"""Files with any content are opened, or refused with the one error that is a sentence for the user."""
import json
import random
import struct

import gguf
import numpy as np
import pytest

from qwen_image_2.model.checkpoints.checkpoint import Checkpoint, GGUFCheckpoint, TensorInfo
from qwen_image_2.model.checkpoints.errors import CheckpointError
from qwen_image_2.model.checkpoints.files import open_checkpoint
from qwen_image_2.model.language import key_maps, llama_cpp
from qwen_image_2.model.language.qwen3_vl import detect_text_encoder
from qwen_image_2.model.qwen_image_2 import detect
from qwen_image_2.model.qwen_image_2.spec import TransformerSpec, VAESpec
from qwen_image_2.model.qwen_image_2.transformer import Transformer
from qwen_image_2.model.qwen_image_2.vae import VAE
from qwen_image_2.tools import tiny

ROUNDS = 300
JUNK = [None, True, -1, 0, 5, 10**40, 1e300, float("nan"), float("inf"), "x", "9" * 5000, [], [1], ["x"], [[1, 2]], {},
        {"a": 1}, [0.5] * 3, [-2, 20, 14]]
TRANSFORMER = tiny.shapes(Transformer(TransformerSpec(layers=1, dim=32, heads=1, head_dim=32, mlp_dim=64,
                                                      context_dim=16, rope_axes=(4, 14, 14))))
AUTOENCODER = tiny.shapes(VAE(VAESpec(base_dim=8, decoder_base_dim=12)))
HEADER = {"general.architecture": "qwen3vl", "qwen3vl.rope.freq_base": 5e6,
          "qwen3vl.rope.dimension_sections": [24, 20, 20, 0], "clip.projector_type": "qwen3vl_merger",
          "clip.vision.attention.head_count": 2, "tokenizer.ggml.tokens": ["a", "b"]}


@pytest.fixture(scope="module")
def kinds():
    """Kind -> its detector, tensors, and a configuration that has every entry."""
    vae = VAESpec()
    return {
        "transformer": (detect.detect_transformer, TRANSFORMER,
                        {"axes_dims_rope": [4, 14, 14], "eps": 1e-6, "causal_condition": True,
                         "quantization_config": {"quant_method": ""}}),
        "vae": (detect.detect_vae, AUTOENCODER,
                {"temperal_downsample": list(vae.video_levels), "latents_mean": list(vae.latent_mean),
                 "latents_std": list(vae.latent_std)}),
        "text encoder": (detect_text_encoder, tiny.text_encoder_state(),
                         {"model_type": "qwen3_vl", "text_config": tiny.TEXT_CONFIG,
                          "vision_config": tiny.VISION_CONFIG}),
    }


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


def write(path, head: bytes, values: int) -> None:
    """A file with this beginning and so many more bytes, which are zero and take no room on the disk."""
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + values)


def opened(path, recognise) -> str | None:
    """What a file is refused with; anything but a CheckpointError fails the test."""
    try:
        recognise(open_checkpoint(path))
    except CheckpointError as error:
        return str(error)
    return None


def changed(value, rng: random.Random):
    """The same JSON with something else in one place."""
    if isinstance(value, dict | list) and value and rng.random() < 0.85:
        copy = value.copy()
        place = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        copy[place] = changed(value[place], rng)
        return copy
    return rng.choice(JUNK)


def damaged(content: bytes, rng: random.Random, first: int, last: int) -> bytes:
    """Some bytes between the places changed, doubled or gone."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(first, min(last, len(content)))
        how = rng.random()
        if how < 0.7:
            content[place] = rng.choice((rng.randrange(256), content[place] ^ 1 << rng.randrange(8), ord("0")))
        elif how < 0.85:
            content[place:place] = content[place:place + rng.randint(1, 9)]
        else:
            del content[place:place + rng.randint(1, 9)]
    return bytes(content)


@pytest.mark.parametrize("kind", ["transformer", "vae", "text encoder"])
def test_any_configuration(kinds, tmp_path, kind):
    recognise, state, config = kinds[kind]
    path, rng = tmp_path / "model.safetensors", random.Random(kind)
    write(path, encoded(header_of(state, {})), size_of(state))
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert opened(path, recognise) is None
    refused = 0
    for number in range(ROUNDS):
        text = json.dumps(changed(config, rng)).encode() if number % 2 else None
        (tmp_path / "config.json").write_bytes(text or damaged(json.dumps(config).encode(), rng, 0, 60))
        refused += opened(path, recognise) is not None
    assert ROUNDS // 2 < refused < ROUNDS


@pytest.mark.parametrize("content, words", [
    ("[1]", "The file config.json of model.safetensors holds no named entries"), ('"x"', "holds no named entries"),
    ("[" * 100_000, "The file config.json of model.safetensors is not valid JSON"),
    ('{"axes_dims_rope": 5}', "axes_dims_rope is 5, expected a list of 3, each a whole number above 0: download it"),
    ('{"axes_dims_rope": [-4, 18, 18]}', "expected a list of 3, each a whole number above 0"),
    ('{"axes_dims_rope": [16, 16]}', "expected a list of 3"), ('{"eps": "1e-6"}', "eps is '1e-6', expected a number"),
    ('{"eps": NaN}', "eps is nan, expected a number above 0"), ('{"causal_condition": 1}', "expected true or false"),
    ('{"quantization_config": [1]}', r"was quantised by \[1\] \(quantization_config\)")])
def test_configurations_are_refused_in_words(kinds, tmp_path, content, words):
    recognise, state, _ = kinds["transformer"]
    write(tmp_path / "model.safetensors", encoded(header_of(state, {})), size_of(state))
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=words):
        files = open_checkpoint(tmp_path / "model.safetensors")
        recognise(files)


@pytest.mark.parametrize("kind, config, words", [
    ("vae", {"latents_mean": 3}, "latents_mean is 3, expected a list, each a number"),
    ("vae", {"latents_std": [0] * 64}, "each a number above 0"),
    ("text encoder", {"text_config": [1]}, r"text_config is \[1\], expected a section"),
    ("text encoder", {"text_config": None}, "no configuration that says how its rotary positions are laid out"),
    ("text encoder", {"text_config": {"rope_scaling": {"mrope_section": 3}}}, "mrope_section is 3, expected a list"),
    ("text encoder", {**{"text_config": tiny.TEXT_CONFIG}, "vision_config": {"num_heads": 7}}, "of its 7 heads"),
])
def test_other_configurations_are_refused_in_words(kinds, kind, config, words):
    recognise, state, _ = kinds[kind]
    tensors = {name: TensorInfo(tuple(value.shape), "F32") for name, value in state.items()}
    with pytest.raises(CheckpointError, match=words):
        recognise(Checkpoint("it", tensors, config))


@pytest.mark.parametrize("kind", ["transformer", "vae", "text encoder"])
def test_any_safetensors_header(kinds, tmp_path, kind):
    """Its bytes, and with an entry of another content; the marks of quantised layers among them."""
    recognise, state, config = kinds[kind]
    path, rng = tmp_path / "model.safetensors", random.Random(kind)
    layer = next(name for name in state if name.endswith(("to_q.weight", "q_proj.weight", "conv.weight")))
    settings = {"layers": {layer.removesuffix(".weight"): {"format": "int8_tensorwise", "convrot_groupsize": 16}}}
    metadata = {"config": json.dumps(config), "_quantization_metadata": json.dumps(settings)}
    header = header_of(state, metadata)
    for number in range(ROUNDS):
        if number % 3 == 0:
            head = encoded(header)
            head = damaged(head, rng, 0, len(head))
        elif number % 3 == 1:
            inside = {name: json.dumps(changed(json.loads(text), rng)) for name, text in metadata.items()}
            head = encoded({**header, "__metadata__": inside})
        else:
            head = encoded(reshaped(header, rng))
        write(path, head, size_of(state))
        opened(path, recognise)


def reshaped(header: dict, rng: random.Random) -> dict:
    """One tensor with as many bytes in another shape or dtype, or with none."""
    name = rng.choice([name for name in header if name != "__metadata__"])
    entry = dict(header[name])
    count = (entry["data_offsets"][1] - entry["data_offsets"][0]) // 4
    entry |= rng.choice(({"shape": [count]}, {"shape": [1, count]}, {"shape": [count, 1, 1, 1, 1, 1]},
                         {"shape": [0, 2**61]}, {"shape": [], "dtype": "F32"}, {"dtype": "I32"},
                         {"shape": [count * 4], "dtype": "F8_E4M3"}, {"shape": [count * 2], "dtype": "BF16"}))
    return {**header, name: entry}


def write_gguf(path, tensors: dict[str, np.ndarray]) -> None:
    """A file with a header that has every kind of entry."""
    writer = gguf.GGUFWriter(path, "qwen3vl")
    writer.add_uint32("qwen3vl.block_count", 1)
    writer.add_float32("qwen3vl.rope.freq_base", 5e6)
    writer.add_array("qwen3vl.rope.dimension_sections", [*tiny.TEXT_CONFIG["rope_parameters"]["mrope_section"], 0])
    writer.add_string("clip.projector_type", "qwen3vl_merger")
    for name, value in tensors.items():
        packed = value.ndim == 2 and value.shape[1] % 32 == 0
        kind = gguf.GGMLQuantizationType.Q8_0 if packed else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_any_gguf_header(kinds, tmp_path):
    """A transformer's."""
    recognise, state, _ = kinds["transformer"]
    path, rng = tmp_path / "model.gguf", random.Random(3)
    write_gguf(path, {name: np.zeros(value.shape, np.float32) for name, value in state.items()})
    assert opened(path, recognise) is None
    whole = path.read_bytes()
    last = whole.rindex(list(state)[-1].encode()) + 60
    refused = 0
    for _ in range(ROUNDS):
        path.write_bytes(damaged(whole, rng, 0, last))
        refused += opened(path, recognise) is not None
    assert ROUNDS // 10 < refused < ROUNDS


def test_any_header_of_llama_cpp(kinds, tmp_path):
    """Two files that become one, whose metadata is what others have in a configuration."""
    rng, paths, whole = random.Random(4), {}, {}
    state = {key_maps.LLAMA_CPP.to(name): value for name, value in kinds["text encoder"][1].items()}
    for part, ours in (("language", lambda name: name.startswith(("token", "blk", "output"))),
                       ("mmproj", lambda name: name.startswith(("v.", "mm.")))):
        tensors = {name: np.zeros(value.shape, np.float32) for name, value in state.items() if ours(name)}
        if part == "mmproj":
            both = tensors.pop("v.patch_embd.weight")
            tensors |= {"v.patch_embd.weight": both[:, :, 0], "v.patch_embd.weight.1": both[:, :, 1]}
        paths[part] = tmp_path / f"{part}.gguf"
        write_gguf(paths[part], tensors)
        content = paths[part].read_bytes()
        begin = content.rindex(list(tensors)[-1].encode()) + 60
        whole[part] = content[:begin], len(content) - begin
    joined = 0
    for number in range(ROUNDS):
        part = rng.choice(list(paths))
        head, values = whole[part]
        write(paths[part], damaged(head, rng, 0, len(head)), values)
        try:
            language, projector = (open_checkpoint(path) for path in paths.values())
            files = llama_cpp.text_encoder(language, projector if number % 2 else None)
            detect_text_encoder(files)
            joined += 1
        except CheckpointError as error:
            assert str(error)
        write(paths[part], head, values)
    assert 0 < joined < ROUNDS // 2


@pytest.mark.parametrize("key", HEADER)
@pytest.mark.parametrize("value", JUNK)
def test_any_value_in_the_metadata_of_llama_cpp(key, value):
    """Values that damage of single bytes would hardly hit upon."""
    header = {**HEADER, key: value}
    for architecture in ("qwen3vl", header["general.architecture"]):
        files = GGUFCheckpoint.of("it", {}, {**header, "general.architecture": architecture})
        try:
            both = llama_cpp.text_encoder(files, None)
            detect_text_encoder(both)
        except CheckpointError as error:
            assert str(error)


@pytest.mark.parametrize("shape", [(0, 32), (2, 33), (2, 0), (16,)])
def test_blocks_that_do_not_fill_a_row(shape, tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, {"a": np.zeros((2, 32), np.float32)})
    content = path.read_bytes()
    place = content.index(b"a" + struct.pack("<I", 2)) + 1
    axes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
    path.write_bytes(content[:place] + axes + content[place + 20:])
    with pytest.raises(CheckpointError, match=r"damaged or no GGUF file, download it again \(a tensor of the type Q8_0 "
                                              r"has the impossible shape"):
        open_checkpoint(path)
