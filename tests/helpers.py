"""What several files of tests build: workflows of the configurations, tiny trainers and engines, flat checkpoints."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from conftest import BUNDLE
from ignite.engine import Engine
from monai.bundle import ConfigWorkflow
from monai.transforms import Compose, EnsureChannelFirstd
from scripts.dataio.loaders import TwoStreamLoader
from scripts.dataio.readers import LoadFilesd
from scripts.dataio.transforms import AsVolumed
from scripts.dataio.volume_grid import VolumeGridd
from scripts.method.augmentation import RandCutMix
from scripts.method.losses import SemSimLoss
from scripts.method.network import SemSimNet
from scripts.training.trainer import SemSimTrainer, Teacher

CONFIGS = BUNDLE / "configs"
#: overlays of train.yaml that train; every other YAML is run by a test of its own
TRAINING_OVERLAYS = ["demo", "fixmatch", "labeled_only", "literal", "paper", "semsim_minus", "unimatch", "volumes"]


def workflow(kind: str, *names: str, **override) -> ConfigWorkflow:
    """Files of ``configs/`` by name, as MONAI runs them, initialised."""
    flow = ConfigWorkflow(
        config_file=[str(CONFIGS / f"{n}.yaml") for n in names],
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False,
        workflow_type=kind,
        bundle_root=str(BUNDLE),
        **override,
    )
    flow.initialize()
    return flow


def volume_transform(spacing=(1.5, 1.5, 1.5), keys=("image", "label")) -> Compose:
    """Volumes as 3D reads them: on voxels of one size along the axes of the body."""
    return Compose([
        LoadFilesd(list(keys), allow_missing_keys=True),
        EnsureChannelFirstd(list(keys), allow_missing_keys=True),
        AsVolumed("image"),
        VolumeGridd(list(keys), spacing, mode=["trilinear", "nearest-exact"][: len(keys)], allow_missing_keys=True),
    ])  # fmt: skip


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class Slices(torch.utils.data.Dataset):
    """Random slices, or patches, in memory with the interface of a SliceDataset."""

    unit = ("slice", "slices")

    def __init__(self, count: int, labeled: bool, size: int = 32, dims: int = 2) -> None:
        g = torch.Generator().manual_seed(count)
        self.images = torch.rand(count, 3, 1, *(size,) * dims, generator=g)
        self.labels = (torch.rand(count, 1, *(size,) * dims, generator=g) * 4).long() if labeled else None

    def set_random_state(self, seed=None, state=None):
        return self

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        weak, one, two = self.images[i]
        item = {"image": weak, "case": f"slice{i}"}
        if self.labels is not None:
            return {**item, "label": self.labels[i]}
        return {**item, "image_strong_1": one, "image_strong_2": two}


def make(
    *,
    fusion="conv",
    epochs=1,
    loss=None,
    sure=0.0,
    use_unlabeled=True,
    stages=None,
    batch_size=4,
    handlers=(),
    teacher=None,
    plain=False,
    **kwargs,
):
    """Trainer, network (or its bare U-Net), optimizer on 8 + 8 slices; a threshold that everything passes."""
    torch.manual_seed(0)
    network = SemSimNet(fusion=fusion)
    if plain:
        network = network.backbone
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    loader = TwoStreamLoader(Slices(8, True), Slices(8, False), batch_size=batch_size, use_unlabeled=use_unlabeled,
                             stages=stages)  # fmt: skip
    trainer = SemSimTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=loader,
        network=network,
        optimizer=optimizer,
        loss_function=SemSimLoss(num_classes=4, threshold=sure, **(loss or {})),
        train_handlers=list(handlers) or None,
        teacher=Teacher(network, **(teacher or {})),
        **{"cutmix": RandCutMix(prob=1.0), **kwargs},
    )
    return trainer, network, optimizer


def engine_with(scalars_by_epoch):
    """An engine of two steps an epoch whose step leaves the given scalars."""

    def step(engine, _):
        engine.state.scalars = scalars_by_epoch[engine.state.epoch - 1]

    engine = Engine(step)
    engine.state.device = "cpu"
    return engine


def flat(value, name="") -> dict:
    """Every tensor and number of a checkpoint by its place."""
    if isinstance(value, dict):
        return {k: v for key, part in value.items() for k, v in flat(part, f"{name}/{key}").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for key, part in enumerate(value) for k, v in flat(part, f"{name}/{key}").items()}
    return {name: value}


def same(a, b) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
