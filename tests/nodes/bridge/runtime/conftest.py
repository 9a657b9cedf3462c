"""The budget, and the miniature to run under one."""
import pytest


@pytest.fixture(scope="module")
def budget(comfyui):
    from qwen_image_2.nodes.bridge.runtime import budget
    return budget


@pytest.fixture(scope="module")
def load(comfyui):
    """Loads the miniature: eight blocks."""
    from qwen_image_2.nodes.bridge import loading
    from qwen_image_2.nodes.bridge.files import folders, miniature

    def of_format(weight_format: str = "as stored"):
        path = folders.resolve(folders.TRANSFORMER, miniature.NAME)
        return loading.load_model(path, miniature.NAME, "base", weight_format)
    return of_format
