"""Commands: `python -m scripts COMMAND` in the bundle's folder, or `semsim COMMAND` in any folder after `pip install .`

    semsim datalist create --images DIR --labels DIR --output FILE --labeled 7     check the data, draw who is labelled
    semsim merge --data DIR --classes liver,spleen --output DIR                    join masks, one a class, to labels
    semsim benchmark acdc --source DIR --output FILE --labeled 3                   datalist of a public benchmark
    semsim run training --config_file configs/train.yaml --dataset_dir DIR --datalist FILE
    semsim report OUTPUT_DIR                                                       page about a training
    semsim overlay --image FILE --prediction FILE --output FILE                    picture of a prediction
    semsim export --ckpt_path FILE --output model.onnx                             TorchScript or ONNX

Each explains its options with --help, but for `semsim run`: it is `python -m monai.bundle run` with the package's
configs/, and docs/REFERENCE.md has its options.
"""

from __future__ import annotations

import ast
import getpass
import os
import runpy
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Name of the command -> module that has its options in ``main``, loaded when asked for.
COMMANDS = {
    "datalist": ".preparation.create",
    "merge": ".preparation.merge",
    "benchmark": ".preparation.public_datasets",
    "report": ".report.build",
    "overlay": ".report.overlay",
    "export": ".evaluation.export",
}


def shipped(file: str) -> str:
    """A configuration file: the one of that name here, or else the package's."""
    here = ROOT / file
    return file if Path(file).is_file() or not here.is_file() else str(here)


def run_options(options: Sequence[str]) -> list[str]:
    """Options of ``monai.bundle run`` with the package's files in the place of those that are not here."""
    words: list[str] = []
    for word in options:
        words += word.split("=", 1) if word.startswith("--config_file=") else [word]
    for position, word in enumerate(words[:-1]):
        if word == "--config_file":
            text = words[position + 1]
            files = ast.literal_eval(text) if text.startswith("[") else text.split(",")
            words[position + 1] = str([shipped(str(file)) for file in files])
    given = any(word.split("=")[0] == "--bundle_root" for word in words)
    return [*words, *([] if given else ["--bundle_root", str(ROOT)])]


def main() -> None:
    """Command line."""
    try:
        getpass.getuser()  # which MONAI asks for when it is loaded
    except (KeyError, OSError):  # a container whose user has no entry
        os.environ["USER"] = f"user{os.getuid()}"
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is loaded: threads wait without spinning
    name, *options = sys.argv[1:] or ["--help"]
    if name == "run":
        sys.argv = ["semsim run", "run", *run_options(options)]
        runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
    elif name in COMMANDS:
        sys.argv = [f"semsim {name}", *options]
        import_module(COMMANDS[name], __package__).main()
    else:
        sys.stdout.write(f"{__doc__}\n")
        if name not in ("--help", "-h", "help"):
            raise SystemExit(f"semsim {name}: expected one of run, {', '.join(COMMANDS)}.")


if __name__ == "__main__":
    main()
