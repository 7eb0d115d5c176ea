"""Accuracy of the methods on ACDC and LA under one protocol: train, queue, tables, plots.

    python benchmarks/accuracy.py arrange --source ACDC/database/training --output DIR
    python benchmarks/accuracy.py train --data DIR --method semsim_minus --cases 3 --seed 0
    python benchmarks/accuracy.py queue benchmarks/configs/table.yaml --data DIR --minutes 150
    python benchmarks/accuracy.py predict benchmarks/runs/NAME --images DIR
    python benchmarks/accuracy.py table benchmarks/results/accuracy/acdc3_96_*.json
    python benchmarks/accuracy.py report

``DIR`` holds ``images/patientNNN_frameMM.nii.gz`` (``trainNNN.nii.gz`` with ``--dataset la``) and ``labels/`` of the
same names. Which patients are labelled, unlabelled and for validation stands in ``configs/acdc_splits.json``; others in
the folder are not touched.

Every method is ``train.yaml`` with an overlay of its own and, for the same augmentation, batches and budget,
``configs/accuracy.yaml``; in 3D with ``volumes.yaml`` in front, where ``--spatial_size`` has three numbers.

A result holds Dice, 95HD and ASSD of every case and class for the last iteration, the mean of the last five evaluations
and the best on validation, and for the last iteration with flips and the largest component; the labelled cases,
commits, command, versions, wall time and both curves. Everything goes on where it was interrupted.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import common
import numpy as np
import yaml
from common import BUNDLE, CONFIGS, ROOT, RUN, environment, note_start, patient_of, write_json
from scoring import RESULTS, add_post_processed, collect, post_processed, predict

#: Overlay of train.yaml for each method; SemSim is train.yaml itself.
METHODS = {
    "labeled_only": ["labeled_only"],
    "fixmatch": ["fixmatch"],
    "unimatch": ["unimatch"],
    "semsim_minus": ["semsim_minus"],
    "semsim": [],
}
DATASETS = ("acdc", "la")
#: slices or patches of either stream in a step, unless said otherwise
BATCH = {2: 8, 3: 4}


class Unfinished(Exception):
    """The time given to a training ran out; its checkpoints lie where the next call finds them."""


def changes() -> dict[str, dict[str, Any]]:
    """Named departures from a method's own settings, one factor each."""
    return yaml.safe_load((CONFIGS / "changes.yaml").read_text())


def make_datalist(
    data: str | os.PathLike,
    cases: int,
    output: str | os.PathLike,
    split_file: str | os.PathLike = "",
    dataset: str = "acdc",
) -> None:
    """Write the datalist of the protocol: labelled patients, the other training patients unlabelled, validation."""
    splits = common.read_splits(split_file, dataset)
    labelled = splits["labelled"] | {str(len(splits["training"])): splits["training"]}
    if str(cases) not in labelled:
        raise SystemExit(f"--cases should be one of {', '.join(labelled)}, received {cases}.")
    lists = common.protocol_lists(data, splits, labelled[str(cases)])
    Path(output).write_text(json.dumps(lists, indent=1) + "\n")


def config_files(method: str, dims: int, dataset: str) -> list[str]:
    """What a training reads, in the bundle's folder: ``train.yaml``, overlays of the method and of the protocol."""
    overlays = ["train", *["volumes"] * (dims == 3), *METHODS[method]]
    protocol = ["accuracy", dataset, *["patches"] * (dims == 3)]
    return [f"configs/{name}.yaml" for name in overlays] + [str(CONFIGS / f"{name}.yaml") for name in protocol]


def run_name(
    method: str,
    cases: int,
    seed: int,
    spatial_size: int | Sequence[int],
    iterations: int,
    change: str | Sequence[str] = "",
    initial: str = "",
    dataset: str = "acdc",
) -> str:
    """Name of a result: ``acdc3_96_3000_semsim_minus+regions_2_seed0``; ``+initial`` where it began with weights."""
    applied = "".join(f"+{c}" for c in [*_as_list(change), *["initial"] * bool(initial)])
    size = spatial_size if isinstance(spatial_size, int) else "x".join(map(str, spatial_size))
    return f"{dataset}{cases}_{size}_{iterations}_{method}{applied}_seed{seed}"


def _as_list(change: str | Sequence[str]) -> list[str]:
    return [c for c in (change.split("+") if isinstance(change, str) else change) if c]


def train(
    data: str,
    method: str,
    cases: int = 3,
    seed: int = 0,
    spatial_size: int | Sequence[int] = 224,
    iterations: int = 3000,
    change: str = "",
    work: str = "",
    results: str = "",
    minutes: float = 0,
    test: str = "",
    plan: bool = True,
    batch_size: int = 0,
    splits: str = "",
    threads: int = 1,
    workers: int = 0,
    initial: str = "",
    dataset: str = "acdc",
) -> None:
    """Train one method and write its result; goes on with an interrupted training of the same name.

    Args:
        data: folder with ``images`` and ``labels``.
        method: labeled_only, fixmatch, unimatch, semsim_minus or semsim.
        cases: labelled patients: 1, 3 or 7; of LA 4, 8 or 16; or all, 70 and 72, with ``--method labeled_only``.
        seed: of initialisation, batches and augmentation.
        spatial_size: pixels a side; three numbers train in 3D, on patches of so many voxels.
        iterations: steps, rounded up to whole passes over the unlabelled slices.
        change: names in configs/changes.yaml, joined by ``+``.
        work: folder for the trainings; default ``benchmarks/runs``.
        results: folder for the result; default ``benchmarks/results/accuracy``.
        minutes: stop after so many, to be resumed; 0: no limit.
        test: folder of images that the finished model predicts, once, into ``benchmarks/predictions``.
        plan: say first how long it will take, which takes a minute itself.
        batch_size: slices or patches of either stream; default 8, and 4 in 3D.
        splits: JSON of patients; default ``configs/acdc_splits.json``, or that of LA.
        threads: CPU threads; with another number sums are rounded otherwise and the run takes another course.
        workers: loading processes of each stream, for a GPU that would wait; 0 and more draw other augmentations.
        initial: weights to begin with, ``model_last.pt`` of a training of the same network; default: none.
        dataset: acdc or la.
    """
    if dataset not in DATASETS:
        raise SystemExit(f"--dataset should be one of {', '.join(DATASETS)}, received {dataset}.")
    if method not in METHODS:
        raise SystemExit(f"--method should be one of {', '.join(METHODS)}, received {method}.")
    if method != "labeled_only" and cases == len(common.read_splits(splits, dataset)["training"]):
        raise SystemExit(f"--cases {cases}: leaves no scans without labels; expected --method labeled_only with it.")
    applied = _as_list(change)
    unknown = [c for c in applied if c not in changes()]
    if unknown:
        raise SystemExit(f"--change: {unknown[0]} does not stand in benchmarks/configs/changes.yaml.")
    if initial and not Path(initial).is_file():
        raise SystemExit(f"--initial: expected a model_last.pt or model_best.pt, {initial} is no file.")
    if test and not Path(str(test)).is_dir():
        raise SystemExit(f"--test: expected a folder of images, received {test}.")
    dims = 2 if isinstance(spatial_size, int) else 3
    batch_size = batch_size or BATCH[dims]
    name = run_name(method, cases, seed, spatial_size, iterations, applied, initial, dataset)
    folder = (Path(work) if work else ROOT / "benchmarks" / "runs").resolve() / name
    result = (Path(results) if results else RESULTS) / f"{name}.json"
    if result.exists():
        print(f"{result} exists; nothing to do. To train it anew give another folder as --results.")
        return
    folder.mkdir(parents=True, exist_ok=True)
    make_datalist(data, cases, folder / "datalist.json", splits, dataset)
    note_start(folder)
    settings: dict[str, Any] = {"seed": seed, "spatial_size": spatial_size, "iterations": iterations}
    settings |= {"batch_size": batch_size, "num_workers": workers}
    if initial:
        settings["initial"] = str(Path(initial).resolve())
    for c in applied:
        settings |= changes()[c]
    args = ["--config_file", str(config_files(method, dims, dataset)), "--dataset_dir", str(Path(data).resolve())]
    args += ["--datalist", str(folder / "datalist.json"), "--output_dir", str(folder), "--resume", "auto"]
    args += [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    _run(args, folder, threads, minutes, plan)
    options = {"dataset": (dataset, "acdc"), "change": ("+".join(applied), ""), "batch_size": (batch_size, BATCH[dims])}
    options |= {"splits": ("FILE" if splits else "", ""), "threads": (threads, 1), "workers": (workers, 0)}
    options["initial"] = (initial, "")
    command = f"python benchmarks/accuracy.py train --data DIR --method {method} --cases {cases} --seed {seed} "
    command += f"--spatial_size {spatial_size} --iterations {iterations}".replace(", ", ",")
    command += "".join(f" --{key} {value}" for key, (value, default) in options.items() if value != default)
    record = {"name": name, "dataset": dataset, "method": method, "change": applied, "cases": cases, "seed": seed}
    record |= collect(folder)
    if initial:
        record["initial_sha256"] = hashlib.sha256(Path(initial).read_bytes()).hexdigest()
    record |= {"spatial_size": spatial_size, "iterations": iterations, "threads": threads, "command": command}
    record |= post_processed(folder, data, threads)
    write_json(result, record)
    if test:
        predict(str(folder), test, threads=threads)
    print(f"{name}: mean Dice {record['last']['mean']['dice']:.4f} (last iteration) -> {result}")


def _run(args: Sequence[str], folder: Path, threads: int, minutes: float, plan: bool) -> None:
    """Train, in a process of its own, until it is finished; :class:`Unfinished` after so many minutes."""
    env = environment(threads)
    planned = plan and not (folder / "training_log.csv").exists()
    if planned and subprocess.run([*RUN, "planning", *args], cwd=BUNDLE, env=env).returncode:
        raise SystemExit(f"{folder.name}: planning failed, as said above.")
    with (folder / "output.log").open("a") as log:
        process = subprocess.Popen([*RUN, "training", *args], cwd=BUNDLE, stdout=log, stderr=subprocess.STDOUT, env=env)
        try:
            code = process.wait(timeout=60 * minutes if minutes else None)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
            raise Unfinished(folder.name) from None
        except BaseException:
            process.kill()
            raise
    if code:
        tail = "\n".join((folder / "output.log").read_text(errors="replace").splitlines()[-5:])
        raise SystemExit(f"{folder.name}: training failed with exit code {code}, see {folder / 'output.log'}:\n{tail}")


def queue(
    plan: str,
    data: str,
    work: str = "",
    results: str = "",
    jobs: int = 2,
    threads: int = 1,
    minutes: float = 150,
    workers: int = 0,
    test: str = "",
) -> None:
    """Work through a list of trainings, those without a result yet, for a limited time.

    Args:
        plan: YAML list of arguments of ``train``; ``seed``, ``method``, ``cases`` and ``change`` may be lists.
        data: as for ``train``.
        work: as for ``train``.
        results: as for ``train``.
        jobs: trainings at a time.
        threads: CPU threads of each.
        minutes: no training runs longer than until then; call again to go on.
        workers: loading processes of each training and stream.
        test: as for ``train``.
    """
    end = time.monotonic() + 60 * minutes
    common = {"data": data, "work": work, "results": results, "threads": threads, "workers": workers, "test": test}
    common["plan"] = False

    def one(run: Mapping[str, Any]) -> bool:
        left = (end - time.monotonic()) / 60
        if left < 0.5:
            return False
        args = [f"--{k}={v}" for k, v in ({**common, **run, "minutes": round(left, 2)}).items() if v != ""]
        return subprocess.run([sys.executable, __file__, "train", *args]).returncode == 0

    with ThreadPoolExecutor(jobs) as pool:
        done = list(pool.map(one, expand(yaml.safe_load(Path(plan).read_text()))))
    print(f"{sum(done)} of {len(done)} done.")
    if not all(done):
        raise SystemExit(1)


def arrange(source: str, output: str, splits: str = "") -> None:
    """Lay out ACDC as it is released for ``train``: the protocol's patients, voxels as stored, without size or place.

    The results are of a release of the same volumes that states neither, so distances are in voxels.

    Args:
        source: folder that holds patient001 to patient100.
        output: folder to write ``images`` and ``labels`` into, neither of which may exist.
        splits: as for ``train``.
    """
    import nibabel as nib
    from scripts.errors import InputError
    from scripts.preparation.public_datasets import find_acdc

    target = Path(output)
    if taken := [str(target / kind) for kind in ("images", "labels") if (target / kind).exists()]:
        raise SystemExit(f"--output: {taken[0]} exists; give another folder or remove it first.")
    lists = common.read_splits(splits)
    used = {*lists["training"], *lists["validation"]}
    try:
        cases = find_acdc(Path(source))
    except InputError as error:
        raise SystemExit(f"--source: {error}") from None
    if missing := used - set(cases.groups):
        raise SystemExit(
            f"--source {source}: expected {len(used)} patients, {len(missing)} are missing ({min(missing)} for one); "
            "give the folder that all of them lie in."
        )
    for kind, files in (("images", cases.images), ("labels", cases.labels)):
        (target / kind).mkdir(parents=True)
        for case, path in files.items():
            if patient_of(case) in used:
                voxels = np.asarray(nib.load(path).dataobj)
                nib.save(nib.Nifti1Image(voxels, np.eye(4)), target / kind / f"{case}.nii.gz")


def pack(data: str, output: str, dataset: str = "acdc") -> None:
    """Write the patients of the protocol as 8-bit volumes, to be carried elsewhere: images clipped as training does.

    Args:
        data: folder with ``images`` and ``labels``.
        output: folder to write, laid out alike.
        dataset: acdc or la.
    """
    import nibabel as nib

    splits = common.read_splits(dataset=dataset)
    used = {*splits["training"], *splits["validation"]}
    for kind in ("images", "labels"):
        for source in sorted((Path(data) / kind).glob("*.nii.gz")):
            if patient_of(source.name) not in used:
                continue
            volume = nib.load(source)
            array = np.asarray(volume.dataobj, dtype=np.float32)
            if kind == "images":
                low, high = np.percentile(array, [0.5, 99.5])
                array = np.clip((array - low) / max(high - low, 1e-6), 0, 1) * 255
            target = Path(output) / kind / source.name
            target.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array.round().astype(np.uint8), volume.affine), target)


def expand(plan: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One dictionary a training from the entries of a plan, whose lists are multiplied out."""
    runs: list[dict[str, Any]] = []
    for entry in plan:
        expanded: list[dict[str, Any]] = [{}]
        for key, value in entry.items():
            values = value if isinstance(value, list) else [value]
            expanded = [{**run, key: v} for run in expanded for v in values]
        runs += expanded
    return runs


if __name__ == "__main__":
    import fire
    from comparison import report, table

    try:
        fire.Fire({f.__name__: f for f in (arrange, train, queue, predict, add_post_processed, table, report, pack)})
    except Unfinished as unfinished:
        raise SystemExit(f"{unfinished}: time is over; the same command goes on with it.") from None
