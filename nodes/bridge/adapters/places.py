"""What a patch changes: a parameter, or some of its rows that other files know as a matrix of their own.

ComfyUI's LoRA loaders (0.30) ask a model's state dict for the names that there are, and hand their patches to its
patcher by these. So the model lists the names of the MLP's halves too, and its patcher takes what comes by them for
their rows of the matrix.
"""
from functools import cache
from typing import NamedTuple, Protocol

import comfy.utils
from comfy.model_patcher import ModelPatcher

from .packed import with_packed
from .plain_casts import is_plain_cast, patch_plain_casts


class Place(NamedTuple):
    key: str                                  # the parameter, as ComfyUI names it
    rows: tuple[int, int, int] | None = None  # axis 0, the first row and how many; None: all of it

    @property
    def patch_key(self) -> str | tuple[str, tuple[int, int, int]]:
        """What ComfyUI's patches call it."""
        return self.key if self.rows is None else (self.key, self.rows)

    def shape(self, model) -> tuple[int, ...]:
        whole = tuple(comfy.utils.get_attr(model, self.key).shape)
        return whole if self.rows is None else (self.rows[2], *whole[1:])


class WithPlaces(Protocol):
    """A BaseModel whose state dict lists other names than its own, too, with empty tensors."""

    def place_of(self, key: str) -> Place:
        """The parameter of this name, or the rows that it names."""


class PlacingPatcher:
    """What a ModelPatcher of such a model has in addition."""

    model: WithPlaces

    def add_patches(self, patches, *args, **kwargs):
        return self._placed(patches, lambda placed: super(PlacingPatcher, self).add_patches(placed, *args, **kwargs))

    def add_hook_patches(self, hook, patches, *args, **kwargs):
        return self._placed(patches, lambda placed: super(PlacingPatcher, self).add_hook_patches(
            hook, placed, *args, **kwargs))

    def _placed(self, patches, add) -> list:
        """add(the patches by their places) -> those that it has taken, by the names that the caller knows."""
        names = {self.model.place_of(key).patch_key if isinstance(key, str) else key: key for key in patches}
        return [names[key] for key in add({key: patches[name] for key, name in names.items()})]

    def patch_weight_to_device(self, key, *args, **kwargs):
        """Not into matrices that keep their LoRAs apart, unless the result is for a file."""
        layer = comfy.utils.get_attr(self.model, key.rpartition(".")[0])
        if key.endswith(".weight") and is_plain_cast(layer) and not kwargs.get("return_weight"):
            return None
        return super().patch_weight_to_device(key, *args, **kwargs)

    def partially_unload(self, *args, **kwargs):
        freed = super().partially_unload(*args, **kwargs)
        patch_plain_casts(self)
        return freed

    def model_state_dict(self, filter_prefix=None):
        """Of parameters alone: who asks the patcher computes with what it gets."""
        return {key: value for key, value in super().model_state_dict(filter_prefix).items()
                if self.model.place_of(key).rows is None}

    def model_state_dict_for_saving(self, model=None, prefix=""):
        network = self.model if model is None else model
        return with_packed(self, network, prefix, lambda: super(PlacingPatcher, self).model_state_dict_for_saving(
            model, prefix))

    def clone(self, *args, **kwargs):
        return placing(super().clone(*args, **kwargs))


def placing(patcher: ModelPatcher) -> ModelPatcher:
    """The same patcher as one of these. Its class is assigned: which one it has, core decides when it makes one for a
    device, and anew when a dynamic one is cloned as a static one."""
    if not isinstance(patcher, PlacingPatcher):
        patcher.__class__ = _placing_class(type(patcher))
    return patcher


@cache
def _placing_class(core: type[ModelPatcher]) -> type[ModelPatcher]:
    return type(f"Placing{core.__name__}", (PlacingPatcher, core), {"__module__": __name__})
