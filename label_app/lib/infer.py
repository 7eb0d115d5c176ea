"""Prediction by the bundle, with whatever weights and settings lie in its folder at the moment."""

from __future__ import annotations

import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

import torch
from fastapi import HTTPException
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.tasks.infer.bundle import BundleInferTask
from monailabel.utils.others.generic import device_list

from lib import bundles, results
from lib.names import LEVELS

logger = logging.getLogger(__name__)

#: Settings that prediction depends on; with others the bundle is taken up anew.
SETTINGS = (
    "spatial_dims", "spacing", "spatial_size", "features", "in_channels", "class_names", "slice_axis", "intensity",
    "keep_largest", "flip_tta",
)  # fmt: skip

#: What a request may ask of a prediction, beside device and weights.
OPTIONS = {
    "result_extension": [".nii.gz", ".nii", ".nrrd", ".seg.nrrd", ".png", ".tif"],
    "result_dtype": ["uint8", "uint16", "int16", "int32", "float32"],
    "result_compress": False,
    "logging": LEVELS,
    "multi_gpu": True,
    "save_label": False,
    "label_tag": "original",
    "max_workers": 0,
    "max_batch_size": 0,
}


class StrictTask(BundleInferTask):
    """MONAI Label's own task, which loads what fits of any weights and predicts with the rest as it happens to be."""

    def _get_network(self, device: str, data: Any) -> torch.nn.Module:
        """The network with all its weights from the file; kept until that changes."""
        bundle = Path(self.bundle_path)
        path = bundle / "models" / str((data or {}).get("model_filename") or "model.pt")
        key = (str(path), path.stat().st_mtime_ns)
        known = self._networks.get(device)
        if known is None or known[1] != key:
            known = (bundles.loaded(bundle, path, device), key)
            self._networks[device] = known
        return known[0]

    def writer(self, data: dict[str, Any], extension: str | None = None, dtype: Any = None) -> tuple[Any, Any]:
        """Pictures keep their shape, which MONAI Label's writer takes for a volume, and segments their names."""
        image, key = str(data.get("image_path") or ""), self.output_label_key
        shape = tuple(data[self.input_key].meta["spatial_shape"])
        kind = results.ending(extension or data.get("result_extension"), image, shape)
        if len(shape) == 2:
            data[key] = results.flat(data[key], data[f"{key}_meta_dict"], image, kind)
        file, answer = super().writer(data, kind, dtype)
        if kind == ".seg.nrrd":
            results.name_segments(Path(file), bundles.class_names(Path(self.bundle_path)))
        return file, answer


class Batch(BatchInferTask):
    """Prediction of many images; one that cannot be predicted is named, and stops none of the others."""

    def get_images(self, request: dict[str, Any], datastore: Datastore) -> list[str]:
        images = list(super().get_images(request, datastore))
        if request.get("label_tag") == DefaultLabelTag.FINAL.value:  # no prediction takes the place of a label
            images = [image for image in images if image not in datastore.get_labeled_images()]
        return images

    def __call__(self, request: dict[str, Any], datastore: Datastore, infer: Any) -> dict[str, Any]:
        failed: list[str] = []

        def careful(task: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
            try:
                return infer(task, datastore)
            except Exception as error:
                reason = getattr(error, "detail", None) or repr(error)
                logger.warning(f"{task['image']}: not predicted. {reason}")
                failed.append(task["image"])
                return {"error": reason}

        # one after the other: MONAI Label's task takes the bundle's modules away and back again in each prediction
        result: dict[str, Any] = super().__call__({**request, "max_workers": 1}, datastore, careful)
        if failed:  # again, for a client shows the last lines
            more = f" and {len(failed) - 10} more" if len(failed) > 10 else ""
            logger.warning(
                f"{len(failed)} of {len(result)} images not predicted: {', '.join(failed[:10])}{more}; the lines "
                "`not predicted` in the server's log say why."
            )
        return result


class Segmentation(InferTask):
    """MONAI Label's own task for bundles, made when weights are there and made anew when their settings change.

    The stock task reads the bundle once: without weights it stays invalid for good, and a training at another
    resolution would leave it with the old one.
    """

    def __init__(self, path: str | os.PathLike, conf: dict[str, str]) -> None:
        """
        Args:
            path: folder of the bundle.
            conf: of the app.
        """
        self.bundle, self.app_conf = Path(path), conf
        metadata = json.loads((self.bundle / "configs" / "metadata.json").read_text())
        super().__init__(InferType.SEGMENTATION, self._labels(), 3, metadata["description"], {"device": device_list()})
        self.version = metadata["version"]
        self._lock = threading.Lock()
        self._task: BundleInferTask | None = None
        self._settings: dict[str, Any] = {}

    def _labels(self) -> dict[str, int]:
        return {name.lower(): value for value, name in enumerate(bundles.class_names(self.bundle)) if value}

    def info(self) -> dict[str, Any]:
        self.labels = self._labels()
        return {**super().info(), "version": self.version}

    def is_valid(self) -> bool:
        return True

    def get_path(self, validate: bool = True) -> str | None:
        """The weights; with ``validate`` none where there is no such file."""
        path = self.bundle / "models" / "model.pt"
        return str(path) if path.is_file() or not validate else None

    def _current(self) -> BundleInferTask:
        """The stock task for the weights and settings as they are now."""
        with self._lock:
            if self.get_path() is None:
                raise HTTPException(
                    409,
                    f"{self.get_path(validate=False)}: no weights yet, there is nothing to predict with. Annotate a "
                    "first image, submit its label and press Train.",
                )
            known = bundles.settings(self.bundle)
            settings = {name: known.get(name) for name in SETTINGS}
            if self._task is None or settings != self._settings:
                self._task, self._settings = StrictTask(str(self.bundle), self.app_conf), settings
                self._task.labels = self._labels()
            return self._task

    def __call__(self, request: dict[str, Any], callbacks: Any = None) -> tuple[str | None, dict]:
        try:
            return self._current()({"model_filename": "model.pt", **request}, callbacks)
        except HTTPException:
            raise
        except Exception as error:
            if found := bundles.module(self.bundle, "errors").find_input_error(error):
                logger.error(found)
                raise HTTPException(422, str(found)) from error
            self._check_image(request.get("image"))
            raise

    def _check_image(self, image: Any) -> None:
        """Raise 422 where the image is what has failed."""
        try:
            bundles.module(self.bundle, "dataio.readers").image_loader()(str(image))
        except Exception as error:
            name = Path(str(image)).name
            message = f"{name}: expected an image, could not read it ({type(error).__name__})."
            raise HTTPException(422, message) from error
