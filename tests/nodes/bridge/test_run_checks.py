"""What is refused before a run, how much room a run asks for, and what it leaves behind."""
from types import SimpleNamespace

import pytest
import torch

from qwen_image_2.tools import tiny

RUN = (None, torch.tensor([1.0, 0.0]))  # sampler and sigmas


@pytest.fixture
def run_checks():
    from qwen_image_2.nodes.bridge import run_checks
    return run_checks


def guider_of(model, conds: dict) -> SimpleNamespace:
    """What check_run reads of one of core's."""
    return SimpleNamespace(model_patcher=model, model_options=model.model_options, conds=conds)


def test_controlnets_are_refused(run_checks, model):
    executor = type("Executor", (), {"class_obj": guider_of(model, {"positive": [{"control": object()}]})})()
    with pytest.raises(ValueError, match="ControlNets of other models .* Apply Control"):
        run_checks.check_run(executor, torch.zeros(1, 64, 4, 4), torch.zeros(1, 64, 4, 4), *RUN)


def test_empty_batch_is_refused(run_checks, model):
    executor = type("Executor", (), {"class_obj": guider_of(model, {})})()
    with pytest.raises(ValueError, match="batch is empty"):
        run_checks.check_run(executor, torch.zeros(0, 64, 4, 4), torch.zeros(0, 64, 4, 4), *RUN)


def test_prompts_must_be_one_or_as_many_as_pictures(run_checks, model):
    cond = {"cross_attn": torch.zeros(2, 20, 64), "model_conds": {}}
    executor = type("Executor", (), {"class_obj": guider_of(model, {"positive": [cond]})})()
    with pytest.raises(ValueError, match="2 prompts for 3 images"):
        run_checks.check_run(executor, torch.zeros(3, 64, 4, 4), torch.zeros(3, 64, 4, 4), *RUN)


def test_video_latents_are_refused(run_checks, model):
    executor = type("Executor", (), {"class_obj": guider_of(model, {})})()
    with pytest.raises(ValueError, match=r"shape \[1, 64, 1, 4, 4\]"):
        run_checks.check_run(executor, torch.zeros(1, 64, 1, 4, 4), torch.zeros(1, 64, 1, 4, 4), *RUN)


def test_lora_hooks_of_another_width_are_refused(run_checks, model):
    from comfy.weight_adapter.lora import LoRAAdapter
    clone = model.clone()
    adapter = LoRAAdapter(set(), (torch.zeros(3072, 4), torch.zeros(4, 3072), None, None, None, None))
    key = "diffusion_model.transformer_blocks.0.attn.to_q.weight"
    clone.hook_patches = {object(): {key: [(1.0, adapter, 1.0, None, None)]}}
    with pytest.raises(ValueError, match=r"Qwen-Image 1.x \(width 3072\)"):
        run_checks.check_lora_shapes(clone)


def least_room(monkeypatch, model, cfg: float, place: str = "VRAM", images: int = 1, **options) -> int:
    """Bytes that ComfyUI must find beside the weights of a run with prompts of 30 and of 20 tokens."""
    import comfy.model_management as management
    import comfy.samplers

    from qwen_image_2.nodes.bridge.keys import CACHE_LOCATION_KEY
    from qwen_image_2.nodes.bridge.runtime.prefix_placement import CacheLocation
    changed, asked, load = model.clone(), [], management.load_models_gpu
    changed.model_options |= options
    changed.model_options["transformer_options"][CACHE_LOCATION_KEY] = CacheLocation[place]
    guider = comfy.samplers.CFGGuider(changed)
    guider.set_conds([[torch.randn(1, 30, 64), {}]], [[torch.randn(1, 20, 64), {}]])
    guider.set_cfg(cfg)
    with monkeypatch.context() as patch:
        patch.setattr(management, "load_models_gpu",
                      lambda models, minimum_memory_required, **rest: asked.append(minimum_memory_required)
                      or load(models, minimum_memory_required=minimum_memory_required, **rest))
        latent = torch.zeros(images, 64, 4, 4)
        guider.sample(torch.randn_like(latent), latent, comfy.samplers.sampler_object("euler"),
                      torch.tensor([1.0, 0.0]))
    return asked[0]


def test_the_least_room_holds_the_prompts_of_both_branches(model, monkeypatch):
    """ComfyUI fills up the rest with weights; at cfg 1 the second prompt is not computed."""
    token = 2 * 256 * 2 * 4  # keys and values, width, blocks, bytes
    alone = least_room(monkeypatch, model, 1.0)
    assert least_room(monkeypatch, model, 2.0) - alone == 20 * token
    assert least_room(monkeypatch, model, 1.0, disable_cfg1_optimization=True) - alone == 20 * token
    assert alone - least_room(monkeypatch, model, 2.0, "RAM") == 30 * token
    assert model.model.run_state.cached_tokens is None


@pytest.mark.parametrize("cfg, prompts", [(1.0, 30), (2.0, 50)])
def test_a_prefix_for_each_picture_where_it_changes_with_the_timestep(monkeypatch, model, reference, tmp_path, cfg,
                                                                       prompts):
    """Without causal_condition three pictures keep three times the keys and values, and compute the longest prefix
    three times."""
    from qwen_image_2.nodes.bridge.loading import load_model
    from qwen_image_2.nodes.bridge.qwen_image_2 import ACTIVATION_WIDTHS
    tiny.save(tiny.to_comfy_transformer(reference.transformer.state_dict()), tmp_path / "model.safetensors",
              {"causal_condition": False}, torch.float32)
    changing = load_model(tmp_path / "model.safetensors", "model", "base")
    kept, computed = 2 * 256 * 2 * 4, ACTIVATION_WIDTHS * 256 * 4  # bytes of a token
    more = least_room(monkeypatch, changing, cfg, images=3) - least_room(monkeypatch, model, cfg, images=3)
    assert more == 2 * (prompts * kept + 30 * computed)
    assert least_room(monkeypatch, changing, cfg) == least_room(monkeypatch, model, cfg)
    assert changing.model.run_state.images is None


def test_each_prompt_is_placed_beside_what_the_other_keeps(model, monkeypatch):
    from qwen_image_2.nodes.bridge.prefix_cond import PromptPrefix
    from qwen_image_2.nodes.bridge.runtime import prefix_placement
    found, allocate = [], prefix_placement.allocate_prefix_cache
    monkeypatch.setattr(prefix_placement, "allocate_prefix_cache",
                        lambda *args: found.append(args[-1]) or allocate(*args))
    monkeypatch.setattr(PromptPrefix, "video_memory", 7)
    least_room(monkeypatch, model, 2.0)
    assert found == [0, 7]


def test_a_failed_run_keeps_no_keys_and_values(model):
    """The guider of SamplerCustomAdvanced outlives the run, and its conditionings with it."""
    import comfy.samplers
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds([[torch.randn(1, 20, 64), {}]], [[torch.randn(1, 20, 64), {}]])
    guider.set_cfg(2.0)

    def stop(*args):
        prefixes = [cond["model_conds"]["prefix"].cond for conds in guider.conds.values() for cond in conds]
        assert all(prefix.cache is not None for prefix in prefixes)
        raise InterruptedError

    latent = torch.zeros(1, 64, 4, 4)
    with pytest.raises(InterruptedError):
        guider.sample(torch.randn_like(latent), latent, comfy.samplers.sampler_object("euler"),
                      torch.tensor([1.0, 0.5, 0.0]), callback=stop)
    prefixes = [cond["model_conds"]["prefix"].cond for conds in guider.conds.values() for cond in conds]
    assert len(prefixes) == 2 and all(prefix.cache is None for prefix in prefixes)


def test_a_picture_of_nan_is_told_before_it_is_saved(model):
    """Core's samplers say it in the log, ours on the node; a report stands for both."""
    import comfy.samplers

    from qwen_image_2.nodes.bridge.guider import guider_for
    said, latent = [], torch.zeros(3, 64, 4, 4)
    guider = guider_for(model, [[torch.randn(1, 20, 64), {}]], None, 1.0, said.append)

    def sampled(noise):
        return guider.sample(noise, latent, comfy.samplers.sampler_object("euler"), torch.tensor([1.0, 0.0]))

    noise = torch.randn_like(latent)
    sampled(noise)
    assert not [sentence for sentence in said if "NaN" in sentence]
    noise[1, 0, 0, 0] = float("nan")
    sampled(noise)
    sentence, = [sentence for sentence in said if "NaN" in sentence]
    assert sentence.startswith("The latent of image 2 (of 3) contains NaN or infinite values; the image will be "
                               "black. ")
