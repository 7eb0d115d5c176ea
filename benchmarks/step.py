"""The cost of a training step: seconds, memory and arithmetic of every method on the same batch, in one run.

    python benchmarks/step.py measure --output benchmarks/results/step_cpu.json
    python benchmarks/step.py table benchmarks/results/step_cpu.json

Each method is the trainer that its YAML files describe, on one batch of 8 labelled and 8 unlabelled slices of the
phantom, or of 4 and 4 patches where a size has three numbers, in the precision that ``amp: auto`` means;
``semsim_naive`` is ``naive_step.py``, in float32. Steps of the methods take turns, so that whatever else the machine
does meets all of them; peak memory is taken in a process of its own for each method.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import common  # before torch: how its threads wait
import torch
from accuracy import METHODS
from common import BUNDLE, markdown, provenance, write_json
from monai.bundle import ConfigParser
from naive_step import NaiveSemSim
from scripts.dataio import phantom
from scripts.memory import PeakMemory, keep_freed_memory
from scripts.method.augmentation import RandCutMix
from scripts.method.similarity import affinity, refine
from scripts.precision import precision
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

SETTINGS = {**METHODS, "semsim_naive": []}
Step = Callable[[], Any]
#: pixels a side of a slice, or three numbers: voxels of a patch, in 3D
Size = int | tuple[int, int, int]


def _settings(method: str, size: Size, data: Path, device: str, **override: Any) -> ConfigParser:
    parser = ConfigParser()
    names = ["train", *["volumes"] * (not isinstance(size, int)), *SETTINGS[method]]
    parser.read_config([str(BUNDLE / "configs" / f"{name}.yaml") for name in names])
    parser.update(
        {
            "bundle_root": str(BUNDLE),
            "dataset_dir": str(data),
            "output_dir": str(data / "output"),
            "device": device,
            "spatial_size": size if isinstance(size, int) else list(size),
            "show_progress": False,
            "train#handlers": [],
            **override,
        }
    )
    return parser


def size_name(size: Size) -> str:
    """``96``, or ``64 x 64 x 32``."""
    return str(size) if isinstance(size, int) else " x ".join(map(str, size))


def make_data(folder: str | Path) -> Path:
    """A phantom just large enough for a batch of either stream."""
    return phantom.generate(Path(folder) / "phantom", seed=0, split={"training": 2, "unlabeled": 4})


def build(method: str, size: Size, data: Path, device: str, **override: Any) -> Step:
    """A call that does one training step of ``method``, always on the same batch."""
    keep_freed_memory()  # as train.yaml does
    torch.manual_seed(0)
    parser = _settings(method, size, data, device, **override)
    trainer = parser.get_parsed_content("train#trainer")
    batch = next(iter(trainer.data_loader))
    if method != "semsim_naive":
        return lambda: trainer._iteration(trainer, batch)

    network = NaiveSemSim().to(device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    labeled, unlabeled = batch["labeled"], batch["unlabeled"]
    views = {"weak": "image", "strong_1": "image_strong_1", "strong_2": "image_strong_2"}

    def step() -> None:
        mixes = [RandCutMix()(unlabeled["image"]) for _ in range(2)]
        partner = mixes[0].partner  # of both views, so that there is one forward of partners
        tensors = {"labeled": labeled["image"], "label": labeled["label"]}
        for stream, key in views.items():
            tensors[stream] = unlabeled[key]
            tensors[f"partner_{stream.removeprefix('strong_')}"] = unlabeled[key][partner]
        tensors |= {f"box_{i + 1}": mix.box for i, mix in enumerate(mixes)}
        optimizer.zero_grad(set_to_none=True)
        loss = network({key: value.to(device) for key, value in tensors.items()})
        loss.item()
        loss.backward()
        optimizer.step()

    return step


def seconds_of(step: Step, device: str) -> float:
    """Seconds of one call, the device's queue drained before and after."""
    if device != "cuda":
        start = time.perf_counter()
        step()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    step()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000


class OtherWork(TorchDispatchMode):
    """Counts what the FLOP counter does not see: elements written by operations without a formula, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket not in flop_registry and not func.is_view:
            results = out if isinstance(out, tuple | list) else (out,)
            self.elements += sum(r.numel() for r in results if isinstance(r, torch.Tensor))
        return out


def _attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    b, h, n, d = query
    return 2 * b * h * n * key[2] * (d + value[3])


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    b, h, n, d = query
    return 2 * b * h * n * key[2] * (3 * d + 2 * value[3])  # scores once more, dP, dV, dQ, dK


#: formulas for CPU attention, which the counter of this torch version lacks
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def count(step: Step) -> dict[str, float]:
    """Arithmetic of one call: GFLOP (a multiply-add is two), and billions of elements written by all else."""
    other = OtherWork()
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter, other:
        step()
    return {"gflop": counter.get_total_flops() / 1e9, "other_elements_g": other.elements / 1e9}


def matmul_rate(device: str, n: int = 2048) -> float:
    """GFLOP a second of a product of n x n matrices in the precision of ``amp: auto``."""
    dtype = precision("auto", device).dtype
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / min(seconds_of(lambda: a @ b, device) for _ in range(3)) / 1e9


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def peak_memory(method: str, size: Size, data: str | Path, device: str, checkpoint: bool = False) -> int:
    """Peak memory of two steps above what the process held before, in bytes."""
    step = build(method, size, Path(data), device, **({"fusion_checkpoint": True} if checkpoint else {}))
    with PeakMemory(torch.device(device)) as peak:
        step()
        step()
    return peak.peak - peak.before


def memory(method: str, size: Size, data: str, device: str = "cpu", threads: int = 1, checkpoint: bool = False) -> None:
    """Print :func:`peak_memory`."""
    torch.set_num_threads(threads)
    print(peak_memory(method, size, data, device, checkpoint))


_child = partial(common.child, __file__)


def affinity_memory(positions: int, how: str, threads: int = 1) -> None:
    """Print peak memory and seconds of eq. 4 and 5 forward and backward on one image of ``positions`` positions."""
    torch.set_num_threads(threads)
    side = round(positions**0.5)
    features = torch.rand(1, 128, side, side, requires_grad=True)
    p = torch.rand(1, 4, side, side, requires_grad=True)

    def fast() -> None:
        refine(features, p).sum().backward()

    def formed() -> None:
        (affinity(features) @ p.flatten(2).transpose(1, 2)).sum().backward()

    chosen = fast if how == "fast" else formed
    refine(features[..., :8, :8], p[..., :8, :8]).sum().backward()
    with PeakMemory(torch.device("cpu")) as peak:
        chosen()
    seconds = statistics.median(seconds_of(chosen, "cpu") for _ in range(3))
    print(peak.peak - peak.before + seconds / 1e3)  # bytes before the point, seconds behind it


def measure(
    output: str,
    sizes: tuple[Size, ...] | int = (96, 224),
    methods: tuple[str, ...] | str | None = None,
    repeats: int = 7,
    threads: int | None = None,
    device: str | None = None,
    with_affinity: bool = True,
) -> None:
    """Measure and write a JSON.

    Args:
        output: file to write.
        sizes: image sides in pixels; ``[[64,64,32]]``: voxels of a patch.
        methods: some of the methods; default: all.
        repeats: timed steps of each method and size, after one that is not timed.
        threads: of the CPU; default: torch's.
        device: ``cpu`` or ``cuda``; default: ``cuda`` where there is one.
        with_affinity: whether to measure eq. 4 and 5 alone as well.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    threads = threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    sizes = (sizes,) if isinstance(sizes, int) else tuple(s if isinstance(s, int) else tuple(s) for s in sizes)
    methods = (methods,) if isinstance(methods, str) else tuple(methods or SETTINGS)

    def peak_of(name: str, size: Size, checkpoint: bool = False) -> float:
        if device == "cuda":  # counted by the allocator; on a CPU by the process, which has to do nothing else
            return peak_memory(name, size, data, device, checkpoint)
        return _child("memory", name, str(size), data, device, threads, str(checkpoint))

    cases = "phantom of 2 labelled and 4 unlabelled patients, one batch of 8 + 8 slices, or 4 + 4 patches"
    result = provenance("step", device, threads, repeats) | {"cases": cases, "sizes": {}}
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(folder)
        for size in sizes:
            # memory first, while this process holds little of it
            rows: dict[str, dict[str, Any]] = {name: {"peak_bytes": peak_of(name, size)} for name in methods}
            if "semsim" in rows:
                rows["semsim"]["peak_bytes_checkpointed"] = peak_of("semsim", size, checkpoint=True)
            steps = {name: build(name, size, data, device) for name in methods}
            for name, step in steps.items():  # a first step, too
                rows[name] |= count(step)
            times: dict[str, list[float]] = {name: [] for name in methods}
            rates = []
            for turn in range(repeats):
                rates.append(matmul_rate(device))
                order = list(methods)[turn % len(methods) :] + list(methods)[: turn % len(methods)]
                for name in order:
                    times[name].append(seconds_of(steps[name], device))
            del steps
            rate = statistics.median(rates)
            for name, row in rows.items():
                row |= {"seconds": spread(times[name])}
                row["share_of_matmul_rate"] = row["gflop"] / row["seconds"]["median"] / rate
            result["sizes"][size_name(size)] = {"matmul_gflops": spread(rates), "methods": rows}
    if with_affinity:
        result["affinity"] = {}
        for positions in (784, 3136, 12544):
            entry = {}
            for how in ("fast", "formed"):
                value = _child("affinity_memory", positions, how, threads)
                entry[how] = {"peak_bytes": int(value), "seconds": (value - int(value)) * 1e3}
            result["affinity"][str(positions)] = entry
    write_json(output, result)
    table(output)


def table(path: str) -> None:
    """Print a result as Markdown."""
    result = json.loads(Path(path).read_text())
    for size, part in result["sizes"].items():
        rows = part["methods"]
        base = rows.get("unimatch")
        print(f"\n{size if 'x' in size else f'{size} x {size}'}, {result['device']}, {result['threads']} thread(s), "
              f"{result.get('precision', 'float32')}; "
              f"its matrix product {part['matmul_gflops']['median']:.0f} GFLOP/s\n")  # fmt: skip
        head = ["method", "seconds a step", "range", "x UniMatch", "GFLOP", "share of the matrix product's rate",
                "peak memory MiB", "x UniMatch"]  # fmt: skip
        lines = []
        for name, row in rows.items():
            s = row["seconds"]
            slower = f"{s['median'] / base['seconds']['median']:.2f}" if base else ""
            larger = f"{row['peak_bytes'] / base['peak_bytes']:.2f}" if base else ""
            seconds = [f"{s['median']:.3f}", f"{s['min']:.3f} to {s['max']:.3f}"]
            arithmetic = [f"{row['gflop']:.0f}", f"{row['share_of_matmul_rate']:.2f}"]
            lines.append([name, *seconds, slower, *arithmetic, f"{row['peak_bytes'] / 2**20:.0f}", larger])
        print("\n".join(markdown(head, lines)))
        if "peak_bytes_checkpointed" in rows.get("semsim", {}):
            print(f"\nsemsim with a checkpointed fusion: {rows['semsim']['peak_bytes_checkpointed'] / 2**20:.0f} MiB")
    if "affinity" in result:
        head = ["seconds", "peak memory MiB"]
        head = ["positions", *head, *(f"{what}, map formed" for what in head)]
        lines = []
        for positions, entry in result["affinity"].items():
            cells = [(f"{v['seconds']:.3f}", f"{v['peak_bytes'] / 2**20:.1f}") for v in entry.values()]
            lines.append([positions, *(cell for pair in cells for cell in pair)])
        print("\n" + "\n".join(markdown(head, lines)))


if __name__ == "__main__":
    import fire

    commands = (measure, table, memory, affinity_memory)
    fire.Fire({command.__name__: command for command in commands})
