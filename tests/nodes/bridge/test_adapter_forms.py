"""Files of few-step adapters as their publishers write them, at small size: what they do to the weights, what is said
of them, and what the sampler points out."""
import pytest
import safetensors.torch
import torch

from qwen_image_2.model.checkpoints import lora as lora_files
from qwen_image_2.model.checkpoints.few_step import recognized
from qwen_image_2.model.checkpoints.lora import LoraError
from qwen_image_2.model.qwen_image_1 import schedule as schedule_1
from qwen_image_2.model.qwen_image_2 import schedule as schedule_2
from qwen_image_2.tests.nodes.bridge.test_lora import draw
from qwen_image_2.tests.reference import error

pytestmark = pytest.mark.usefixtures("as_comfyui_runs_nodes")

BLOCK = "transformer_blocks.1"
QUERY, NORM, WIDTH = f"{BLOCK}.attn.to_q", f"{BLOCK}.attn.norm_q", 256
RANK = 4
PAIR = {f"{QUERY}.lora_A.weight": draw(RANK, WIDTH), f"{QUERY}.lora_B.weight": draw(WIDTH, RANK)}
CHANGE = PAIR[f"{QUERY}.lora_B.weight"] @ PAIR[f"{QUERY}.lora_A.weight"]
PRUNA = "p_qwen_image_2.1_8step_v0.1.safetensors"


def applied(model, folder, tensors: dict, name: str = "adapter.safetensors", strength: float = 1.0, metadata=None):
    from qwen_image_2.nodes.bridge.lora import apply
    safetensors.torch.save_file({key: value.clone() for key, value in tensors.items()}, folder / name, metadata)
    return apply(model, folder / name, name, strength)


def parameters(patcher, *names: str) -> list[torch.Tensor]:
    """Of the loaded network."""
    import comfy.model_management
    comfy.model_management.load_models_gpu([patcher])
    found = [patcher.model.diffusion_model.get_parameter(name).detach().clone() for name in names]
    patcher.detach()
    return found


def told(name: str, found) -> list[str]:
    from qwen_image_2.nodes.loras import in_words
    return [str(sentence) for sentence in in_words(name, found)]


# ---------------------------------------------------------------- forms

@pytest.mark.parametrize(("prefix", "strength"), [("", 1.0), ("transformer.", 0.25), ("base_model.model.", -1.0)])
def test_norms_beside_a_lora_are_replaced(model, tmp_path, prefix, strength):
    """VideoX-Fun writes norms as whole parameters beside its pairs. A strength goes a part of the way for both."""
    norm = torch.linspace(0.5, 2, len(parameters(model, f"{NORM}.weight")[0]))
    tensors = {prefix + name: value for name, value in {**PAIR, f"{NORM}.weight": norm}.items()}
    before = parameters(model, f"{NORM}.weight", f"{QUERY}.weight")
    found = applied(model, tmp_path, tensors, strength=strength)
    after = parameters(found.model, f"{NORM}.weight", f"{QUERY}.weight")
    assert error(after[0], before[0] + strength * (norm - before[0])) < 1e-6
    assert error(after[1], before[1] + strength * CHANGE) < 1e-5
    assert found.unused == [] and found.matrices == 2
    assert told("fun.safetensors", found) == ["fun.safetensors: LoRA of rank 4 and 1 replaced weight for Qwen-Image "
                                              "2.x, 2 weights patched."]


@pytest.mark.parametrize("end", ["set_weight", "diff", "w_norm"])
def test_norms_by_differences_and_replacements(model, tmp_path, end):
    before, = parameters(model, f"{NORM}.weight")
    value = torch.linspace(0.5, 2, len(before))
    found = applied(model, tmp_path, {f"diffusion_model.{NORM}.{end}": value})
    after, = parameters(found.model, f"{NORM}.weight")
    assert error(after, value if end == "set_weight" else before + value) < 1e-6


def test_a_whole_parameter_of_another_length_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match=r"norm_q\.weight: the LoRA gives \[7\], the model expects"):
        applied(model, tmp_path, {**PAIR, f"{NORM}.weight": torch.ones(7)})


def test_a_turbo_lora_has_ranks_of_its_own_and_exact_differences(model, tmp_path):
    """Extracted from Turbo: a rank for each matrix, and the small ones at the ends exactly (nynxz)."""
    other = f"{BLOCK}.attn.to_k"
    tensors = {**{f"diffusion_model.{name}": value for name, value in PAIR.items()},
               f"diffusion_model.{other}.lora_up.weight": draw(WIDTH, 7),
               f"diffusion_model.{other}.lora_down.weight": draw(7, WIDTH),
               f"diffusion_model.{other}.alpha": torch.tensor(7.0)}
    ends = ("img_in", "proj_out")
    shapes = [model.model.diffusion_model.get_parameter(f"{end}.weight").shape for end in ends]
    tensors |= {f"diffusion_model.{end}.diff": draw(*shape) for end, shape in zip(ends, shapes, strict=True)}
    weights = [f"{end}.weight" for end in ends]
    before = parameters(model, *weights)
    name = "qwen_image_2.1_turbo_lora_fro_153mb_bf16.safetensors"
    found = applied(model, tmp_path, tensors, name)
    for one, two, shape in zip(parameters(found.model, *weights), before, shapes, strict=True):
        assert error(one - two, draw(*shape)) < 1e-5
    assert told(name, found) == [
        f"{name}: LoRA of ranks 4 to 7 and 2 exact differences for Qwen-Image 2.x, 4 weights patched.",
        f"{name} is a few-step LoRA for the base model: choose the preset Turbo 8 in the sampler, with CFG 1."]


@pytest.mark.parametrize(("name", "tensors", "metadata", "scale"), [
    (PRUNA, PAIR, None, 128 / RANK),
    ("pruna 8 steps.safetensors", PAIR, None, 128 / RANK),
    ("p_q_image_2.1_8_steps_v0.1_comfyui_bf16.safetensors", PAIR, None, 1),  # its scale is in the weights
    (PRUNA, {**PAIR, f"{QUERY}.alpha": torch.tensor(8.0)}, None, 2),  # as others add it
    (PRUNA, PAIR, {"lora_adapter_metadata": '{"r": 4, "lora_alpha": 2}'}, 0.5),
    ("style.safetensors", PAIR, None, 1),
], ids=["Pruna's", "renamed", "for ComfyUI", "with alpha", "with metadata", "another"])
def test_prunas_alpha_is_put_in_where_the_file_leaves_it_out(model, tmp_path, name, tensors, metadata, scale):
    before, = parameters(model, f"{QUERY}.weight")
    found = applied(model, tmp_path, tensors, name, metadata=metadata)
    after, = parameters(found.model, f"{QUERY}.weight")
    assert error(after - before, scale * CHANGE) < 1e-4
    left_out = f"{name} leaves its alpha out; the 128 of its publisher is used."
    assert (left_out in told(name, found)) == (scale == 128 / RANK)
    assert found.unused == []


def test_heads_for_each_step_are_refused_by_name(model, tmp_path):
    with pytest.raises(LoraError, match=r"^pdd\.safetensors is a Fun-Acc PDD file: it has one output layer per step"):
        applied(model, tmp_path, {**PAIR, "proj_out.weight": torch.zeros(4, 64, WIDTH),
                                  f"{NORM}.weight": torch.ones(16)}, "pdd.safetensors")


@pytest.mark.parametrize("form", [
    {f"{BLOCK}.img_mod.1": ("lora_A.weight", "lora_B.weight")},
    {f"lora_unet_{BLOCK.replace('.', '_')}_img_mlp_net_2": ("lora_down.weight", "lora_up.weight")}])
def test_one_of_the_other_family_is_refused_in_a_sentence(model, tmp_path, form):
    """Also where matrices of the same name and size are beside: its shapes tell nothing."""
    tensors = PAIR | {f"{module}.{part}": torch.zeros(4, 4) for module, parts in form.items() for part in parts}
    with pytest.raises(LoraError, match=r"^old\.safetensors was made for Qwen-Image 1\.x, but this model is Qwen-Image "
                                        r"2\.x\. Choose a LoRA for Qwen-Image 2\.x\.$"):
        applied(model, tmp_path, tensors, "old.safetensors")


# ---------------------------------------------------------------- names and presets

@pytest.mark.parametrize(("name", "presets"), [
    ("p_qwen_image_2.1_5step_v0.1.safetensors", ["Pruna LoRA 5"]),
    ("p_qwen_image_2.1_8step_v0.1-comfyui-T8.safetensors", ["Pruna LoRA 8"]),
    ("p_q_image_2.1_8_steps_v0.1_comfyui_bf16.safetensors", ["Pruna LoRA 8"]),
    ("p_q_image_2.1_6_steps_upsampled_v0.2_comfyui_bf16.safetensors", []),
    ("Qwen-Image-2.1-viggle-turbo-4step-lora-r64.safetensors", ["Viggle LoRA 4"]),
    ("Qwen-Image-2.1-viggle-turbo-v0.2.1-6step-lora-r128.safetensors", ["Viggle LoRA 6"]),
    ("Qwen-Image-2.1-viggle-hybrid-9step-lora.safetensors", []),
    ("Qwen-Image-2.1-Lightning/pytorch_lora_weights.safetensors", ["Lightning LoRA 4"]),
    ("qwen_image_2.1_turbo_lora_avg_rank_178_bf16.safetensors", ["Turbo 8"]),
    ("qwen_image_2.1_turbo_lora_fro_153mb_bf16.safetensors", ["Turbo 8"]),
    ("lightning_in_the_sky.safetensors", None), ("style-3000steps.safetensors", None), ("", None)])
def test_published_names_of_2x(name, presets):
    found = recognized(name, {}, schedule_2.FEW_STEP)
    assert (found and list(found.presets)) == presets
    assert all(preset in schedule_2.PRESETS for preset in presets or ())


@pytest.mark.parametrize(("name", "presets"), [
    ("Qwen-Image-Lightning-8steps-V2.0-bf16.safetensors", ["Lightning LoRA 8 (1.x)"]),
    ("Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16.safetensors", ["Lightning LoRA 4 (1.x)"]),
    ("Wuli-Qwen-Image-2512-Turbo-LoRA-2steps.safetensors", ["Turbo LoRA 2 (1.x)"]),
    ("Qwen-Image-Edit-2509-Relight.safetensors", None)])
def test_published_names_of_1x(name, presets):
    found = recognized(name, {}, schedule_1.FEW_STEP)
    assert (found and list(found.presets)) == presets
    assert all(preset in schedule_1.PRESETS for preset in presets or ())


def test_a_renamed_file_is_known_by_its_metadata():
    found = recognized("x.safetensors", {"modelspec.title": "Qwen-Image-2.1-Lightning"}, schedule_2.FEW_STEP)
    assert found.presets == ("Lightning LoRA 4",)


def test_every_known_alpha_is_prunas():
    assert {one.alpha for one in (*schedule_2.FEW_STEP, *schedule_1.FEW_STEP)} == {None, 128}


@pytest.fixture
def warning(model, tmp_path):
    """warning(preset, *files, variant) -> what the sampler says of a MODEL with these LoRAs."""
    from qwen_image_2.nodes.sampler import variant_warning

    def warning(preset: str, *names: str, variant: str = "base"):
        patcher, model.model.variant = model, variant
        for name in names:
            patcher = applied(patcher, tmp_path, PAIR, name).model
        return variant_warning(patcher, preset)

    before = model.model.variant
    yield warning
    model.model.variant = before


VIGGLE, TURBO = "viggle-turbo-4step-lora.safetensors", "qwen_turbo_lora.safetensors"


@pytest.mark.parametrize(("preset", "names", "variant", "words"), [
    ("Viggle LoRA 4", [VIGGLE], "base", None),
    ("Custom", [VIGGLE], "base", None),
    ("Quality 40", [VIGGLE], "base", f"{VIGGLE} was trained for the preset Viggle LoRA 4: with Quality 40 images stay "
     "unfinished or burn. Choose Viggle LoRA 4."),
    ("Pruna LoRA 8", [VIGGLE, "style.safetensors"], "base", "was trained for the preset Viggle LoRA 4"),
    ("Turbo 8", [TURBO], "base", None),
    ("Quality 40", [TURBO], "base", "was trained for the preset Turbo 8"),
    ("Turbo 8", ["style.safetensors"], "base", "On a base model Turbo 8 needs a LoRA that was extracted from Turbo"),
    ("Turbo 8", [], "base", "This is a base model"),
    ("Turbo 8", [TURBO], "turbo", f"{TURBO} makes the base model fast, but"),
    ("Viggle LoRA 4", [], "base", "is for a LoRA, but none is loaded"),
    ("Viggle LoRA 4", ["renamed.safetensors"], "base", None),
    ("Viggle LoRA 4", [VIGGLE, TURBO], "base", "are few-step LoRAs with schedules of their own"),
    ("Quality 40", ["p_q_image_2.1_6_steps_v0.2.safetensors"], "base", None),
    ("Quality 40", [], "base", None)])
def test_a_preset_that_does_not_fit_is_pointed_out(warning, preset, names, variant, words):
    found = warning(preset, *names, variant=variant)
    assert found is None if words is None else words in str(found)


def test_an_alpha_needs_a_pair_to_stand_beside(tmp_path):
    """No alpha is invented for differences."""
    found = lora_files.normalized({f"{QUERY}.diff": torch.zeros(2, 2)}, {}, "x", alpha=128)
    assert [name for name in found.state if name.endswith("alpha")] == []
