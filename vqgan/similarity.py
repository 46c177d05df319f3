"""How close two pictures are.

Shapes: n pictures of y x pixels, c channels.
"""

import torch
import torch.nn.functional as F
from einops import rearrange, reduce


def psnr(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each image, in dB: (n, 3, H, W) in [-1, 1] twice -> (n,)."""
    error = reduce((images.float() - targets.float()).square(), "n c y x -> n", "mean")
    return 10 * torch.log10(4 / error.clamp(min=1e-10))


def ssim(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each image: (n, 3, H, W) in [-1, 1] twice -> (n,), 1 for equal ones.

    Wang et al. 2004, section III-B: a Gaussian window of 11x11 and sigma 1.5, K1 = 0.01, K2 = 0.03, only where the
    window fits, the mean over channels; the same value as from pixels of 0 to 255 with L = 255. Images with a side of
    less than 11 pixels get the widest odd window that fits.
    """
    if images.shape != targets.shape:
        raise ValueError(f"expected two batches of one shape, got {tuple(images.shape)} and {tuple(targets.shape)}")
    # From 0 to 2: about a mean of 0 the luminance term would have another value, and no sign to rely on.
    x, y = (rearrange(each.float() + 1, "n c y x -> (n c) 1 y x") for each in (images, targets))
    shortest = min(x.shape[-2:])
    window = _gaussian_window(min(11, shortest - 1 + shortest % 2), x.device)
    mean_x, mean_y = _windowed(x, window), _windowed(y, window)
    # Variances do not change with the mean, but the rounding of a difference of squares does.
    x, y = (each - each.mean((1, 2, 3), keepdim=True) for each in (x, y))
    centred_x, centred_y = _windowed(x, window), _windowed(y, window)
    variances = _windowed(x * x + y * y, window) - centred_x.square() - centred_y.square()
    covariance = _windowed(x * y, window) - centred_x * centred_y
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2  # (K L)^2, with a range L of 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    structure = (2 * covariance + c2) / (variances + c2)
    return reduce(luminance * structure, "(n c) 1 y x -> n", "mean", n=len(images))


def _gaussian_window(size: int, device: torch.device) -> torch.Tensor:
    offsets = torch.arange(size, device=device) - (size - 1) / 2
    weights = torch.exp(-offsets.square() / (2 * 1.5**2))
    return weights / weights.sum()


def _windowed(x: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
    """Weighted means of (n, 1, H, W) under the window, which is the same along both axes."""
    return F.conv2d(F.conv2d(x, window[None, None, :, None]), window[None, None, None, :])
