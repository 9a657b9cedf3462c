"""Qwen-Image 2 for ComfyUI: text-to-image and editing with Qwen-Image 2.x.

ComfyUI calls `comfy_entrypoint`. Nothing is imported before that, so that tests and tools can import the plain
PyTorch part (`model/`) without ComfyUI.
"""
import logging

log = logging.getLogger(__name__)

# The browser extension; ComfyUI serves the folder and imports every .js file in it.
WEB_DIRECTORY = "./js"


async def comfy_entrypoint():
    try:
        from .nodes import QwenImage2Extension
    except Exception:
        # ComfyUI reports only the message of what is raised here.
        log.exception("Qwen-Image 2 could not be loaded")
        raise
    return QwenImage2Extension()
