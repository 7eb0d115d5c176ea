"""The cost of prediction: slices a second, arithmetic and memory, against a bare U-Net, and of the exported models.

    python benchmarks/infer.py measure --output benchmarks/results/infer_cpu.json
    python benchmarks/infer.py memory --output benchmarks/results/infer_memory.json
    python benchmarks/infer.py agreement --data DIR --output benchmarks/results/infer_agreement.json
    python benchmarks/infer.py table benchmarks/results/infer_cpu.json

``pipeline`` is the whole of ``inference.yaml``, from the files of the phantom to the files of its prediction, in
float32 (``bundle``), as the device does it fastest (``amp``), and with MONAI's ``BasicUNet`` of the same weights in its
place (``bare``, float32). ``network`` is the network alone on a batch of slices; there the exports take part. All take
turns in one run. ``memory`` predicts long volumes, ``agreement`` compares the labels of both precisions.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import onnxruntime
import torch
from common import BUNDLE, child, command, markdown, protocol_lists, provenance, read_splits, resources, write_json
from monai.bundle import ConfigParser
from monai.networks.nets import BasicUNet
from scripts.evaluation.inferer import SliceLabelInferer
from scripts.memory import PeakMemory, keep_freed_memory
from scripts.precision import precision
from step import Step, count, make_data, seconds_of, spread

CKPT = BUNDLE / "models" / "model.pt"
SLICES = 16
#: ways to predict, see above
VARIANTS = ("bundle", "amp", "bare")


def bare_unet(state: dict[str, torch.Tensor], features: list[int], classes: int) -> BasicUNet:
    """MONAI's U-Net as it comes, with the weights of the bundle's."""
    network = BasicUNet(2, 1, classes, tuple(features), norm="batch", upsample="nontrainable")
    network.load_state_dict({k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")})
    return network.eval()


def build(which: str, size: int, data: Path, output: Path, device: str) -> ConfigParser:
    """``inference.yaml`` on the phantom's images; ``which``: ``bundle``, ``amp`` or ``bare``."""
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "inference.yaml"))
    parser.update(
        {
            "bundle_root": str(BUNDLE),
            "dataset_dir": str(data / "images"),
            "output_dir": str(output / f"{which}_{size}"),
            "ckpt_path": str(CKPT),
            "spatial_size": size,
            "device": device,
            "amp": "auto" if which == "amp" else False,
            "flip_tta": False,
            "show_progress": False,
        }
    )
    if which == "bare":
        state = torch.load(CKPT, weights_only=True)
        network = bare_unet(state, parser.get_parsed_content("features"), len(parser.get_parsed_content("class_names")))
        parser["network"] = network.to(device)
    return parser


def export(size: int, folder: Path) -> dict[str, Path]:
    """TorchScript and ONNX files of the shipped weights, made by the commands of the documentation."""
    files = {"torchscript": folder / f"{size}.ts", "onnx": folder / f"{size}.onnx"}
    shared = ["--ckpt_file", str(CKPT), "--meta_file", "configs/metadata.json"]
    shared += ["--config_file", "configs/inference.yaml"]
    for name, how in (("torchscript", "ckpt_export"), ("onnx", "onnx_export")):
        extra = ["--input_shape", str([SLICES, 1, size, size])] if name == "onnx" else []
        line = [sys.executable, "-m", "monai.bundle", how, "network_def", "--filepath", str(files[name])]
        subprocess.run([*line, *shared, *extra], cwd=BUNDLE, check=True, capture_output=True)
    return files


def forwards(size: int, data: Path, folder: Path, device: str, threads: int, with_exports: bool) -> dict[str, Step]:
    """Calls that predict one batch of slices."""
    image = torch.rand(SLICES, 1, size, size, device=device)

    def predict(network: Any, amp: bool | str = False) -> Step:
        inferer = SliceLabelInferer(roi_size=(size, size), sw_batch_size=SLICES, spatial_dim=2, amp=amp)
        network = inferer.prepared(network, image.device)

        def call() -> None:
            with torch.no_grad():
                inferer.network_wrapper(network, image[..., None])

        return call

    parsers = {w: build(w, size, data, folder, device) for w in VARIANTS}
    networks = {w: parser.get_parsed_content("network").eval() for w, parser in parsers.items()}
    calls = {w: predict(networks[w], parsers[w].get_parsed_content("amp")) for w in VARIANTS}
    if with_exports:
        files = export(size, folder)
        calls["torchscript"] = predict(torch.jit.load(str(files["torchscript"]), map_location=device).eval())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(files["onnx"]), options)
        feed = {session.get_inputs()[0].name: image.cpu().numpy().astype(np.float32)}
        calls["onnx"] = lambda: session.run(None, feed)
    return calls


def peak(which: str, size: int, data: str, device: str = "cpu", threads: int = 1) -> None:
    """Print the peak memory of a run of the pipeline above what the process held before, in bytes."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        evaluator = build(which, size, Path(data), Path(folder), device).get_parsed_content("evaluator")
        with PeakMemory(torch.device(device)) as used:
            evaluator.run()
    print(used.peak - used.before)


def measure(
    output: str,
    sizes: tuple[int, ...] | int = (96, 224),
    repeats: int = 7,
    threads: int | None = None,
    device: str | None = None,
    with_exports: bool = True,
) -> None:
    """Measure and write a JSON.

    Args:
        output: file to write.
        sizes: image sides in pixels.
        repeats: timed calls of each, after one that is not timed.
        threads: of the CPU; default: torch's.
        device: ``cpu`` or ``cuda``; default: ``cuda`` where there is one.
        with_exports: whether to export and measure TorchScript and ONNX (which runs on the CPU) as well.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    threads = threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    keep_freed_memory()
    sizes = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    result = provenance("infer", device, threads, repeats) | {"cases": "6 phantom patients", "sizes": {}}
    result["amp"] = str(precision("auto", device))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = make_data(folder)
        for size in sizes:
            parsers = {w: build(w, size, data, folder, device) for w in VARIANTS}
            evaluators = {w: parser.get_parsed_content("evaluator") for w, parser in parsers.items()}
            slices = sum(item["image"].shape[-1] for item in parsers["bundle"].get_parsed_content("dataset"))
            calls = forwards(size, data, folder, device, threads, with_exports)
            steps: dict[str, Step] = {f"pipeline {w}": evaluator.run for w, evaluator in evaluators.items()}
            steps |= {f"network {name}": call for name, call in calls.items()}
            times: dict[str, list[float]] = {name: [] for name in steps}
            for turn in range(repeats + 1):
                names = list(steps)[turn % len(steps) :] + list(steps)[: turn % len(steps)]
                for name in names:
                    seconds = seconds_of(steps[name], device)
                    if turn:
                        times[name].append(seconds)
            rows: dict[str, Any] = {}
            for name in steps:
                number = slices if name.startswith("pipeline") else SLICES
                row: dict[str, Any] = {"seconds": spread(times[name]), "slices": number}
                row["slices_per_second"] = number / statistics.median(times[name])
                which = name.split()[1]
                if name.startswith("network") and which in VARIANTS:
                    row["gflop_per_slice"] = count(calls[which])["gflop"] / SLICES
                if name.startswith("pipeline"):
                    row["peak_bytes"] = int(child(__file__, "peak", which, size, data, device, threads))
                rows[name] = row
            result["sizes"][str(size)] = rows
    _write(output, result)


def memory(
    output: str,
    side: int = 512,
    volumes: tuple[tuple[int, int], ...] = ((100, 2), (100, 14), (600, 14)),
    spatial_size: int = 224,
    threads: int = 1,
) -> None:
    """Predict synthetic volumes by the command of a user and write time and resident memory of the process.

    Args:
        output: file to write.
        side: pixels of a stored slice.
        volumes: of each the number of slices, and of classes to predict; the weights of the last layer are random.
        spatial_size: pixels that the network sees.
        threads: of the CPU.
    """
    torch.manual_seed(0)
    result = provenance("infer", "cpu", threads, 1) | {"cases": "noise", "amp": str(precision("auto", "cpu"))}
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        plane = np.random.default_rng(0).normal(0, 300, (side, side)).astype(np.int16)
        for number, classes in volumes:
            image = folder / f"{number}.nii.gz"
            if not image.exists():
                volume = np.stack([np.roll(plane, 7 * k, axis=0) for k in range(number)], axis=-1)
                nib.save(nib.Nifti1Image(volume, np.diag([0.8, 0.8, 1.5, 1.0])), image)
            state = torch.load(CKPT, weights_only=True)
            state = {n: torch.randn(classes, *w.shape[1:]) if "final_conv" in n else w for n, w in state.items()}
            torch.save(state, folder / "model.pt")
            names = ["background", *(f"class_{c}" for c in range(1, classes))]
            options = {"dataset_dir": image, "ckpt_path": folder / "model.pt", "class_names": names,
                       "spatial_size": spatial_size, "show_progress": False,
                       "output_dir": folder / f"{number}_{classes}"}  # fmt: skip
            used = resources(command("", ["inference"], **options), threads)
            rows.append({"shape": [side, side, number], "classes": classes} | used)
    result["volumes"] = rows
    _write(output, result)


@torch.no_grad()
def agreement(
    data: str, output: str, sizes: tuple[int, ...] | int = (192, 224), threads: int = 1, splits: str = ""
) -> None:
    """Predict the validation patients in float32 and in half precision and write how many voxels get the same label.

    Args:
        data: ACDC as in accuracy.py: ``images`` and ``labels``.
        output: file to write.
        sizes: pixels that the network sees; the shipped weights are of 192.
        threads: of the CPU.
        splits: JSON of patients; default ``configs/acdc_splits.json``.
    """
    torch.set_num_threads(threads)
    images = [Path(data, item["image"]) for item in protocol_lists(data, read_splits(splits), [])["validation"]]
    cases = [image.name.removesuffix(".nii.gz") for image in images]
    result = provenance("infer", "cpu", threads, 1) | {"cases": cases, "amp": str(precision(True, "cpu"))}
    result["command"] = f"python benchmarks/infer.py agreement --data DIR --output {output}"
    rows = {}
    for size in (sizes,) if isinstance(sizes, int) else sizes:
        parser = build("bundle", size, Path(data), Path(data), "cpu")
        network, preprocessing = (parser.get_parsed_content(k) for k in ("network", "preprocessing"))
        options = {"roi_size": (size, size), "sw_batch_size": SLICES, "spatial_dim": 2}
        inferers = [SliceLabelInferer(**options, amp=amp) for amp in (False, True)]
        total = {"foreground": 0, "same": 0}
        for image in images:
            volume = preprocessing({"image": str(image)})["image"][None]
            a, b = (inferer(volume, network.eval()) for inferer in inferers)
            foreground = (a > 0) | (b > 0)
            total["foreground"] += int(foreground.sum())
            total["same"] += int((a == b)[foreground].sum())
        rows[str(size)] = total
    result["agreement"] = rows
    _write(output, result)


def _write(output: str, result: dict[str, Any]) -> None:
    write_json(output, result)
    table(output)


def table(path: str) -> None:
    """Print a result as Markdown."""
    result = json.loads(Path(path).read_text())
    if "volumes" in result:
        head = ["volume", "classes", "seconds", "of the processor", "peak memory of the process, GB"]
        rows = [
            [" x ".join(map(str, row["shape"])), str(row["classes"]), f"{row['seconds']:.0f}",
             f"{row['cpu_seconds']:.0f}", f"{row['peak_bytes'] / 1e9:.2f}"]
            for row in result["volumes"]
        ]  # fmt: skip
        print("\n".join(markdown(head, rows)))
    elif "agreement" in result:
        rows = [[size, str(row["foreground"]), f"{row['same'] / row['foreground']:.2%}"]
                for size, row in result["agreement"].items()]  # fmt: skip
        print("\n".join(markdown(["pixels", "foreground voxels, either", "same label"], rows)))
    else:
        _table_of_speed(result)


def _table_of_speed(result: dict[str, Any]) -> None:
    for size, found in result["sizes"].items():
        rows = []
        for name, row in found.items():
            ratio = row["seconds"]["median"] / found[f"{name.split()[0]} bare"]["seconds"]["median"]
            flop = f"{row['gflop_per_slice']:.2f}" if "gflop_per_slice" in row else ""
            peak = f"{row['peak_bytes'] / 2**20:.0f}" if "peak_bytes" in row else ""
            rows.append([name, f"{row['slices_per_second']:.1f}", f"{ratio:.2f}", flop, peak])
        print(f"\n{size} x {size}, {result['device']}, {result['threads']} thread(s)\n")
        head = ["what", "slices a second", "time x bare U-Net", "GFLOP a slice", "peak memory MiB"]
        print("\n".join(markdown(head, rows)))


if __name__ == "__main__":
    import fire

    commands = {"measure": measure, "memory": memory, "agreement": agreement, "table": table, "peak": peak}
    fire.Fire(commands)
