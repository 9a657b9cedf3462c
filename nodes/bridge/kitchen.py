"""What comfy-kitchen, ComfyUI's library of kernels, has for this machine."""


def has_fused(*functions: str) -> bool:
    """Whether comfy-kitchen computes these with kernels of its own here. Without one it still answers, with several
    PyTorch operations ("eager") that move more bytes than the plain forms; ComfyUI switches its CUDA kernels off for
    PyTorch below CUDA 13."""
    try:
        from comfy_kitchen import registry
    except ImportError:
        return False
    return any(one["available"] and not one["disabled"] and set(functions) <= set(one["capabilities"])
               for name, one in registry.list_backends().items() if name != "eager")
