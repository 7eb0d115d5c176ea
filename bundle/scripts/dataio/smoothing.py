"""Gaussian smoothing for patches and volumes that end within the body: nothing gets darker towards the border."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.networks.layers import gaussian_1d
from monai.transforms import RandGaussianSmooth, RandGaussianSmoothd
from torch import Tensor


def smoothed(image: Tensor, sigma: Sequence[float]) -> Tensor:
    """An image smoothed by a Gaussian, the outermost voxels repeated beyond the border.

    MONAI's ``GaussianSmooth`` has zeros there: a face of a patch loses up to half of its brightness, a corner seven
    eighths.

    Args:
        image: ``(C, *spatial)``, float.
        sigma: standard deviation in voxels along each spatial axis.

    Returns:
        ``(C, *spatial)``; what a ``MetaTensor`` knows is kept.
    """
    result = image.as_tensor() if isinstance(image, MetaTensor) else image
    for axis, s in enumerate(sigma, start=1):
        if s > 0:
            result = _along(result, axis, gaussian_1d(torch.as_tensor(float(s))).tolist())
    return MetaTensor(result).copy_meta_from(image) if isinstance(image, MetaTensor) else result


def _along(image: Tensor, axis: int, kernel: Sequence[float]) -> Tensor:
    """An image times a kernel along one axis: a sum of shifted images, much faster than a convolution this thin."""
    length, reach = image.shape[axis], len(kernel) // 2
    ends = [image.narrow(axis, at, 1) for at in (0, length - 1)]
    padded = torch.cat([ends[0]] * reach + [image] + [ends[1]] * reach, dim=axis)
    result = torch.zeros_like(image)
    for shift, weight in enumerate(kernel):
        result.add_(padded.narrow(axis, shift, length), alpha=weight)
    return result


class RandSmooth(RandGaussianSmooth):
    """MONAI's ``RandGaussianSmooth`` with :func:`smoothed`."""

    def __call__(self, img: Any, randomize: bool = True) -> Any:
        if randomize:
            self.randomize()
        return smoothed(img, (self.x, self.y, self.z)[: img.ndim - 1]) if self._do_transform else img


class RandSmoothd(RandGaussianSmoothd):
    """MONAI's ``RandGaussianSmoothd`` with :func:`smoothed`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Arguments as of ``RandGaussianSmoothd``."""
        super().__init__(*args, **kwargs)
        drawn = self.rand_smooth
        self.rand_smooth = RandSmooth(drawn.sigma_x, drawn.sigma_y, drawn.sigma_z, prob=1.0)
