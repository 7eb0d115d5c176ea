"""Prediction of a trained fold: probabilities on the grid of the image file.

AutoRunner loads this file by its path, beside those of other folds and algorithms, so nothing here imports ``scripts``:
the package of this folder gets a name of its own.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import zlib
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Invertd

ROOT = Path(__file__).resolve().parents[1]
#: Keys that may override those of inference.yaml; size, channels and classes are otherwise read from training.json.
KEYS = ("spatial_size", "intensity", "slice_axis", "slice_batch", "overlap", "amp", "flip_tta", "device")


def own_package(root: Path) -> str:
    """Import ``root/scripts`` under a name that belongs to this folder alone; returns the name."""
    name = f"semsim_{zlib.crc32(str(root).encode()):08x}"
    if name not in sys.modules:
        folder = root / "scripts"
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
        sys.modules[name] = module
        spec.loader.exec_module(module)  # type: ignore[union-attr]
    return name


def renamed(config: Any, package: str) -> Any:
    """A configuration whose ``scripts.X`` are ``package.X``."""
    if isinstance(config, Mapping):
        return {key: renamed(value, package) for key, value in config.items()}
    if isinstance(config, list):
        return [renamed(value, package) for value in config]
    if isinstance(config, str) and config.startswith("scripts."):
        return package + config.removeprefix("scripts")
    return config


def own_device() -> str:
    """``cpu``, or the GPU of this process: ensembles on several GPUs start one process for each."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


class InferClass:
    """Predicts one image at a time with the best weights of this fold, or the last where none was validated."""

    def __init__(self, config_file: Any = None, **override: Any) -> None:
        """
        Args:
            config_file: as MONAI passes it; the files of this folder are taken by name.
            override: ``flip_tta``, ``slice_batch``, ``overlap`` (in 3D), ``amp``, ``device``, ``ckpt_name`` (a file of
                weights); what is for other algorithms is ignored.
        """
        package = own_package(ROOT)
        tuned = ConfigParser.load_config_file(str(ROOT / "configs" / "hyper_parameters.yaml"))
        weights = ROOT / f"model_fold{tuned['fold']}"
        if (weights / "hyper_parameters.yaml").exists():  # as trained
            tuned |= ConfigParser.load_config_file(str(weights / "hyper_parameters.yaml"))
        given = {key: value for key, value in override.items() if key in (*KEYS, "ckpt_name")}
        names = ("intensity", "slice_batch", "amp", "flip_tta")
        chosen = {key: renamed(tuned[key], package) for key in names if tuned.get(key) is not None}
        chosen |= given
        content = renamed(ConfigParser.load_config_file(str(ROOT / "configs" / "inference.yaml")), package)
        content["device"] = own_device()
        content |= {key: chosen[key] for key in KEYS if key in chosen}
        content["bundle_root"] = str(ROOT)
        self.read_item = importlib.import_module(f"{package}.dataio.loaders").read_item
        settings = importlib.import_module(f"{package}.training.settings")
        content["ckpt_path"] = chosen.get("ckpt_name") or settings.find_checkpoint(weights, ROOT)
        settings.check_noted(content["ckpt_path"])
        self.parser = ConfigParser(content)
        self.network = self.parser.get_parsed_content("network")
        self.preprocessing = self.parser.get_parsed_content("preprocessing")
        self.inferer = self.parser.get_parsed_content("inferer")
        self.device = torch.device(self.parser.get_parsed_content("device"))
        self.invert = Invertd("pred", self.preprocessing, orig_keys="image", nearest_interp=False)

    def infer(self, image_file: Any) -> MetaTensor:
        """
        Args:
            image_file: ``{"image": path}`` (a list where several files are the channels), or the path.

        Returns:
            probabilities ``(classes, H, W, D)`` on the grid of the file, with its affine and name.
        """
        image = image_file["image"] if isinstance(image_file, Mapping) else image_file
        return self.probabilities(self.read(image))

    def read(self, image: Any) -> dict[Hashable, Any]:
        """An image as the network sees it; one that cannot be read is named in one line."""
        return self.read_item(self.preprocessing, {"image": image})

    @torch.no_grad()
    def probabilities(self, data: dict[Hashable, Any]) -> MetaTensor:
        """Those of :meth:`infer`, of an image that :meth:`read` has read."""
        volume = data["image"].as_tensor()[None].to(self.device)  # (1, C, H, W, slices), in 3D (1, C, X, Y, Z)
        p = self.inferer.logits(volume, self.network).softmax(dim=1)[0].cpu()
        data["pred"] = MetaTensor(p, affine=data["image"].affine, meta=dict(data["image"].meta),
                                  applied_operations=list(data["image"].applied_operations))  # fmt: skip
        pred = self.invert(data)["pred"]
        # at the border of what the network saw resampling takes some of all classes; beyond it there is background
        total = pred.sum(dim=0, keepdim=True)
        pred /= total.clamp(min=1e-6)
        pred[:1] += (total < 1e-6).to(pred.dtype)
        return pred


def predict(
    image: str,
    output: str,
    flip_tta: Any = None,
    slice_batch: int | None = None,
    overlap: float | None = None,
    amp: Any = None,
    device: str | None = None,
    ckpt_name: str | None = None,
) -> None:
    """Predict one image file and write its labels, with the values that those of the training have.

    Args:
        image: file to predict, or a DICOM folder.
        output: file to write, which must not exist; its ending says the format.
        flip_tta: true or false, or the axes of the slices whose flips are averaged over; default as trained.
        slice_batch: slices at a time; in 3D as many patches as have that many times 32,768 voxels.
        overlap: of the patches, in 3D.
        amp: mixed precision: auto, true or false.
        device: cpu or cuda; default: a GPU if there is one.
        ckpt_name: file of weights; default: the best ones of this fold, or the last where none was validated.
    """
    from monai.transforms import KeepLargestConnectedComponent, MapLabelValue, SaveImage

    given = {"flip_tta": flip_tta, "slice_batch": slice_batch, "overlap": overlap, "amp": amp, "device": device,
             "ckpt_name": ckpt_name}  # fmt: skip
    package = own_package(ROOT)
    modules = ("errors", "dataio.files", "evaluation.predict", "evaluation.stored_header")
    errors, files, checks, header = (importlib.import_module(f"{package}.{name}") for name in modules)
    target = Path(output)
    if target.exists():
        raise errors.InputError(f"{target}: exists already; give another name.")
    suffix = next((ending for ending in files.IMAGE_SUFFIXES if output.lower().endswith(ending)), target.suffix)
    fold = InferClass(**{key: value for key, value in given.items() if value is not None})
    fold.parser["output_ext"] = suffix
    names = ("label_values", "voxel_type", "keep_largest", "num_classes")
    values, voxel_type, keep_largest, num_classes = (fold.parser.get_parsed_content(name) for name in names)
    data = fold.read(image)
    checks.check_flat(data["image"], suffix)
    labels: Any = fold.probabilities(data).argmax(dim=0, keepdim=True)
    if keep_largest:
        labels = KeepLargestConnectedComponent(range(1, num_classes))(labels)
    if values is not None:
        labels = MapLabelValue(range(len(values)), values, voxel_type)(labels)
    save = SaveImage(target.parent, output_postfix="", output_ext=suffix, output_dtype=voxel_type, resample=False,
                     separate_folder=False, writer=header.writer_of(suffix))  # fmt: skip
    target.parent.mkdir(parents=True, exist_ok=True)
    save(labels, filename=str(target)[: -len(suffix)])


if __name__ == "__main__":
    importlib.import_module(f"{own_package(ROOT)}.command_line").command(predict)
