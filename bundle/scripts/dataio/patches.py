"""Patches of volumes for training in 3D: :class:`PatchDataset`, which the loader of both streams takes for slices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Randomizable, SpatialPad, generate_label_classes_crop_centers, map_classes_to_indices
from monai.utils import convert_to_tensor

from ..errors import InputError
from .loaders import SliceDataset, read_item
from .sizes import patch_size

#: Voxels of a class that are kept as places for a patch.
MOST_PLACES = 10_000
#: How often a patch that shows nothing, such as air alone, is drawn anew.
DRAWS = 10


class PatchDataset(SliceDataset):
    """Patches of volumes, drawn anew each time; an epoch has the same number of each volume.

    Every volume is read and checked once when the dataset is made, and kept in memory as far as ``cache_rate`` allows.
    One that is smaller than a patch is filled up with zeros on all sides, as prediction does.
    """

    unit = ("patch", "patches")
    smaller = 'A --spacing of larger voxels, "[2,2,2]" say,'

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        slice_transform: Callable[[dict[str, Any]], Any] | None = None,
        *,
        spatial_size: Sequence[int] | int,
        patches: int = 4,
        foreground: float = 0.0,
        **options: Any,
    ) -> None:
        """
        Args:
            data: items of a datalist: ``image``, and for labelled ones ``label``.
            transform: deterministic volume transforms; they give ``(C, X, Y, Z)`` a key.
            slice_transform: random transforms on the dictionary of one patch, ``(C, X, Y, Z)`` a key.
            spatial_size: voxels of a patch, three numbers or one for all.
            patches: of each volume in an epoch.
            foreground: share of the labelled patches whose centre is of a class, each class of the volume as likely as
                the others; the other patches lie anywhere.
            options: ``keys``, ``cache_rate``, ``progress``, ``class_names`` as in
                :class:`~scripts.dataio.loaders.SliceDataset`.

        Raises:
            InputError: a size or a number that makes no sense, or listing every file that cannot be used.
        """
        if not isinstance(patches, int) or patches < 1:
            raise InputError(f"patches: expected a whole number of patches a volume and epoch, received {patches!r}.")
        if not 0 <= foreground <= 1:
            raise InputError(f"foreground: a share of the patches, expected 0 to 1, received {foreground!r}.")
        self.patch_size = patch_size(spatial_size)
        self.pad = SpatialPad(self.patch_size)
        self.patches, self.foreground = patches, foreground
        #: of each volume, places of its foreground classes as flat indices
        self._places: dict[int, list[np.ndarray]] = {}
        Randomizable.set_random_state(self, 0)
        super().__init__(data, transform, slice_transform, **options)

    def _read(self, number: int, transform: Callable[[Any], Any] | None = None) -> dict[str, torch.Tensor]:
        """One volume as ``{key: (C, X, Y, Z)}``, no smaller than a patch."""
        if self.data[number].get("labeled_slices") is not None:
            raise InputError(
                f"{self.data[number]['image']}: labeled_slices: in 3D volumes are expected to be labelled as a whole; "
                "give the voxels of the other slices a value of their own and name it by --ignore_label."
            )
        item = read_item(transform or self.transform, self.data[number])
        volume = {
            key: convert_to_tensor(self.pad(item[key]), track_meta=False).contiguous().clone()
            for key in self.keys
            if key in item
        }
        if "label" in volume and number not in self._places:
            label = volume["label"]
            found = map_classes_to_indices(label, int(label.max()) + 1, max_samples_per_class=MOST_PLACES)
            self._places[number] = [np.asarray(of_class) for of_class in found[1:] if len(of_class)]
        return volume

    def _slices(self, number: int, depth: int) -> list[int]:
        return list(range(self.patches))

    def _shown(self, volume: Mapping[str, torch.Tensor], own: Sequence[int]) -> set[int]:
        return set(torch.unique(volume["label"]).int().tolist())

    def set_random_state(self, seed: int | None = None, state: Any = None) -> PatchDataset:
        Randomizable.set_random_state(self, seed, state)
        super().set_random_state(seed, state)
        return self

    def _corner(self, number: int, shape: Sequence[int]) -> list[int]:
        """First voxel of a patch."""
        places = self._places.get(number, [])
        if places and self.R.random() < self.foreground:
            (center,) = generate_label_classes_crop_centers(self.patch_size, 1, shape, places, rand_state=self.R)  # type: ignore[arg-type]
            return [int(c) - n // 2 for c, n in zip(center, self.patch_size)]
        return [int(self.R.randint(length - n + 1)) for length, n in zip(shape, self.patch_size)]

    def _cut(self, number: int, volume: Mapping[str, torch.Tensor], k: int) -> dict[str, Any]:
        image = volume["image"]
        for _ in range(DRAWS):
            corner = self._corner(number, image.shape[1:])
            window = (slice(None), *(slice(c, c + n) for c, n in zip(corner, self.patch_size)))
            patch = image[window]
            if bool((patch != patch[:, :1, :1, :1]).any()):
                break
        return {key: volume[key][window].clone() for key in volume}


def middle_slice(x: torch.Tensor) -> torch.Tensor:
    """``(B, ..., X, Y, Z)`` of three spatial axes -> ``(B, ..., X, Y)``, the slice in the middle."""
    return (x.as_tensor() if isinstance(x, MetaTensor) else x).select(-1, x.shape[-1] // 2)
