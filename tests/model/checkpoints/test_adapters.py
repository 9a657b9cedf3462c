"""Names of adapters' tensors, taken apart as text."""
import pytest
import torch

from qwen_image_2.model.checkpoints import adapters

LONG = 100_000


@pytest.mark.parametrize(("name", "module", "part"), [
    ("a.img_mlp.gate.lora_A.default.weight", "diffusion_model.a.img_mlp.gate", "lora_A.weight"),
    ("transformer.base_model.model.a.lora_B.my-style_2.weight", "diffusion_model.a", "lora_B.weight"),
    ("model.diffusion_model.a.lora_linear_layer.up.weight", "diffusion_model.a", "lora_B.weight"),
    ("lycoris_a_to_q.lokr_w1", "lora_unet_a_to_q", "lokr_w1"), ("a.lokr_w2_b", "diffusion_model.a", "lokr_w2_b"),
    ("a.hada_t1", "diffusion_model.a", "hada_t1"), ("a.diff_b", "diffusion_model.a.bias", "diff"),
    ("a.b_norm", "diffusion_model.a.bias", "diff"),
    ("a.alpha", "diffusion_model.a", "alpha"), ("a.lora_magnitude_vector", "diffusion_model.a", "dora_scale"),
    ("a.lora_magnitude_vector.one.weight", "diffusion_model.a", "dora_scale"),
    ("a.b", "diffusion_model.a.b", ""), ("a.lora_B.bias", "diffusion_model.a.lora_B.bias", ""),
    ("transformer_blocks.0.weight", "diffusion_model.transformer_blocks.0.weight", ""),
    # Patterns that try all ends would take hours for these.
    ("a" + "_lokr_x" * LONG + "!", "diffusion_model.a" + "_lokr_x" * LONG + "!", ""),
    ("a" + ".diff" * LONG, "diffusion_model.a" + ".diff" * (LONG - 1), "diff"),
    ("transformer." * LONG + "a.alpha", "diffusion_model.a", "alpha"),
    ("a" + ".lora_B" * LONG + ".x", "diffusion_model.a" + ".lora_B" * LONG + ".x", ""),
    ("transformer", "diffusion_model.", "")])
def test_which_matrix_a_tensor_belongs_to(name, module, part):
    assert adapters.taken_apart(adapters.one_spelling(name)) == (module, part)


@pytest.mark.parametrize(("parts", "kinds"), [
    ("lora_A.weight lora_B.weight alpha", ["LoRA"]), ("lora_B.weight alpha", []), ("hada_w1_a hada_w1_b hada_w2_a", []),
    ("lokr_w1 lokr_w2_a lokr_w2_b", ["LoKr"]), ("lokr_w1_a lokr_w2", []), ("lokr_w1", []), ("oft_blocks", ["OFT"]),
    ("a1.weight a2.weight b1.weight", []), ("diff diff_b", ["difference"]), ("w_norm b_norm", ["difference"]),
    ("lora_A.weight lora_B.weight diff", ["LoRA", "difference"]), ("alpha dora_scale", [])])
def test_what_is_complete(parts, kinds):
    found = adapters.complete("a", {part: torch.zeros(1) for part in parts.split()})
    assert [adapter.kind for adapter in found] == kinds
    assert all("diff_b" not in adapter.parts and "b_norm" not in adapter.parts for adapter in found)
