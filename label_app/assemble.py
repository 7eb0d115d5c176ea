"""Make the folder that a MONAI Label server runs: this app with a copy of the bundle.

    python label_app/assemble.py --output DIR
    python label_app/assemble.py --output DIR --class_names liver,tumour --spatial_size 160
    python label_app/assemble.py --output DIR --class_names liver,tumour --volumes --window -150 250

With classes or a window of your own, and in 3D, the copy starts without weights: the first labels train them. The
repository's bundle stays as it is; a server trains and publishes in its copy alone.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
IGNORE = shutil.ignore_patterns("__pycache__", "data", "output", "models_before", "mlruns", "scores")


def named(class_names: list[str]) -> list[str]:
    """Names of the values 0, 1, 2, ...; the background is added where it is not the first of them.

    Raises:
        SystemExit: no name, one twice, or one that is none.
    """
    names = [name.strip() for name in class_names]
    if names[0].lower() != "background":
        names = ["background", *names]
    wrong = [name for name in names if not re.fullmatch(r"\w[\w .()+-]*", name)]
    if wrong or len(names) < 2 or len({name.lower() for name in names}) < len(names):
        raise SystemExit(
            f"class_names {','.join(class_names)!r}: expected names that differ, of letters, digits and blanks, such "
            "as liver,tumour."
        )
    return names


def write_config(bundle: Path, kind: str, *names: str) -> None:
    """Write ``<kind>.json``, which MONAI Label prefers to a YAML: files of the bundle, then ours of the same names."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    folders = (bundle / "configs", ROOT / "label_app" / "configs")
    parser.read_config([str(folder / f"{name}.yaml") for folder in folders for name in names])
    (bundle / "configs" / f"{kind}.json").write_text(json.dumps(parser.get(), indent=1) + "\n")


def volume_settings(bundle: Path) -> dict[str, Any]:
    """What the overlay for 3D says of the settings that are saved beside the weights."""
    from monai.bundle import ConfigParser

    overlay = ConfigParser.load_config_file(str(bundle / "configs" / "volumes.yaml"))
    return {name: overlay[name] for name in ("spatial_dims", "spatial_size", "slice_axis", "fusion", "flip_tta")}


def assemble(
    output: Path,
    *,
    name: str = "semsim",
    class_names: list[str] | None = None,
    spatial_size: int | None = None,
    fusion: str | None = None,
    app: Path | None = None,
    volumes: bool = False,
    window: list[float] | None = None,
) -> Path:
    """Copy app and bundle together.

    Args:
        output: folder to make.
        name: of the bundle, as clients show it.
        class_names: of the label values 1, 2, ..., or with ``background`` in front of 0, 1, 2, ...; default: those of
            the shipped weights.
        spatial_size: pixels a side, in 3D voxels; default: that of the shipped weights, in 3D of ``volumes.yaml``.
        fusion: ``conv`` or ``sfm``; default: likewise.
        app: another app than this one, for instance MONAI Label's ``monaibundle``.
        volumes: whether to begin in 3D, without weights.
        window: intensities that become 0 and 1, HU of a CT say; default: percentiles of each volume.

    Returns:
        ``output``.
    """
    if class_names is not None:
        class_names = named(class_names)
    if volumes and app is not None:
        raise SystemExit("--volumes: only our own app trains in 3D; leave --app out.")
    if volumes and (spatial_size or 16) % 16:
        raise SystemExit(f"--spatial_size {spatial_size}: in 3D expected voxels of a patch, a multiple of 16.")
    if window is not None and not window[0] < window[1]:
        raise SystemExit(f"--window {window[0]:g} {window[1]:g}: expected the lower intensity first, -150 250 say.")
    if output.exists():
        raise SystemExit(f"{output}: exists already; give another folder, or remove it with all it has learnt.")
    if app is None:
        output.mkdir(parents=True)
        shutil.copy(ROOT / "label_app" / "main.py", output)
        shutil.copytree(ROOT / "label_app" / "lib", output / "lib", ignore=IGNORE)
    else:
        shutil.copytree(app, output, ignore=IGNORE)
    bundle = output / "model" / name
    shutil.copytree(ROOT / "bundle", bundle, ignore=IGNORE)
    write_config(bundle, "train", "train")
    write_config(bundle, "volumes", "train", "volumes")
    write_config(bundle, "inference", "inference")
    path = bundle / "models" / "training.json"
    shipped = json.loads(path.read_text())
    wanted: dict[str, Any] = {"class_names": class_names, "spatial_size": spatial_size, "fusion": fusion}
    if window is not None:
        wanted["intensity"] = {**shipped["intensity"], "window": window}
    begun = {**shipped, **volume_settings(bundle)} if volumes else shipped
    settings = {**begun, **{k: v for k, v in wanted.items() if v is not None}}
    settings["keep_largest"] = shipped["keep_largest"] and settings["class_names"] == shipped["class_names"]
    if volumes or any(settings[k] != shipped[k] for k in ("class_names", "fusion", "intensity")):
        (bundle / "models" / "model.pt").unlink()
    if settings != shipped:
        known = ("class_names", "spatial_size", "fusion", "features", "in_channels", "slice_axis", "intensity")
        kept = {k: settings[k] for k in (*known, "keep_largest", "flip_tta", "spatial_dims") if k in settings}
        path.write_text(json.dumps(kept, indent=2) + "\n")
    if class_names is not None:
        path = bundle / "configs" / "metadata.json"
        metadata = json.loads(path.read_text())
        prediction = metadata["network_data_format"]["outputs"]["pred"]
        prediction["channel_def"] = {str(value): label for value, label in enumerate(class_names)}
        prediction["num_channels"] = len(class_names)
        path.write_text(json.dumps(metadata, indent=4) + "\n")
    return output


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, help="folder to make")
    parser.add_argument("--name", default="semsim", help="name of the model in Slicer and OHIF")
    parser.add_argument(
        "--class_names", type=lambda text: text.split(","), help="names of the label values 1, 2, ..., with commas"
    )
    parser.add_argument("--spatial_size", type=int, help="pixels per side of a slice; in 3D voxels per side of a patch")
    parser.add_argument("--volumes", action="store_true", help="train and predict in 3D; starts without weights")
    parser.add_argument("--window", nargs=2, type=float, help="intensities that become 0 and 1, for instance HU of CT")
    parser.add_argument("--app", type=Path, help="folder of another app to copy, such as MONAI Label's monaibundle")
    parser.add_argument("--fusion", choices=["conv", "sfm"], help="fusion module of the network")
    options = vars(parser.parse_args())
    app = assemble(options.pop("output"), **options)
    settings = json.loads(next(app.glob("model/*/models/training.json")).read_text())
    classes = ", ".join(f"{value} {name}" for value, name in enumerate(settings["class_names"]))
    print(f"app: {app}; label values: {classes}")


if __name__ == "__main__":
    main()
