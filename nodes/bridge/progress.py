"""ComfyUI's progress bar and its cancel button for work that is not sampling."""
from collections.abc import Callable

import comfy.model_management
import comfy.utils


def loading_progress(total: int) -> Callable[[int, int], None]:
    """A callback progress(done, total): moves the node's bar, and raises where the user has cancelled."""
    bar = comfy.utils.ProgressBar(total)

    def progress(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return progress
