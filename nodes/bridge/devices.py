"""Where text encoder and VAE compute: ComfyUI's choice, the CPU, or another graphics card."""
import comfy.model_management
import torch

from ...messages import Refusal

AUTO, CPU = "auto", "CPU"


def choices() -> list[str]:
    """ComfyUI's own device is what auto means; the other cards are named."""
    return [AUTO, CPU, *_other_cards()]


def device_of(choice: str) -> torch.device | None:
    """None: ComfyUI's choice. Raises Refusal for a card that is not there."""
    if choice == AUTO:
        return None
    if choice == CPU:
        return torch.device("cpu")
    cards = _other_cards()
    if choice not in cards:
        raise Refusal("device_absent", "This computer has no second graphics card {device}. Set Device to {auto} or "
                      "{cpu}.", device=choice, auto=AUTO, cpu=CPU)
    return cards[choice]


def _other_cards() -> dict[str, torch.device]:
    """By their number and model; core's name for one goes on with its allocator."""
    management = comfy.model_management
    return {management.get_torch_device_name(device).partition(" : ")[0]: device
            for device in management.get_all_torch_devices(exclude_current=True)}
