"""What is a picture, and what is none."""
import pytest
import torch

from qwen_image_2.messages import Refusal


@pytest.fixture
def images(comfyui):
    from qwen_image_2.nodes.common import images
    return images


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_pictures_of_fractions_are_taken(images, dtype):
    images.check_images(torch.ones(1, 2, 2, 3, dtype=dtype))
    assert len(images.connected_references({"image_1": torch.ones(2, 2, 2, 3, dtype=dtype)})) == 2


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_pictures_of_whole_numbers_are_refused(images, dtype):
    """Cut off at 1 they would come out white."""
    told = f"^The image has dtype {str(dtype)[6:]}; this node expects floating-point values"
    with pytest.raises(Refusal, match=told):
        images.check_images(torch.ones(1, 2, 2, 3, dtype=dtype))
    with pytest.raises(Refusal, match=f"^Reference 2 has dtype {str(dtype)[6:]}"):
        images.connected_references({"image_1": torch.ones(1, 2, 2, 3), "image_2": torch.ones(1, 2, 2, 3, dtype=dtype)})


@pytest.mark.parametrize("shape", [(), (3,), (4, 4, 3), (1, 1, 4, 4, 3)])
def test_what_has_other_axes_is_refused(images, shape):
    with pytest.raises(Refusal, match="^The image has shape"):
        images.check_images(torch.ones(shape))
    with pytest.raises(Refusal, match="^A reference has shape"):
        images.connected_references({"image_1": torch.ones(shape)})
