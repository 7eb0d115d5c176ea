"""Semi-supervised training with the images of any datastore."""

from __future__ import annotations

import csv
import json
import logging
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from monailabel.interfaces.datastore import Datastore
from monailabel.tasks.train.bundle import BundleTrainTask

from lib import bundles
from lib.names import EMPTY
from lib.usable import numbered

logger = logging.getLogger(__name__)

#: Pixels a side that the panel offers, beside that of the weights; and in 3D voxels of a patch.
SIZES = ("64", "96", "128", "160", "192", "224", "256", "320")
PATCHES = ("32x32x32", "48x48x48", "64x64x32", "64x64x64", "96x96x64", "96x96x96", "128x128x96")
#: What an annotator waits for a training unless told otherwise, with and without a GPU.
MINUTES = {True: 2, False: 5}


def as_is(value: Any) -> Any:
    """A value for a configuration, in whose texts MONAI gives a meaning to ``#``, ``@`` and ``%``: paths as they are.

    Such a path becomes an expression of Python that is nothing but this text.
    """
    if isinstance(value, dict):
        return {key: as_is(part) for key, part in value.items()}
    if isinstance(value, list):
        return [as_is(part) for part in value]
    if isinstance(value, str) and value.startswith("/") and any(sign in value for sign in "#@%"):
        quoted = ascii(value)
        return "$" + "".join(f"\\x{ord(c):02x}" if c in "#@%" else c for c in quoted)
    return value


def shown(size: int | list[int]) -> str:
    """Sides as the panel shows them: ``224``, ``192x256`` or ``64x64x32``."""
    return "x".join(map(str, size)) if isinstance(size, list) else str(size)


class SemiSupervised(BundleTrainTask):
    """MONAI Label's own task for bundles, which also hands over the images without a label."""

    def config(self) -> dict[str, Any]:
        """What the client's panel shows. Lists are choices, the first one is preselected; Slicer wants them as text."""
        size = shown(bundles.settings(Path(self.bundle_path)).get("spatial_size", 224))
        sizes = [size, *(s for s in (PATCHES if self._in_3d() else SIZES) if s != size)]
        options = {k: v for k, v in super().config().items() if k != "max_epochs"}
        options["model_filename"] = options["model_filename"] or ["model.pt"]  # Slicer takes the first of every list
        return {
            "minutes": MINUTES[torch.cuda.is_available()],
            **options,
            "use_unlabeled": True,
            "spatial_size": sizes,
        }

    def _in_3d(self) -> bool:
        """Whether the weights are of volumes, or what an app without weights begins with."""
        return bundles.settings(Path(self.bundle_path)).get("spatial_dims") == 3

    def _fetch_datalist(self, request: dict[str, Any], datastore: Datastore) -> list[dict[str, Any]]:
        labelled, self.left_out = numbered(
            Path(self.bundle_path), datastore, super()._fetch_datalist(request, datastore), self.copies, check=True
        )
        if not labelled:
            problems = " ".join(self.left_out[:3])
            raise ValueError(f"No image has a label yet: annotate one, submit its label and train again. {problems}")
        unlabelled = datastore.get_unlabeled_images() if request.get("use_unlabeled", True) else []
        files = sorted(filter(None, map(datastore.get_image_uri, unlabelled)))  # some may be gone
        self.request = request
        self.unlabelled = [{"image": file, "stream": "unlabeled"} for file in files]
        return labelled

    def _partition_datalist(
        self, datalist: list[dict[str, Any]], request: dict[str, Any], shuffle: bool = False
    ) -> Any:
        """As many images for validation as MONAI Label takes, or some more: all of a patient are on one side."""
        training, validation = super()._partition_datalist(datalist, request, shuffle)
        if not training:
            raise ValueError(
                f"val_split {request['val_split']:g}: leaves none of the {len(datalist)} labelled images for training; "
                "give a smaller share."
            )
        if not validation:
            return training, validation
        group_cases = bundles.module(Path(self.bundle_path), "dataio.patients").group_cases
        files = {Path(item["image"]).name: item for item in datalist}
        first, *others = group_cases({name: Path(name) for name in files}, {}).groups.values()
        held: list[str] = []
        for images in reversed(others):
            if len(held) < len(validation):
                held = [*images, *held]
        if not held:
            logger.warning(f"val_split: all {len(first)} labelled images are of one patient; there is no validation.")
        return [item for name, item in files.items() if name not in held], [files[name] for name in held]

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        config = "volumes.json" if self._in_3d() else "train.json"
        self.bundle_config_path = str(Path(self.bundle_path) / "configs" / config)
        self.bundle_config = self._load_bundle_config(self.bundle_path, self.bundle_config_path)
        with tempfile.TemporaryDirectory() as folder:
            self.copies = Path(folder)
            result = super().__call__(request, datastore)
        for problem in self.left_out:  # again, for a client shows the last lines
            logger.warning(problem)
        return result

    def info(self) -> dict[str, Any]:
        """Without the options that no request decides."""
        info = super().info()
        return {**info, "config": {key: value for key, value in info["config"].items() if key not in EMPTY}}

    def _load_checkpoint(self, model_pytorch: str, pretrained: bool, train_handlers: list[dict]) -> None:
        """Hand over the weights to begin with; the bundle loads them strictly, MONAI Label's loader takes what fits."""
        train_handlers[:] = [h for h in train_handlers if h.get("_target_") != "CheckpointLoader"]
        self.initial = model_pytorch if pretrained and Path(model_pytorch).is_file() else ""

    def _update_overrides(self, overrides: dict[str, Any]) -> dict[str, Any]:
        options = {**self.config(), **self.request}
        size = options["spatial_size"]
        sides = [int(n) for n in str(size[0] if isinstance(size, list) else size).split("x")]
        overrides["spatial_size"] = sides if len(sides) > 1 else sides[0]
        overrides |= self._length(options)
        overrides["train#unlabeled_dataset#data"] = self.unlabelled
        overrides["initial"] = self.initial
        for key, value in overrides.items():
            overrides[key] = as_is(value)
        return overrides

    def _length(self, options: dict[str, Any]) -> dict[str, Any]:
        """By the clock, unless the request counts epochs (0 or no ``steps_per_epoch``: a pass over the slices)."""
        if "max_epochs" in self.request and "minutes" not in self.request:
            epochs = int(options["max_epochs"])
            steps = int(options.get("steps_per_epoch", 0)) or None
            interval = max(1, epochs // 5)
            return {"minutes": None, "epochs": epochs, "steps_per_epoch": steps, "val_interval": interval}
        by_clock = {"epochs": None, "steps_per_epoch": None, "val_interval": None}
        return {"minutes": float(options["minutes"]), "train#trainer#max_epochs": "$@clock.epochs", **by_clock}

    def stats(self) -> dict[str, Any]:
        """The newest training, for the client's progress bars."""
        logs = sorted(Path(self.bundle_path).glob("output/label_*/training_log.csv"), key=lambda p: p.stat().st_mtime)
        if not logs:
            return {}
        rows = list(csv.DictReader(logs[-1].open(newline="")))
        settings = json.loads((logs[-1].parent / "training.json").read_text())
        validations = logs[-1].parent / "validation_log.csv"
        table = csv.DictReader(validations.open()) if validations.exists() else []
        scores = [float(row["mean_dice"] or "nan") for row in table]
        return {
            "epoch": int(rows[-1]["epoch"]) if rows else 0,
            "total_epochs": settings["epochs"],
            "best_metric": max(filter(math.isfinite, scores), default=0.0),  # no number: no label shows a class
            "unlabeled_images": settings["unlabeled_images"],
        }
