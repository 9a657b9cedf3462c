"""Damaged checkpoints: what some of them are refused with, word by word, and every value in a GGUF file's metadata.

That files of any content are refused at all is tested where their generators are, tests/tools/attacks.
"""
import struct

import numpy as np
import pytest

from qwen_image_2.model.checkpoints.checkpoint import Checkpoint, GGUFCheckpoint, TensorInfo
from qwen_image_2.model.checkpoints.errors import CheckpointError
from qwen_image_2.model.checkpoints.files import open_checkpoint
from qwen_image_2.model.language import llama_cpp
from qwen_image_2.model.language.qwen3_vl import detect_text_encoder
from qwen_image_2.model.qwen_image_1 import detect as detect_1
from qwen_image_2.model.qwen_image_1.spec import VAESpec as VAESpec1
from qwen_image_2.model.qwen_image_1.vae import VAE as VAE1
from qwen_image_2.model.qwen_image_2 import detect
from qwen_image_2.model.qwen_image_2.spec import VAESpec
from qwen_image_2.model.qwen_image_2.transformer import Transformer
from qwen_image_2.model.qwen_image_2.vae import VAE
from qwen_image_2.tools import tiny
from qwen_image_2.tools.attacks import checkpoints
from qwen_image_2.tools.attacks.checkpoints import encoded, header_of, size_of, write, write_gguf
from qwen_image_2.tools.attacks.mutation import JUNK

HEADER = {"general.architecture": "qwen3vl", "qwen3vl.rope.freq_base": 5e6,
          "qwen3vl.rope.dimension_sections": [24, 20, 20, 0], "clip.projector_type": "qwen3vl_merger",
          "clip.vision.attention.head_count": 2, "tokenizer.ggml.tokens": ["a", "b"]}
# Kind -> its detector and its tensors.
KINDS = {"transformer": (detect.detect_transformer, lambda: tiny.shapes(Transformer(checkpoints.SPEC))),
         "vae": (detect.detect_vae, lambda: tiny.shapes(VAE(VAESpec(base_dim=8, decoder_base_dim=12)))),
         "vae 1": (detect_1.detect_vae, lambda: tiny.shapes(VAE1(VAESpec1(base_dim=8)))),
         "text encoder": (detect_text_encoder, tiny.text_encoder_state)}


@pytest.mark.parametrize("content, words", [
    ("[1]", "The file config.json of model.safetensors contains no named entries"),
    ('"x"', "contains no named entries"),
    ("[" * 100_000, "The file config.json of model.safetensors is not valid JSON"),
    ('{"axes_dims_rope": 5}', "axes_dims_rope is 5, expected a list of 3, each a positive integer. Download"),
    ('{"axes_dims_rope": [-4, 18, 18]}', "expected a list of 3, each a positive integer"),
    ('{"axes_dims_rope": [16, 16]}', "expected a list of 3"),
    ('{"eps": "1e-6"}', "eps is '1e-6', expected a positive number"),
    ('{"eps": NaN}', "eps is nan, expected a positive number"), ('{"causal_condition": 1}', "expected true or false"),
    ('{"quantization_config": [1]}', r"was quantized by \[1\] \(quantization_config\)")])
def test_configurations_are_refused_in_words(tmp_path, content, words):
    recognize, shapes = KINDS["transformer"]
    state = shapes()
    write(tmp_path / "model.safetensors", encoded(header_of(state, {})), size_of(state))
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=words):
        files = open_checkpoint(tmp_path / "model.safetensors")
        recognize(files)


@pytest.mark.parametrize("kind, config, words", [
    ("vae", {"latents_mean": 3}, "latents_mean is 3, expected a list, each a number"),
    ("vae", {"latents_std": [0] * 64}, "each a positive number"),
    ("vae 1", {"latents_mean": 3}, "latents_mean is 3, expected a list, each a number"),
    ("vae 1", {"latents_std": [0] * 16}, "each a positive number"),
    ("vae 1", {"latents_std": [1] * 15}, "has inconsistent layer sizes: 16 latent channels, but 16 means and 15 dev"),
    ("text encoder", {"text_config": [1]}, r"text_config is \[1\], expected a section"),
    ("text encoder", {"text_config": None}, "no configuration of its rotary embedding"),
    ("text encoder", {"text_config": {"rope_scaling": {"mrope_section": 3}}}, "mrope_section is 3, expected a list"),
    ("text encoder", {**{"text_config": tiny.TEXT_CONFIG}, "vision_config": {"num_heads": 7}}, "of its 7 heads"),
])
def test_other_configurations_are_refused_in_words(kind, config, words):
    recognize, shapes = KINDS[kind]
    tensors = {name: TensorInfo(tuple(value.shape), "F32") for name, value in shapes().items()}
    with pytest.raises(CheckpointError, match=words):
        recognize(Checkpoint("it", tensors, config))


@pytest.mark.parametrize("key", HEADER)
@pytest.mark.parametrize("value", JUNK, ids=range(len(JUNK)))
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
    with pytest.raises(CheckpointError, match=r"damaged or not a GGUF file \(a tensor of type Q8_0 "
                                              r"has the invalid shape"):
        open_checkpoint(path)
