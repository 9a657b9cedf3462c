"""Image sizes: multiples of 32 pixels, one size class per area, the native 2K table. No torch here.

Source: model card and diffusers 0.42.1, pipeline_qwenimage21.py, calculate_dimensions.
"""
import math

from ...messages import Message, Refusal

MULTIPLE = 32  # of all sizes that 2.x was trained on, and of references in both families
STEP = 16      # of all that the networks can make: official sizes of 1.x are no multiples of 32
MIN_SIDE, MAX_SIDE = 64, 8192
MAX_RATIO = 16  # longer side to shorter, of a reference

RATIOS = {"1:1": (1, 1), "4:3": (4, 3), "3:4": (3, 4), "3:2": (3, 2), "2:3": (2, 3), "16:9": (16, 9), "9:16": (9, 16)}
CLASSES = (512, 768, 1024, 1280, 1328, 1536, 2048, 3584, 4096)
CUSTOM = "custom"  # an aspect ratio that leaves width and height to the user

# Where the models were trained on sizes that are not what rounding gives: 2.x at 2048, 1.x at 1328 (model cards).
NATIVE_2K = {"1:1": (2048, 2048), "4:3": (2400, 1792), "3:2": (2528, 1696), "16:9": (2752, 1536)}
NATIVE_1 = {"1:1": (1328, 1328), "4:3": (1472, 1104), "3:2": (1584, 1056), "16:9": (1664, 928)}
NATIVE = {2048: NATIVE_2K, 1328: NATIVE_1}
LARGEST_NATIVE = 2048  # side of the square with the area of the largest sizes that any model was trained on
# All that the built-in miniature was trained on: a square, a wide and a tall one. Its training draws by this order.
MINIATURE = ((128, 128), (160, 96), (96, 160))


def size_for_area(resolution: int, ratio: float) -> tuple[int, int]:
    """(width, height) of about resolution^2 pixels at width / height = ratio, each rounded to 32."""
    width = math.sqrt(resolution * resolution * ratio)
    return _rounded(width), _rounded(width / ratio)


def _rounded(side: float) -> int:
    return max(MULTIPLE, round(side / MULTIPLE) * MULTIPLE)


def reference_size(width: int, height: int, resolution: int | None) -> tuple[int, int]:
    """(width, height) a reference is resized to: resolution^2 pixels at its own ratio, sides rounded to 32.

    resolution None keeps it as it is, but for the rounding.
    """
    if resolution is not None:
        return size_for_area(resolution, width / height)
    return _rounded(width), _rounded(height)


def size_for(aspect_ratio: str, size_class: int) -> tuple[int, int]:
    """(width, height) for a name in RATIOS and a class in CLASSES."""
    if (native := NATIVE.get(size_class)) is not None:
        if aspect_ratio in native:
            return native[aspect_ratio]
        return native[":".join(reversed(aspect_ratio.split(":")))][::-1]
    across, down = RATIOS[aspect_ratio]
    return size_for_area(size_class, across / down)


def size_for_ratio(ratio: float, size_class: int) -> tuple[int, int]:
    """(width, height) for width / height = ratio: the table's where the ratio is one of its own, to one in a hundred;
    else about as many pixels."""
    for name, (across, down) in RATIOS.items():
        if abs(ratio * down / across - 1) < 0.01:
            return size_for(name, size_class)
    return size_for_area(size_class, ratio)


def chosen_size(aspect_ratio: str, size_class: int, width: int, height: int) -> tuple[int, int]:
    """(width, height) of a canvas: the table's, or with aspect ratio custom the user's own, if the model can.

    A ratio that came through a link is seen here first.
    """
    check_ratio(aspect_ratio)
    if aspect_ratio != CUSTOM:
        return size_for(aspect_ratio, size_class)
    check_size(width, height)
    return width, height


def is_native(width: int, height: int) -> bool:
    """Whether a model was trained on this very size, which its table names."""
    return any({(width, height), (height, width)} & set(table.values()) for table in NATIVE.values())


def large_note(width: int, height: int) -> str | None:
    """Sizes above all that the models were trained on: possible, and told. (The native 2K sizes differ by 3 % in area.)
    """
    if width * height <= 1.05 * LARGEST_NATIVE ** 2:
        return None
    return Message("size_large", "{width} x {height} is more than the {native} x {native} pixels that the models were "
                   "trained on: layouts repeat and prompts are followed less. Draw the layout at {native} and enlarge "
                   "it with Upscale, as the workflow upscale_4k_poster does.", width=width, height=height,
                   native=LARGEST_NATIVE)


def check_ratio(aspect_ratio: str) -> None:
    if aspect_ratio not in (CUSTOM, *RATIOS):
        raise Refusal("ratio_unknown", "Unknown aspect ratio {ratio}; choose {ratios} or {custom}.",
                      ratio=str(aspect_ratio), ratios=list(RATIOS), custom=CUSTOM)


def check_size(width: int, height: int) -> None:
    """Refuse a size the model cannot make, and name the nearest that it can."""
    nearest = tuple(min(MAX_SIDE, max(MIN_SIDE, round(side / STEP) * STEP)) for side in (width, height))
    if nearest != (width, height):
        raise Refusal("size_invalid", "Width and height must be multiples of {multiple} between {min} and {max}, got "
                      "{width} x {height}. The nearest size is {nearest_width} x {nearest_height}.", multiple=STEP,
                      min=MIN_SIDE, max=MAX_SIDE, width=width, height=height, nearest_width=nearest[0],
                      nearest_height=nearest[1])
