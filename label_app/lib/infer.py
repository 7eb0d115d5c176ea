"""Prediction by the bundle, with whatever weights and settings lie in its folder at the moment."""

from __future__ import annotations

import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.tasks.infer.bundle import BundleInferTask
from monailabel.utils.others.generic import device_list

logger = logging.getLogger(__name__)

#: Settings that prediction depends on; with others the bundle is taken up anew.
SETTINGS = ("spatial_size", "in_channels", "class_names", "slice_axis", "intensity", "keep_largest")


def input_error(error: BaseException | None) -> str | None:
    """The message of the bundle's own error of unusable input in a chain of causes."""
    while error is not None:
        if type(error).__name__ == "InputError":
            return str(error)
        error = error.__cause__ or error.__context__
    return None


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
        classes = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
        labels = {name.lower(): int(value) for value, name in classes.items() if value != "0"}
        super().__init__(InferType.SEGMENTATION, labels, 3, metadata["description"], {"device": device_list()})
        self.version = metadata["version"]
        self._lock = threading.Lock()
        self._task: BundleInferTask | None = None
        self._settings: dict[str, Any] = {}

    def info(self) -> dict[str, Any]:
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
            path = self.bundle / "models" / "training.json"
            settings = json.loads(path.read_text()) if path.is_file() else {}
            settings = {name: settings.get(name) for name in SETTINGS}
            if self._task is None or settings != self._settings:
                self._task, self._settings = BundleInferTask(str(self.bundle), self.app_conf), settings
            return self._task

    def __call__(self, request: dict[str, Any], callbacks: Any = None) -> tuple[str | None, dict]:
        try:
            return self._current()({"model_filename": "model.pt", **request}, callbacks)
        except HTTPException:
            raise
        except Exception as error:
            if message := input_error(error):
                logger.error(message)
                raise HTTPException(422, message) from error
            raise
