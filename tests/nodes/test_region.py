"""Pictures and masks as other nodes make them, through Crop for Edit, Stitch Edit, Extend Canvas and VAE Encode."""
from types import SimpleNamespace

import pytest
import torch


@pytest.fixture
def region(comfyui, monkeypatch):
    from qwen_image_2.nodes import region
    # What ComfyUI sets on its copy of the class: nobody watches.
    for node in (region.QwenImage2CropForEdit, region.QwenImage2StitchEdit):
        monkeypatch.setattr(node, "hidden", SimpleNamespace(unique_id=None), raising=False)
    return region


def image(batch=1, height=64, width=96, channels=3):
    generator = torch.Generator().manual_seed(batch + height)
    return torch.rand(batch, height, width, channels, generator=generator)


def masks(count):
    mask = torch.zeros(count, 64, 96)
    for number in range(count):
        mask[number, 20:30, 20 + 10 * number:35 + 10 * number] = 1
    return mask


def crop(region, picture, mask, resolution="128", feather=4):
    return region.QwenImage2CropForEdit.execute(picture, mask, 0.2, resolution, feather)


@pytest.mark.parametrize(("pictures", "count", "edited"), [(1, 1, 4), (1, 3, 1), (1, 3, 3), (3, 1, 3), (2, 2, 2)])
def test_batches_go_through_crop_and_stitch(region, pictures, count, edited):
    """One picture with several masks is one reference, or Encode Edit would be shown the same again and again."""
    part, part_mask, cut = crop(region, image(pictures), masks(count)).result
    assert len(part) == pictures and len(part_mask) == max(pictures, count)
    out, = region.QwenImage2StitchEdit.execute(cut, image(edited, 32, 32)).result
    assert len(out) == max(pictures, count, edited)
    outside = (cut.mask == 0).expand(len(out), -1, -1)
    assert torch.equal(out[outside], image(pictures).expand(len(out), -1, -1, -1)[outside])


def test_the_region_is_said(region):
    said, = crop(region, image(), masks(1), feather=0).ui["qwen_image_2_messages"]
    assert said.startswith("Region: 21 x 16 pixels at left 17, top 17 of an image of 96 x 64, edited at ")


def test_a_panorama_is_no_reference_and_may_be_cut(region):
    """Its sides are 20 to 1, of which a reference may have 16; the part that is edited has them not."""
    mask = torch.zeros(1, 32, 640)
    mask[:, 10:20, 300:320] = 1
    part, _, _ = crop(region, image(1, 32, 640), mask).result
    assert max(part.shape[1:3]) <= 4 * min(part.shape[1:3])


NO_PICTURES = [(torch.full((1, 8, 8, 3), float("nan")), "The image contains NaN"), (torch.rand(1, 8, 8, 1), "RGB and"),
               (torch.rand(0, 8, 8, 3), "The image is empty"), (torch.rand(1, 0, 8, 3), "The image is empty")]


@pytest.mark.parametrize(("wrong", "words"), NO_PICTURES)
def test_what_is_no_picture_is_refused_by_each(region, vae, wrong, words):
    from qwen_image_2.nodes.vae import QwenImage2VAEEncode
    _, _, cut = crop(region, image(), masks(1)).result
    for ask in (lambda: crop(region, wrong, torch.ones(1, 8, 8)),
                lambda: region.QwenImage2StitchEdit.execute(cut, wrong),
                lambda: region.QwenImage2ExtendCanvas.execute(wrong, 8, 0, 0, 0),
                lambda: QwenImage2VAEEncode.execute(wrong, vae)):
        with pytest.raises(ValueError, match=words):
            ask()


def test_extended_batches_keep_their_pictures(region):
    out, mask = region.QwenImage2ExtendCanvas.execute(image(3), 8, 0, 0, 16).result
    assert mask.shape == (3, 80, 104) and torch.equal(out[:, :64, 8:], image(3))


@pytest.mark.parametrize(("pictures", "count"), [(1, 3), (3, 1), (2, 2)])
@pytest.mark.parametrize("kind", [torch.bool, torch.half, torch.float32])
def test_transparency_broadcasts(comfyui, pictures, count, kind):
    from qwen_image_2.nodes.vae import with_alpha
    rgba = with_alpha(image(pictures), masks(count).to(kind))
    assert rgba.shape == (max(pictures, count), 64, 96, 4)
    assert torch.equal(rgba[..., 3], 1 - masks(count).expand(len(rgba), -1, -1))
    assert torch.equal(rgba[..., :3], image(pictures).expand(len(rgba), -1, -1, -1))


def test_a_stitch_that_aligns_says_what_it_has_moved_and_keeps_every_pixel_outside(region):
    from qwen_image_2.model.images.alignment import shifted
    generator = torch.Generator().manual_seed(0)
    picture = torch.nn.functional.interpolate(torch.rand(1, 3, 40, 50, generator=generator), (160, 200),
                                              mode="bicubic").movedim(1, -1).clamp(0, 1)
    mask = torch.zeros(1, 160, 200)
    mask[:, 60:100, 80:120] = 1
    _, _, cut = region.QwenImage2CropForEdit.execute(picture, mask, 4.0, "128", 8).result
    parts = torch.stack([shifted(picture[0], 2.0, -3.0), picture[0], torch.rand(160, 200, 3, generator=generator)])
    out = region.QwenImage2StitchEdit.execute(cut, parts, True)
    moved, in_place, other = out.ui["qwen_image_2_messages"]
    assert moved.startswith("Edit 1 had moved by -3.0") or moved.startswith("Edit 1 had moved by -2.9")
    assert in_place == "Edit 2 lies on its source to 0.05 pixels." and other.startswith("Edit 3 was not aligned: outsi")
    image, = out.result
    outside = (cut.mask == 0).expand(3, -1, -1)
    assert torch.equal(image[outside], picture.expand(3, -1, -1, -1)[outside])
    plain, = region.QwenImage2StitchEdit.execute(cut, parts).result
    inside = cut.mask[0] == 1
    assert (image[0] - picture[0])[inside].abs().mean() < 0.02 < (plain[0] - picture[0])[inside].abs().mean()
    assert torch.equal(image[2], plain[2])
