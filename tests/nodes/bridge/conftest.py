"""A prompt's prefix, as the MODEL takes it."""
import pytest
import torch

from qwen_image_2.model.qwen_image_2.prefix_cache import Condition


@pytest.fixture
def prefix(comfyui):
    from qwen_image_2.nodes.bridge.prefix_cond import PromptPrefix
    return PromptPrefix(Condition(torch.randn(1, 20, 64, generator=torch.Generator().manual_seed(0))))
