"""What core's own nodes make of a MODEL of Qwen-Image 1.x, whose modulation ComfyUI does not count: saved, merged,
subtracted, and changed by hooks in the middle of a run, it has its modulation."""
import json

import pytest
import safetensors.torch
import torch

from qwen_image_2.messages import Refusal
from qwen_image_2.tests import reference_1
from qwen_image_2.tests.model.qwen_image_1.test_transformer import inputs
from qwen_image_2.tests.nodes.bridge import test_core_saves as core_saves
from qwen_image_2.tests.nodes.bridge.quant import test_qwen_image_1_files as files
from qwen_image_2.tests.nodes.bridge.quant.test_formats import assert_same_tensors, rounding
from qwen_image_2.tests.nodes.bridge.test_qwen_image_1 import MARK, load
from qwen_image_2.tests.reference import error
from qwen_image_2.tools import tiny

pytestmark = pytest.mark.usefixtures("as_comfyui_runs_nodes")
output, saved = core_saves.output, core_saves.saved
MATRICES = ("img_in.weight", "transformer_blocks.0.attn.to_q.weight", "transformer_blocks.1.txt_mod.1.weight")


@pytest.fixture(scope="module")
def plain():
    return reference_1.transformer().state_dict()


def write(folder, state, name="model.safetensors"):
    tiny.save_as_they_are(state, folder / name)
    return folder / name


def with_differences(patcher, *names: str):
    """A clone with a difference on each of these parameters, drawn with a seed, and those differences."""
    import comfy.utils
    generator, network = torch.Generator().manual_seed(7), patcher.model.diffusion_model
    changes = {name: 0.1 * torch.randn(comfy.utils.get_attr(network, name).shape, generator=generator)
               for name in names}
    clone = patcher.clone()
    assert clone.add_patches({f"diffusion_model.{name}": ("diff", (change,)) for name, change in changes.items()})
    return clone, changes


@pytest.mark.parametrize("weight_format", ["as stored", "fp8", "int8 (ConvRot)", "4-bit (nvfp4)"])
def test_a_model_that_core_saves(output, tmp_path, plain, weight_format):
    patcher = load(write(tmp_path, plain), weight_format=weight_format)
    path = saved(output, "ModelSave", model=patcher)
    again = load(path)
    assert {f"model.diffusion_model.{name}" for name in plain} <= safetensors.torch.load_file(path).keys()
    assert_same_tensors(again.model.diffusion_model.state_dict(), patcher.model.diffusion_model.state_dict())
    assert error(files.velocity(again), files.velocity(patcher)) < rounding(weight_format)


@pytest.mark.parametrize("weight_format", ["as stored", "int8 (ConvRot)"])
def test_loras_on_modulation_are_in_the_file(output, tmp_path, plain, weight_format):
    patcher = load(write(tmp_path, plain), weight_format=weight_format)
    changed, _ = with_differences(patcher, *MATRICES, files.MODULATION + ".bias")
    again = load(saved(output, "ModelSave", model=changed))
    bound = 1e-5 if weight_format == "as stored" else 0.02
    assert error(files.velocity(again), files.velocity(changed)) < bound
    assert bound < error(files.velocity(patcher), files.velocity(changed))


@pytest.mark.parametrize("changed", [False, True], ids=["as it is", "with LoRAs"])
@pytest.mark.parametrize("weight_format", ["fp8", "int8 (ConvRot)", "4-bit (nvfp4)"])
def test_quantized_layers_that_core_has_not_loaded(output, tmp_path, plain, monkeypatch, weight_format, changed):
    """As with dynamic VRAM, where core (0.30) makes parameters of them, which integers cannot be."""
    import comfy.model_management
    patcher = load(write(tmp_path, plain), weight_format=weight_format)
    if changed:
        layer = "transformer_blocks.0.attn.to_q"
        patcher, _ = with_differences(patcher, *MATRICES, f"{layer}.bias", f"{files.MODULATION}.bias")
    with monkeypatch.context() as patched:
        patched.setattr(comfy.model_management, "load_models_gpu", lambda *args, **more: None)
        again = load(saved(output, "ModelSave", model=patcher))
    assert not any(hasattr(layer, "comfy_patched_weights") for layer in patcher.model.modules())
    if not changed:
        assert_same_tensors(again.model.diffusion_model.state_dict(), patcher.model.diffusion_model.state_dict())
    bound = {"4-bit (nvfp4)": 0.2}.get(weight_format, 0.05)
    assert error(files.velocity(again), files.velocity(patcher)) < bound


def test_that_references_are_modulated_at_zero_is_in_the_file(output, tmp_path, plain):
    """By the mark that ComfyUI knows too, whoever has said it: a mark, the file's name, the variant, a configuration.
    """
    zero, told = plain | {MARK: torch.empty(0)}, {"config": json.dumps({"zero_cond_t": True})}
    marked, named, bare = (write(tmp_path, *file) for file in (
        (zero, "marked.safetensors"), (plain, "qwen_image_edit_2511.safetensors"), (plain, "bare.safetensors")))
    tiny.save_as_they_are(plain, tmp_path / "told.safetensors", told)
    for path, variant, found in ((marked, "auto", True), (named, "auto", True), (bare, "edit 2511", True),
                                 (bare, "auto", False), (marked, "base", False),
                                 (tmp_path / "told.safetensors", "auto", True),
                                 (tmp_path / "told.safetensors", "base", False)):
        patcher = load(path, variant)
        for number, written in enumerate((saved(output, "ModelSave", model=patcher),
                                          files.saved(output / "ours.safetensors", patcher))):
            again = load(written.rename(tmp_path / f"again_{number}.safetensors"))
            assert again.model.spec.zero_cond_t == found and again.model.variant == patcher.model.variant
            assert again.model.needed_config == {}
            assert error(files.velocity(again), files.velocity(patcher)) < 1e-6


def test_ggufs_blocks_are_refused(output, tmp_path, plain):
    path, _ = files.write_gguf(tmp_path / "model.gguf", plain, files.all_in(plain, "Q4_K"))
    with pytest.raises(Refusal, match="its weights are still GGUF"):
        saved(output, "ModelSave", model=load(path))


# ---------------------------------------------------------------- merging

@pytest.mark.parametrize("ratio", [0.0, 0.3])
def test_two_models_are_merged_with_their_modulation(output, tmp_path, plain, ratio):
    from comfy_extras.nodes_model_merging import ModelMergeSimple
    other = reference_1.transformer(seed=9).state_dict()
    first, second = load(write(tmp_path, plain)), load(write(tmp_path, other, "other.safetensors"))
    merged, = ModelMergeSimple().merge(first, second, ratio)
    mixed = {name: ratio * value + (1 - ratio) * other[name] for name, value in plain.items()}
    expected = files.velocity(load(write(tmp_path, mixed, "mixed.safetensors")))
    assert error(files.velocity(merged), expected) < 1e-4 < error(files.velocity(first), expected)
    again = load(saved(output, "ModelSave", model=merged))
    assert error(files.velocity(again), expected) < 1e-4


@pytest.mark.parametrize("node", ["ModelMergeSimple", "ModelSubtract"])
@pytest.mark.parametrize("name", ["int8 ConvRot", "GGUF"])
def test_quantized_models_are_not_merged(tmp_path, plain, name, node):
    from comfy_extras import nodes_model_merging as core
    if name == "GGUF":
        path, _ = files.write_gguf(tmp_path / "model.gguf", plain, files.all_in(plain, "Q4_K"))
    else:
        path = write(tmp_path, files.quantize(plain, name)[0])
    patcher = load(path)
    with pytest.raises(Refusal, match="Nodes that merge or subtract models need unquantized weights"):
        getattr(core, node)().merge(patcher, with_differences(patcher, "img_in.bias")[0], 0.5)


# ---------------------------------------------------------------- hooks

def run(patcher, hooks=None, steps: int = 4) -> torch.Tensor:
    """What core's Euler samples."""
    import comfy.sample
    import comfy.samplers
    x, condition = inputs(1, (6, 10), ())
    return comfy.sample.sample_custom(
        patcher, x, 1.0, comfy.samplers.sampler_object("euler"), torch.linspace(1, 0, steps + 1),
        [[condition.text, {"hooks": hooks} if hooks else {}]], [[condition.text, {}]], torch.zeros_like(x), seed=0)


def hook_lora(plain, *strengths: float):
    """A LoRA hook on modulation alone, as Create Hook LoRA makes it; strengths: of equal parts of the run."""
    import comfy.hooks
    generator = torch.Generator().manual_seed(4)
    name = f"diffusion_model.{files.MODULATION}"
    state = {f"{name}.lora_B.weight": torch.randn(1536, 4, generator=generator) * 0.3,
             f"{name}.lora_A.weight": torch.randn(4, 256, generator=generator) * 0.3}
    hooks = comfy.hooks.create_hook_lora(state, 1.0, 0.0)
    frames = comfy.hooks.HookKeyframeGroup()
    for number, strength in enumerate(strengths):
        frames.add(comfy.hooks.HookKeyframe(strength, number / len(strengths)))
    hooks.set_keyframes_on_hooks(frames)
    return hooks, state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"]


def test_a_hook_changes_the_table_in_the_middle_of_a_run(comfyui, tmp_path, plain):
    """At full strength from the second half on. The table of the first steps would say otherwise, and so would one that
    was evaluated for all sigmas at the first."""
    key = f"{files.MODULATION}.weight"
    patcher = load(write(tmp_path, plain))
    hooks, change = hook_lora(plain, 1.0)
    merged = load(write(tmp_path, plain | {key: plain[key] + change}, "merged.safetensors"))
    before, full = run(patcher), run(merged)
    assert error(run(patcher, hooks), full) < 1e-4 < error(before, full)
    half = run(patcher, hook_lora(plain, 0.0, 1.0)[0])
    assert min(error(half, before), error(half, full)) > 1e-3
    assert error(run(patcher), before) < 1e-5


@pytest.mark.parametrize("name", ["int8 ConvRot", "GGUF"])
def test_hooks_on_quantized_models_are_refused(comfyui, tmp_path, plain, name):
    """Of either family: core asks all layers for what is in the state dict alone."""
    if name == "GGUF":
        path, _ = files.write_gguf(tmp_path / "model.gguf", plain, files.all_in(plain, "Q8_0"))
    else:
        path = write(tmp_path, files.quantize(plain, name)[0])
    with pytest.raises(Refusal, match="need unquantized weights, and so do LoRA hooks"):
        run(load(path), hook_lora(plain, 1.0)[0])


def test_a_hook_in_the_middle_equals_two_runs(comfyui, tmp_path, plain):
    key = f"{files.MODULATION}.weight"
    patcher, (hooks, change) = load(write(tmp_path, plain)), hook_lora(plain, 0.0, 1.0)
    merged = load(write(tmp_path, plain | {key: plain[key] + change}, "merged.safetensors"))
    found = run(patcher, hooks)  # first: what steps have left in the table would hide that a run has evaluated it
    x, condition = inputs(1, (6, 10), ())
    sigmas = torch.linspace(1, 0, 5)
    begins = patcher.model.model_sampling.percent_to_sigma(0.5)
    places = [place for place, sigma in enumerate(sigmas[:-1]) if float(sigma) <= begins]
    states = []
    for number, sigma in enumerate(sigmas[:-1]):
        chosen = merged if number in places else patcher
        latent = x if number == 0 else states[-1]
        velocity = files.step(chosen, latent, condition, float(sigma))
        states.append(latent + (sigmas[number + 1] - sigma) * velocity)
    assert 0 < len(places) < 4
    assert error(found, patcher.model.process_latent_out(states[-1])) < 1e-4
