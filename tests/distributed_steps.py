"""Run in several processes: steps at one global batch, losses as the mean over processes."""

from __future__ import annotations

import sys
import time

import torch
import torch.distributed as dist
from helpers import Slices
from ignite.engine import Events
from scripts.dataio.loaders import TwoStreamLoader
from scripts.distributed import of_rank_0
from scripts.method.losses import SemSimLoss
from scripts.method.network import SemSimNet
from scripts.training.trainer import SemSimTrainer, Teacher
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

GLOBAL_BATCH = 8


def steps(dims: int = 2, **loss) -> dict[str, list[dict[str, float]] | dict[str, torch.Tensor]]:
    """Two epochs of one step each, batch norm frozen, no CutMix, no dropout, in double precision."""
    torch.manual_seed(0)
    base = SemSimNet(fusion="sfm").double() if dims == 2 else SemSimNet(3, fusion="conv").double()
    with torch.no_grad():
        base.backbone.final_conv.weight *= 30  # so that some predictions are sure
    for layer in base.modules():
        if isinstance(layer, _BatchNorm):
            layer.eval()
            layer.train = lambda mode=True, layer=layer: layer
    network = DistributedDataParallel(base)
    slices = [Slices(12, labeled, 32 if dims == 2 else 16, dims) for labeled in (True, False)]
    for dataset in slices:
        dataset.images = dataset.images.double()
        dataset.images[1::2, ..., ::2, :] *= 3  # images that differ, as do the shares of what is sure in them
        if dataset.labels is not None:
            dataset.labels[2] = dataset.labels[5] = 1  # classes that few images show
    loader = TwoStreamLoader(*slices, batch_size=GLOBAL_BATCH // dist.get_world_size())
    trainer = SemSimTrainer(
        device="cpu",
        max_epochs=2,
        train_data_loader=loader,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9),
        loss_function=SemSimLoss(num_classes=4, threshold=0.375, perturb=(), **loss),
        teacher=Teacher(network, batch_norm="evaluation"),
    )
    rows = []

    def note():
        scalars = trainer.state.scalars
        mean = torch.tensor(list(scalars.values()), dtype=torch.float64)
        dist.all_reduce(mean)
        rows.append(dict(zip(scalars, (mean / dist.get_world_size()).tolist())))

    trainer.add_event_handler(Events.ITERATION_COMPLETED, note)
    trainer.run()
    return {"losses": rows, "weights": base.state_dict()}


if __name__ == "__main__":
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    assert of_rank_0(("said by", dist.get_rank())) == ("said by", 0)
    exact = {"dice": "image", "gather_prototypes": True, "lambda_labeled": 0.25}
    result = {"slices": steps(**exact), "volumes": steps(3, regions=1, **exact), "own": steps()}
    if dist.get_rank() == 0:
        torch.save(result, sys.argv[1])
    dist.destroy_process_group()
    time.sleep(1)  # gloo's threads let go of their last tensors, or the interpreter aborts as it ends
