"""Whether the similarities of SemSim know what its decoder does not, on unlabelled slices whose labels were kept away.

    python benchmarks/pseudo_labels.py measure --run benchmarks/runs/NAME --data DIR
    python benchmarks/pseudo_labels.py table benchmarks/results/pseudo_labels_*.json

Every fourth unlabelled image as the weak view shows it, but not augmented, at the size of the features (a quarter
of the slice or patch): the decoder's prediction I(p_w); p_w1, refined by the affinities within the slice (eq. 5); p_w2,
described by the prototypes of 8 labelled slices or patches (eq. 9). What is more often right than the decoder, or tells
where the decoder is right, could make better pseudo-labels. Nothing is trained, and nothing learns from these labels.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import common
import torch
from accuracy import DATASETS, METHODS, changes, config_files
from common import BUNDLE, CONFIGS, RESULTS, write_json
from comparison import similarity_lines
from monai.bundle import ConfigParser
from monai.data import DataLoader
from monai.utils import set_determinism
from scripts.method.fusion import resize
from scripts.method.network import Streams
from scripts.method.similarity import nearest, refine
from scripts.training.trainer import frozen_statistics
from torch import Tensor
from torch.utils.data import RandomSampler

#: Edges of the decoder's confidence.
EDGES = (0.0, 0.6, 0.8, 0.95, 1.0)
BATCH = 8


class Tally:
    """Counts of one kind of prediction, by the decoder's confidence."""

    def __init__(self, classes: int) -> None:
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64)  # true, predicted
        self.all, self.right, self.agreed, self.both_right = torch.zeros(4, len(EDGES) - 1, dtype=torch.int64)

    def add(self, said: Tensor, decoder: Tensor, truth: Tensor, bins: Tensor) -> None:
        """Take in class indices of the same positions, flat."""
        k, number = len(self.confusion), len(self.all)
        self.confusion += torch.bincount(truth * k + said, minlength=k * k).view(k, k)
        right, agreed = said == truth, said == decoder
        self.all += torch.bincount(bins, minlength=number)
        self.right += torch.bincount(bins[right], minlength=number)
        self.agreed += torch.bincount(bins[agreed], minlength=number)
        self.both_right += torch.bincount(bins[right & agreed], minlength=number)

    def record(self) -> dict[str, Any]:
        """Dice of the foreground classes over all positions; fractions for each range of confidence, null for none."""
        dice = 2 * self.confusion.diag() / (self.confusion.sum(0) + self.confusion.sum(1)).clamp(min=1)
        values = {
            "dice": dice[1:],
            "right": self.right / self.all,
            "agrees": self.agreed / self.all,
            "right_where_it_agrees": self.both_right / self.agreed,
        }
        return {name: [None if v.isnan() else round(float(v), 4) for v in value] for name, value in values.items()}


def parsed(folder: Path, dims: int, data: str, every: int, *, augmented: bool = False, **settings: Any) -> ConfigParser:
    """The configuration of a training of ``accuracy.py``, to take its parts from, labelled slices as stored or not."""
    parser = ConfigParser()
    method = max((m for m in METHODS if f"_{m}" in folder.name), key=len)
    dataset = next(d for d in DATASETS if folder.name.startswith(d))
    parser.read_config([str(BUNDLE / file) for file in config_files(method, dims, dataset)])
    for change in folder.name.partition(f"_{method}")[2].rpartition("_seed")[0].split("+")[1:]:
        if change not in changes():
            raise SystemExit(f"{folder}: expected changes of {CONFIGS / 'changes.yaml'}, its name has {change!r}.")
        parser.update(changes()[change])
    hidden = parser["hidden_labels#data"].replace("::7", f"::{every}")
    settings |= {"bundle_root": str(BUNDLE), "dataset_dir": data, "datalist": str(folder / "datalist.json")}
    settings |= {"show_progress": False, "hidden_labels#data": hidden}
    if not augmented:
        settings["train#labeled_augmentation#transforms"] = []
    parser.update(settings)
    return parser


@torch.no_grad()
def measure(
    run: str,
    data: str,
    checkpoint: str = "",
    spatial_size: int = 0,
    every: int = 4,
    regions: int = 0,
    output: str = "",
    seed: int = 0,
) -> None:
    """Measure the predictions of one training and write what was found.

    Args:
        run: folder of a training of ``accuracy.py``, of a method that has similarities.
        data: folder with ``images`` and ``labels``.
        checkpoint: of its, ``resume_checkpoint_N.pt``; default the weights of its last iteration.
        spatial_size: pixels a side, where slices were smaller at that time; default those of the end.
        every: take every so many unlabelled images.
        regions: sub-regions a side for p_w2; default those of the training.
        output: default ``benchmarks/results/pseudo_labels_NAME_STEPS.json``, with ``regions`` in the name if given.
        seed: of the choice of labelled slices.

    Raises:
        SystemExit: the method has no similarities.
    """
    set_determinism(seed)
    folder = Path(run).resolve()
    settings = json.loads((folder / "training.json").read_text())
    size, file = spatial_size or settings["spatial_size"], Path(checkpoint or folder / "model_last.pt")
    if settings["fusion"] == "none":
        raise SystemExit(f"{folder}: expected a training of SemSim or SemSim-; this one has no similarities.")
    with tempfile.TemporaryDirectory() as temporary:
        changed = {"output_dir": temporary, "spatial_size": size} | ({"loss#regions": regions} if regions else {})
        parser = parsed(folder, settings["spatial_dims"], str(Path(data).resolve()), every, **changed)
        network, loss, teacher = (parser.get_parsed_content(name) for name in ("network", "loss", "teacher"))
        hidden, labeled = (parser.get_parsed_content(name) for name in ("hidden_labels", "train#dataset"))
    state = torch.load(file, map_location="cpu", weights_only=True)
    network.load_state_dict(state.get("network", state))
    number = -(-len(hidden) // BATCH)  # slices of a batch come from many images, as in training
    unlabeled = DataLoader(hidden, batch_sampler=[list(range(k, len(hidden), number)) for k in range(number)])
    drawn = RandomSampler(labeled, replacement=True, num_samples=number * BATCH)
    classes = len(settings["class_names"])
    tallies = {kind: Tally(classes) for kind in ("decoder", "p_w1", "p_w2")}
    with frozen_statistics(teacher.network), torch.autocast("cpu", torch.bfloat16):
        for batch, shown in zip(unlabeled, DataLoader(labeled, batch_size=BATCH, sampler=drawn)):
            weak = teacher.network({"weak": batch["image"]}, Streams(decode=("weak",), fuse=("weak",)))
            known = teacher.network({"labeled": shown["image"]}, Streams(fuse=("labeled",)))
            f = weak.features["weak"].float()
            small = resize(weak.logits["weak"].float().softmax(dim=1), f.shape[2:])
            _, described = loss._described(f, loss._prototypes(known, torch.as_tensor(shown["label"])))
            p = {"decoder": small, "p_w1": refine(f, small, **loss.affinity), "p_w2": described}
            truth = nearest(torch.as_tensor(batch["label"]), f.shape[2:]).flatten()
            confidence, decoder = (v.flatten() for v in small.max(dim=1))
            bins = torch.bucketize(confidence, torch.tensor(EDGES[1:-1]), right=True)
            for kind, tally in tallies.items():
                tally.add(p[kind].max(dim=1).indices.flatten(), decoder, truth, bins)
    steps = settings["steps_per_epoch"] * (int(file.stem.rsplit("_", 1)[1]) if checkpoint else settings["epochs"])
    command = "python benchmarks/pseudo_labels.py measure --run NAME --data DIR"
    command += f" --checkpoint {file.name}" if checkpoint else ""
    command += f" --spatial_size {size}" if spatial_size else ""
    command += f" --every {every}" if every != 4 else ""
    command += f" --regions {regions}" if regions else ""
    positions = tallies["decoder"].all
    record: dict[str, Any] = {
        "run": folder.name,
        "steps": steps,
        "spatial_size": size,
        "regions": loss.regions,
        "command": command,
    }
    record |= {"seed": seed, "commit": common.git("rev-parse", "HEAD"), "versions": common.versions()}
    record |= {"images": len(hidden.data), "slices": len(hidden), "class_names": settings["class_names"]}
    record |= {"edges": list(EDGES), "positions": [round(float(v), 4) for v in positions / positions.sum()]}
    record |= {kind: tally.record() for kind, tally in tallies.items()}
    write_json(
        output or RESULTS / f"pseudo_labels_{folder.name}_{steps}{f'_regions_{regions}' * (regions > 0)}.json", record
    )
    print("\n".join(similarity_lines([record])))


def table(*results: str) -> None:
    """Print results as a Markdown table."""
    print("\n".join(similarity_lines([json.loads(Path(result).read_text()) for result in results])))


if __name__ == "__main__":
    import fire

    fire.Fire({"measure": measure, "table": table})
