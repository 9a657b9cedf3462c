"""Parts of a module that do not travel with it.

They have their names in its state dict, are loaded, saved and found like any other, but `modules()`, `parameters()` and
`to()` pass them by: who counts a network's bytes or brings it to a device does not see them.
"""
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn


class KeepsApart(nn.Module):
    def keep_apart(self, **parts: nn.Module) -> None:
        """Each becomes an attribute of its name."""
        self.__dict__["apart"] = parts
        self.__dict__.update(parts)

    def apart_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """They and all inside them, by their names here."""
        for name, part in self._apart.items():
            yield from part.named_modules(prefix=name)

    @property
    def _apart(self) -> Mapping[str, nn.Module]:
        apart: Mapping[str, nn.Module] = self.__dict__["apart"]
        return apart

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, part in self._apart.items():
            part.state_dict(destination=destination, prefix=f"{prefix}{name}.", keep_vars=keep_vars)

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, local_metadata: Mapping[str, Any],
                              strict: bool, missing_keys: list[str], unexpected_keys: list[str],
                              error_msgs: list[str]) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys,
                                      error_msgs)
        ours = tuple(f"{prefix}{name}." for name in self._apart)
        unexpected_keys[:] = [key for key in unexpected_keys if not key.startswith(ours)]
        for name, module in self.apart_modules():
            module._load_from_state_dict(state_dict, f"{prefix}{name}.", local_metadata, strict, missing_keys,
                                         unexpected_keys, error_msgs)
