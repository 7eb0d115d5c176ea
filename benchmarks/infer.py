"""The cost of prediction: slices a second, arithmetic and memory, against a bare U-Net, and of the exported models.

    python benchmarks/infer.py measure --output benchmarks/results/infer_cpu.json
    python benchmarks/infer.py table benchmarks/results/infer_cpu.json

``pipeline`` is the whole of ``inference.yaml``, from the files of the phantom to the files of its prediction, once with
the network it names and once with MONAI's ``BasicUNet`` of the same weights in its place. ``network`` is the network
alone on a batch of slices; there the exports take part. All take turns in one run.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundle"
sys.path[:0] = [str(BUNDLE), str(ROOT / "benchmarks")]

import numpy as np
import onnxruntime
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import BasicUNet
from scripts.resources import PeakMemory, keep_freed_memory
from step import Step, count, make_data, provenance, seconds_of, spread

CKPT = BUNDLE / "models" / "model.pt"
SLICES = 16


def bare_unet(state: dict[str, torch.Tensor], features: list[int], classes: int) -> BasicUNet:
    """MONAI's U-Net as it comes, with the weights of the bundle's."""
    network = BasicUNet(2, 1, classes, tuple(features), norm="batch", upsample="nontrainable")
    network.load_state_dict({k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")})
    return network.eval()


def build(which: str, size: int, data: Path, output: Path, device: str) -> ConfigParser:
    """``inference.yaml`` on the phantom's images; ``which``: ``bundle`` or ``bare``."""
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "inference.yaml"))
    parser.update(
        {
            "bundle_root": str(BUNDLE),
            "dataset_dir": str(data / "images"),
            "output_dir": str(output / which),
            "ckpt_path": str(CKPT),
            "spatial_size": size,
            "device": device,
            "show_progress": False,
        }
    )
    if which == "bare":
        definition = parser["network_def"]
        state = torch.load(CKPT, weights_only=True)
        network = bare_unet(state, definition["features"], len(parser.get_parsed_content("class_names")))
        parser["network"] = network.to(device)
    return parser


def export(size: int, folder: Path) -> dict[str, Path]:
    """TorchScript and ONNX files of the shipped weights, made by the commands of the documentation."""
    files = {"torchscript": folder / f"{size}.ts", "onnx": folder / f"{size}.onnx"}
    shared = [
        "--ckpt_file",
        str(CKPT),
        "--meta_file",
        "configs/metadata.json",
        "--config_file",
        "configs/inference.yaml",
    ]
    for name, command in (("torchscript", ["ckpt_export"]), ("onnx", ["onnx_export"])):
        extra = ["--input_shape", str([SLICES, 1, size, size])] if name == "onnx" else []
        line = [sys.executable, "-m", "monai.bundle", *command, "network_def", "--filepath", str(files[name])]
        subprocess.run([*line, *shared, *extra], cwd=BUNDLE, check=True, capture_output=True)
    return files


def forwards(size: int, data: Path, folder: Path, device: str, threads: int, with_exports: bool) -> dict[str, Step]:
    """Calls that predict one batch of slices."""
    image = torch.rand(SLICES, 1, size, size, device=device)

    def predict(network: Any) -> Step:
        def call() -> None:
            with torch.no_grad():
                network(image)

        return call

    networks = {
        w: build(w, size, data, folder, device).get_parsed_content("network").eval() for w in ("bundle", "bare")
    }
    calls = {name: predict(network) for name, network in networks.items()}
    if with_exports:
        files = export(size, folder)
        calls["torchscript"] = predict(torch.jit.load(str(files["torchscript"]), map_location=device).eval())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(files["onnx"]), options)
        feed = {session.get_inputs()[0].name: image.cpu().numpy().astype(np.float32)}
        calls["onnx"] = lambda: session.run(None, feed)
    return calls


def memory(which: str, size: int, data: str, device: str = "cpu", threads: int = 1) -> None:
    """Print the peak memory of a run of the pipeline above what the process held before, in bytes."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        evaluator = build(which, size, Path(data), Path(folder), device).get_parsed_content("evaluator")
        with PeakMemory(torch.device(device)) as peak:
            evaluator.run()
    print(peak.peak - peak.before)


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
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = make_data(folder)
        for size in sizes:
            parsers = {w: build(w, size, data, folder, device) for w in ("bundle", "bare")}
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
                if name.startswith("network") and which in ("bundle", "bare"):
                    row["gflop_per_slice"] = count(calls[which])["gflop"] / SLICES
                if name.startswith("pipeline"):
                    command = [sys.executable, __file__, "memory", which, str(size), str(data), device, str(threads)]
                    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                    row["peak_bytes"] = int(printed.split()[-1])
                rows[name] = row
            result["sizes"][str(size)] = rows
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    Path(output).write_text(json.dumps(result, indent=1) + "\n")
    table(output)


def table(path: str) -> None:
    """Print a result as Markdown."""
    result = json.loads(Path(path).read_text())
    for size, rows in result["sizes"].items():
        print(f"\n{size} x {size}, {result['device']}, {result['threads']} thread(s)\n")
        print("| what | slices a second | time x bare U-Net | GFLOP a slice | peak memory MiB |")
        print("|---" * 5 + "|")
        for name, row in rows.items():
            bare = rows[f"{name.split()[0]} bare"]
            ratio = row["seconds"]["median"] / bare["seconds"]["median"]
            flop = f"{row['gflop_per_slice']:.2f}" if "gflop_per_slice" in row else ""
            peak = f"{row['peak_bytes'] / 2**20:.0f}" if "peak_bytes" in row else ""
            print(f"| {name} | {row['slices_per_second']:.1f} | {ratio:.2f} | {flop} | {peak} |")


if __name__ == "__main__":
    import fire

    fire.Fire({"measure": measure, "table": table, "memory": memory})
