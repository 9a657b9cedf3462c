"""DoRA: the magnitude belongs to the changed matrix, as in the paper and in PEFT."""
import pytest
import torch

from qwen_image_2.tests.nodes.bridge.test_lora import DOTS, FORMS, ROWS, changed, draw, in_halves, mlp_rows
from qwen_image_2.tests.nodes.bridge.test_lora_of_others import Q, applied_to, change
from qwen_image_2.tests.reference import error

MAGNITUDE = draw(ROWS).abs() + 1

pytestmark = pytest.mark.usefixtures("as_comfyui_runs_nodes")


def decomposed(weight: torch.Tensor, update: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """Equation 5 of arXiv 2402.09353, written out; magnitude (rows,)."""
    updated = weight + update
    return magnitude[:, None] * updated / updated.square().sum(1, keepdim=True).sqrt()


# Computed by PEFT 0.18.0 (use_dora, r 2, lora_alpha 4, merge_and_unload) from the five tensors below.
PEFT = torch.tensor([[1.476203, -1.771444, 1.919065], [0.119041, 0.238082, -0.423257]])


def test_it_is_what_peft_makes(comfyui):
    from comfy.weight_adapter.lora import LoRAAdapter

    from qwen_image_2.nodes.bridge.adapters.dora import Decomposed
    weight = torch.tensor([[1, -2, 0.5], [0.25, 1.5, -1]])
    down, up = torch.tensor([[2, -1, 1], [0, 1.0, -2]]), torch.tensor([[1, -1], [0.5, 2]])
    adapter = Decomposed(set(), (LoRAAdapter(set(), (up, down, 4.0, None, None, None)), torch.tensor([[3], [0.5]])))
    found = adapter.calculate_weight(weight.clone(), "key", 1.0, 1.0, None, lambda change: change)
    assert error(found, PEFT) < 1e-6 and error(decomposed(weight, 2 * up @ down, torch.tensor([3, 0.5])), PEFT) < 1e-6
    half = adapter.calculate_weight(weight.clone(), "key", 0.5, 1.0, None, lambda change: change)
    assert error(half, (weight + PEFT) / 2) < 1e-6


@pytest.mark.parametrize("strength", [1.0, 0.5, -1.0])
@pytest.mark.parametrize("form", ["ai-toolkit", "LoHa", "LoKr"])
@pytest.mark.parametrize("written", [dict, in_halves], ids=["one matrix", "two matrices"])
def test_every_low_rank_form_can_have_magnitudes(model, tmp_path, form, strength, written):
    """A large update: core's division by |W| would be far off."""
    tensors, update = FORMS[form]
    weight = mlp_rows(model)
    tensors = written({**tensors, f"{DOTS}.dora_scale": MAGNITUDE[:, None].clone()})
    found, applied = changed(model, tmp_path, tensors, strength)
    assert error(found, strength * (decomposed(weight, update, MAGNITUDE) - weight)) < 1e-5
    assert applied.matrices == 1 and not applied.unused


def test_magnitudes_of_columns(model, tmp_path):
    weight = model.model.diffusion_model.transformer_blocks[1].attn.to_q.weight.float()
    up, down, columns = draw(256, 4), draw(4, 256), draw(1, 256).abs() + 1
    applied = applied_to(model, tmp_path, {f"{Q}.lora_A.weight": down, f"{Q}.lora_B.weight": up,
                                           f"{Q}.dora_scale": columns})
    expected = decomposed(weight.T, (up @ down).T, columns[0]).T
    assert error(change(model, applied), expected - weight) < 1e-5


def test_a_row_of_zeros_stays(comfyui):
    from qwen_image_2.nodes.bridge.adapters.dora import rescaled
    assert rescaled(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[2.0], [10.0]])).tolist() == [[0, 0], [6, 8]]


def test_cores_loader_keeps_cores_result(model):
    """Files that people know by their pictures from core do not change where core loads them."""
    import comfy.lora
    import comfy.utils
    key, magnitude = f"{Q}.weight", draw(256, 1).abs() + 1
    up, down = draw(256, 4), draw(4, 256)
    weight = comfy.utils.get_attr(model.model, key).float()
    patches = comfy.lora.load_lora({f"{Q}.lora_A.weight": down, f"{Q}.lora_B.weight": up, f"{Q}.dora_scale": magnitude},
                                   comfy.lora.model_lora_keys_unet(model.model, {}), log_missing=False)
    clone = model.clone()
    clone.add_patches(patches)
    found = comfy.lora.calculate_weight(clone.patches[key], weight.clone(), key)
    assert error(found, magnitude * (weight + up @ down) / weight.norm(dim=1, keepdim=True)) < 1e-5


def test_it_survives_the_way_in_which_core_copies_adapters(model, tmp_path):
    """Core's loading ahead rebuilds an adapter from its keys and its weights."""
    import comfy.lora
    tensors = {f"{Q}.lora_A.weight": draw(4, 256), f"{Q}.lora_B.weight": draw(256, 4), f"{Q}.dora_scale": draw(256, 1)}
    applied = applied_to(model, tmp_path, tensors)
    [[strength, adapter, *rest]] = applied.model.patches[f"{Q}.weight"]
    before = change(model, applied)
    rebuilt = comfy.lora.prefetch_prepared_value(adapter, [0], None, None, False)
    applied.model.patches[f"{Q}.weight"] = [(strength, rebuilt, *rest)]
    assert rebuilt is not adapter and torch.equal(change(model, applied), before)
