"""LoRA files as others write them, and as they break: loaded whole, or refused in one sentence."""
import json
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

from qwen_image_2.messages import MAX_LENGTH
from qwen_image_2.model.checkpoints.errors import CheckpointError
from qwen_image_2.model.checkpoints.lora import LoraError
from qwen_image_2.tests.nodes.bridge.test_lora import draw
from qwen_image_2.tests.reference import error

D = 256  # width of the tests' transformer
MODULE = "transformer_blocks.1.attn.to_q"
Q = f"diffusion_model.{MODULE}"
UP, DOWN = draw(D, 4), draw(4, D)
PAIR = {f"{Q}.lora_A.weight": DOWN, f"{Q}.lora_B.weight": UP}

pytestmark = pytest.mark.usefixtures("as_comfyui_runs_nodes")


def write(tmp_path, tensors: dict, metadata: dict | None = None):
    path = tmp_path / "style.safetensors"
    # safetensors stores no tensor twice.
    safetensors.torch.save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, metadata)
    return path


def applied_to(model, tmp_path, tensors: dict, metadata: dict | None = None, strength: float = 1.0):
    from qwen_image_2.nodes.bridge.lora import apply
    return apply(model, write(tmp_path, tensors, metadata), "style.safetensors", strength)


def change(model, applied, module: str = MODULE) -> torch.Tensor:
    """What it adds to the matrix, computed by ComfyUI."""
    import comfy.lora
    import comfy.utils
    key = f"diffusion_model.{module}.weight"
    weight = comfy.utils.get_attr(model.model, key).float()
    return comfy.lora.calculate_weight(applied.model.patches[key], weight.clone(), key) - weight


# ---------------------------------------------------------------- names

PREFIXES = ("", "transformer.", "diffusion_model.", "base_model.model.", "model.diffusion_model.", "pipe.dit.",
            "module.", "transformer.base_model.model.", "base_model.model.transformer.", "_orig_mod.", "lora_unet_",
            "lora_transformer_", "lycoris_")
ENDS = (("lora_A.weight", "lora_B.weight"), ("lora_A.default_0.weight", "lora_B.default_0.weight"),
        ("lora_A", "lora_B"), ("lora_down.weight", "lora_up.weight"),
        ("lora.down.weight", "lora.up.weight"),
        ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"))


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("parts", ENDS, ids=" ".join)
def test_every_spelling_is_the_same_adapter(model, tmp_path, prefix, parts):
    module = MODULE.replace(".", "_") if prefix.endswith("_") else MODULE
    down, up = (f"{prefix}{module}.{part}" for part in parts)
    applied = applied_to(model, tmp_path, {down: DOWN, up: UP})
    assert applied.matrices == 1 and not applied.unused
    assert error(change(model, applied), UP @ DOWN) < 1e-5


@pytest.mark.parametrize("prefix", [prefix for prefix in PREFIXES if not prefix.endswith("_")])
@pytest.mark.parametrize("pattern", [MODULE, f"^{MODULE}", "attn.to_q"])
def test_a_scale_in_the_metadata_counts_below_every_prefix(model, tmp_path, prefix, pattern):
    settings = {"r": 4, "lora_alpha": 8, "alpha_pattern": {pattern: 1}}
    pair = {f"{prefix}{MODULE}.lora_A.weight": DOWN, f"{prefix}{MODULE}.lora_B.weight": UP}
    applied = applied_to(model, tmp_path, pair, {"lora_adapter_metadata": json.dumps(settings)})
    assert error(change(model, applied), UP @ DOWN / 4) < 1e-5 and not applied.unused


@pytest.mark.parametrize("tensors", [
    {f"{Q}.lora_A.{name}.weight": DOWN for name in ("one", "two")},
    PAIR | {f"lora_unet_{MODULE}.lora_down.weight".replace(".", "_", 3): DOWN,
            f"lora_unet_{MODULE}.lora_up.weight".replace(".", "_", 3): UP},
    PAIR | {f"transformer.{MODULE}.diff": draw(D, D)},
    {f"{Q.replace('attn.to_q', part)}.lora_{half}.weight": draw(*shape) for part, rows in (
        ("img_mlp.gate_up", 1536), ("img_mlp.proj", 768)) for half, shape in (("A", (4, D)), ("B", (rows, 4)))},
], ids=["two adapters", "dots and none", "LoRA and difference", "fused and half"])
def test_a_matrix_that_is_changed_twice_is_refused(model, tmp_path, tensors):
    with pytest.raises(LoraError, match=r"^style\.safetensors patches the same weight twice"):
        applied_to(model, tmp_path, tensors)


def test_what_is_not_used_is_named_as_the_file_names_it(model, tmp_path):
    other, fused = "transformer.transformer_blocks.0.attn.to_k", "transformer.transformer_blocks.0.img_mlp.gate_up"
    from qwen_image_2.nodes.loras import in_words
    lost = {f"{other}.lora_B.weight": UP, "transformer.transformer_blocks.0.attn.to_v.lora_A.weight": DOWN,
            f"{fused}.lora_B.bias": draw(1536), f"{fused}.diff_b": draw(1536), "logit_scale": draw(1),
            f"transformer.{MODULE}.lora_B.bias": draw(D), f"transformer.{MODULE}.diff_b": draw(D),
            "lora_te_text_model.lora_up.weight": UP}
    applied = applied_to(model, tmp_path, PAIR | lost)
    assert applied.matrices == 1 and applied.unused == sorted(lost)
    told = in_words("style.safetensors", applied)[1]
    assert told.startswith("8 LoRA keys did not match this model") and len(told) <= MAX_LENGTH and "logit_scale" in told


# ---------------------------------------------------------------- forms

def test_each_form_of_the_right_shape_changes_the_matrix(model, tmp_path):
    weight = model.model.diffusion_model.transformer_blocks[1].attn.to_q.weight.float()
    a1, a2, b1, b2 = draw(D, 3), draw(3, D), draw(D, 3) * 2, draw(3, D) * 2
    blocks = draw(4, 64, 64)
    turn = blocks - blocks.mT
    turn = torch.block_diag(*((torch.eye(64) + turn) @ torch.linalg.inv(torch.eye(64) - turn)))
    forms = {
        "LoKr of factors": ({"lokr_w1_a": draw(16, 2), "lokr_w1_b": draw(2, 8), "lokr_w2": draw(16, 32)},
                            torch.kron(draw(16, 2) @ draw(2, 8), draw(16, 32))),
        "GLoRA": ({"a1.weight": a1, "a2.weight": a2, "b1.weight": b1, "b2.weight": b2}, weight @ a1 @ a2 + b1 @ b2),
        "OFT": ({"oft_blocks": blocks}, turn.T @ weight - weight),
        "difference": ({"diff": draw(D, D)}, draw(D, D)),
        "norm's name of it": ({"w_norm": draw(D, D)}, draw(D, D)),
        "replacement": ({"set_weight": draw(D, D)}, draw(D, D) - weight),
        "its own shape": ({"lora_A.weight": DOWN, "lora_B.weight": UP, "reshape_weight": torch.tensor([D, D])},
                          UP @ DOWN),
    }
    for form, (parts, expected) in forms.items():
        applied = applied_to(model, tmp_path, {f"{Q}.{part}": tensor for part, tensor in parts.items()})
        assert applied.matrices == 1 and not applied.unused, form
        assert error(change(model, applied), expected) < 1e-4, form


def test_butterflies_turn_and_keep_every_length(model, tmp_path):
    weight = model.model.diffusion_model.transformer_blocks[1].attn.to_q.weight.float()
    applied = applied_to(model, tmp_path, {f"{Q}.oft_blocks": draw(3, 32, 8, 8), f"{Q}.alpha": torch.tensor(0.0)})
    found = change(model, applied)
    assert error((weight + found).norm(dim=0), weight.norm(dim=0)) < 1e-4 and error(found, weight) > 0.1


WRONG = {
    "rows": {"lora_A.weight": DOWN, "lora_B.weight": draw(D // 2, 4)},
    "ranks": {"lora_A.weight": draw(3, D), "lora_B.weight": UP},
    "no rank": {"lora_A.weight": draw(0, D), "lora_B.weight": draw(D, 0), "alpha": torch.tensor(1.0)},
    "lists": {"lora_A.weight": draw(D), "lora_B.weight": draw(D)},
    "a number": {"lora_A.weight": torch.tensor(1.0), "lora_B.weight": UP},
    "a convolution": {"lora_A.weight": draw(4, D, 3, 3), "lora_B.weight": draw(D, 4, 1, 1)},
    "LoHa": {"hada_w1_a": UP, "hada_w1_b": DOWN, "hada_w2_a": UP, "hada_w2_b": draw(4, D // 2)},
    "LoKr": {"lokr_w1": draw(16, 16), "lokr_w2": draw(16, 8)},
    "LoKr, the same count": {"lokr_w1": draw(32, 16), "lokr_w2": draw(16, 8)},
    "LoKr's factors": {"lokr_w1_a": draw(16, 2), "lokr_w1_b": draw(3, 16), "lokr_w2": draw(16, 16)},
    "LoHa of four axes": {"hada_w1_a": draw(D, 4, 1, 1), "hada_w1_b": DOWN, "hada_w2_a": UP, "hada_w2_b": DOWN},
    "LoKr's factors of four axes": {"lokr_w1": draw(16, 16), "lokr_w2_a": draw(16, 2, 1, 1), "lokr_w2_b": draw(2, 16)},
    "GLoRA": {"a1.weight": draw(D, 3), "a2.weight": draw(3, D), "b1.weight": draw(D, 3), "b2.weight": draw(3, 2 * D)},
    "OFT": {"oft_blocks": draw(4, 32, 32)},
    "BOFT": {"oft_blocks": draw(7, 32, 8, 8), "alpha": torch.tensor(0.0)},
    "BOFT without a limit": {"oft_blocks": draw(3, 32, 8, 8)},
    "difference": {"diff": draw(D, D + 1)},
    "difference of a list": {"diff": draw(D)},
    "replacement": {"set_weight": draw(D + 1, D)},
    "magnitudes": {"lora_A.weight": DOWN, "lora_B.weight": UP, "dora_scale": draw(7, 1)},
    "PEFT's magnitudes": {"lora_A.weight": DOWN, "lora_B.weight": UP, "lora_magnitude_vector": draw(7)},
    "one magnitude": {"lora_A.weight": DOWN, "lora_B.weight": UP, "dora_scale": torch.tensor(1.0)},
}


@pytest.mark.parametrize("form", WRONG)
def test_a_form_of_another_shape_is_refused(model, tmp_path, form):
    with pytest.raises(CheckpointError, match=rf"^LoRA shape mismatch at {Q}\.weight: "):
        applied_to(model, tmp_path, {f"{Q}.{part}": tensor for part, tensor in WRONG[form].items()})


def test_a_rank_that_is_none_has_no_root(model, tmp_path):
    """PEFT's use_rslora divides by it."""
    lists = {f"{Q}.lora_A.weight": draw(D), f"{Q}.lora_B.weight": draw(D)}
    metadata = {"lora_adapter_metadata": json.dumps({"lora_alpha": 8, "use_rslora": True})}
    with pytest.raises(CheckpointError, match="the LoRA's parts have the shapes"):
        applied_to(model, tmp_path, lists, metadata)


OLDER = {
    "LoRA": {"lora_A.weight": (4, 3072), "lora_B.weight": (3072, 4)},
    "LoHa": {"hada_w1_a": (3072, 4), "hada_w1_b": (4, 3072), "hada_w2_a": (3072, 4), "hada_w2_b": (4, 3072)},
    "LoKr": {"lokr_w1": (4, 4), "lokr_w2": (768, 768)},
    "OFT": {"oft_blocks": (48, 64, 64)},
    "difference": {"diff": (3072, 3072)},
}


@pytest.mark.parametrize("form", OLDER)
def test_each_form_made_for_qwen_image_1_is_refused_by_name(model, tmp_path, form):
    with pytest.raises(CheckpointError, match=r"made for Qwen-Image 1\.x \(width 3072\)"):
        applied_to(model, tmp_path, {f"{Q}.{part}": torch.zeros(shape) for part, shape in OLDER[form].items()})


@pytest.mark.parametrize("form", ["rows", "ranks", "LoHa", "LoKr", "GLoRA", "OFT", "BOFT", "difference", "magnitudes"])
def test_what_cores_loader_loads_is_checked_before_a_run(model, form):
    import comfy.lora

    from qwen_image_2.nodes.bridge.run_checks import check_lora_shapes
    patches = comfy.lora.load_lora({f"{Q}.{part}": tensor for part, tensor in WRONG[form].items()},
                                   {Q: f"{Q}.weight"}, log_missing=False)
    clone = model.clone()
    assert clone.add_patches(patches)
    with pytest.raises(CheckpointError, match="LoRA shape mismatch at"):
        check_lora_shapes(clone)


# ---------------------------------------------------------------- damage

def not_finite(part: str, value: float, dtype=torch.float32) -> dict:
    tensors = {**PAIR, f"{Q}.alpha": torch.tensor(4.0), f"{Q}.dora_scale": draw(D, 1)}
    broken = tensors[f"{Q}.{part}"].to(dtype, copy=True)
    broken.view(-1)[-1] = value
    return tensors | {f"{Q}.{part}": broken}


@pytest.mark.parametrize("tensors", [
    not_finite("lora_A.weight", float("nan")), not_finite("lora_B.weight", float("inf")),
    not_finite("lora_B.weight", float("-inf"), torch.float16),
    not_finite("lora_A.weight", float("nan"), torch.bfloat16),
    not_finite("lora_A.weight", float("nan"), torch.float8_e4m3fn), not_finite("alpha", float("nan")),
    not_finite("dora_scale", float("inf")), {f"{Q}.diff": torch.full((D, D), float("nan"))}])
def test_nan_and_infinity_are_refused_by_name(model, tmp_path, tensors):
    [name] = [name for name, tensor in tensors.items() if not tensor.float().isfinite().all()]
    with pytest.raises(LoraError, match=rf"^style\.safetensors is damaged: {name} contains NaN or infinity"):
        applied_to(model, tmp_path, tensors)


@pytest.mark.parametrize("part", ["lora_A.weight", "lora_B.weight", "dora_scale", "diff"])
def test_nan_that_cores_loader_loads_is_refused_before_a_run(model, part, monkeypatch):
    """And what is finite is read once, however many runs follow."""
    import comfy.lora

    from qwen_image_2.nodes.bridge import run_checks
    broken = not_finite(part, float("nan")) if part != "diff" else {f"{Q}.diff": torch.full((D, D), float("nan"))}
    clone, good = model.clone(), model.clone()
    clone.add_patches(comfy.lora.load_lora(broken, {Q: f"{Q}.weight"}, log_missing=False))
    executor = SimpleNamespace(class_obj=SimpleNamespace(
        model_patcher=clone, model_options=clone.model_options, conds={}))
    with pytest.raises(CheckpointError, match=rf"^The LoRA is damaged: {Q}\.weight contains NaN or infinity"):
        run_checks.check_run(executor, torch.zeros(1, 64, 4, 4), torch.zeros(1, 64, 4, 4), None, torch.ones(2))
    good.add_patches(comfy.lora.load_lora(PAIR, {Q: f"{Q}.weight"}, log_missing=False))
    run_checks.check_lora_values(good)
    monkeypatch.setattr(run_checks, "is_finite", lambda tensor: pytest.fail("read again"))
    run_checks.check_lora_values(good)


@pytest.mark.parametrize("tensors", [not_finite("lora_A.weight", float("nan")), {
    f"{Q}.{part}": tensor for part, tensor in WRONG["LoKr"].items()}], ids=["NaN", "another shape"])
def test_no_file_is_written_with_a_lora_that_cannot_be_used(model, tensors):
    import comfy.lora

    from qwen_image_2.nodes.bridge.loading import diffusion_network
    clone = model.clone()
    clone.add_patches(comfy.lora.load_lora(tensors, {Q: f"{Q}.weight"}, log_missing=False))
    with pytest.raises(CheckpointError, match=r"^(LoRA shape mismatch|The LoRA is damaged)"):
        diffusion_network(clone)
    assert diffusion_network(model)


METADATA = "lora_adapter_metadata"


@pytest.mark.parametrize(("tensors", "metadata", "words"), [
    ({f"{Q}.lora_B.weight": UP}, None, f"is incomplete: {Q}.lora_B.weight belongs"),
    ({f"{Q}.lora_A.weight": DOWN}, None, "is incomplete"),
    ({f"{Q}.alpha": torch.tensor(1.0)}, None, "is incomplete"),
    ({f"{Q}.hada_w1_a": UP, f"{Q}.hada_w1_b": DOWN}, None, "is incomplete"),
    ({f"{Q}.hada_w1_a": UP, f"{Q}.hada_w1_b": DOWN, f"{Q}.hada_w2_a": UP}, None, "is incomplete"),
    ({f"{Q}.lokr_w1": draw(16, 16)}, None, "is incomplete"),
    ({f"{Q}.lokr_w1_a": draw(16, 2), f"{Q}.lokr_w2": draw(16, 16)}, None, "is incomplete"),
    ({f"{Q}.a1.weight": UP}, None, "is incomplete"),
    (PAIR | {f"{Q}.alpha": draw(7)}, None, "alpha must be one number, but has shape .7."),
    (PAIR | {f"{Q}.reshape_weight": torch.tensor([10 ** 6, 10 ** 6])}, None, "made for a model of another size"),
    (PAIR | {f"{Q}.reshape_weight": torch.zeros(9, dtype=torch.int64)}, None, "made for a model of another size"),
    (PAIR | {f"{Q}.lora_A.weight": torch.zeros(4, D, dtype=torch.int8)}, None, "has dtype int8"),
    (PAIR | {f"{Q}.lora_mid.weight": draw(4, 4)}, None, "lora_mid.weight is for a convolution"),
    ({f"{Q}.hada_{part}": tensor for part, tensor in {"w1_a": UP, "w1_b": DOWN, "w2_a": UP, "w2_b": DOWN,
                                                      "t1": draw(4, 4)}.items()}, None, "hada_t1 is for a convolution"),
    (PAIR, {METADATA: "[" * 200_000}, "metadata of style.safetensors .* cannot be read"),
    (PAIR, {METADATA: json.dumps({"lora_alpha": 1}).replace("1", "9" * 400)}, "metadata of style.safetensors"),
    (PAIR, {METADATA: json.dumps({"lora_alpha": float("nan")})}, f"is damaged: {METADATA} contains NaN"),
    (PAIR, {METADATA: json.dumps({"lora_alpha": "9" * 400})}, f"is damaged: {METADATA} contains NaN"),
    ({f"{Q}.weight": draw(D, D)}, None, "not a LoRA but a whole transformer"),
    ({"x" * 10_000: draw(1)}, None, "does not match this model: none of its keys fit"),
    ({}, None, "does not match this model: none of its keys fit"),
    (PAIR | {"transformer.proj_out.weight": draw(4, 64, D)}, None,
     r"is a Fun-Acc PDD file.*\(transformer\.proj_out\.weight"),
    (PAIR | {"proj_out.set_weight": draw(4, 64, D)}, None, "is a Fun-Acc PDD file"),
])
def test_a_malformed_file_is_refused_in_one_sentence(model, tmp_path, tensors, metadata, words):
    with pytest.raises(LoraError, match=words) as raised:
        applied_to(model, tmp_path, tensors, metadata)
    assert len(str(raised.value)) <= MAX_LENGTH and "style.safetensors" in str(raised.value)
    assert not model.patches


def test_a_file_that_may_not_be_read_is_named_without_its_folder(model, tmp_path, monkeypatch):
    """Root may read everything, so the system's answer is given here."""
    path, own = write(tmp_path, PAIR), type(tmp_path).open

    def refuse(self, *args, **kwargs):
        if self == path:
            raise PermissionError(13, "Permission denied", str(self))
        return own(self, *args, **kwargs)

    from qwen_image_2.nodes.bridge.lora import apply
    monkeypatch.setattr(type(tmp_path), "open", refuse)
    with pytest.raises(CheckpointError, match=r"^style\.safetensors cannot be read \(Permission denied\)"):
        apply(model, path, path.name, 1.0)
