"""What is in a patch of ComfyUI, and the shape that it makes, from its tensors' alone: whether it fits its matrix.

ComfyUI computes a patch when it loads the model, logs what fails, and samples without it.
"""
from collections.abc import Iterator
from math import prod

from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor

from .dora import Decomposed

Shape = tuple[int, ...]


def made_shape(patch, expected: Shape) -> Shape | None:
    """The shape of the matrix that the patch makes for one of shape `expected`; None: its own parts do not fit
    together. Kinds of patches that are not known here make what is expected."""
    if isinstance(patch, Decomposed):
        adapter, magnitude = patch.weights
        return _with_magnitude(made_shape(adapter, expected), magnitude)
    if isinstance(patch, WeightAdapterBase):
        return _KINDS.get(patch.name, lambda weights, shape: shape)(patch.weights, expected)
    if isinstance(patch, tuple) and len(patch) == 2 and patch[0] in ("diff", "set"):
        return tuple(patch[1][0].shape)
    return expected


def tensors_of(patch) -> Iterator[Tensor]:
    """All tensors of an adapter, of a difference or of a replacement. A model that is merged into another is none of
    these: its patches are lists."""
    if isinstance(patch, Tensor):
        yield patch
    parts = patch.weights if isinstance(patch, WeightAdapterBase) else patch
    if isinstance(parts, tuple):
        yield from (tensor for part in parts for tensor in tensors_of(part))


def _with_magnitude(made: Shape | None, magnitude) -> Shape | None:
    """One number for each row, or for each column as LyCORIS can have it."""
    if made is None or magnitude is None:
        return made
    rows, columns = (made[0], 1), (1, prod(made[1:]))
    return made if tuple(magnitude.shape) in (rows, columns) else None


def _matrix(tensor) -> Shape | None:
    """Rows and columns of a matrix, or of a convolution of one pixel; None for other shapes and for nothing."""
    if tensor is None or tensor.ndim < 2 or not tensor.numel() or prod(tensor.shape[2:]) != 1:
        return None
    return tuple(tensor.shape[:2])


def _product(first, second) -> Shape | None:
    one, other = _matrix(first), _matrix(second)
    return (one[0], other[1]) if one and other and one[1] == other[0] else None


def _product_of_matrices(first, second) -> Shape | None:
    """Of LoHa and LoKr: ComfyUI multiplies their factors as they are, those of a convolution not even of one pixel."""
    return _product(first, second) if all(part is not None and part.ndim == 2 for part in (first, second)) else None


def _lora(weights, expected: Shape) -> Shape | None:
    up, down, _, middle, magnitude, reshape = weights
    if middle is not None or (reshape is not None and tuple(reshape) != expected):
        return None
    return _with_magnitude(_product(up, down), magnitude)


def _loha(weights, expected: Shape) -> Shape | None:
    first_up, first_down, _, second_up, second_down, *tucker, magnitude = weights
    one, other = _product_of_matrices(first_up, first_down), _product_of_matrices(second_up, second_down)
    return _with_magnitude(one, magnitude) if one == other and tucker == [None, None] else None


def _lokr(weights, expected: Shape) -> Shape | None:
    first, second, _, first_a, first_b, second_a, second_b, tucker, magnitude = weights
    one = _product_of_matrices(first_a, first_b) if first is None else _matrix(first)
    other = _product_of_matrices(second_a, second_b) if second is None else _matrix(second)
    if one is None or other is None or tucker is not None:
        return None
    return _with_magnitude((one[0] * other[0], one[1] * other[1]), magnitude)


def _glora(weights, expected: Shape) -> Shape | None:
    """W + W A + B: both A = a1 a2 and B = b1 b2; the older form has the factors the other way round."""
    a1, a2, b1, b2, _, magnitude = weights
    for right, left in (((a1, a2), (b1, b2)), ((a2, a1), (b2, b1))):
        made, inner = _product(*left), _product(*right)
        if made is not None and inner == (made[1], made[1]) and right[1].shape[0] == left[1].shape[0]:
            return _with_magnitude(made, magnitude)
    return None


def _oft(weights, expected: Shape) -> Shape | None:
    """Blocks (number, size, size) that turn so many rows. A magnitude would be multiplied with a limit, not a scale."""
    blocks, _, _, magnitude = weights
    if magnitude is not None or blocks.shape[1] != blocks.shape[2] or not blocks.numel():
        return None
    return (blocks.shape[0] * blocks.shape[1], *expected[1:])


def _boft(weights, expected: Shape) -> Shape | None:
    """Steps of blocks (steps, number, size, size): step i mixes rows that lie 2^i half blocks apart."""
    blocks, _, limit, magnitude = weights
    steps, number, size, width = blocks.shape
    rows = number * size
    if magnitude is not None or limit is None or size != width or size % 2 or not 0 < steps < 32 or not rows:
        return None
    return (rows, *expected[1:]) if rows % (2 ** (steps - 1) * size) == 0 else None


def _replacement(weights, expected: Shape) -> Shape:
    return tuple(weights[0].shape)


_KINDS = {"replacement": _replacement, "lora": _lora, "loha": _loha, "lokr": _lokr, "glora": _glora, "oft": _oft,
          "boft": _boft}
