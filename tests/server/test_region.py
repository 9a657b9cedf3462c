"""Masked edits and outpainting through a running server."""
import numpy as np
import pytest
from PIL import Image

from qwen_image_2.tests.server import conftest as here
from qwen_image_2.tests.server.conftest import node
from qwen_image_2.tests.server.test_edit import edit_nodes, message, pictures


def masked_edit(client, tmp_path, image, mask_of, feather=6) -> dict:
    """Crop, edit, stitch; `mask_of(width, height)` gives the mask's node."""
    nodes = edit_nodes(client, tmp_path, [image], resolution="as it is")
    source = nodes["prompt"]["inputs"].pop("images.image_1")
    nodes["mask"] = mask_of
    nodes["crop"] = node("QwenImage2CropForEdit", image=source, mask=["mask", 0], context=0.3, resolution="128",
                         feather=feather)
    nodes["prompt"]["inputs"]["images.image_1"] = ["crop", 0]
    nodes["stitch"] = node("QwenImage2StitchEdit", region=["crop", 2], part=["decode", 1])
    nodes["image"]["inputs"]["images"] = ["stitch", 0]
    return nodes


def spot(width, height, size=20):
    """A square mask in the middle, painted into the alpha of a picture of its own."""
    alpha = np.full((height, width), 255, np.uint8)
    top, left = (height - size) // 2, (width - size) // 2
    alpha[top:top + size, left:left + size] = 0
    return Image.merge("RGBA", [Image.new("L", (width, height))] * 3 + [Image.fromarray(alpha)])


def upload_mask(client, tmp_path, picture):
    path = tmp_path / f"mask-{picture.width}x{picture.height}.png"
    picture.save(path)
    return node("LoadImageMask", image=client.upload_image(path), channel="alpha")


@pytest.mark.parametrize("size, mode", [((160, 120), "RGB"), ((151, 97), "RGB"), ((97, 151), "RGBA")])
def test_pixels_outside_the_mask_do_not_change(client, tmp_path, size, mode):
    image, = pictures([(size, mode)])
    nodes = masked_edit(client, tmp_path, image, upload_mask(client, tmp_path, spot(*size)))
    nodes["before"] = node("SaveImage", images=nodes["crop"]["inputs"]["image"], filename_prefix="before")
    result = client.run(nodes)
    assert "shift or zoom" not in str(result.messages["sampler"])
    out, before = here.images(client, result)[0], here.images(client, result, "before")[0]
    assert out.shape == before.shape
    changed = (out != before).any(-1)
    rows, columns = np.nonzero(changed)
    assert changed[size[1] // 2, size[0] // 2]
    reach = 20 // 2 + 6  # half the square, and the feather
    assert abs(rows - size[1] / 2).max() <= reach + 1 and abs(columns - size[0] / 2).max() <= reach + 1


def test_an_empty_mask_is_refused(client, tmp_path):
    image, = pictures([((96, 96), "RGB")])
    nodes = masked_edit(client, tmp_path, image, node("SolidMask", value=0.0, width=96, height=96))
    assert "The mask is empty" in message(client, nodes)


def test_outpainting_keeps_the_picture(client, tmp_path):
    image, = pictures([((96, 64), "RGB")])
    nodes = masked_edit(client, tmp_path, image, node("SolidMask", value=1.0, width=1, height=1), feather=0)
    source = nodes["crop"]["inputs"]["image"]
    nodes["extend"] = node("QwenImage2ExtendCanvas", image=source, left=40, top=0, right=0, bottom=24)
    nodes["crop"]["inputs"] |= {"image": ["extend", 0], "mask": ["extend", 1]}
    del nodes["mask"]
    out = here.images(client, client.run(nodes))[0]
    assert out.shape == (88, 136, 3)
    assert np.array_equal(out[:64, 40:], np.asarray(image))


def test_extending_by_nothing_is_refused(client, tmp_path):
    image, = pictures([((96, 64), "RGB")])
    nodes = masked_edit(client, tmp_path, image, node("SolidMask", value=1.0, width=1, height=1))
    nodes["extend"] = node("QwenImage2ExtendCanvas", image=nodes["crop"]["inputs"]["image"], left=0, top=0, right=0,
                           bottom=0)
    nodes["crop"]["inputs"]["image"] = ["extend", 0]
    assert "No border to add" in message(client, nodes)
