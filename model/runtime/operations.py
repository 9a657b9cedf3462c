"""What a network is built with: a host's layers, and where and in which dtype their parameters are made."""
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Generic, Protocol, TypedDict, TypeVar

import torch
from torch import nn

Layer = TypeVar("Layer", bound=nn.Module)


class Operations(Protocol):
    """A namespace of layers: torch.nn, or a host's, whose layers bring their weights to the device themselves."""

    @property
    def Linear(self) -> type[nn.Linear]: ...

    @property
    def Conv2d(self) -> type[nn.Conv2d]: ...

    @property
    def Embedding(self) -> type[nn.Embedding]: ...

    @property
    def RMSNorm(self) -> type[nn.RMSNorm]: ...


class Factory(TypedDict, total=False):
    """Keyword arguments of every layer; what is missing or None is torch's default."""

    device: torch.device | str | None
    dtype: torch.dtype | None


if TYPE_CHECKING:
    class ModuleList(nn.ModuleList, Generic[Layer]):
        """torch's, for the type checker: it knows which layers the list holds."""

        def __init__(self, modules: Iterable[Layer]): ...

        def __iter__(self) -> Iterator[Layer]: ...

        def __getitem__(self, index: int) -> Layer: ...  # type: ignore[override]  # nobody takes a slice
else:
    ModuleList = nn.ModuleList
