"""Make the folder that a MONAI Label server runs: this app with a copy of the bundle.

    python label_app/assemble.py --output DIR
    python label_app/assemble.py --output DIR --class_names liver,tumour --spatial_size 160

With classes of your own the copy starts without weights: the first labels train them. The repository's bundle stays as
it is; a server trains and publishes in its copy alone.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path

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


def write_config(config: Path, overlay: Path) -> None:
    """Write the JSON beside a YAML that MONAI Label prefers to it: the same, with the entries of an overlay."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config([str(config), str(overlay)])
    config.with_suffix(".json").write_text(json.dumps(parser.get(), indent=1) + "\n")


def assemble(
    output: Path,
    *,
    name: str = "semsim",
    class_names: list[str] | None = None,
    spatial_size: int | None = None,
    fusion: str | None = None,
    app: Path | None = None,
) -> Path:
    """Copy app and bundle together.

    Args:
        output: folder to make.
        name: of the bundle, as clients show it.
        class_names: of the label values 1, 2, ..., or with ``background`` in front of 0, 1, 2, ...; default: those of
            the shipped weights.
        spatial_size: pixels a side; default: that of the shipped weights.
        fusion: ``conv``, ``sfm_light`` or ``sfm``; default: that of the shipped weights.
        app: another app than this one, for instance MONAI Label's ``monaibundle``.

    Returns:
        ``output``.
    """
    if class_names is not None:
        class_names = named(class_names)
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
    for kind in ("train", "inference"):
        write_config(bundle / "configs" / f"{kind}.yaml", ROOT / "label_app" / "configs" / f"{kind}.yaml")
    path = bundle / "models" / "training.json"
    shipped = json.loads(path.read_text())
    wanted = {"class_names": class_names, "spatial_size": spatial_size, "fusion": fusion}
    settings = {**shipped, **{k: v for k, v in wanted.items() if v is not None}}
    settings["keep_largest"] = shipped["keep_largest"] and settings["class_names"] == shipped["class_names"]
    if any(settings[k] != shipped[k] for k in ("class_names", "fusion")):
        (bundle / "models" / "model.pt").unlink()
    if settings != shipped:
        known = ("class_names", "spatial_size", "fusion", "features", "in_channels", "slice_axis", "intensity")
        kept = {k: settings[k] for k in (*known, "keep_largest") if k in settings}
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
    parser.add_argument("--name", default="semsim", help="of the model in the clients")
    parser.add_argument(
        "--class_names", type=lambda text: text.split(","), help="first,second,... of the values 1, 2, ..."
    )
    parser.add_argument("--spatial_size", type=int, help="pixels a side")
    parser.add_argument("--app", type=Path, help="another app than this one, MONAI Label's monaibundle say")
    parser.add_argument("--fusion", choices=["conv", "sfm_light", "sfm"])
    options = vars(parser.parse_args())
    app = assemble(options.pop("output"), **options)
    settings = json.loads(next(app.glob("model/*/models/training.json")).read_text())
    classes = ", ".join(f"{value} {name}" for value, name in enumerate(settings["class_names"]))
    print(f"app: {app}; label values: {classes}")


if __name__ == "__main__":
    main()
