"""Scaling of intensities to [0, 1]: saved beside the weights by training and repeated by prediction."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Hashable, Mapping
from typing import Any

import monai.transforms
import numpy as np
import torch
from monai.bundle import ConfigComponent, ConfigParser
from monai.config import KeysCollection
from monai.transforms import (
    MapTransform,
    ScaleIntensity,
    ScaleIntensityRange,
    ScaleIntensityRangePercentiles,
    Transform,
)

from ..callers import caller
from ..errors import InputError

logger = logging.getLogger("semsim")

#: Hounsfield units of air; scanners fill what lies outside of their field of view with a value below.
AIR = -1024.0
#: Voxels between the padding of a scanner and air, as a share of the padding: the edge of its circle after resampling.
MOST_BETWEEN = 0.05
#: Share of the voxels of an image above its window from which on that is said.
MOST_ABOVE = 1 / 3
#: Where the transforms come from that may be named beside weights.
KINDS = ("monai.transforms.intensity", __name__)
#: Names of :class:`Intensityd` in what is saved: now, in configurations, and in what was saved before it moved.
NAME = "scripts.dataio.intensity.Intensityd"
OWN = {NAME, f"{__name__}.Intensityd", "scripts.intensity.Intensityd"}


def padding_value(array: Any) -> float | None:
    """The value that a CT scanner fills up its image with (-3024, -2000, ...), if it did.

    Args:
        array: intensities of any shape.

    Returns:
        the value, where nearly all that lies far below air has it. Where an image was resampled a few voxels, fewer
        than those of air, may lie between the two. Otherwise ``None``.
    """
    values = np.asarray(array)
    below = values[values < AIR - 100]
    if not below.size:
        return None
    fill = float(np.median(below))
    others = int((np.abs(below - fill) > 0.5).sum())
    air = int((np.abs(values - AIR) <= 100).sum()) if others else 0
    return fill if others <= min(MOST_BETWEEN * below.size, air) else None


def looks_like_ct(array: Any) -> bool:
    """Whether intensities are Hounsfield units, by their smallest: that of air, or the padding of a scanner."""
    low, high = float(np.min(array)), float(np.max(array))
    return padding_value(array) is not None or (AIR - 100 < low < AIR + 124 and high > 0)


def looks_wrapped(array: Any) -> bool:
    """Whether small numbers below zero were saved in 16 bits without a sign: -1000 as 64536, so that air is brightest.

    Then there are numbers at both ends of the range and none between; not of one value, as of a white background.
    """
    values = np.asarray(array)
    if values.min() < 0 or not 2**15 < values.max() < 2**16:
        return False
    upper, lower = values[values >= 2**16 - 4096], int((values < 8192).sum())
    between = values.size - upper.size - lower
    return between == 0 < lower and upper.size > 0 and float(np.ptp(upper)) > 100


class Intensityd(MapTransform):
    """Intensities of an image ``(C, ...)`` to [0, 1]: of a fixed window, or of each channel between its percentiles.

    The padding of a CT counts as air. What lies outside of the range is cut off.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        window: Any = None,
        lower: float = 0.5,
        upper: float = 99.5,
        channel_wise: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        """
        Args:
            keys: keys of images.
            window: lowest and highest intensity, in the unit of the files; ``None``: percentiles.
            lower: percentile that becomes 0.
            upper: percentile that becomes 1.
            channel_wise: whether every channel has percentiles of its own.
            allow_missing_keys: whether items without image pass.

        Raises:
            InputError: a window that is not two ascending numbers.
        """
        super().__init__(keys, allow_missing_keys)
        unit: dict[str, Any] = {"b_min": 0.0, "b_max": 1.0, "clip": True}
        self.scale: Transform
        self.high: float | None = None
        self.percentiles = f"{lower:g} and {upper:g}"
        if window is None:
            self.scale = ScaleIntensityRangePercentiles(lower, upper, channel_wise=channel_wise, **unit)
        else:
            low, self.high = checked_window(window)
            self.scale = ScaleIntensityRange(low, self.high, **unit)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            if padding_value(image) is not None:
                image = torch.clamp(image, min=AIR)
            self._warn_of_offset(image)
            result[key] = self._in_unit_range(self.scale(image))
        return result

    def _warn_of_offset(self, image: torch.Tensor) -> None:
        """Where far more lies above the window than bone or metal do: a CT stored with 1024 more, for instance."""
        if self.high is None or not image.numel():
            return
        above = float((torch.as_tensor(image) > self.high).float().mean())
        if above > MOST_ABOVE:
            logger.warning(
                f"{getattr(image, 'meta', {}).get('filename_or_obj', 'an image')}: {above:.0%} of its voxels lie above "
                f"the window, which ends at {self.high:g}, and look alike to the network; if it is CT whose values are "
                "not Hounsfield units subtract what was added (1024, often), else give another --window."
            )

    def _in_unit_range(self, image: torch.Tensor) -> torch.Tensor:
        """MONAI only subtracts the percentiles where they are equal, as of an image of zeros but for some voxels."""
        if not image.numel() or (float(image.min()) >= 0 and float(image.max()) <= 1):
            return image
        logger.warning(
            f"{getattr(image, 'meta', {}).get('filename_or_obj', 'an image')}: its {self.percentiles} percentiles are "
            "equal, so intensities are scaled between the smallest and the largest; a fixed --window is safer."
        )
        unit: Any = ScaleIntensity(minv=0.0, maxv=1.0, channel_wise=True)
        return torch.clamp(unit(image), 0.0, 1.0)


def checked_window(window: Any) -> tuple[float, float]:
    """Lowest and highest intensity of a window.

    Raises:
        InputError: not two numbers, the first below the second.
    """
    try:
        low, high = (float(value) for value in window)
    except (TypeError, ValueError):
        low = high = 0.0
    if not low < high:
        raise InputError(
            f'window {window!r}: expected lowest and highest intensity, for instance --window "[-150,250]".'
        )
    return low, high


def configured(name: str, window: Any = None) -> Any:
    """A node of the configuration that is being read, as plain data with every override: for a component in it.

    MONAI makes an object of each node, and transforms do not keep what they were made from.

    Args:
        name: key of the node.
        window: the setting ``window``, which a user's own transform does not read.

    Raises:
        InputError: a window is given beside a transform that does not read it, or no transform is left.
        RuntimeError: no configuration is being read.
    """
    parser = caller(ConfigParser, lambda found: name in found)
    if parser is None:
        raise RuntimeError(f"No configuration with `{name}` is being read.")
    node = checked_transform(_plain(parser, name))
    if window is not None and "window" not in node:
        raise InputError(
            f"window {window}: `{name}` is set to {node.get('_target_')}, which does not use the window; "
            "leave one of the two out."
        )
    return as_saved(node)


def as_saved(node: Any) -> Any:
    """A description of a transform as it is saved: its name for :class:`Intensityd`, and nothing that is switched off.

    MONAI makes no object of what is ``_disabled_``, and leaves it out of the list or the arguments that it stands in.
    """
    if isinstance(node, list):
        return [as_saved(entry) for entry in node if not _switched_off(entry)]
    if not isinstance(node, Mapping):
        return node
    left = {key: as_saved(value) for key, value in node.items() if not _switched_off(value)}
    return {**left, "_target_": NAME} if node.get("_target_") in OWN else left


def checked_transform(node: Any, source: str = "") -> Any:
    """What describes a transform, or is one.

    Args:
        node: of a configuration, or of a file.
        source: the file, for messages.

    Raises:
        InputError: nothing, or a transform that is switched off as a whole.
    """
    if node is None or _switched_off(node):
        where = f"{source}: " if source else ""
        raise InputError(
            f"{where}intensity: expected a transform, received none, or one that is `_disabled_`; switch it on, or "
            "leave `intensity` out for percentiles."
        )
    return node


def _switched_off(node: Any) -> bool:
    return ConfigComponent.is_instantiable(node) and ConfigComponent(node).is_disabled()


def _plain(parser: ConfigParser, name: str) -> Any:
    """``parser[name]`` with references and expressions replaced by their values."""
    node = parser[name]
    if isinstance(node, Mapping):
        return {key: _plain(parser, f"{name}#{key}") for key in node}
    if isinstance(node, list):
        return [_plain(parser, f"{name}#{number}") for number in range(len(node))]
    if not isinstance(node, str) or node[:1] not in ("@", "$"):
        return node
    value = parser.get_parsed_content(name)
    try:
        json.dumps(value)
    except TypeError:  # a transform that stands elsewhere
        return _plain(parser, node[1:])
    return value


def transform_of(node: Any, source: str = "") -> Any:
    """The transform that :func:`configured` describes.

    Unlike a configuration, what lies beside weights is no code: only transforms of intensities are made from it.

    Args:
        node: plain data; anything that is no description is returned as it is. Parts that are ``_disabled_``, which
            earlier versions saved too, are left out.
        source: file that it was read from, for messages.

    Raises:
        InputError: another target, or no transform.
    """
    return _made(as_saved(checked_transform(node, source)), source)


def _made(node: Any, source: str) -> Any:
    """:func:`transform_of` of a part."""
    if isinstance(node, list):
        return [_made(entry, source) for entry in node]
    if not isinstance(node, Mapping) or "_target_" not in node:
        return node
    target = str(node["_target_"])
    own = target in OWN
    module, _, name = target.rpartition(".")
    kind = Intensityd if own else getattr(monai.transforms, name, None)
    known = own or not module or module.startswith("monai.transforms")
    harmless = kind is monai.transforms.Compose or getattr(kind, "__module__", "").startswith(KINDS)
    if not (known and inspect.isclass(kind) and harmless):
        raise InputError(
            f"{source}: intensities were prepared by {target}, which is no intensity transform of MONAI; give "
            "`intensity` again, in the same file as for the training."
        )
    options = {key: _made(value, source) for key, value in node.items() if not key.startswith("_")}
    return kind(**options)
