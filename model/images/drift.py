"""What an upsampled picture may not lose: its source's colours and layout. Measured and held cell by cell.

Images are (B, H, W, C) in [0, 1], sides multiples of CELL; cells (B, 1 or 3, H / CELL, W / CELL).
"""
import torch
import torch.nn.functional as F
from torch import Tensor

CELL = 32     # pixels along a side: what is larger comes from the source, what is finer from the model
ROUNDS = 3    # of correction
LIMIT = 6.0   # of difference, CIE 1976: above it a cell is drawn once more (what the tiled upscalers in use take)

# sRGB (IEC 61966-2-1) to XYZ, and the white of D65 (ISO 11664).
TO_XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
WHITE = (0.9505, 1.0, 1.089)


def cells(image: Tensor) -> Tensor:
    """The mean of each cell (B, C, rows, columns)."""
    return F.avg_pool2d(image.movedim(-1, 1), CELL)


def lab(rgb: Tensor) -> Tensor:
    """sRGB (B, 3, ...) in [0, 1] -> CIE L*a*b* (B, 3, ...)."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = torch.einsum("ij,bj...->bi...", linear.new_tensor(TO_XYZ), linear)
    xyz = xyz / xyz.new_tensor(WHITE).reshape(1, 3, *[1] * (xyz.ndim - 2))
    f = torch.where(xyz > (6 / 29) ** 3, xyz.clamp(min=1e-9) ** (1 / 3), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = f.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def differences(image: Tensor, source: Tensor) -> Tensor:
    """Difference of each cell's mean colour from the source's (B, rows, columns), CIE 1976."""
    first, second = (lab(cells(each[..., :3].clamp(0, 1))) for each in (image, source))
    return (first - second).norm(dim=1)


def held(image: Tensor, source: Tensor) -> Tensor:
    """The image with the source's low frequencies: what both have of them is their cells' means, joined linearly.

    The correction is as smooth as that, so no detail of the model's is lost and none of the source's comes in. What is
    joined linearly has not quite the means that it was made of: the rest is corrected again.
    """
    for _ in range(ROUNDS):
        correction = F.interpolate(cells(source) - cells(image), image.shape[1:3], mode="bilinear",
                                   align_corners=False)
        image = (image + correction.movedim(1, -1)).clamp(0, 1)
    return image


def spread(region: Tensor, height: int, width: int) -> Tensor:
    """Cells (B, rows, columns) -> the same for pixels (B, H, W, 1), without hard edges."""
    return F.interpolate(region.unsqueeze(1), (height, width), mode="bilinear", align_corners=False).movedim(1, -1)


def region(found: Tensor, limit: float = LIMIT) -> Tensor:
    """Cells (B, rows, columns) above the limit, and their neighbours: 1 there, else 0."""
    return F.max_pool2d((found > limit).float().unsqueeze(1), 3, stride=1, padding=1).squeeze(1)
