"""Conditioning in the form of ComfyUI's own Qwen-Image 2.1, which newer versions have: written and read.

The form is that of comfy/text_encoders/qwen_image21.py (19d1def1), comfy_extras/nodes_qwen.py (ed26919d) and
comfy/ldm/qwen_image21/model.py (08f68f09). None of them is installed here: what their nodes call is called by hand, and
what their transformer makes of a conditioning is asked of diffusers.
"""
from itertools import pairwise, zip_longest

import numpy as np
import pytest
import torch
from PIL import Image

from qwen_image_2.tests.reference import error

PROMPT = "make <image1> as blue as <image2>"
SIZES = ((96, 64), (32, 160))  # width, height
TARGET = (4, 6)                # rows, columns of latents


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    generator = np.random.default_rng(5)
    return [Image.fromarray(generator.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in SIZES]


@pytest.fixture(scope="module")
def images(pictures) -> list[torch.Tensor]:
    return [torch.from_numpy(np.asarray(picture).astype(np.float32) / 255).unsqueeze(0) for picture in pictures]


def core_s_node(clip, prompt, images, latents=()):
    """What TextEncodeQwenImage21 does with a CLIP, once it has the references' sizes and latents."""
    import node_helpers
    tokens = clip.tokenize(prompt, images=images, keep_vision=not latents, prevent_empty_text=True)
    conditioning = clip.encode_from_tokens_scheduled(tokens)
    return node_helpers.conditioning_set_values(conditioning, {"reference_latents": list(latents)}, append=True)


def as_core_reads_it(model, text, entries):
    """States, image mask and latents for diffusers' transformer. Core lines up the text between two slots and the
    reference of the second; diffusers has states that nothing reads in the references' place."""
    references = [model.model.process_latent_in(latent) for latent in entries.get("reference_latents", ())]
    bounds = [0, *entries.get("image_slots", ()), text.shape[1]]
    states, mask = [], []
    for (start, end), reference in zip_longest(pairwise(bounds), references):
        ignored = 0 if reference is None else reference[0, 0].numel() // 4
        states += [text[:, start:end], text.new_full((1, ignored, text.shape[2]), 1e3)]
        mask += [False] * (end - start) + [True] * ignored
    return torch.cat(states, 1), mask, references


def diffusers_velocity(theirs, states, mask, references, x, sigma):
    latents = [*references, x]
    tokens = torch.cat([latent.flatten(2).transpose(1, 2) for latent in latents], dim=1)
    slots = torch.tensor([[*mask, *[True] * (x[0, 0].numel() // 4)]])
    out, = theirs(tokens, states, sigma, [[(1, *latent.shape[-2:]) for latent in latents]], slots, return_dict=False)
    return out[:, -x[0, 0].numel():].transpose(1, 2).unflatten(2, x.shape[-2:])


def velocity(model, conditioning, x, sigma):
    from qwen_image_2.nodes.bridge.prefix_cond import PromptPrefix
    (text, entries), = conditioning
    prefix = model.model.extra_conds(**entries, cross_attn=text)["prefix"].cond
    assert isinstance(prefix, PromptPrefix)
    return model.model.diffusion_model(x, sigma, prefix=prefix)


@pytest.fixture(scope="module")
def step():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(1, 64, *TARGET, generator=generator), torch.tensor([0.7315])


@torch.no_grad()
@pytest.mark.parametrize("count", [0, 1, 2])
def test_our_conditioning_is_to_core_what_it_is_to_us(model, clip, vae, reference, images, step, count):
    from qwen_image_2.nodes.bridge.text_encoders.families import encode_together
    from qwen_image_2.nodes.bridge.text_encoders.lazy import with_references
    conditioning = encode_together(clip, [PROMPT], images[:count])[0]
    if count:
        conditioning = with_references(conditioning, [vae.encode(image) for image in images[:count]])
    found = velocity(model, conditioning, *step)
    (text, entries), = conditioning
    assert type(entries.get("image_slots", [])) is list and ("image_slots" in entries) == (count > 0)
    expected = diffusers_velocity(reference.transformer, *as_core_reads_it(model, text, entries), *step)
    assert error(found, expected) < 1e-4


@torch.no_grad()
def test_core_s_conditioning_is_to_us_what_it_is_to_core(model, reference, pictures, step):
    """As core's encoder leaves it: the states outside of the slots, and how many of them stand before each."""
    states, _, slots = reference.encode_prompt(PROMPT, pictures)
    mask = slots[0].tolist()
    starts = [i for i, here in enumerate(mask) if here and not mask[i - 1]]
    latents = [torch.randn(1, 64, h // 16, w // 16, generator=torch.Generator().manual_seed(h)) for w, h in SIZES]
    found = velocity(model, [[states[:, ~slots[0]], {
        "pooled_output": None, "image_slots": [mask[:start].count(False) for start in starts],
        "reference_latents": latents}]], *step)
    expected = diffusers_velocity(reference.transformer, states, mask,
                                  [model.model.process_latent_in(latent) for latent in latents], *step)
    assert error(found, expected) < 1e-4


def test_core_s_node_makes_of_our_encoder_what_ours_does(clip, vae, images):
    from qwen_image_2.nodes.bridge.text_encoders.families import encode_together
    from qwen_image_2.nodes.bridge.text_encoders.lazy import with_references
    latents = [vae.encode(image) for image in images]
    (text, entries), = core_s_node(clip, PROMPT, images, latents)
    (expected, theirs), = with_references(encode_together(clip, [PROMPT], images)[0], latents)
    assert torch.equal(text, expected) and entries["image_slots"] == theirs["image_slots"]
    assert all(map(torch.equal, entries["reference_latents"], theirs["reference_latents"]))


@torch.no_grad()
def test_without_a_vae_pictures_condition_through_the_encoder_alone(model, clip, reference, pictures, images, step):
    expected, _, slots = reference.encode_prompt(PROMPT, pictures)
    (text, entries), = core_s_node(clip, PROMPT, images)
    assert error(text, expected) < 1e-4 and slots.any() and "image_slots" not in entries
    assert velocity(model, [[text, entries]], *step).isfinite().all()
