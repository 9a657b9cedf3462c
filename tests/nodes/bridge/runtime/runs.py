"""Short runs of the miniature, with and without LoRAs, hooks and a budget."""
import math

import torch

TARGET_TOKENS = 4 * 6
LORA = ("img_in.weight", "transformer_blocks.0.attn.to_q.weight", "transformer_blocks.3.img_mlp.out.weight",
        "transformer_blocks.6.attn.to_v.weight")


def with_lora(model, *names: str):
    """A LoRA of rank 4 on some matrices; drawn with a seed."""
    from comfy.weight_adapter import LoRAAdapter
    generator, patches = torch.Generator().manual_seed(3), {}
    for name in names:
        rows, columns = model.model.diffusion_model.get_submodule(name.removesuffix(".weight")).weight.shape
        up, down = (torch.randn(*shape, generator=generator) * 0.05 for shape in ((rows, 4), (4, columns)))
        patches[f"diffusion_model.{name}"] = LoRAAdapter(set(), (up, down, None, None, None, None))
    clone = model.clone()
    clone.add_patches(patches)
    return clone


def hook_lora(model):
    """A LoRA hook, as ComfyUI's Create Hook LoRA makes it, on a matrix of every block."""
    import comfy.hooks
    generator, state = torch.Generator().manual_seed(4), {}
    for number, block in enumerate(model.model.diffusion_model.transformer_blocks):
        rows, columns = block.attn.to_q.weight.shape
        name = f"diffusion_model.transformer_blocks.{number}.attn.to_q"
        state[f"{name}.lora_B.weight"] = torch.randn(rows, 4, generator=generator) * 0.05
        state[f"{name}.lora_A.weight"] = torch.randn(4, columns, generator=generator) * 0.05
    return comfy.hooks.create_hook_lora(state, 1.0, 0.0)


def reporting_to(report, model):
    """A clone of the MODEL whose runs, by core's samplers, tell what they do instead of writing it to the log."""
    from qwen_image_2.nodes.bridge.keys import REPORT_KEY
    clone = model.clone()
    clone.model_options["transformer_options"][REPORT_KEY] = report
    return clone


def text_and_noise(model) -> tuple[torch.Tensor, torch.Tensor]:
    """States of a prompt (1, 12, K) and noise (1, 64, 4, 6)."""
    text = torch.randn(1, 12, model.model.spec.context_dim, generator=torch.Generator().manual_seed(0))
    return text, torch.randn(1, 64, 4, 6, generator=torch.Generator().manual_seed(1))


def sample(model, steps: int = 2, cfg: float = 1.0, hooks=None, callback=None):
    """What a core sampler makes of it: prompts of twelve tokens and, with guidance, of nine."""
    import comfy.sample
    import comfy.samplers
    text, noise = text_and_noise(model)
    sigmas = torch.linspace(1, 0, steps + 1)
    positive = [[text, {"hooks": hooks} if hooks else {}]]
    return comfy.sample.sample_custom(model, noise, cfg, comfy.samplers.sampler_object("euler"), sigmas,
                                      positive, [[text[:, :9], {}]], torch.zeros_like(noise), seed=0,
                                      callback=callback)


def budget_for(model, kept: int) -> int:
    """Bytes that are just enough for so many blocks."""
    from qwen_image_2.nodes.bridge.runtime.budget import BudgetPatcher
    return BudgetPatcher.of(model, math.inf).plan_for(math.inf).keeping(kept).on_device


def unload():
    import comfy.model_management
    comfy.model_management.unload_all_models()


def queries(model) -> list[torch.Tensor]:
    return [block.attn.to_q.weight.clone() for block in model.model.diffusion_model.transformer_blocks]
