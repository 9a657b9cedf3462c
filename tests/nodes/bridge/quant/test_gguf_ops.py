"""Transformers in GGUF files: fused or split, prefix or none, with or without metadata."""
import itertools

import gguf
import numpy as np
import pytest
import safetensors.torch
import torch

from qwen_image_2.model.checkpoints import gguf as pack_gguf
from qwen_image_2.model.checkpoints.errors import CheckpointError
from qwen_image_2.model.qwen_image_2.transformer import Transformer
from qwen_image_2.tests.nodes.bridge.quant import test_formats as files
from qwen_image_2.tests.nodes.bridge.runtime import runs
from qwen_image_2.tests.reference import error
from qwen_image_2.tools import tiny

PREFIX = "model.diffusion_model."


@pytest.fixture(scope="module")
def plain():
    return tiny.randomise(tiny.shapes(Transformer(files.SPEC)), 5)


def pack(matrix: torch.Tensor, kind: str) -> np.ndarray:
    """Packed rows near a matrix. The package packs no K type: a scale for each block, 4 to 6 bits, no minima."""
    if kind in ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"):
        return gguf.quants.quantize(matrix.numpy(), gguf.GGMLQuantizationType[kind])
    bits = {"Q4_K": 4, "Q5_K": 5, "Q6_K": 6}[kind]
    values = matrix.reshape(-1, 256).numpy()
    largest, half = np.abs(values).max(1, keepdims=True), 2 ** (bits - 1)
    step = (largest / (half - 1)).astype(np.float16)
    q = (np.round(values / step) + half).clip(0, 2 ** bits - 1).astype(np.uint8)
    low, high = q & 15, q >> 4
    if kind == "Q6_K":
        low = low.reshape(-1, 2, 2, 64)
        high = high.reshape(-1, 2, 4, 32)
        packed_high = sum(high[:, :, i] << np.uint8(2 * i) for i in range(4)).reshape(len(q), -1)
        ones = np.ones((len(q), 16), np.uint8)
        parts = [(low[:, :, 0] | low[:, :, 1] << np.uint8(4)).reshape(len(q), -1), packed_high, ones,
                 step.view(np.uint8)]
    else:
        low = low.reshape(-1, 4, 2, 32)
        nibbles = (low[:, :, 0] | low[:, :, 1] << np.uint8(4)).reshape(len(q), -1)
        fifth = high.reshape(-1, 8, 32)
        fifth = [sum(fifth[:, i] << np.uint8(i) for i in range(8))] if kind == "Q5_K" else []
        # Scales 1 and minima `half` in six bits each: the last four bytes hold the lower bits of the last four pairs.
        head = np.array([1] * 4 + [half] * 4 + [1 | (half & 15) << 4] * 4, np.uint8)
        head[4:8] |= (half >> 4) << 6
        parts = [step.view(np.uint8), step.view(np.uint8), np.tile(head, (len(q), 1)), *fifth, nibbles]
    return np.concatenate(parts, 1).reshape(len(matrix), -1)


def random_blocks(matrix: torch.Tensor, kind: str) -> np.ndarray:
    """Blocks of any values for a matrix, about as large as its own."""
    block, rng = pack_gguf.BLOCKS[kind], np.random.default_rng(matrix.numel())
    data = rng.integers(0, 256, (matrix.numel() // block.values, block.bytes), dtype=np.uint8)
    for scale in (1.0, None):  # decoded with a scale of one first, to see how large the values are
        if scale is None:
            values = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])
            scale = matrix.std().item() / values.std()
        for place in block.halves:
            data[:, place:place + 2] = np.array([scale], np.float16).view(np.uint8)
    return data.reshape(len(matrix), -1)


def write(path, state: dict, kind: str, metadata: bool = True):
    """A file as publishers write it: matrices of the blocks packed, the rest in fp32 or bf16."""
    blocks = {name: pack(value, kind) for name, value in state.items()
              if "transformer_blocks" in name and value.ndim == 2}
    return write_blocks(path, state, blocks, dict.fromkeys(blocks, kind), "qwen_image21" if metadata else "")


def write_blocks(path, state: dict, blocks: dict, kinds: dict[str, str], architecture: str = "qwen_image21", *,
                 shapes: dict | None = None):
    """A file of these tensors, of which some are packed: their blocks, and the type of each. shapes: those that the
    metadata tells of."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, shape in (shapes or {}).items():
        writer.add_array(f"comfy.gguf.orig_shape.{name}", list(shape))
    for name, value in state.items():
        if name in blocks:
            writer.add_tensor(name, blocks[name], raw_dtype=gguf.GGMLQuantizationType[kinds[name]])
        else:
            writer.add_tensor(name, value.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rounded(state: dict, kind: str) -> dict:
    return {name: pack_gguf.dequantize(torch.from_numpy(pack(value, kind)), kind)
            if "transformer_blocks" in name and value.ndim == 2 else value for name, value in state.items()}


# What is left of a random matrix's values; the packing above is simple.
BOUNDS = {"Q8_0": 0.02, "Q6_K": 0.1, "Q5_K": 0.2, "Q4_K": 0.35, "Q4_0": 0.3, "Q5_1": 0.2, "Q5_0": 0.2, "Q4_1": 0.3}


@pytest.mark.parametrize("kind", BOUNDS)
@pytest.mark.parametrize("fused, prefix, metadata", [(True, "", True), (False, PREFIX, False)])
def test_every_type_computes_what_its_blocks_say(comfyui, plain, tmp_path, kind, fused, prefix, metadata):
    state = plain if fused else tiny.to_diffusers_transformer(plain)
    path = write(tmp_path / "model.gguf", {prefix + name: value for name, value in state.items()}, kind, metadata)
    model = files.load(path)
    assert type(model.transformer_blocks[0].attn.to_q.weight.data).__name__ == "QuantizedTensor"
    found = files.velocity(model)
    assert error(found, files.expected(rounded(plain, kind))) < 1e-4
    assert 1e-4 < error(found, files.expected(plain)) < BOUNDS[kind]


@pytest.mark.parametrize("weight_format", ["as stored", "fp32", "int8 (ConvRot)"])
def test_halves_of_two_types_stay_two_matrices(comfyui, plain, tmp_path, weight_format):
    """In one block only: the network has one form for all."""
    state = tiny.to_diffusers_transformer(plain)
    kinds = {name: "Q5_1" if name == "transformer_blocks.1.img_mlp.proj.weight" else "Q8_0"
             for name, value in state.items() if "transformer_blocks" in name and value.ndim == 2}
    path = write_blocks(tmp_path / "mixed.gguf", state, {name: pack(state[name], kind) for name, kind in kinds.items()},
                        kinds)
    model = files.load(path, weight_format=weight_format)
    decoded = tiny.to_comfy_transformer({
        name: pack_gguf.dequantize(torch.from_numpy(pack(value, kinds[name])), kinds[name]) if name in kinds else value
        for name, value in state.items()})
    assert not model.spec.fused_mlp
    assert error(files.velocity(model), files.expected(decoded)) < (0.02 if "int8" in weight_format else 1e-4)


def test_the_usual_types_are_decoded_in_one_pass_where_a_kernel_runs(comfyui, monkeypatch):
    """The others by PyTorch's operations; and what a kernel is compared on are finite blocks of its own type."""
    from qwen_image_2.nodes.bridge.quant import gguf_ops
    taken = []
    monkeypatch.setattr(gguf_ops, "decode_in_one_pass",
                        lambda *args: taken.append(args[1]) or gguf_ops.plain_decode(*args))
    for kind in pack_gguf.BLOCKS:
        example = gguf_ops.few_blocks(torch.empty(0), kind, torch.bfloat16)
        params = gguf_ops.BlockLayout.Params(torch.bfloat16, (), kind)
        found = gguf_ops.BlockLayout.dequantize(example[0], params)
        assert found.dtype == torch.bfloat16 and found.isfinite().all() and found.unique().numel() > 10
    assert sorted(taken) == sorted(gguf_ops.WITH_KERNEL)


def test_a_mix_of_all_types_computes_what_its_blocks_say(comfyui, plain, tmp_path):
    """As publishers mix them: one tensor of a type that is not read would refuse the whole file. The package cannot
    pack most of them, so the blocks are random, with scales that make their values as large as those of weights."""
    state, kinds = plain, itertools.cycle(pack_gguf.BLOCKS)
    matrices = {name: next(kinds) for name, value in state.items() if "transformer_blocks" in name and value.ndim == 2}
    assert set(matrices.values()) == set(pack_gguf.BLOCKS)
    blocks = {name: random_blocks(state[name], kind) for name, kind in matrices.items()}
    path = write_blocks(tmp_path / "model.gguf", state, blocks, matrices)
    decoded = {name: torch.from_numpy(gguf.quants.dequantize(data, gguf.GGMLQuantizationType[matrices[name]]))
               for name, data in blocks.items()}
    assert error(files.velocity(files.load(path)), files.expected(state | decoded)) < 1e-4


def test_matrices_of_other_rows_have_their_original_shape(comfyui, plain, tmp_path):
    """What lies around the blocks as city96's converter writes it: rows of 256 values, the shape in the metadata."""
    state = plain
    names = [name for name, value in state.items() if value.ndim == 2 and value.shape[1] % 256]
    assert names
    folded = {name: state[name].reshape(-1, 256) for name in names}
    blocks = {name: random_blocks(value, "Q5_K") for name, value in folded.items()}
    shapes = {name: state[name].shape for name in names}
    path = write_blocks(tmp_path / "model.gguf", state, blocks, dict.fromkeys(blocks, "Q5_K"), shapes=shapes)
    decoded = {name: pack_gguf.dequantize(torch.from_numpy(data), "Q5_K").view(shapes[name])
               for name, data in blocks.items()}
    assert error(files.velocity(files.load(path)), files.expected(state | decoded)) < 1e-5


def with_norms_in_fp32(path, state: dict, packed: bool):
    """Norms in fp32 beside matrices of BF16, and blocks if wanted. Returns the file, and what it says."""
    kinds = {name: "Q8_0" if packed and "transformer_blocks" in name else "BF16"
             for name, value in state.items() if value.ndim == 2}
    types = {name: gguf.GGMLQuantizationType[kind] for name, kind in kinds.items()}
    blocks = {name: gguf.quants.quantize(state[name].numpy(), kind) for name, kind in types.items()}
    decoded = {name: torch.from_numpy(gguf.quants.dequantize(data, types[name])) for name, data in blocks.items()}
    return write_blocks(path, state, blocks, kinds), state | decoded


@pytest.mark.parametrize("packed", [False, True])
def test_norms_keep_fp32_beside_bf16(comfyui, plain, tmp_path, monkeypatch, packed):
    """As on a card, where the network computes in bf16 and core would choose layers that do not cast."""
    import comfy.model_management
    monkeypatch.setattr(comfy.model_management, "unet_manual_cast", lambda *arguments, **options: None)
    path, state = with_norms_in_fp32(tmp_path / "model.gguf", plain, packed)
    model = files.load(path)
    norms = {name: value for name, value in state.items() if value.ndim == 1}
    assert norms and not all(torch.equal(value, value.bfloat16().float()) for value in norms.values())
    for name, value in norms.items():
        assert torch.equal(model.get_parameter(name), value) and model.get_parameter(name).dtype == torch.float32
    assert model.dtype == torch.bfloat16
    assert error(files.velocity(model), files.expected(state)) < 1e-5
    found = files.velocity(model, torch.bfloat16)
    same = files.velocity(files.load(path, weight_format="bf16"), torch.bfloat16)
    assert found.dtype == torch.bfloat16
    assert error(found.float(), same.float()) < error(same.float(), files.expected(state))


@pytest.mark.parametrize("lora", [False, True])
def test_norms_are_saved_in_the_dtype_that_they_are_kept_in(comfyui, plain, tmp_path, lora):
    from qwen_image_2.nodes.bridge.loading import diffusion_network, load_model
    from qwen_image_2.nodes.bridge.quant import quantize
    path, state = with_norms_in_fp32(tmp_path / "model.gguf", plain, packed=False)
    model = load_model(path, path.name, "base")
    model = runs.with_lora(model, "img_in.weight") if lora else model
    quantize.save(tmp_path / "saved.safetensors", diffusion_network(model), lambda done, total: None)
    saved = safetensors.torch.load_file(tmp_path / "saved.safetensors")
    assert saved.keys() == state.keys()
    for name, value in state.items():
        assert saved[name].dtype == (torch.bfloat16 if value.ndim == 2 else torch.float32)
        assert torch.equal(saved[name].float(), value) != (lora and name == "img_in.weight")


def test_norms_become_what_is_asked_for(comfyui, plain, tmp_path):
    path, _ = with_norms_in_fp32(tmp_path / "model.gguf", plain, packed=False)
    assert {value.dtype for value in files.load(path, weight_format="bf16").parameters()} == {torch.bfloat16}


def test_a_gguf_file_can_become_another_format(comfyui, plain, tmp_path):
    state = plain
    path = write(tmp_path / "model.gguf", state, "Q8_0")
    wanted = files.expected(rounded(state, "Q8_0"))
    assert error(files.velocity(files.load(path, weight_format="fp32")), wanted) < 1e-5
    assert 1e-4 < error(files.velocity(files.load(path, weight_format="int8 (ConvRot)")), wanted) < 0.02


@pytest.mark.parametrize("weight_format", ["as stored", "bf16", "fp8"])
def test_damage_in_blocks_is_named(comfyui, plain, tmp_path, weight_format):
    from qwen_image_2.nodes.bridge.loading import load_model
    name, state = "transformer_blocks.1.attn.to_v.weight", plain
    path = write(tmp_path / "nan.gguf", state, "Q8_0")
    content = path.read_bytes()
    blocks = pack(state[name], "Q8_0").tobytes()
    assert content.count(blocks) == 1
    path.write_bytes(content.replace(blocks, blocks[:34] + b"\0\x7e" + blocks[36:]))
    with pytest.raises(CheckpointError, match=f"^nan.gguf is damaged: tensor {name} contains NaN or infinite values"):
        load_model(path, "nan.gguf", "base", weight_format)


def test_loras_reach_packed_matrices(comfyui, plain, tmp_path):
    import comfy.model_management

    from qwen_image_2.nodes.bridge.loading import load_model
    state = plain
    model = load_model(write(tmp_path / "model.gguf", state, "Q4_K"), "model.gguf", "base").clone()
    name = "transformer_blocks.1.attn.to_q.weight"
    change = torch.randn(256, 256) * 0.05
    model.add_patches({f"diffusion_model.{name}": ("diff", (change,))}, 1.0)
    comfy.model_management.load_models_gpu([model])
    patched = rounded(state, "Q4_K")
    patched[name] = patched[name] + change
    assert error(files.velocity(model.model.diffusion_model), files.expected(patched)) < 0.01
    model.unpatch_model()
    assert error(files.velocity(model.model.diffusion_model), files.expected(rounded(state, "Q4_K"))) < 1e-4


def as_dynamic(module, patch):
    """A layer as ComfyUI's dynamic patcher leaves it when its weight has just come to the card, to be used."""
    import comfy.memory_management
    module.seed_key, module.weight_lowvram_function, module.weight_function = "weight", patch, []
    geometry = comfy.memory_management.tensors_to_geometries([module.weight, module.bias])
    on_card = torch.zeros(comfy.memory_management.vram_aligned_size(geometry), dtype=torch.uint8)
    on_card[:module.weight._qdata.nbytes] = module.weight._qdata.flatten()
    module._prefetch = {"signature": "of its place", "resident": False, "xfer_dest": on_card, "cast_dest": None,
                        "cast_geometry": geometry, "needs_cast": False}


def test_the_dynamic_patcher_merges_no_lora_into_packed_matrices(comfyui, plain, tmp_path):
    """Nobody's tests have a card: the one function of core's that merges is called by itself."""
    import comfy.ops
    from comfy.model_patcher import LowVramPatch
    from comfy.patcher_extension import CallbacksMP

    from qwen_image_2.nodes.bridge.loading import load_model
    model = load_model(write(tmp_path / "m.gguf", plain, "Q4_K"), "m.gguf", "base")
    layer = model.model.diffusion_model.transformer_blocks[1].attn.to_q
    key, change = "diffusion_model.transformer_blocks.1.attn.to_q.weight", torch.randn(256, 256) * 0.05
    patch = LowVramPatch(key, {key: [(1.0, ("diff", (change,)), 1.0, None, None)]})
    as_dynamic(layer, patch)
    with pytest.raises(RuntimeError, match="size of tensor"):  # else core has changed, and patch_in_use can go
        comfy.ops.resolve_cast_module_with_vbar(layer, torch.float32, None, None, None, False)
    as_dynamic(layer, patch)
    for callback in model.get_all_callbacks(CallbacksMP.ON_LOAD):
        callback(model, model.load_device, 0, False, False)
    for _ in range(2):  # the second time its blocks lie on the card
        weight, _ = comfy.ops.resolve_cast_module_with_vbar(layer, torch.float32, None, None, None, False)
        assert torch.allclose(weight, layer.weight.dequantize() + change, atol=1e-6)


def test_packed_blocks_stream(comfyui, plain, tmp_path):
    from qwen_image_2.nodes.bridge.loading import load_model
    from qwen_image_2.nodes.bridge.runtime.budget import BudgetPatcher
    model = load_model(write(tmp_path / "m.gguf", plain, "Q4_K"), "m.gguf", "base")
    network = model.model.diffusion_model
    expected = files.velocity(network)
    budgeted = BudgetPatcher.of(model, float("inf"))
    budgeted.partially_load(budgeted.load_device, 1e32)
    while len(budgeted.plan.streamed) < len(network.transformer_blocks):
        budgeted.halve()
    # What is not packed lies at multiples of 32 bytes in the file, and of 256 in a buffer.
    assert error(files.velocity(network), expected) < 1e-6
    budgeted.detach()


def test_a_lora_makes_no_packed_matrix_larger_than_the_budget_knows(comfyui, plain, tmp_path):
    from qwen_image_2.nodes.bridge.loading import load_model
    from qwen_image_2.nodes.bridge.runtime.budget import BudgetPatcher, costs
    state = plain
    model = load_model(write(tmp_path / "m.gguf", state, "Q4_K"), "m.gguf", "base")
    name, change = "transformer_blocks.1.attn.to_q.weight", torch.randn(256, 256) * 0.05
    budgeted = BudgetPatcher.of(model, float("inf"))
    budgeted.add_patches({f"diffusion_model.{name}": ("diff", (change,))}, 1.0)
    budgeted.partially_load(budgeted.load_device, 1e32)
    assert model.model.diffusion_model.get_parameter(name)._qdata.nbytes == 256 * 144
    assert list(costs(model.model)) == [
        "LoRA-patched GGUF weights are re-patched every time they are used (weights: 1)."]
    patched = rounded(state, "Q4_K")
    assert error(files.velocity(model.model.diffusion_model), files.expected(patched | {name: patched[name] + change}
                                                                             )) < 1e-4
    budgeted.detach()


def test_a_file_of_another_architecture_is_refused(comfyui, tmp_path):
    path = write(tmp_path / "flux.gguf", {"double_blocks.0.img_attn.qkv.weight": torch.zeros(4, 32)}, "Q8_0")
    with pytest.raises(CheckpointError, match=r"flux.gguf is a Flux model, not a transformer for Qwen-Image 2"):
        files.load(path)


@pytest.mark.parametrize("name, words", [
    ("blk.0.attn_norm.weight", "a language model in llama.cpp format"),
    ("v.patch_embd.weight", "the vision projector of a language model")])
def test_llama_cpps_files_are_no_transformers(comfyui, tmp_path, name, words):
    path = write(tmp_path / "llm.gguf", {"token_embd.weight": torch.zeros(4, 32), name: torch.zeros(32)}, "Q8_0")
    with pytest.raises(CheckpointError, match=f"^llm.gguf is {words}, not a transformer for Qwen-Image 2: choose the"):
        files.load(path)


def test_types_that_are_not_read_are_named(comfyui, plain, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "iq.gguf", "qwen_image21")
    for name, value in plain.items():
        if name.endswith("block.attn.to_q.weight") or name == "transformer_blocks.0.attn.to_q.weight":
            writer.add_tensor(name, np.zeros((256, 110), np.uint8), raw_dtype=gguf.GGMLQuantizationType.IQ3_S)
        else:
            writer.add_tensor(name, value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"to_q.weight has the GGUF type IQ3_S, which is not supported \(Q8_0"):
        files.load(tmp_path / "iq.gguf")


def test_sizes_are_those_of_the_packed_file(comfyui, plain, tmp_path):
    import comfy.model_management

    from qwen_image_2.nodes.bridge.loading import load_model
    model = load_model(write(tmp_path / "m.gguf", plain, "Q4_K"), "m.gguf", "base")
    inner = sum(value.numel() for name, value in plain.items() if "transformer_blocks" in name and value.ndim == 2)
    rest = sum(value.numel() for value in plain.values()) - inner
    size = comfy.model_management.module_size(model.model.diffusion_model)
    assert size == pytest.approx(inner * 144 / 256 + rest * 4, rel=0.01)
    assert model.model.weights == "GGUF Q4_K, dequantized layer by layer (no hardware support for this format)"


def test_the_loaders_offer_gguf_files(comfyui, plain, tmp_path, monkeypatch):
    import folder_paths

    from qwen_image_2.nodes.bridge.files import folders
    (tmp_path / "below").mkdir()
    path = write(tmp_path / "below" / "model.gguf", plain, "Q8_0")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", ([str(tmp_path)], {".safetensors"}))
    assert "below/model.gguf" in folders.choices(folders.TRANSFORMER)
    assert folders.resolve(folders.TRANSFORMER, "below/model.gguf") == path
    assert "below/model.gguf" not in folder_paths.get_filename_list("diffusion_models")


