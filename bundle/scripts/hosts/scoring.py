"""Scores of image files under the weights that a bundle has published: :class:`Acquisition` for an annotation tool."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.data.utils import dense_patch_slices
from monai.transforms import SpatialPad
from monai.utils import convert_to_tensor
from torch import Tensor

from ..dataio.files import evenly
from ..dataio.loaders import SliceDataset, read_item
from ..dataio.patches import PatchDataset
from ..dataio.sizes import patch_size
from ..errors import InputError
from ..method.active_learning import Acquisition
from ..training.settings import check_noted, trained
from ..training.weights import load_weights

logger = logging.getLogger("semsim")

#: Settings of ``train.yaml`` that ``training.json`` beside the weights knows.
SETTINGS = (
    "spatial_dims", "spacing", "spatial_size", "in_channels", "class_names", "slice_axis", "intensity", "fusion",
    "features",
)  # fmt: skip


class BundleScorer:
    """Scores image files as ``train.yaml`` reads them, with ``models/model.pt``."""

    def __init__(self, bundle_root: str | os.PathLike, *, device: str | torch.device | None = None) -> None:
        """
        Args:
            bundle_root: folder of the bundle.
            device: where to compute; default: a GPU if there is one.

        Raises:
            InputError: no weights, or those of another network or training.
        """
        root = Path(bundle_root)
        known = trained(root / "models" / "model.pt")
        check_noted(root / "models" / "model.pt")
        #: voxels of a patch; ``None``: the network sees slices
        self.patch = patch_size(known["spatial_size"]) if known["spatial_dims"] == 3 else None
        self.parser = ConfigParser()
        names = ("train", "volumes") if self.patch else ("train",)
        self.parser.read_config([str(root / "configs" / f"{name}.yaml") for name in names])
        self.parser.update({"bundle_root": str(root), "dataset_dir": str(root), **{k: known[k] for k in SETTINGS}})
        self.transform = self.parser.get_parsed_content("train#preprocessing")
        loss = self.parser.get_parsed_content("loss")
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        network = self.parser.get_parsed_content("network_def")
        network = load_weights(network, str(root / "models" / "model.pt"), device)
        self.acquisition = Acquisition(
            network,  # type: ignore[arg-type]
            num_classes=loss.num_classes,
            regions=loss.regions,
            affinity_temperature=loss.affinity["temperature"],
            prototype_temperature=loss.pooling["temperature"],
            batch_size=self.parser.get_parsed_content("batch_size"),
            amp=self.parser.get_parsed_content("amp"),
        )
        logger.info(f"Scores in {self.acquisition.precision}.")

    def _labelled(self, item: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The slices of a labelled image; in 3D some patches, each centred on a class."""
        dataset = (
            SliceDataset([item], self.transform, progress=False)
            if self.patch is None
            else PatchDataset([item], self.transform, spatial_size=self.patch, foreground=1.0, progress=False)
        )
        return [dataset[k] for k in range(len(dataset))]

    def _whole(self, image: str) -> Tensor:
        """All slices of an image, ``(slices, C, H, W)``; in 3D patches that cover it, ``(patches, C, X, Y, Z)``."""
        if self.patch is None:
            dataset = SliceDataset([{"image": image}], self.transform, progress=False)
            return torch.stack([dataset[k]["image"] for k in range(len(dataset))])
        volume = SpatialPad(self.patch)(read_item(self.transform, {"image": image})["image"])
        windows = dense_patch_slices(volume.shape[1:], self.patch, self.patch)
        return torch.stack([convert_to_tensor(volume[(slice(None), *w)], track_meta=False) for w in windows])

    def learn(self, items: Sequence[Mapping[str, Any]], *, most: int = 16) -> bool:
        """Learn the classes' prototypes from labelled images, for the score ``disagreement``.

        Args:
            items: ``{"image": file, "label": file}`` each; without any there is no such score.
            most: images to read at most, spread evenly over the list.

        Returns:
            whether there will be a disagreement.
        """
        if not items or self.acquisition.network.fusion is None:
            return False
        slices: list[dict[str, Any]] = []
        for item in evenly(items, most):
            try:
                slices += self._labelled(item)
            except InputError as error:
                logger.warning(f"{item['image']}: left out of the prototypes. {error}")
        if slices:
            self.acquisition.learn(slices)
        return bool(slices)

    def score(self, image: str | os.PathLike) -> dict[str, float]:
        """``entropy``, and after :meth:`learn` ``disagreement``, of an image file.

        Raises:
            InputError: the file cannot be used.
        """
        return self.acquisition.score(self._whole(str(image)))
