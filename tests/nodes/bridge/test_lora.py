"""LoRA files in every form that circulates: what they do to the matrices, and what is refused."""
import json
import os

import pytest
import safetensors.torch
import torch

from qwen_image_2.model.checkpoints.errors import CheckpointError
from qwen_image_2.model.checkpoints.lora import LoraError
from qwen_image_2.tests.model.checkpoints.test_files import is_aligned, write_displaced
from qwen_image_2.tests.reference import error

BLOCK = "transformer_blocks.1"
ROWS, WIDTH = 2 * 768, 256  # of the fused matrix of the tests' transformer

pytestmark = pytest.mark.usefixtures("as_comfyui_runs_nodes")


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.1


def changed(model, tmp_path, tensors: dict, strength: float = 1.0, metadata: dict | None = None):
    """Applies a file; returns what it did to block 1's gate and projection, (2 M, D), and what was said of it. A LoRA
    on an MLP of two matrices changes the same rows."""
    import comfy.model_management

    from qwen_image_2.nodes.bridge.lora import apply
    path = tmp_path / "style.safetensors"
    safetensors.torch.save_file(tensors, path, metadata)
    before = mlp_rows(model)
    applied = apply(model, path, path.name, strength)
    comfy.model_management.load_models_gpu([applied.model])
    after = mlp_rows(model)
    applied.model.detach()
    return after - before, applied


def mlp_rows(model) -> torch.Tensor:
    """Of block 1: the gate's, then the projection's."""
    mlp = model.model.diffusion_model.transformer_blocks[1].img_mlp
    return torch.cat([mlp.gate_up.weight] if model.model.spec.fused_mlp else [mlp.gate_layer.weight, mlp.proj.weight])


DOTS, BARS = f"diffusion_model.{BLOCK}.img_mlp.gate_up", "lora_unet_" + f"{BLOCK}.img_mlp.gate_up".replace(".", "_")
UP, DOWN = draw(ROWS, 4), draw(4, WIDTH)
A1, B1, A2, B2 = draw(ROWS, 3), draw(3, WIDTH), draw(ROWS, 2), draw(2, WIDTH)
W1, W2 = draw(32, 8), draw(48, 32)
FORMS = {
    "ai-toolkit": ({f"{DOTS}.lora_A.weight": DOWN, f"{DOTS}.lora_B.weight": UP}, UP @ DOWN),
    "PEFT with a name": ({f"transformer.{BLOCK}.img_mlp.gate_up.lora_A.default.weight": DOWN,
                          f"transformer.{BLOCK}.img_mlp.gate_up.lora_B.default.weight": UP}, UP @ DOWN),
    "PEFT's own prefix": ({f"base_model.model.{BLOCK}.img_mlp.gate_up.lora_A.weight": DOWN,
                           f"base_model.model.{BLOCK}.img_mlp.gate_up.lora_B.weight": UP}, UP @ DOWN),
    "OneTrainer": ({f"lora_transformer_{BARS.removeprefix('lora_unet_')}.lora_down.weight": DOWN,
                    f"lora_transformer_{BARS.removeprefix('lora_unet_')}.lora_up.weight": UP}, UP @ DOWN),
    "musubi, alpha half the rank": ({f"{BARS}.lora_down.weight": DOWN, f"{BARS}.lora_up.weight": UP,
                                     f"{BARS}.alpha": torch.tensor(2.0)}, UP @ DOWN / 2),
    "LoHa": ({f"{DOTS}.hada_w1_a": A1, f"{DOTS}.hada_w1_b": B1, f"{DOTS}.hada_w2_a": A2, f"{DOTS}.hada_w2_b": B2},
             (A1 @ B1) * (A2 @ B2)),
    "LoKr": ({f"{DOTS}.lokr_w1": W1, f"{DOTS}.lokr_w2": W2}, torch.kron(W1, W2)),
    "whole difference": ({f"{DOTS}.diff": draw(ROWS, WIDTH)}, draw(ROWS, WIDTH)),
}


def in_halves(tensors: dict) -> dict:
    """The same adapter as trainers write it that have the MLP as two matrices, each with its half of the rows."""
    halves = {}
    for name, tensor in tensors.items():
        rows = tensor.chunk(2) if tensor.shape[:1] in ((ROWS,), W1.shape[:1]) else (tensor, tensor)
        halves |= {name.replace("gate_up", half): part.clone()
                   for half, part in zip(("gate_layer", "proj"), rows, strict=True)}
    return halves


@pytest.fixture(scope="module")
def model_of_halves(reference, tmp_path_factory):
    """A transformer with two matrices in each MLP: its file has them in two types, of which no one matrix is made."""
    from qwen_image_2.nodes.bridge.loading import load_model
    from qwen_image_2.tests.nodes.bridge.quant import test_gguf_ops as files
    state = reference.transformer.state_dict()
    kinds = {f"{BLOCK}.img_mlp.gate_layer.weight": "Q8_0", f"{BLOCK}.img_mlp.proj.weight": "Q5_1"}
    path = tmp_path_factory.mktemp("halves") / "halves.gguf"
    files.write_blocks(path, state, {name: files.pack(state[name], kind) for name, kind in kinds.items()}, kinds)
    return load_model(path, path.name, "base", "fp32")


@pytest.fixture(params=["model", "model_of_halves"])
def either(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("written", [dict, in_halves], ids=["one matrix", "two matrices"])
@pytest.mark.parametrize("form", FORMS)
def test_adapters_of_the_mlp_reach_their_rows(either, tmp_path, form, written):
    """Whether the file has one for gate and projection or two, and the transformer one matrix or two."""
    tensors, expected = FORMS[form]
    difference, applied = changed(either, tmp_path, written(tensors), strength=0.5)
    assert error(difference, expected / 2) < 1e-5
    assert applied.matrices == (1 if either.model.spec.fused_mlp else 2) and not applied.unused


@pytest.mark.parametrize("half, rows", [("gate_layer", slice(None, ROWS // 2)), ("proj", slice(ROWS // 2, None))])
def test_an_adapter_of_one_half_leaves_the_other(either, tmp_path, half, rows):
    name = DOTS.replace("gate_up", half)
    pair = {f"{name}.lora_A.weight": DOWN, f"{name}.lora_B.weight": UP[rows].clone()}
    difference, _ = changed(either, tmp_path, pair)
    assert error(difference[rows], (UP @ DOWN)[rows]) < 1e-5
    assert difference.count_nonzero() == difference[rows].count_nonzero()


def test_a_turn_of_all_rows_needs_one_matrix(model, model_of_halves, tmp_path):
    """OFT's blocks may hold rows of both halves."""
    turn = {f"{DOTS}.oft_blocks": draw(3, ROWS // 3, ROWS // 3)}
    before = mlp_rows(model)
    after = before + changed(model, tmp_path, turn)[0]
    assert error(after, before) > 0.1
    assert error(after.norm(dim=0), before.norm(dim=0)) < 1e-4
    for parts in (turn, {f"{DOTS}.lokr_w1": torch.zeros(3, 8), f"{DOTS}.lokr_w2": W2}):
        with pytest.raises(LoraError, match="cannot be split"):
            changed(model_of_halves, tmp_path, parts)


# ---------------------------------------------------------------- by core's loaders

@pytest.mark.parametrize("written", [dict, in_halves], ids=["one matrix", "two matrices"])
@pytest.mark.parametrize("form", ["ai-toolkit", "musubi, alpha half the rank", "LoHa", "LoKr", "whole difference"])
def test_cores_loader_reaches_the_same_rows(model, caplog, form, written):
    """It takes its names from the model's state dict; what it does not find there it logs, and does without."""
    import comfy.model_management
    import comfy.sd
    tensors, expected = FORMS[form]
    before = mlp_rows(model)
    clone, _ = comfy.sd.load_lora_for_models(model, None, written(tensors), 0.5, 0)
    comfy.model_management.load_models_gpu([clone])
    difference = mlp_rows(model) - before
    clone.detach()
    assert error(difference, expected / 2) < 1e-5
    assert "not loaded" not in caplog.text.lower() and list(clone.patches) == [f"{DOTS}.weight"]


def test_cores_hooks_reach_the_same_rows(model):
    import comfy.hooks
    import comfy.lora
    lora = in_halves(FORMS["ai-toolkit"][0])
    clone, _, hooks = comfy.hooks.load_hook_lora_for_models(model, None, lora, 0.5, 0)
    patches = clone.hook_patches[hooks.hooks[0].hook_ref]
    assert list(patches) == [f"{DOTS}.weight"]
    found = comfy.lora.calculate_weight(patches[f"{DOTS}.weight"], mlp_rows(model), DOTS) - mlp_rows(model)
    assert error(found, UP @ DOWN / 2) < 1e-5


def test_who_asks_a_patcher_gets_parameters_alone(model):
    """Core's nodes that merge, subtract and extract compute with each, and ModelSave writes them."""
    own = {f"diffusion_model.{name}" for name in model.model.diffusion_model.state_dict()}
    assert {name for name in model.model_state_dict() if name.startswith("diffusion_model.")} == own
    assert model.get_key_patches("diffusion_model.").keys() == own
    assert model.model_size() == sum(value.nbytes for value in model.model_state_dict().values())


@pytest.mark.parametrize("shape", [(ROWS // 2, 4), (ROWS, 4)])
def test_a_half_of_another_shape_is_refused(model, tmp_path, shape):
    """What core's loader loads, too: it names the rows by an offset."""
    import comfy.lora

    from qwen_image_2.nodes.bridge.adapters.checks import check_lora_shapes
    key, module = f"{DOTS}.weight", DOTS.replace("gate_up", "proj")
    patches = comfy.lora.load_lora({f"{module}.lora_A.weight": DOWN, f"{module}.lora_B.weight": draw(*shape)},
                                   {module: (key, (0, ROWS // 2, ROWS // 2))}, log_missing=False)
    clone = model.clone()
    assert clone.add_patches(patches)
    if shape[0] == ROWS // 2:
        check_lora_shapes(clone)
    else:
        with pytest.raises(CheckpointError, match=rf"shape mismatch at {key}: the LoRA gives \[1536, 256\], the model "
                                                  r"expects \[768, 256\]"):
            check_lora_shapes(clone)


@pytest.mark.parametrize(("settings", "scale"), [
    ({"transformer.r": 4, "transformer.lora_alpha": 8}, 2),
    ({"r": 4, "lora_alpha": 8, "use_rslora": True}, 4),
    ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"img_mlp.gate_up": 1}}, 0.25),
    ({"r": 4}, 1),
    # Names as PEFT and diffusers write them: of the end of a name, anchored, escaped; the first that fits counts.
    ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"gate_up": 1}}, 0.25),
    ({"r": 4, "lora_alpha": 8, "alpha_pattern": {r".*\.img_mlp\.gate_up$": 1}}, 0.25),
    ({"r": 4, "lora_alpha": 8, "alpha_pattern": {f"^{BLOCK}.img_mlp.gate_up": 1}}, 0.25),
    ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"img_mlp.gate_up": 2, "gate_up": 1}}, 0.5),
    ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"gate_up": 2, "img_mlp.gate_up": 1}}, 0.5),
    ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"e_up": 1, "img_mlp": 1, "^img_mlp.gate_up": 1, "1": 1}}, 2),
], ids=str)
def test_a_scale_in_the_metadata_counts(model, tmp_path, settings, scale):
    tensors = {f"transformer.{BLOCK}.img_mlp.gate_up.lora_A.weight": DOWN,
               f"transformer.{BLOCK}.img_mlp.gate_up.lora_B.weight": UP}
    difference, _ = changed(model, tmp_path, tensors, metadata={"lora_adapter_metadata": json.dumps(settings)})
    assert error(difference, UP @ DOWN * scale) < 1e-5


def test_dora_by_its_own_name_and_by_pefts(model, tmp_path):
    """A magnitude for each row of the matrix."""
    magnitude, lora = draw(ROWS).abs() + 1, FORMS["ai-toolkit"][0]
    ours, applied = changed(model, tmp_path, {**lora, f"{DOTS}.dora_scale": magnitude[:, None].clone()})
    theirs, _ = changed(model, tmp_path, {**lora, f"{DOTS}.lora_magnitude_vector": magnitude})
    # The names' lengths decide where the same matrices lie in the file, and so how they are multiplied.
    assert error(ours, theirs) < 1e-5 and applied.matrices == 1
    assert error(ours, UP @ DOWN) > 0.1


def test_a_file_whose_matrices_lie_at_odd_addresses_is_copied(model, tmp_path):
    from qwen_image_2.nodes.bridge.lora import apply
    path = write_displaced(tmp_path / "odd.safetensors", FORMS["ai-toolkit"][0])
    applied = apply(model, path, path.name, 1.0)
    assert applied.unused == ["odd"]
    matrices = [tensor for (_, adapter, *_), in applied.model.patches.values() for tensor in adapter.weights[:2]]
    assert len(matrices) == 2 and all(map(is_aligned, matrices))


def test_what_is_not_used_is_named(model, tmp_path):
    extra = f"transformer.{BLOCK}.attn.add_q_proj.lora_A.weight"
    _, applied = changed(model, tmp_path, {**FORMS["ai-toolkit"][0], extra: torch.zeros(1, 1)})
    assert applied.unused == [extra]


def patterns(alphas: dict) -> dict:
    return {"lora_adapter_metadata": json.dumps({"r": 4, "lora_alpha": 8, "alpha_pattern": alphas})}


@pytest.mark.parametrize(("tensors", "metadata", "words"), [
    ({"lora_unet_down_blocks_0.lora_down.weight": DOWN}, None, "does not match this model: none of its keys fit"),
    ({f"diffusion_model.{BLOCK}.attn.to_q.lora_A.weight": torch.zeros(4, 3072),
      f"diffusion_model.{BLOCK}.attn.to_q.lora_B.weight": torch.zeros(3072, 4)}, None, r"Qwen-Image 1\.x"),
    ({f"{DOTS}.oft_blocks": torch.zeros(2, 4, 4)}, None, "LoRA shape mismatch"),
    ({f"{DOTS}.lokr_w1": torch.zeros(3, 8), f"{DOTS}.lokr_w2": W2}, None, "LoRA shape mismatch"),
    ({f"diffusion_model.{BLOCK}.img_mlp.gate_up.weight": torch.zeros(4, 4)}, None,
     "not a LoRA but a whole transformer"),
    (FORMS["ai-toolkit"][0], {"lora_adapter_metadata": "{not json"}, "metadata of style.safetensors .* cannot be read"),
    (FORMS["ai-toolkit"][0], {"lora_adapter_metadata": "[]"}, "metadata of style.safetensors .* cannot be read"),
    (FORMS["PEFT with a name"][0], patterns({"(([a-z])+.)+!": 1}), r"contains the pattern '\(\(\[a-z\]\)\+\.\)\+!';"),
    (FORMS["PEFT with a name"][0], patterns({"a|" * 5000: 1}), "contains the pattern 'a|a|"),
    (FORMS["PEFT with a name"][0], patterns({f"a.{n}": 1 for n in range(100_000)}),
     "sets the scale of 100,000 modules; a LoRA of this model has at most 10,000"),
    ({f"a{n}": torch.zeros(1) for n in range(20_001)}, None, "has 20,001 tensors; the maximum is 20,000"),
    ({"a": torch.zeros([1] * 60)}, None, "tensor a has 60 axes"),
], ids=["another model", "Qwen-Image 1.x", "OFT", "odd LoKr", "a model", "broken metadata", "metadata of another kind",
        "an expression that never ends", "a long expression", "many names", "many tensors", "many axes"])
def test_what_cannot_be_used_is_refused(model, tmp_path, tensors, metadata, words):
    with pytest.raises(ValueError, match=words):
        changed(model, tmp_path, tensors, metadata=metadata)


def test_a_broken_file_is_refused(model, tmp_path):
    from qwen_image_2.nodes.bridge.lora import apply
    path = tmp_path / "half.safetensors"
    safetensors.torch.save_file(FORMS["ai-toolkit"][0], path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(LoraError, match=r"half\.safetensors is not a valid"):
        apply(model, path, path.name, 1.0)


def test_a_pointer_to_a_file_is_no_broken_file(model, tmp_path):
    from qwen_image_2.nodes.bridge.lora import apply
    path = tmp_path / "style.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 355000000\n")
    with pytest.raises(CheckpointError, match=r"^style\.safetensors is a Git LFS pointer"):
        apply(model, path, path.name, 1.0)


def test_a_pipe_is_not_waited_for(model, tmp_path):
    from qwen_image_2.nodes.bridge.lora import apply
    path = tmp_path / "style.safetensors"
    os.mkfifo(path)
    reading = os.open(path, os.O_RDWR)  # or the test would wait as well, if it failed
    os.write(reading, b"{" * 100)
    with pytest.raises(CheckpointError, match=r"^style\.safetensors is not a regular file but a folder, pipe"):
        apply(model, path, path.name, 1.0)
    os.close(reading)


@pytest.mark.parametrize("part", ["_lokr_x", ".diff", ".img_mlp.gate_up", ".lora_B.default", "base_model.model."])
def test_a_name_that_repeats_itself_is_another_models(model, tmp_path, part):
    """A pattern that tries all ends of such a name takes hours."""
    with pytest.raises(ValueError, match="does not match this model|is incomplete|is not a LoRA"):
        changed(model, tmp_path, {"a" + part * 100_000 + "!": torch.zeros(4, 4)})
