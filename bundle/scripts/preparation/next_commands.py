"""Commands that go on with a datalist, to be pasted into a shell."""

from __future__ import annotations

import shlex
from pathlib import Path

from .survey import Survey
from .tables import suits_3d


def next_lines(
    found: Survey | None, root: str | Path, output: str | Path, *, folds: int | None = None, scored_alone: bool = False
) -> list[str]:
    """What to do with a datalist once it is written, with commands to be pasted into a shell.

    Args:
        found: what the files hold, if they were read.
        root: folder that the paths in it are relative to.
        output: the datalist.
        folds: of a cross-validation.
        scored_alone: whether it is for an evaluation and no training.
    """
    if scored_alone:
        command = bundle_command("run", "evaluate", root, output, "--ckpt_path RUN --output_dir SCORES")
        return [f"wrote {output}; to score the weights of a training on it, in the bundle's folder:", command]
    turns, given = (f", fold 0 of {folds}", "--fold 0 --output_dir RUN0") if folds else ("", "--output_dir RUN")
    slices, volumes = (
        bundle_command("run training", overlay, root, output, f"{given} --minutes 60")
        for overlay in ("semsim_minus", "volumes")
    )
    lines = [f"wrote {output}; to train on it for an hour{turns}, in the bundle's folder:", slices]
    if found is not None and suits_3d(found):
        lines += ["or in 3D, which may do better here:", volumes]
    return lines


def bundle_command(run: str, overlay: str, root: str | Path, output: str | Path, options: str) -> str:
    """A command of MONAI's on a datalist with an overlay of ``train.yaml``. Arguments as above."""
    files = f"\"['configs/train.yaml','configs/{overlay}.yaml']\""
    data = f"--dataset_dir {quoted(root)} --datalist {quoted(Path(output).absolute())}"
    return f"  python -m monai.bundle {run} --config_file {files} {data} {options}"


def quoted(path: str | Path) -> str:
    """A path as a shell takes it: as it stands, in double quotes where that is enough, else as shlex writes it."""
    text = str(path)
    if shlex.quote(text) == text or set('"$`!\\') & set(text):
        return shlex.quote(text)
    return f'"{text}"'
