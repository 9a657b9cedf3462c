"""Files of Qwen-Image 1.x in every layout that circulates, at a small width: real names, shapes of the real ranks and
real dtypes. Each loads, and computes what its weights say; modulation, which lies apart, too."""
import json

import gguf
import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file

from qwen_image_2.model.checkpoints import gguf as pack_gguf
from qwen_image_2.model.checkpoints.errors import CheckpointError
from qwen_image_2.tests import reference_1
from qwen_image_2.tests.model.qwen_image_1.test_transformer import inputs
from qwen_image_2.tests.nodes.bridge.quant.test_formats import FORMATS, assert_same_tensors, old_names, rounding
from qwen_image_2.tests.nodes.bridge.quant.test_gguf_ops import pack, random_blocks
from qwen_image_2.tests.nodes.bridge.test_qwen_image_1 import MARK, load, step
from qwen_image_2.tests.reference import error
from qwen_image_2.tools import tiny

pytestmark = pytest.mark.usefixtures("as_comfyui_runs_nodes")
PREFIX = "model.diffusion_model."
MODULATION = "transformer_blocks.1.img_mod.1"
# In published GGUF files, beside matrices of the blocks, which are packed, and vectors in F32.
BF16 = ("img_in.weight", "txt_in.weight", "time_text_embed.timestep_embedder.linear_1.weight",
        "time_text_embed.timestep_embedder.linear_2.weight", "norm_out.linear.weight", "proj_out.weight")


@pytest.fixture(scope="module")
def plain():
    """Values of bf16, as published weights have them."""
    return {name: value.bfloat16().float() for name, value in reference_1.transformer().state_dict().items()}


@pytest.fixture(scope="module")
def velocity_of(plain, tmp_path_factory):
    """velocity_of(state) -> what a plain file of these weights computes."""
    def velocity_of(state):
        path = tmp_path_factory.mktemp("plain") / "plain.safetensors"
        tiny.save_as_they_are(state, path)
        return velocity(load(path))
    return velocity_of


def velocity(patcher) -> torch.Tensor:
    """Of an image with one reference, at the same sigma."""
    return step(patcher, *inputs(1, (6, 10), ((4, 4),)))


def write(state, path, metadata=None):
    tiny.save_as_they_are(state, path, metadata)
    return path


def is_block_matrix(name: str, value: torch.Tensor) -> bool:
    return name.startswith("transformer_blocks.") and value.ndim == 2


def in_bf16(state):
    return {name: value.bfloat16() for name, value in state.items()}


def quantize(plain, name: str, but: str = ""):
    """The blocks' matrices in one format and the rest in bf16; and the same weights dequantized. but: a matrix that
    stays in bf16."""
    stored, rounded = tiny.quantized(lambda key: key.startswith("transformer_blocks.") and key != but, plain,
                                     *FORMATS[name][:3])
    stored = {key: value.bfloat16() if key in plain and value.dtype == torch.float32 else value
              for key, value in stored.items()}
    return stored, rounded


# ---------------------------------------------------------------- plain files

@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_comfy_orgs_bf16_files(plain, tmp_path, velocity_of, prefix):
    path = write({prefix + name: value for name, value in in_bf16(plain).items()}, tmp_path / "bf16.safetensors")
    patcher = load(path)
    assert patcher.model.weights == "bfloat16"
    assert error(velocity(patcher), velocity_of(plain)) < 1e-5


def test_diffusers_folders(plain, tmp_path, velocity_of):
    """In shards, with the index that names them; the configuration says that references are modulated at t = 0."""
    folder = tmp_path / "transformer"
    folder.mkdir()
    names, state = sorted(plain), in_bf16(plain)
    homes = {name: f"diffusion_pytorch_model-0000{1 + place % 2}-of-00002.safetensors"
             for place, name in enumerate(names)}
    for home in set(homes.values()):
        safetensors.torch.save_file({name: state[name] for name in names if homes[name] == home}, folder / home,
                                    {"format": "pt"})
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": homes}))
    config = {"_class_name": "QwenImageTransformer2DModel", "attention_head_dim": 128, "axes_dims_rope": [16, 56, 56],
              "guidance_embeds": False, "in_channels": 64, "joint_attention_dim": 64, "num_attention_heads": 2,
              "num_layers": 2, "out_channels": 16, "patch_size": 2, "pooled_projection_dim": 768}
    for said, found in ((None, False), (False, False), (True, True)):
        told = config if said is None else config | {"zero_cond_t": said}
        (folder / "config.json").write_text(json.dumps(told))
        patcher = load(folder)
        assert patcher.model.spec.zero_cond_t == found
        marked = write(plain | ({MARK: torch.empty(0)} if found else {}), tmp_path / "plain.safetensors")
        assert error(velocity(patcher), velocity(load(marked))) < 1e-5


@pytest.mark.parametrize("prefix", ["", PREFIX])
@pytest.mark.parametrize("mark", [torch.empty(0), torch.tensor(1.0), torch.tensor(1.0).bfloat16()],
                         ids=["empty", "0-dim", "0-dim bf16"])
def test_marks_of_2511_stand_before_and_behind_prefixes(plain, tmp_path, prefix, mark):
    state = {prefix + name: value for name, value in in_bf16(plain).items()}
    for marked in ({MARK: mark}, {prefix + MARK: mark}):
        assert load(write(state | marked, tmp_path / "marked.safetensors")).model.spec.zero_cond_t


@pytest.mark.parametrize("name", ["bf16", "int8 ConvRot"])
def test_pruned_models(plain, tmp_path, velocity_of, name):
    """Fewer blocks: they are counted."""
    pruned = {key: value for key, value in plain.items() if "transformer_blocks.1." not in key}
    stored, rounded = (in_bf16(pruned), pruned) if name == "bf16" else quantize(pruned, name)
    patcher = load(write(stored, tmp_path / "pruned.safetensors"))
    assert patcher.model.spec.layers == 1
    assert error(velocity(patcher), velocity_of(rounded)) < 0.03


def test_whole_checkpoints_with_an_fp8_transformer(plain, tmp_path, velocity_of):
    """Rapid-AIO: beside it a text encoder with scales and a VAE in bf16."""
    cast = {name: value.to(torch.float8_e4m3fn) for name, value in plain.items()}
    whole = {PREFIX + name: value for name, value in cast.items()} | {
        "text_encoders.qwen25_7b.transformer.scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn),
        "text_encoders.qwen25_7b.transformer.model.layers.0.mlp.up_proj.weight": torch.ones(8, 8).to(
            torch.float8_e4m3fn),
        "text_encoders.qwen25_7b.transformer.model.layers.0.mlp.up_proj.scale_weight": torch.tensor(0.5),
        "vae.conv1.weight": torch.ones(4, 4, 1, 1, 1).bfloat16()}
    patcher = load(write(whole, tmp_path / "whole.safetensors"))
    layer = patcher.model.diffusion_model.get_submodule(MODULATION)
    assert layer.quant_format == "float8_e4m3fn" and "dequantized" in str(patcher.model.weights)
    found = velocity(patcher)
    assert error(found, velocity_of({name: value.float() for name, value in cast.items()})) < 0.02


# ---------------------------------------------------------------- quantized files

@pytest.mark.parametrize("prefix", ["", PREFIX])
@pytest.mark.parametrize("name", ["fp8 e4m3", "int8 ConvRot", "nvfp4"])
def test_marked_files_compute_what_their_weights_say(plain, tmp_path, velocity_of, name, prefix):
    """fp8mixed and int8 ConvRot, and a 4-bit one. One matrix is left in bf16, as the size of fp8mixed tells."""
    stored, rounded = quantize(plain, name, but="transformer_blocks.0.txt_mod.1.weight")
    assert stored["transformer_blocks.0.txt_mod.1.weight"].dtype == torch.bfloat16
    patcher = load(write({prefix + key: value for key, value in stored.items()}, tmp_path / "q.safetensors"))
    layers = patcher.model.diffusion_model
    assert layers.get_submodule(MODULATION).quant_format == FORMATS[name][0]
    assert not hasattr(layers.get_submodule("transformer_blocks.0.txt_mod.1"), "quant_format") or (
        layers.get_submodule("transformer_blocks.0.txt_mod.1").quant_format is None)
    found, bound = velocity(patcher), FORMATS[name][3]
    assert error(found, velocity_of(rounded)) < bound
    assert error(found, velocity_of(plain)) < 2 * bound


def test_marks_may_stand_in_the_metadata(plain, tmp_path):
    stored, _ = quantize(plain, "int8 ConvRot")
    layers = {key.removesuffix(".comfy_quant"): json.loads(bytes(value.tolist()))
              for key, value in stored.items() if key.endswith("comfy_quant")}
    bare = {key: value for key, value in stored.items() if not key.endswith("comfy_quant")}
    told = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    inside, beside = (load(write(*file)) for file in ((stored, tmp_path / "inside.safetensors"),
                                                      (bare, tmp_path / "beside.safetensors", told)))
    assert_same_tensors(beside.model.diffusion_model.state_dict(), inside.model.diffusion_model.state_dict())


@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_older_scaled_fp8_files(plain, tmp_path, velocity_of, prefix):
    stored, rounded = quantize(plain, "fp8 e4m3")
    old = old_names(stored, torch.zeros(1).to(torch.float8_e4m3fn), prefix)
    patcher = load(write(old, tmp_path / "scaled.safetensors"))
    assert error(velocity(patcher), velocity_of(rounded)) < FORMATS["fp8 e4m3"][3]


def test_lightx2vs_scaled_file_has_its_mark(plain, tmp_path):
    """qwen_image_edit_2511_fp8_e4m3fn_scaled_lightning: scales, and the mark as one number."""
    stored, _ = quantize(plain, "fp8 e4m3")
    for file in (stored, old_names(stored, torch.zeros(0))):
        path = write(file | {MARK: torch.tensor(1.0)}, tmp_path / "lightning.safetensors")
        assert load(path).model.variant == "edit 2511"


# ---------------------------------------------------------------- GGUF

def write_gguf(path, state, kinds, architecture="qwen_image", prefix="", mark=None):
    """As publishers write it. Returns the file, and what its weights say."""
    writer = gguf.GGUFWriter(path, architecture)
    decoded = {}
    for name, value in state.items():
        if (kind := kinds.get(name)) is not None:
            data = (pack if kind in ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0", "Q5_0", "Q5_1", "Q4_1")
                    else random_blocks)(value, kind)
            writer.add_tensor(prefix + name, data, raw_dtype=gguf.GGMLQuantizationType[kind])
            decoded[name] = pack_gguf.dequantize(torch.from_numpy(data), kind)
        elif name in BF16:
            bits = value.bfloat16().view(torch.int16).numpy().view("uint8").reshape(len(value), -1)
            writer.add_tensor(prefix + name, bits, raw_dtype=gguf.GGMLQuantizationType.BF16)
            decoded[name] = value.bfloat16().float()
        else:
            writer.add_tensor(prefix + name, value.float().numpy())
            decoded[name] = value
    if mark is not None:
        writer.add_tensor(prefix + MARK, mark)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, decoded


def all_in(state, kind: str) -> dict[str, str]:
    return {name: kind for name, value in state.items() if is_block_matrix(name, value)}


@pytest.mark.parametrize(("kind", "architecture", "prefix"), [
    ("Q2_K", "qwen_image", ""), ("Q3_K", "qwen_image", ""), ("Q4_0", "pig", ""), ("Q4_K", "qwen_image", PREFIX),
    ("Q5_K", "", ""), ("Q6_K", "qwen_image", ""), ("Q8_0", "pig", PREFIX)])
def test_gguf_files_compute_what_their_blocks_say(plain, tmp_path, velocity_of, kind, architecture, prefix):
    path, decoded = write_gguf(tmp_path / "model.gguf", plain, all_in(plain, kind), architecture, prefix)
    patcher = load(path)
    layer = patcher.model.diffusion_model.get_submodule(MODULATION)
    assert layer.quant_format == "gguf" and layer.bias.dtype == torch.float32
    assert f"GGUF {kind}" in str(patcher.model.weights)
    assert error(velocity(patcher), velocity_of(decoded)) < 1e-4


def test_a_gguf_file_with_the_mark_of_2511(plain, tmp_path):
    import numpy as np
    path, _ = write_gguf(tmp_path / "model.gguf", plain, all_in(plain, "Q8_0"), mark=np.zeros(1, np.float32))
    assert load(path).model.spec.zero_cond_t
    path, _ = write_gguf(tmp_path / "model.gguf", plain, all_in(plain, "Q8_0"))
    assert not load(path).model.spec.zero_cond_t and load(path, "edit 2511").model.spec.zero_cond_t


# ---------------------------------------------------------------- LoRAs on modulation, apart

@pytest.mark.parametrize("name", ["int8 ConvRot", "fp8 e4m3", "nvfp4", "GGUF", "cast to fp8"])
def test_a_lora_on_quantized_modulation(plain, tmp_path, velocity_of, name):
    """No patcher loads these matrices: a LoRA is computed beside what is dequantized, and nothing is quantized anew."""
    from comfy.weight_adapter.lora import LoRAAdapter

    from qwen_image_2.nodes.bridge.run_checks import check_lora_shapes
    if name == "GGUF":
        path, rounded = write_gguf(tmp_path / "model.gguf", plain, all_in(plain, "Q4_K"))
    elif name == "cast to fp8":
        stored = {key: value.to(torch.float8_e4m3fn) for key, value in plain.items()}
        path, rounded = write(stored, tmp_path / "c.safetensors"), {key: v.float() for key, v in stored.items()}
    else:
        stored, rounded = quantize(plain, name)
        path = write(stored, tmp_path / "q.safetensors")
    patcher = load(path)
    before, own = velocity(patcher), patcher.model.diffusion_model.state_dict()
    own = {key: value.clone() for key, value in own.items()}
    generator = torch.Generator().manual_seed(3)
    up, down = torch.randn(1536, 4, generator=generator) / 5, torch.randn(4, 256, generator=generator) / 5
    bias = torch.randn(1536, generator=generator) / 5
    changed = patcher.clone()
    added = changed.add_patches({f"diffusion_model.{MODULATION}.weight": LoRAAdapter(
        set(), (up, down, None, None, None, None)), f"diffusion_model.{MODULATION}.bias": ("diff", (bias,))}, 0.5)
    assert len(added) == 2
    check_lora_shapes(changed)
    found = velocity(changed)
    said = rounded | {f"{MODULATION}.weight": rounded[f"{MODULATION}.weight"] + 0.5 * up @ down,
                      f"{MODULATION}.bias": rounded[f"{MODULATION}.bias"] + 0.5 * bias}
    bound = FORMATS[name][3] if name in FORMATS else 0.03
    assert error(found, velocity_of(said)) < bound < error(found, before)
    assert_same_tensors(patcher.model.diffusion_model.state_dict(), own)
    assert error(velocity(patcher), before) < rounding(name)


# ---------------------------------------------------------------- quantizing and saving

TARGETS = {"fp8": "fp8 e4m3", "int8 (ConvRot)": "int8 ConvRot", "4-bit (nvfp4)": "nvfp4"}


def saved(path, patcher):
    from qwen_image_2.nodes.bridge.loading import diffusion_network
    from qwen_image_2.nodes.bridge.quant import quantize
    quantize.save(path, diffusion_network(patcher), lambda done, total: None)
    return path


@pytest.mark.parametrize("target", TARGETS)
def test_quantized_here(plain, tmp_path, velocity_of, target):
    _, rounded = quantize(plain, TARGETS[target])
    patcher = load(write(in_bf16(plain), tmp_path / "plain.safetensors"), weight_format=target)
    assert patcher.model.diffusion_model.get_submodule(MODULATION).quant_format == FORMATS[TARGETS[target]][0]
    assert error(velocity(patcher), velocity_of(rounded)) < FORMATS[TARGETS[target]][3]


@pytest.mark.parametrize("target", ["as stored", *TARGETS])
def test_a_saved_file_loads_as_it_was(plain, tmp_path, target):
    """With all names and dtypes of the file that it came from; modulation too, which no patcher has."""
    patcher = load(write(in_bf16(plain), tmp_path / "plain.safetensors"), weight_format=target)
    path = saved(tmp_path / "saved.safetensors", patcher)
    again = load(path)
    found = load_file(path)
    assert plain.keys() <= found.keys()
    assert all(found[name].dtype == torch.bfloat16 for name in plain
               if target == "as stored" or not is_block_matrix(name, plain[name]))
    assert_same_tensors(again.model.diffusion_model.state_dict(), patcher.model.diffusion_model.state_dict())
    assert error(velocity(again), velocity(patcher)) < rounding(target)


@pytest.mark.parametrize("target", ["as stored", *TARGETS])
def test_loras_on_modulation_are_in_the_saved_file(plain, tmp_path, target):
    patcher = load(write(in_bf16(plain), tmp_path / "plain.safetensors"), weight_format=target)
    change = 0.2 * torch.randn(1536, 256, generator=torch.Generator().manual_seed(1))
    changed, before = patcher.clone(), velocity(patcher)
    changed.add_patches({f"diffusion_model.{MODULATION}.weight": ("diff", (change,)),
                         f"diffusion_model.{MODULATION}.bias": ("diff", (torch.ones(1536),))})
    again = load(saved(tmp_path / "saved.safetensors", changed))
    bound = {"4-bit (nvfp4)": 0.2}.get(target, 0.05)
    assert error(velocity(again), velocity(changed)) < bound < error(velocity(again), before)


# ---------------------------------------------------------------- refusals

def only(*names: str):
    return lambda plain: {name: torch.ones(4, 4) for name in names}


def mage_flow(plain):
    """The same names, with other states of text and other latents."""
    return plain | {"txt_norm.weight": torch.ones(2560), "txt_in.weight": torch.ones(256, 2560),
                    "img_in.weight": torch.ones(256, 128), "proj_out.weight": torch.ones(128, 256)}


REFUSED = {
    "nunchaku": (lambda plain: {name.replace(".weight", ".qweight") if ".attn." in name else name: value
                                for name, value in plain.items()} | {
        "transformer_blocks.0.attn.to_qkv.wscales": torch.ones(4, 4),
        "transformer_blocks.0.attn.to_qkv.smooth_factor": torch.ones(4)}, "nunchaku"),
    "TwinFlow": (lambda plain: plain | {"time_text_embed_2.timestep_embedder.linear_1.weight": torch.ones(4, 4)},
                 "TwinFlow"),
    "SD3": (only("transformer_blocks.0.attn.add_q_proj.weight", "transformer_blocks.0.norm1.linear.weight",
                 "pos_embed.proj.weight", "context_embedder.weight"), "Stable Diffusion 3"),
    "Flux": (only("transformer_blocks.0.attn.add_q_proj.weight", "transformer_blocks.0.norm1.linear.weight",
                  "single_transformer_blocks.0.attn.to_q.weight", "x_embedder.weight"), "Flux"),
    "InstantX": (lambda plain: {name: value for name, value in plain.items() if "out" not in name} | {
        "controlnet_x_embedder.weight": torch.ones(4, 4)}, "ControlNet of Qwen-Image"),
    "Fun": (only("control_img_in.weight", "control_blocks.0.before_proj.weight", "control_blocks.0.img_mod.1.weight",
                 "control_blocks.0.attn.add_q_proj.weight"), "ControlNet of Qwen-Image"),
    "DiffSynth": (only("controlnet_blocks.0.y_rms.weight", "img_in.weight"), "model patch of Qwen-Image"),
    "Mage-Flow": (mage_flow, "takes 128 values for a token, as Mage-Flow does"),
}


@pytest.mark.parametrize("file", REFUSED)
def test_relatives_are_refused_by_their_names(plain, tmp_path, file):
    change, words = REFUSED[file]
    with pytest.raises(CheckpointError, match=words) as refused:
        load(write(change(plain), tmp_path / "wrong.safetensors"))
    told = str(refused.value)
    assert told.startswith("wrong.safetensors") and "\n" not in told and len(told) < 400
