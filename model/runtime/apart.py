"""Parts of a module that do not travel with it.

They have their names in its state dict, are loaded, saved and found like any other, but `modules()`, `parameters()` and
`to()` pass them by: who counts a network's bytes or brings it to a device does not see them.
"""
from collections.abc import Iterator

from torch import nn


class KeepsApart(nn.Module):
    def keep_apart(self, **parts: nn.Module) -> None:
        """Each becomes an attribute of its name."""
        self.__dict__["apart"] = parts
        self.__dict__.update(parts)

    def apart_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """The modules inside that have parameters, by their names here."""
        for name, part in self.apart.items():
            yield from ((f"{name}.{inner}", layer) for inner, layer in part.named_modules() if layer._parameters)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, part in self.apart.items():
            part.state_dict(destination=destination, prefix=f"{prefix}{name}.", keep_vars=keep_vars)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys,
                              error_msgs):
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys,
                                      error_msgs)
        ours = tuple(f"{prefix}{name}." for name in self.apart)
        unexpected_keys[:] = [key for key in unexpected_keys if not key.startswith(ours)]
        for name, layer in self.apart_layers():
            layer._load_from_state_dict(state_dict, f"{prefix}{name}.", local_metadata, strict, missing_keys,
                                        unexpected_keys, error_msgs)
