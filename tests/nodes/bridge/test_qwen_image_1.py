"""MODEL of Qwen-Image 1.x in this process: files, steps, what other nodes do to it, and modulation apart."""

import pytest
import safetensors.torch
import torch

from qwen_image_2.messages import Refusal
from qwen_image_2.model.checkpoints.errors import CheckpointError
from qwen_image_2.tests import reference_1
from qwen_image_2.tests.model.qwen_image_1.test_transformer import inputs, velocity_of_reference
from qwen_image_2.tests.reference import error

pytestmark = pytest.mark.usefixtures("as_comfyui_runs_nodes")
SIGMA = 0.7315
MARK = "__index_timestep_zero__"


@pytest.fixture(scope="module")
def theirs():
    return reference_1.transformer()


@pytest.fixture
def write(tmp_path, theirs):
    """write(name, change) -> the file; change(state) -> what it holds instead of the plain tensors."""
    def write(name="qwen_image_bf16.safetensors", change=lambda state: state, metadata=None):
        path = tmp_path / name
        state = change({key: value.clone() for key, value in theirs.state_dict().items()})
        safetensors.torch.save_file(state, path, metadata)
        return path
    return write


def load(path, variant="auto", weight_format="as stored", **more):
    from qwen_image_2.nodes.bridge.loading import load_model
    return load_model(path, path.name, variant, weight_format, **more)


def step(patcher, x, condition, sigma=SIGMA, control=None, **options):
    """The velocity that ComfyUI computes for one conditioning."""
    import comfy.model_management
    comfy.model_management.load_models_gpu([patcher])
    patcher.pre_run()
    with torch.no_grad():
        model, given = patcher.model, {"cross_attn": condition.text, "attention_mask": condition.visible,
                                       "reference_latents": None}
        conds = {name: cond.process_cond(len(x)).cond for name, cond in model.extra_conds(
            **given, noise=x, device=x.device).items() if name != "guidance"}
        if condition.references:
            conds["ref_latents"] = [latent.unsqueeze(2) for latent in condition.references]
        t = torch.full((len(x),), sigma)
        denoised = model.apply_model(x, t, control=control, transformer_options=options, **conds)
        return (x - denoised) / sigma


def test_a_step_equals_the_reference(comfyui, write, theirs):
    patcher = load(write())
    assert (patcher.model.family, patcher.model.variant) == ("1.x", "base")
    for references in ((), ((4, 10), (18, 6))):
        x, condition = inputs(2, (6, 10), references)
        expected = velocity_of_reference(theirs, x, condition, torch.full((2,), SIGMA))
        assert error(step(patcher, x, condition), expected) < 1e-4


def test_blocks_are_asked_for_one_ahead_where_comfyui_places_the_weights(comfyui, write, monkeypatch):
    from comfy import model_prefetch
    patcher, events = load(write()), []
    blocks = list(patcher.model.diffusion_model.transformer_blocks)
    for number, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda *_, number=number: events.append(f"computes {number}"))
    monkeypatch.setattr(model_prefetch, "make_prefetch_queue", lambda blocks, device, options: [*blocks, None])
    monkeypatch.setattr(model_prefetch, "prefetch_queue_pop", lambda queue, device, block: events.append(
        "ends" if block is None else f"asks for {queue.index(block)}"))
    step(patcher, *inputs(1, (6, 10), ()))
    assert events[-1] == "ends" and events[:-1] == [
        f"{what} {number}" for number in range(len(blocks)) for what in ("asks for", "computes")]


def test_masked_prompts_equal_the_reference(comfyui, write, theirs):
    from qwen_image_2.model.qwen_image_1.transformer import Condition
    x, condition = inputs(2, (6, 10), ())
    visible = torch.ones(2, 11, dtype=torch.bool)
    visible[1, 7:] = False
    masked = Condition(condition.text, visible)
    expected = velocity_of_reference(theirs, x, masked, torch.full((2,), SIGMA))
    assert error(step(load(write()), x, masked), expected) < 1e-4


# ---------------------------------------------------------------- files

LAYOUTS = {
    "with a prefix": lambda state: {f"model.diffusion_model.{name}": value for name, value in state.items()},
    "beside a text encoder and a VAE": lambda state: {
        **{f"model.diffusion_model.{name}": value for name, value in state.items()},
        "text_encoders.qwen25_7b.transformer.model.norm.weight": torch.ones(4), "vae.conv1.weight": torch.ones(1)},
    "with the mark of an empty tensor": lambda state: {**state, MARK: torch.empty(0)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_in_circulation(comfyui, write, layout):
    patcher = load(write(change=LAYOUTS[layout]))
    x, condition = inputs(1, (6, 10), ((4, 4),))
    plain = step(load(write("plain.safetensors")), x, condition)
    same = torch.allclose(step(patcher, x, condition), plain, atol=1e-5)
    assert same != ("mark" in layout) and patcher.model.spec.zero_cond_t == ("mark" in layout)


def cast(dtype):
    return lambda state: {name: value.to(dtype) for name, value in state.items()}


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_a_file_that_was_cast_to_fp8_stays_so_and_computes_like_one_that_was_widened(comfyui, write, dtype):
    """The most common files of 1.x: every tensor is fp8, nothing scales it, nothing says so."""
    from comfy.quant_ops import QuantizedTensor
    path = write("qwen_image_fp8_e4m3fn.safetensors", cast(dtype))
    patcher = load(path)
    widened = load(write("wide.safetensors", lambda state: cast(torch.bfloat16)(cast(dtype)(state))))
    weight = patcher.model.diffusion_model.transformer_blocks[0].attn.to_q.weight
    assert isinstance(weight, QuantizedTensor) and weight._qdata.dtype == dtype
    assert "dequantized" in str(patcher.model.weights)
    assert patcher.model_size() < 0.55 * widened.model_size()
    x, condition = inputs(1, (6, 10), ((4, 4),))
    assert error(step(patcher, x, condition), step(widened, x, condition)) < 0.02


def test_marks_of_2511(comfyui, write):
    marked = write("some.safetensors", LAYOUTS["with the mark of an empty tensor"])
    for path, variant, expected in ((write("qwen_image_edit_2511_bf16.safetensors"), "auto", True),
                                    (write("other.safetensors"), "auto", False),
                                    (write("other.safetensors"), "edit 2511", True),
                                    (marked, "auto", True), (marked, "base", False)):
        model = load(path, variant).model
        assert model.spec.zero_cond_t == expected
        assert model.variant == ("edit 2511" if expected else "base")


WRONG = {
    "is_controlnet": lambda state: {**state, "controlnet_x_embedder.weight": torch.ones(2, 2)},
    "is_twinflow": lambda state: {**state, "time_text_embed_2.timestep_embedder.linear_1.weight": torch.ones(2, 2)},
    "tensors_unknown": lambda state: {**state, "transformer_blocks.0.attn.to_q.other": torch.ones(2)},
    "tensor_missing": lambda state: {name: value for name, value in state.items() if "txt_mod" not in name},
    "other_tool": lambda state: {name.replace("to_q.weight", "to_q.qweight"): value for name, value in state.items()},
}


@pytest.mark.parametrize("reason", WRONG)
def test_wrong_files_are_refused_in_one_sentence(comfyui, write, reason):
    with pytest.raises(CheckpointError) as refused:
        load(write("wrong.safetensors", WRONG[reason]))
    assert refused.value.message.key == reason and "wrong.safetensors" in str(refused.value)


# ---------------------------------------------------------------- modulation apart

def test_comfyui_counts_and_moves_no_modulation(comfyui, write, theirs):
    patcher = load(write())
    state = theirs.state_dict()
    counted = sum(value.nbytes for name, value in state.items() if "_mod." not in name)
    assert patcher.model_size() == counted + patcher.model.model_sampling.sigmas.nbytes
    assert not any("_mod." in name for name, _ in patcher.model.named_modules())


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_a_lora_on_modulation_counts(comfyui, write, theirs, part):
    """Whose matrices no patcher loads, and whose table would otherwise stay as it was."""
    key = f"transformer_blocks.1.img_mod.1.{part}"
    change = 0.1 * torch.randn(theirs.state_dict()[key].shape, generator=torch.Generator().manual_seed(0))
    x, condition = inputs(1, (6, 10), ())
    patcher = load(write())
    before = step(patcher, x, condition)
    patched = patcher.clone()
    assert patched.add_patches({f"diffusion_model.{key}": ("diff", (change,))}, 0.5)
    changed = step(patched, x, condition)
    merged = load(write("merged.safetensors", lambda state: {**state, key: state[key] + 0.5 * change}))
    assert error(changed, step(merged, x, condition)) < 1e-4 < error(changed, before)
    assert error(step(patcher, x, condition), before) < 1e-6


# ---------------------------------------------------------------- other nodes

def test_controlnets_and_model_patches_take_part(comfyui, write):
    """A residual goes to the target's tokens after its block; a patch of core's kind sees both streams; a block can be
    replaced."""
    patcher = load(write())
    x, condition = inputs(1, (6, 10), ((4, 4),))
    plain = step(patcher, x, condition)
    seen = []

    def patch(given):
        options = given["transformer_options"]
        seen.append((given["block_index"], given["img"].shape[1], given["txt"].shape[1], tuple(given["x"].shape),
                     options["reference_image_num_tokens"], options["total_blocks"]))
        return {"img": given["img"], "txt": given["txt"]}

    def skip(given, original):
        return {"img": given["img"], "txt": given["txt"]}
    assert error(step(patcher, x, condition, patches={"double_block": [patch]}), plain) < 1e-6
    assert seen == [(0, 15 + 4, 11, (1, 16, 1, 6, 10), [4], 2), (1, 15 + 4, 11, (1, 16, 1, 6, 10), [4], 2)]
    replaced = {"dit": {("double_block", 0): lambda given, more: more["original_block"](given)}}
    assert error(step(patcher, x, condition, patches_replace=replaced), plain) < 1e-6
    skipped = step(patcher, x, condition, patches_replace={"dit": {("double_block", 0): skip}})
    residual = torch.randn(1, 15, 256)
    added = step(patcher, x, condition, control={"input": [None, residual]})
    zero = step(patcher, x, condition, control={"input": [0 * residual, None]})
    assert error(skipped, plain) > 0.01 < error(added, plain) and error(zero, plain) < 1e-6


def test_wrappers_find_the_options_last_where_a_controlnet_takes_part(comfyui, write):
    """There core's EasyCache looks for them, and found the ControlNet's own dictionary."""
    from comfy.patcher_extension import WrappersMP
    x, condition = inputs(1, (6, 10), ())
    seen, residuals = [], {"input": [torch.randn(1, 15, 256)]}

    def wrapper(executor, *args, **kwargs):
        seen.append(args[-1])
        return executor(*args, **kwargs)
    patcher = load(write())
    expected = step(patcher, x, condition, control=residuals)
    found = step(patcher, x, condition, control=residuals, wrappers={WrappersMP.DIFFUSION_MODEL: {None: [wrapper]}})
    assert error(found, expected) < 1e-6 and "wrappers" in seen[0]


def test_a_block_streams_with_its_bias_patched(comfyui, write, theirs):
    """Biases are new in this family: a patch on one was lost where its block streams."""
    from qwen_image_2.nodes.bridge.runtime.budget import BudgetPatcher
    key = "transformer_blocks.1.attn.to_q.bias"
    change = torch.ones(256)
    x, condition = inputs(1, (6, 10), ())
    patched = load(write()).clone()
    patched.add_patches({f"diffusion_model.{key}": ("diff", (change,))}, 1.0)
    expected = step(patched, x, condition)
    streamed = BudgetPatcher.of(patched, 0)
    found = step(streamed, x, condition)
    assert streamed.plan.streamed and error(found, expected) < 1e-5
    assert error(step(load(write()), x, condition), expected) > 1e-3


@pytest.mark.parametrize(("shape", "key"), [((1, 64, 4, 4), "latent_shape_1"), ((1, 16, 3, 4, 4), "latent_frames"),
                                            ((1, 16, 5, 4), "latent_sides")])
def test_latents_it_cannot_sample(comfyui, write, shape, key):
    with pytest.raises(Refusal) as refused:
        load(write()).model.check_latent_shape(shape)
    assert refused.value.message.key == key


def test_prompts_of_the_other_family_are_refused(comfyui, write):
    model = load(write()).model
    for cond, key in (({}, "conditioning_width"), ({"cross_attn": torch.ones(1, 3, 4096)}, "conditioning_width"),
                      ({"cross_attn": torch.ones(2, 3, 64)}, "conditioning_count"),
                      ({"cross_attn": torch.ones(1, 3, 64), "reference_latents": [torch.ones(1, 64, 4, 4)]},
                       "reference_latent_shape")):
        with pytest.raises(Refusal) as refused:
            model.check_conditioning(cond, 1)
        assert refused.value.message.key == key
    with pytest.raises(Refusal, match="width 4096, as the text encoder of Qwen-Image 2.x gives, but"):
        model.check_conditioning({"cross_attn": torch.ones(1, 3, 4096)}, 1)
