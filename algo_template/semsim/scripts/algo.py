"""SemSim as an Auto3DSeg algorithm: configured from the data statistics, with the bundle's code brought along."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import logging
import os
import stat
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from monai.apps.auto3dseg import BundleAlgo
from monai.apps.auto3dseg.bundle_gen import logger as generation_log  # shown without further ado
from monai.bundle import ConfigParser

from .classes import judged, names_by_value, names_in_order, overlapping, stated_names
from .dimensions import dimensions, forced, of_patches, of_slices
from .generation import HYPER_PARAMETERS, bundle_files, bundle_folder, changed, origin
from .options import WINDOWED, layers, one_length, understood

logger = logging.getLogger("semsim")

#: Keys of ``input.yaml`` that are AutoRunner's own.
RUNNER_KEYS = {
    "name", "task", "dataroot", "datalist", "modality", "work_dir", "num_fold", "algos", "analyze", "algo_gen", "train",
    "ensemble", "hpo", "hpo_backend", "not_use_cache", "allow_skip", "templates_path_or_url", "sigmoid", "class_names",
    "class_index", "extra_modalities", "force_2d", "force_3d",
}  # fmt: skip
#: Steps that a training gets by default, with and without a GPU. The paper's recipe takes 45,000.
STEPS = {True: 30_000, False: 3_000}


class SemsimAlgo(BundleAlgo):
    """Slices or patches of volumes, with the unlabelled images that the datalist names."""

    #: What the folder was generated from; empty in one of an earlier version.
    origin: Mapping[str, Any] = {}

    def state_dict(self) -> dict:
        """The state that ``algo_object.json`` keeps."""
        return {**super().state_dict(), "origin": self.origin}

    def load_state_dict(self, state: dict) -> None:
        """Take up a folder; say so where the input has changed since, for AutoRunner goes on with it all the same."""
        super().load_state_dict(state)
        if not self.origin or not os.path.isfile(self.data_list_file):
            return
        if names := changed(self.origin, self._origin()):
            _warn_once(
                f"{self.data_list_file}: differs from what {Path(self.output_path).parent} was generated from "
                f"({', '.join(names)}); the folders there do not follow. Take another work_dir for the new input."
            )

    def _origin(self) -> dict[str, Any]:
        given = self._input()
        datalist = str(given.get("datalist", ""))
        return origin(given, ConfigParser.load_config_file(datalist) if os.path.isfile(datalist) else {})

    def pre_check_skip_algo(self, skip_bundlegen: bool = False, skip_info: str = "") -> tuple[bool, str]:
        """Skip classes that overlap, and data that cannot be read.

        Returns:
            whether to skip, and why.

        Raises:
            InputError: ``force_2d`` and ``force_3d`` that cannot be meant.
        """
        given, stats = self._input(), _read_stats(self.data_stats_files)
        forced(given, _medians(stats)[1])
        reason = self._refusal(given, stats, [self.data_list_file])
        return (True, reason) if reason else (skip_bundlegen, skip_info)

    def _input(self) -> dict[str, Any]:
        """``input.yaml`` of the run."""
        return dict(ConfigParser.load_config_file(str(self.data_list_file))) if self.data_list_file else {}

    @staticmethod
    def _refusal(given: Mapping[str, Any], stats: Mapping[str, Any], files: Sequence[Any] = ()) -> str:
        for path in (*files, given.get("dataroot"), given.get("datalist")):
            if "#" in str(path) or "::" in str(path):
                return (
                    f"SemSim is skipped: {path}: MONAI cannot have '#' or '::' in a path; rename or link that folder."
                )
        try:
            labels = judged(stats, given)
            if given.get("sigmoid") or overlapping(given.get("class_names"), given.get("class_index")):
                return "SemSim is skipped: its classes exclude each other, and these overlap (sigmoid)."
            names = names_by_value(stated_names(given), labels)
        except ValueError as error:
            return f"SemSim is skipped: {error}"
        if given.get("extra_modalities"):
            return (
                "SemSim is skipped: it does not read extra_modalities; list the files of one image as its channels "
                '("image": [FILE, FILE]).'
            )
        if sorted(names) != list(range(len(names))) or min(labels) < 0:
            return (
                f"SemSim is skipped: expected label values 0 to {len(labels) - 1}, received {labels}; renumber "
                "them, or give as ignore_label in the input a value that nobody judged."
            )
        if unseen := [v for v in names if v not in labels]:
            _warn_once(
                f"class_names: no labelled scan shows the value {unseen}; see that the names are in their order."
            )
        return ""

    def fill_template_config(self, data_stats_filename: str, algo_path: str, **kwargs: Any) -> dict:
        """Write ``hyper_parameters.yaml``.

        Args:
            data_stats_filename: report of the DataAnalyzer.
            algo_path: the generated folder.
            kwargs: keys to override, ``fold`` among them. With ``fill_with_datastats=False`` the earlier records are
                written again with these (as hyper-parameter search does).

        Returns:
            the records: ``{"hyper_parameters.yaml": {key: value}}``.

        Raises:
            InputError: input that :meth:`pre_check_skip_algo` skips.
        """
        kwargs.pop("gpu_customization", None)
        kwargs.pop("gpu_customization_specs", None)
        kwargs.pop("bundle_root", None)
        here = str(Path(algo_path).resolve())
        place: dict[str, Any] = {"bundle_root": here, "generated_in": here}
        if "fold" in kwargs:
            place["fold"] = kwargs.pop("fold")
        path = Path(algo_path) / "configs" / HYPER_PARAMETERS
        fresh = kwargs.pop("fill_with_datastats", True)
        values = {} if fresh else copy.deepcopy(self.fill_records[HYPER_PARAMETERS])
        overlay = ConfigParser.load_config_file(str(path.with_name("volumes.yaml")))
        if fresh:
            if reason := self._refusal(self._input(), _read_stats(data_stats_filename)):  # with allow_skip: false
                from semsim_bundle.scripts.errors import InputError  # of the package that generates folders

                raise InputError(reason.replace("SemSim is skipped", "SemSim cannot take this input"))
            chosen = dimensions(self._input(), *_medians(_read_stats(data_stats_filename)), overlay["spatial_size"])
            generation_log.info("%s: trains in %dD: %s.", here, *chosen)
            values = dict(zip(("spatial_dims", "spatial_dims_because"), chosen))
        dims = values.get("spatial_dims", 2)
        known = ConfigParser()
        known.read_config([str(path.with_name(f"{name}.yaml")) for name in layers(dims)])
        known["spatial_dims"] = dims
        if fresh:
            values |= self._values(data_stats_filename, place.get("fold"), overlay if dims == 3 else None)
            extra = {k: v for k, v in self._input().items() if k not in RUNNER_KEYS and not k.startswith("mlflow")}
            values |= one_length(understood(extra, known, source=str(self.data_list_file)))
            self.origin = self._origin()
        values |= one_length(understood(kwargs, known, source="parameters")) | place
        template = ConfigParser.load_config_file(str(path))
        if dims == 3:  # what is left open here is as in volumes.yaml
            template = {key: value for key, value in template.items() if value is not None}
        content = template | copy.deepcopy(values)
        ConfigParser.export_config_file(content, str(path), fmt="yaml", default_flow_style=None, sort_keys=False)
        _fill_metadata(path.with_name("metadata.json"), content)
        return {HYPER_PARAMETERS: values}

    def _values(self, data_stats_filename: str, fold: int | None, overlay: Mapping | None) -> dict[str, Any]:
        """What follows from the data, in 3D with the configuration that the fold overlays."""
        given, stats = self._input(), _read_stats(data_stats_filename)
        datalist = ConfigParser.load_config_file(str(given["datalist"]))
        gpu, devices = torch.cuda.is_available(), max(1, torch.cuda.device_count())
        spacing, shape = _medians(stats)
        memory = psutil.virtual_memory().available
        room = 0.7 * (torch.cuda.mem_get_info()[0] if gpu else memory)
        sizes = of_patches(shape, overlay, room, gpu=gpu) if overlay else of_slices(spacing, shape, gpu=gpu)
        channels = int(stats["image_stats"]["channels"]["max"])

        training = [item for item in datalist["training"] if fold is None or item.get("fold") != fold]
        unlabeled = datalist.get(given.get("unlabeled_key", "unlabeled")) or []
        if not unlabeled and given.get("use_testing_as_unlabeled"):
            unlabeled = datalist.get("testing") or []
        slices = max(1.0, len(unlabeled or training) * sizes.items)  # or patches, of an epoch
        batch = int(np.clip(np.clip(room / sizes.bytes, 2, sizes.most), 1, max(1, slices // devices)))
        epochs = int(np.clip(STEPS[gpu] / max(slices // (batch * devices), 1), 10, 1000))
        # float32 volumes, and the labels of labelled ones, that each process keeps in memory: half of it at most
        volumes = channels * (len(datalist["training"]) + len(unlabeled)) + len(training)
        kept = 4 * sizes.voxels * volumes * devices
        modality = str(given["modality"]).lower().strip()
        values: dict[str, Any] = {
            "data_file_base_dir": os.path.abspath(str(given["dataroot"])),
            "data_list_file_path": os.path.abspath(str(given["datalist"])),
            "modality": modality,
            "in_channels": channels,
            "class_names": names_in_order(stated_names(given), judged(stats, given)),
            **sizes.values,
            "epochs": epochs,
            "batch_size": batch,
            "val_interval": "$None if @minutes else max(1, @epochs // 20)",
            "cache_rate": min(1.0, int(50 * memory / kept) / 100),
            "amp": "auto",
            "intensity": _intensity(modality, channels, stats),
        }
        if datalist.get("window") is not None:  # as `datalist create` chose it, and the fold's training reads it
            values["intensity"] = {"_target_": WINDOWED, "keys": "image", "window": list(datalist["window"])}
        if datalist.get("label_values") is not None:  # AutoRunner takes the number of a class for its value
            values["label_values"] = None
        if self.mlflow_tracking_uri is not None:
            values["mlflow_tracking_uri"] = self.mlflow_tracking_uri
        if self.mlflow_experiment_name is not None:
            values["mlflow_experiment_name"] = self.mlflow_experiment_name
        return values

    def export_to_disk(self, output_path: str, algo_name: str, **kwargs: Any) -> None:
        """Write the folder of a fold: the template, the bundle's scripts and YAML, and the filled configuration.

        It stands for itself: it trains and predicts wherever it is moved, without this package installed. A search
        calls folders after the keys that it changes; ``loss#lambda_u``, which no path may have, is ``loss.lambda_u``.
        """
        algo_name = algo_name.replace("#", ".").replace("::", ".")
        source = bundle_folder() or self.output_path
        copied = kwargs.get("copy_dirs", True)
        fill = kwargs.pop("fill_template", True)
        content = bundle_files(Path(source)) if copied else {}
        super().export_to_disk(output_path, algo_name, **{**kwargs, "fill_template": False} if copied else kwargs)
        folder = Path(self.output_path)
        for path in (folder, *folder.rglob("*")) if copied else ():  # of a template that nobody may write
            path.chmod(path.stat().st_mode | stat.S_IWUSR)
        for relative, data in content.items():
            target = Path(self.output_path) / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        if fill:
            kwargs.pop("copy_dirs", None)
            self.fill_records = self.fill_template_config(self.data_stats_files, self.output_path, **kwargs)

    def train(self, train_params: Any = None, device_setting: Any = None) -> Any:
        """Train; by way of a link where the folder has blanks in its name, at which MONAI would cut the command."""
        with contextlib.suppress(ValueError):  # there is none of a training that has not finished
            logger.warning(
                f"{self.output_path}: finished before, mean Dice {self.get_score():.3f}; only more epochs go on. For "
                "new labels and settings take another work_dir, or move this folder away."
            )
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # for the process that trains: its threads do not spin
        if not any(sign.isspace() for sign in str(self.output_path)):
            return super().train(train_params, device_setting)
        place = self.output_path
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder) / "fold"
            link.symlink_to(place, target_is_directory=True)
            self.output_path = str(link)
            try:
                return super().train(train_params, device_setting)
            finally:
                self.output_path = place

    def get_score(self, *_: Any, **__: Any) -> float:
        """Mean Dice of the best validation, also after the folder was moved.

        Raises:
            ValueError: the training has not finished; AutoRunner then takes the fold as untrained and goes on with it.
        """
        (path,) = Path(self.output_path).glob("model_fold*/progress.yaml")
        entry = ConfigParser.load_config_file(str(path))[-1]
        if not entry.get("finished"):
            raise ValueError(f"{path}: this training has not finished; run it again to go on with it.")
        return float(entry["best_avg_dice_score"])


@functools.cache
def _warn_once(message: str) -> None:
    """AutoRunner takes up every folder several times in a run."""
    logger.warning(message)


def _read_stats(data_stats: str | Mapping[str, Any]) -> Mapping[str, Any]:
    content = data_stats if isinstance(data_stats, Mapping) else ConfigParser.load_config_file(str(data_stats))
    return content["stats_summary"]


def _medians(stats: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Median spacing in mm and shape in voxels of the images."""
    spacing, shape = (np.array(stats["image_stats"][key]["median"], float) for key in ("spacing", "shape"))
    return spacing, shape


def _fill_metadata(path: Path, content: Mapping[str, Any]) -> None:
    """Classes, channels and axes of this folder in its ``metadata.json``, for whoever takes it as a bundle."""
    class_names, in_channels = content["class_names"], content["in_channels"]
    metadata = json.loads(path.read_text())
    image, pred = (next(iter(metadata["network_data_format"][key].values())) for key in ("inputs", "outputs"))
    image["num_channels"], image["channel_def"] = in_channels, {str(k): f"image {k}" for k in range(in_channels)}
    if content.get("spatial_dims") == 3:
        metadata["task"] = metadata["task"].replace("slice by slice", "in 3D")
        for data in (image, pred):
            data["spatial_shape"], data["is_patch_data"] = ["16*n"] * 3, True
    pred["num_channels"] = len(class_names)
    pred["channel_def"] = {str(value): name for value, name in enumerate(class_names)}
    path.write_text(json.dumps(metadata, indent=4) + "\n")


def _intensity(modality: str, channels: int, stats: Mapping[str, Any]) -> dict[str, Any]:
    """Transform to [0, 1]: the foreground's range for CT, three deviations about each image's mean otherwise.

    The statistics have the range of the first channel alone: several channels have their own means, in CT, too.
    """
    to_unit = {"_target_": "ScaleIntensityRanged", "keys": "image", "b_min": 0.0, "b_max": 1.0, "clip": True}
    if modality == "ct" and channels == 1:
        window = stats["image_foreground_stats"]["intensity"]
        low, high = (float(np.min(window["percentile_00_5"])), float(np.max(window["percentile_99_5"])))
        return {**to_unit, "a_min": low, "a_max": high if high > low else low + 1.0}
    normalize = {"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True}
    return {"_target_": "Compose", "transforms": [normalize, {**to_unit, "a_min": -3.0, "a_max": 3.0}]}
