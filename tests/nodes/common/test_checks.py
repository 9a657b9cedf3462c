"""Checks before a run, as ComfyUI asks for them."""
import inspect

import pytest

from qwen_image_2.messages import Message, Refusal


@pytest.fixture
def checks(comfyui):
    from qwen_image_2.nodes.common import checks
    return checks


@pytest.fixture
def node(checks):
    """A node whose check refuses negative numbers."""
    from comfy_api.latest import io

    class Counting(io.ComfyNode):
        least = 0

        @classmethod
        def define_schema(cls):
            return io.Schema(node_id="Counting", inputs=[io.Int.Input("count"), io.Int.Input("other")])

        @classmethod
        def execute(cls, count, other):
            raise AssertionError

        @checks.check_before_run
        def validate_inputs(cls, count, other=1):
            if count < cls.least:
                raise Refusal("negative", "{count} is negative.", count=count)

    return Counting


def as_comfyui_asks(node, **inputs):
    """Through its copy of the class, which nobody can change."""
    from comfy_api.internal import first_real_override, make_locked_method_func
    assert first_real_override(node, "validate_inputs")
    return make_locked_method_func(node, "validate_inputs", node.PREPARE_CLASS_CLONE(None))(**inputs)


def test_a_check_says_true_or_its_message(node):
    assert as_comfyui_asks(node, count=1, other=2) is True
    told = as_comfyui_asks(node, count=-1)
    assert isinstance(told, Message) and told == "-1 is negative." and told.key == "negative"


def test_what_is_no_refusal_is_a_fault_of_ours(node):
    with pytest.raises(TypeError):
        as_comfyui_asks(node, count=None)


def test_comfyui_reads_which_inputs_are_asked_for(node, checks):
    """Of these alone it leaves out its own checks, so a name too many, or **, would lose some."""
    from comfy_api.internal import first_real_override
    found = inspect.getfullargspec(first_real_override(node, "validate_inputs"))
    assert found.args == ["cls", "count", "other"] and found.varkw is None and found.defaults == (1,)
    assert list(inspect.signature(node.validate_inputs).parameters) == ["count", "other"]
    named = checks.check_before_run(lambda cls, **inputs: None, ("title", "width")).__func__
    found = inspect.getfullargspec(named)
    assert found.args == ["cls", "title", "width"] and found.varkw is None and found.varargs is None
    assert named(node, title="", width=1) is True
    with pytest.raises(TypeError, match="missing a required argument: 'width'"):
        named(node, title="")


@pytest.mark.parametrize(("canvas", "words"), [
    (("1:1", 1000, 1000), None), ((None, 1000, 1000), None), (("custom", None, 1000), None),
    (("custom", 640, 320), None), (("custom", 640, 1001), "multiples of 16"),
    (("5:4", None, None), "Unknown aspect ratio")])
def test_a_canvas_is_checked_as_far_as_it_is_known(checks, canvas, words):
    if words is None:
        assert checks.check_canvas(*canvas) is None
    else:
        with pytest.raises(Refusal, match=words):
            checks.check_canvas(*canvas)


def test_a_latent_must_be_one_of_the_model(checks, model):
    import torch
    samples = torch.zeros(1, 64, 4, 6)
    assert checks.check_latent(model, {"samples": samples}) is samples
    for wrong, words in ((samples[:, :16], r"shape \[1, 16, 4, 6\]; Qwen-Image 2 expects \[batch, 64"),
                         (samples[0], "Qwen-Image 2 expects"), (samples[:0], "The latent is empty")):
        with pytest.raises(Refusal, match=words):
            checks.check_latent(model, {"samples": wrong})


@pytest.mark.parametrize(("channels", "ratio", "sides"), [(16, 8, (8, 12)), (4, 8, (8, 12)), (64, 16, (4, 6)),
                                                         (128, 32, (2, 3))])
def test_empty_latents_of_core_take_the_models_shape(checks, model, channels, ratio, sides):
    """Those of SD3, SD, a model of our scale and LTX, for 96 x 64 pixels."""
    import comfy.sample
    import torch
    latent = {"samples": torch.zeros(2, channels, *sides), "downscale_ratio_spacial": ratio}
    samples = checks.check_latent(model, latent)
    assert samples.shape == (2, 64, 4, 6)
    assert torch.equal(samples, comfy.sample.fix_empty_latent_channels(model, latent["samples"], ratio))


def test_the_empty_latent_of_flux_2_says_no_scale(checks, model):
    import torch
    assert checks.check_latent(model, {"samples": torch.zeros(1, 128, 4, 6)}).shape == (1, 64, 4, 6)


def test_pictures_of_other_models_stay_refused(checks, model):
    """Only an empty latent says nothing in a language that this model does not know."""
    import torch
    with pytest.raises(Refusal, match="Qwen-Image 2 expects"):
        checks.check_latent(model, {"samples": torch.ones(1, 16, 8, 12), "downscale_ratio_spacial": 8})


def test_nan_is_refused_by_the_sampler_and_not_by_who_needs_the_size(checks, model):
    import torch

    from qwen_image_2.nodes.sampler import QwenImage2Sampler
    samples = torch.zeros(2, 64, 4, 6)
    samples[1, 5, 0, 0] = float("nan")
    assert checks.check_latent(model, {"samples": samples}) is samples
    with pytest.raises(Refusal, match="The latent contains NaN"):
        QwenImage2Sampler.execute(model, [], {"samples": samples}, 0, "Quality 40", 40, 1.0, 1.0)


def test_objects_of_other_models_are_refused(checks, clip):
    from comfy.model_patcher import ModelPatcher
    from torch import nn
    other = ModelPatcher(nn.Linear(1, 1), "cpu", "cpu")
    with pytest.raises(Refusal, match="This MODEL is not a Qwen-Image 2 transformer"):
        checks.check_model(other)
    with pytest.raises(Refusal, match="This VAE is not the Qwen-Image 2 VAE"):
        checks.check_vae(clip)
