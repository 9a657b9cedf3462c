"""LoRAs on Qwen-Image 1.x as trainers and distillers write them, by the pack's loader and by core's: the velocity is
that of a file with the same change in its weights."""
import pytest
import safetensors.torch
import torch

from qwen_image_2.model.checkpoints.errors import CheckpointError
from qwen_image_2.model.checkpoints.lora import LoraError
from qwen_image_2.tests import reference_1
from qwen_image_2.tests.nodes.bridge import test_core_saves as core_saves
from qwen_image_2.tests.nodes.bridge.quant import test_qwen_image_1_files as files
from qwen_image_2.tests.nodes.bridge.test_core_saves_1 import MATRICES, with_differences, write
from qwen_image_2.tests.nodes.bridge.test_qwen_image_1 import load
from qwen_image_2.tests.reference import error

pytestmark = pytest.mark.usefixtures("as_comfyui_runs_nodes")
output = core_saves.output

BLOCK = "transformer_blocks.1"
# The twelve that Lightning adapts are those of a block that are no modulation.
LIGHTNING = tuple(f"{BLOCK}.{name}" for name in (
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj",
    "attn.to_add_out", "img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2"))
TOP = ("img_in", "txt_in", "proj_out", "norm_out.linear", "time_text_embed.timestep_embedder.linear_1")
ALL = (*LIGHTNING, f"{BLOCK}.img_mod.1", f"{BLOCK}.txt_mod.1", *TOP)


@pytest.fixture(scope="module")
def plain():
    return reference_1.transformer().state_dict()


@pytest.fixture
def model(comfyui, tmp_path, plain):
    return load(write(tmp_path, plain))


def pairs(plain, modules=ALL) -> dict:
    """Module -> up and down of rank 4."""
    generator = torch.Generator().manual_seed(11)
    return {module: (0.2 * torch.randn(plain[f"{module}.weight"].shape[0], 4, generator=generator),
                     0.2 * torch.randn(4, plain[f"{module}.weight"].shape[1], generator=generator))
            for module in modules}


def flat(module: str) -> str:
    return module.replace(".", "_")


# What names a module, what its two matrices, the alpha, and the modules that the form is for.
FORMS = {
    "Lightning": (str, ("lora_up.weight", "lora_down.weight"), 8.0, LIGHTNING),
    "DiffSynth": (str, ("lora_B.default.weight", "lora_A.default.weight"), None, ALL),
    "musubi": (lambda module: f"lora_unet_{flat(module)}", ("lora_up.weight", "lora_down.weight"), 2.0, ALL),
    "ai-toolkit": (lambda module: f"diffusion_model.{module}", ("lora_B.weight", "lora_A.weight"), None, ALL),
    "diffusers": (lambda module: f"transformer.{module}", ("lora_B.weight", "lora_A.weight"), None, ALL),
    "OneTrainer": (lambda module: f"lora_transformer_{flat(module)}", ("lora_up.weight", "lora_down.weight"), 4.0, ALL),
    "SimpleTuner": (lambda module: f"lycoris_{flat(module)}", ("lora_up.weight", "lora_down.weight"), 4.0, ALL),
}


def in_form(form: str, plain) -> tuple[dict, dict]:
    """A file, and the weights with it at full strength."""
    name, (up_name, down_name), alpha, modules = FORMS[form]
    tensors, changed = {}, dict(plain)
    for module, (up, down) in pairs(plain, modules).items():
        tensors |= {f"{name(module)}.{up_name}": up, f"{name(module)}.{down_name}": down}
        if alpha is not None:
            tensors[f"{name(module)}.alpha"] = torch.tensor(alpha)
        changed[f"{module}.weight"] = plain[f"{module}.weight"] + (1 if alpha is None else alpha / 4) * up @ down
    return tensors, changed


def lora_file(folder, tensors):
    safetensors.torch.save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "lora.safetensors")
    return folder / "lora.safetensors"


def by_our_loader(model, folder, tensors, strength=1.0):
    from qwen_image_2.nodes.bridge.lora import apply
    path = lora_file(folder, tensors)
    return apply(model, path, path.name, strength)


def by_cores_loader(model, folder, tensors, monkeypatch):
    import folder_paths

    import nodes
    path = lora_file(folder, tensors)
    monkeypatch.setattr(folder_paths, "get_full_path_or_raise", lambda *names: str(path))
    changed, = nodes.LoraLoaderModelOnly().load_lora_model_only(model, path.name, 1.0)
    return changed


@pytest.mark.parametrize("form", FORMS)
def test_every_form_reaches_every_matrix(model, tmp_path, plain, form):
    tensors, changed = in_form(form, plain)
    applied = by_our_loader(model, tmp_path, tensors)
    assert applied.matrices == len(FORMS[form][3]) and applied.unused == []
    expected = files.velocity(load(write(tmp_path, changed, "changed.safetensors")))
    assert error(files.velocity(applied.model), expected) < 1e-4 < 1e-2 < error(files.velocity(model), expected)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "OneTrainer"])  # whose names core does not know
def test_cores_loader_reaches_the_same(model, tmp_path, plain, form, monkeypatch, caplog):
    tensors, changed = in_form(form, plain)
    found = files.velocity(by_cores_loader(model, tmp_path, tensors, monkeypatch))
    assert error(found, files.velocity(load(write(tmp_path, changed, "changed.safetensors")))) < 1e-4
    assert "not loaded" not in caplog.text.lower()


@pytest.mark.parametrize("name", ["diffusion_model.{}", "{}", "lora_unet_{}"])
@pytest.mark.parametrize("module", [f"{BLOCK}.attn.to_q", f"{BLOCK}.img_mod.1", "proj_out"])
def test_biases_are_adapted_too(model, tmp_path, plain, name, module, monkeypatch):
    """Every layer of this family has one; with an adapter of its matrix, and alone."""
    bias, (up, down) = torch.linspace(-1, 1, len(plain[f"{module}.bias"])), pairs(plain, [module])[module]
    named = name.format(flat(module) if name.endswith("_{}") else module)
    alone = {f"{named}.diff_b": bias}
    both = alone | {f"{named}.lora_up.weight": up, f"{named}.lora_down.weight": down}
    changed = plain | {f"{module}.bias": plain[f"{module}.bias"] + bias}
    for tensors, state in ((alone, changed), (both, changed | {f"{module}.weight": plain[f"{module}.weight"]
                                                               + up @ down})):
        expected = files.velocity(load(write(tmp_path, state, "changed.safetensors")))
        applied = by_our_loader(model, tmp_path, tensors)
        assert applied.unused == [] and applied.matrices == len(tensors) - (1 if len(tensors) > 1 else 0)
        assert error(files.velocity(applied.model), expected) < 1e-4 < error(files.velocity(model), expected)
        core = by_cores_loader(model, tmp_path, tensors, monkeypatch)
        assert error(files.velocity(core), expected) < 1e-4


def test_a_bias_of_another_length_is_refused(model, tmp_path):
    with pytest.raises(CheckpointError, match=r"to_q.bias: the LoRA gives \[300\], the model expects \[256\]"):
        by_our_loader(model, tmp_path, {f"diffusion_model.{BLOCK}.attn.to_q.diff_b": torch.ones(300)})


def test_a_bias_with_nan_is_refused_by_name(model, tmp_path):
    name = f"{BLOCK}.attn.to_q.diff_b"
    with pytest.raises(LoraError, match=rf"damaged: {name} contains NaN"):
        by_our_loader(model, tmp_path, {name: torch.full((256,), float("nan"))})


def test_two_loras_add_up(model, tmp_path, plain):
    """Lightning and a style, which may adapt modulation as well."""
    lightning, changed = in_form("Lightning", plain)
    style, _ = in_form("ai-toolkit", plain)
    both = by_our_loader(by_our_loader(model, tmp_path, lightning).model, tmp_path, style, 0.5).model
    for module, (up, down) in pairs(plain, ALL).items():
        changed[f"{module}.weight"] = changed[f"{module}.weight"] + 0.5 * up @ down
    expected = files.velocity(load(write(tmp_path, changed, "changed.safetensors")))
    assert error(files.velocity(both), expected) < 1e-4


@pytest.mark.parametrize("name", ["GGUF", "cast to fp8", "fp8 e4m3", "int8 ConvRot"])
def test_a_lora_beside_quantized_weights(tmp_path, plain, name):
    """Lightning on the files that most people have. On GGUF's blocks and on modulation it stays apart; ComfyUI merges
    it into the others, as it does for 2.x."""
    if name == "GGUF":
        path, said = files.write_gguf(tmp_path / "model.gguf", plain, files.all_in(plain, "Q8_0"))
    elif name == "cast to fp8":
        stored = {key: value.to(torch.float8_e4m3fn) for key, value in plain.items()}
        path, said = write(tmp_path, stored), {key: value.float() for key, value in stored.items()}
    else:
        stored, said = files.quantize(plain, name)
        path = write(tmp_path, stored)
    patcher = load(path)
    tensors, _ = in_form("DiffSynth", plain)
    for module, (up, down) in pairs(plain).items():
        said[f"{module}.weight"] = said[f"{module}.weight"] + up @ down
    before = files.velocity(patcher)
    found = files.velocity(by_our_loader(patcher, tmp_path, tensors).model)
    expected = files.velocity(load(write(tmp_path, said, "changed.safetensors")))
    assert error(found, expected) < 0.15 < 0.3 < error(before, expected)
    assert error(files.velocity(patcher), before) < 0.02


# ---------------------------------------------------------------- of the other family

@pytest.mark.parametrize("by", ["ours", "core"])
def test_a_lora_of_2x_is_refused_by_name(model, tmp_path, by, monkeypatch):
    from qwen_image_2.nodes.bridge.run_checks import check_lora_shapes
    tensors = {f"diffusion_model.{BLOCK}.attn.to_q.lora_A.weight": torch.zeros(4, 4096),
               f"diffusion_model.{BLOCK}.attn.to_q.lora_B.weight": torch.zeros(4096, 4)}
    with pytest.raises(CheckpointError, match=r"made for Qwen-Image 2\.x \(width 4096\)\.$"):
        if by == "ours":
            by_our_loader(model, tmp_path, tensors)
        else:
            check_lora_shapes(by_cores_loader(model, tmp_path, tensors, monkeypatch))


def test_a_lora_of_2x_on_its_mlp_alone_is_refused(model, tmp_path):
    name = f"diffusion_model.{BLOCK}.img_mlp.gate_up"
    with pytest.raises(LoraError, match=r"made for Qwen-Image 2\.x, but this model is Qwen-Image 1\.x"):
        by_our_loader(model, tmp_path, {f"{name}.lora_A.weight": torch.zeros(4, 4096),
                                        f"{name}.lora_B.weight": torch.zeros(24576, 4)})


def test_a_whole_transformer_is_no_lora(model, tmp_path, plain):
    with pytest.raises(LoraError, match="is not a LoRA but a whole transformer"):
        by_our_loader(model, tmp_path, plain)


def test_an_extracted_lora_has_the_modulation(output, tmp_path, plain):
    from comfy_extras.nodes_lora_extract import LoraSave
    from comfy_extras.nodes_model_merging import ModelSubtract

    from qwen_image_2.nodes.bridge.lora import apply
    patcher = load(write(tmp_path, plain))
    changed, _ = with_differences(patcher, *MATRICES)
    difference, = ModelSubtract().merge(changed, patcher, 1.0)
    LoraSave.execute("lora", 8, "full_diff", True, difference)
    path = core_saves.written(output, "lora")
    found = apply(patcher, path, path.name, 1.0)
    assert found.unused == []
    assert error(files.velocity(found.model), files.velocity(changed)) < 1e-3 < error(
        files.velocity(patcher), files.velocity(changed))


# ---------------------------------------------------------------- beside plain casts to fp8

def cast_to_fp8(plain) -> tuple[dict, dict]:
    """A file of them, and what its weights say."""
    stored = {key: value.to(torch.float8_e4m3fn) for key, value in plain.items()}
    return stored, {key: value.float() for key, value in stored.items()}


def small_pairs(plain) -> dict:
    """Module -> up and down of a LoRA that is smaller than most steps between fp8's numbers."""
    return {module: (up / 4, down / 4) for module, (up, down) in pairs(plain, LIGHTNING).items()}


@pytest.fixture
def on_fp8(comfyui, tmp_path, plain):
    """A MODEL of plain casts, the same with that LoRA, and the velocities of an fp32 and of a bf16 file with it."""
    stored, said = cast_to_fp8(plain)
    tensors = {}
    for module, (up, down) in small_pairs(plain).items():
        tensors |= {f"{module}.lora_up.weight": up, f"{module}.lora_down.weight": down}
        said[f"{module}.weight"] = said[f"{module}.weight"] + up @ down
    patcher = load(write(tmp_path, stored))
    expected = [files.velocity(load(write(tmp_path, state, "changed.safetensors")))
                for state in (said, files.in_bf16(said))]
    return patcher, by_our_loader(patcher, tmp_path, tensors).model, *expected


def test_a_small_lora_is_not_lost_in_fp8(on_fp8):
    """Merged into fp8, it would be 1.5 % off, where it changes 5 %."""
    base, adapted, exact, bf16 = on_fp8
    before, found = files.velocity(base), files.velocity(adapted)
    assert error(found, exact) < 1e-5 and error(found, bf16) < 1e-3 < 0.05 < error(before, exact)
    assert error(files.velocity(base), before) < 1e-6  # it leaves again
    files.velocity(adapted)
    adapted.partially_unload(torch.device("cpu"), 1e9)  # core adds a LoRA to what goes: it may not count twice
    assert error(files.velocity(adapted), found) < 1e-6


@pytest.mark.parametrize("budget", [0, float("inf")], ids=["streamed", "resident"])
def test_it_is_not_lost_under_a_budget(on_fp8, budget):
    from qwen_image_2.nodes.bridge.runtime.budget import BudgetPatcher, costs
    _, adapted, exact, _ = on_fp8
    budgeted = BudgetPatcher.of(adapted, budget)
    assert error(files.velocity(budgeted), exact) < 1e-5
    assert f"(weights: {len(LIGHTNING)})" in next(str(line) for line in costs(budgeted.model) if "fp8" in line)


def test_it_is_in_a_file_that_core_saves(output, on_fp8):
    """Merged there, since a file has no other place for it: rounded, but not missing, and no bias twice."""
    _, adapted, exact, _ = on_fp8
    bias = f"{BLOCK}.attn.to_q.bias"
    adapted.add_patches({f"diffusion_model.{bias}": ("diff", (torch.ones(256),))})
    expected = files.velocity(adapted)
    again = load(core_saves.saved(output, "ModelSave", model=adapted))
    assert error(files.velocity(again), expected) < 0.03 < error(expected, exact)
    assert any(layer.comfy_patched_weights for layer in adapted.model.modules()
               if hasattr(layer, "comfy_patched_weights"))
