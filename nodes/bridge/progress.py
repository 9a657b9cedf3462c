"""ComfyUI's progress bar and its cancel button for work that is not sampling."""
from collections.abc import Callable

import comfy.model_management
import comfy.utils


def loading_progress(total: int) -> Callable[[int, int], None]:
    """A callback progress(done, total): moves the node's bar, and raises where the user has cancelled.

    It may be called as often as one likes: a message goes to the page only when there is something new.
    """
    bar, shown = comfy.utils.ProgressBar(total), None

    def progress(done: int, total: int) -> None:
        nonlocal shown
        comfy.model_management.throw_exception_if_processing_interrupted()
        if done != shown:
            bar.update_absolute(done, total)
            shown = done

    return progress
