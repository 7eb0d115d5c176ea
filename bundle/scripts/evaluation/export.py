"""Weights as a file for other programs: TorchScript or ONNX, with the metadata of these weights.

python -m scripts export --ckpt_path models/model.pt --output model.ts
python -m scripts export --ckpt_path run/model_best.pt --output model.onnx
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.data import save_net_with_metadata

from ..command_line import command
from ..dataio.intensity import NAME, OWN
from ..errors import InputError
from ..training.settings import check_noted, saved, trained_network
from ..training.weights import weights_file

ROOT = Path(__file__).resolve().parents[2]

#: What the bundle's metadata tell of the shipped weights alone.
SHIPPED = (
    "eval_metrics", "data_source", "data_type", "image_classes", "label_classes", "pred_classes", "intended_use",
    "references", "authors", "copyright", "changelog",
)  # fmt: skip


def settings_of(ckpt_path: Path) -> dict[str, Any]:
    """``training.json`` beside the weights.

    Raises:
        InputError: there is none, or it lacks some, so that nobody could say what the classes are.
    """
    path, known = saved(ckpt_path)
    if not known:
        raise InputError(f"{path}: no settings beside the weights; they name the classes, so copy the file there.")
    if missing := [name for name in ("class_names", "in_channels", "spatial_size") if name not in known]:
        raise InputError(
            f"{path}: expected the settings of the training, received a file without {', '.join(missing)}; put the "
            "training.json that the training wrote there."
        )
    return known


def metadata_of(ckpt_path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The bundle's metadata with what is true of these weights alone.

    Args:
        ckpt_path: file of the weights.
        settings: they were trained with.
    """
    content = json.loads((ROOT / "configs" / "metadata.json").read_text())
    # where a training has put its weights in the place of the shipped ones, its settings hold a recipe
    if ckpt_path.resolve() == (ROOT / "models" / "model.pt").resolve() and "recipe" not in settings:
        content.pop("eval_metrics")  # of predictions over flips, the largest components kept: a network does neither
        return content
    names, channels = settings["class_names"], settings["in_channels"]
    dims = settings.get("spatial_dims", 2)
    size = settings["spatial_size"]
    shape = [size] * dims if isinstance(size, int) else list(size)
    what = "slices" if dims == 2 else "volumes"
    content["description"] = f"SemSim's U-Net for {what}, classes {', '.join(names)}; weights {ckpt_path.name}"
    content["task"] = f"Segmentation of {', '.join(names[1:])}"
    for key in SHIPPED:
        content.pop(key, None)
    image, pred = (next(iter(content["network_data_format"][k].values())) for k in ("inputs", "outputs"))
    del image["modality"]  # nobody said
    image["is_patch_data"] = pred["is_patch_data"] = dims == 3
    intensity = settings.get("intensity") or {"_target_": NAME}
    if not isinstance(intensity, Mapping) or intensity["_target_"] not in OWN:
        image["value_range"] = []  # of a transform of the user's own
    image["num_channels"], pred["num_channels"] = channels, len(names)
    image["channel_def"] = {str(k): "image" if channels == 1 else f"channel {k}" for k in range(channels)}
    pred["channel_def"] = {str(value): name for value, name in enumerate(names)}
    image["spatial_shape"] = pred["spatial_shape"] = ["16*n"] * dims
    content["training"] = {**settings, "spatial_size": shape}
    return content


def export(output: str, ckpt_path: str | None = None) -> Path:
    """Write weights as TorchScript (.ts, .pt) or ONNX (.onnx), with their metadata, for other programs.

    The file takes batches of any size, of slices (B, C, X, Y) or in 3D patches (B, C, X, Y, Z) whose sides are
    multiples of 16, scaled as in training. X runs to the right, Y to the front, of pictures down, Z to the head.

    Args:
        output: File to write, which must not exist yet
        ckpt_path: Folder of a training, or its weights with training.json beside them; by default the shipped weights

    Returns:
        the file; the metadata lie in it, for ONNX among its properties.

    Raises:
        InputError: another ending, a file that is there, no weights, or no settings beside them, or those of others.
    """
    weights = Path(weights_file(str(ROOT / "models" / "model.pt") if ckpt_path is None else ckpt_path))
    target = Path(output)
    if target.suffix not in (".ts", ".pt", ".onnx"):
        raise InputError(f"{target}: expected a file that ends with .ts, .pt or .onnx.")
    if target.exists():
        raise InputError(f"{target}: exists already; give another --output.")
    if not weights.is_file():
        raise InputError(f"{weights}: no such weights; give a training's folder or a file as --ckpt_path.")
    settings = settings_of(weights)
    check_noted(weights)
    network, metadata = trained_network(weights), metadata_of(weights, settings)
    example = torch.zeros(
        2, settings["in_channels"], *(64, 96) if settings.get("spatial_dims", 2) == 2 else (32, 48, 64)
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == ".onnx":
        _onnx(network, example, target, metadata)
    else:
        save_net_with_metadata(torch.jit.script(network), str(target), meta_values=metadata, append_timestamp=False)
    return target


def _onnx(network: torch.nn.Module, example: torch.Tensor, target: Path, metadata: Mapping[str, Any]) -> None:
    """Export, and compare the result with the network at another batch and size."""
    import onnx
    import onnxruntime

    axes = {name: {0: "batch", **dict(enumerate("xyz"[: example.ndim - 2], 2))} for name in ("image", "pred")}
    part = target.with_name(target.name + ".part")
    with torch.no_grad():
        torch.onnx.export(
            network,
            (example,),
            str(part),
            input_names=["image"],
            output_names=["pred"],
            dynamic_axes=axes,
            dynamo=False,
        )
    model = onnx.load(str(part))
    onnx.helper.set_model_props(model, {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()})
    onnx.save(model, str(part))
    session = onnxruntime.InferenceSession(str(part), providers=["CPUExecutionProvider"])
    image = torch.rand(1, example.shape[1], *(96, 48) if example.ndim == 4 else (48, 32, 16))
    with torch.no_grad():
        expected = network(image)
    (found,) = session.run(None, {"image": image.numpy()})
    difference = float((torch.as_tensor(found) - expected).abs().max())
    if not math.isfinite(difference) or difference > 1e-3:
        part.unlink()
        raise InputError(f"{target}: differs from the network by {difference:.2g}; not written.")
    part.replace(target)


def main() -> None:
    """Command line of this module."""
    command(export)
