"""That everything is computed where the network is, as a GPU would demand, without a GPU.

The network lies on torch's device ``meta``, which knows shapes and devices but no numbers: a tensor left on the CPU
fails there as it would beside one on a GPU.
"""

from __future__ import annotations

import contextlib

import pytest
import torch
from helpers import workflow
from monai.data import MetaTensor, list_data_collate
from scripts.dataio.transforms import AsVolumed, SliceGridd
from scripts.dataio.volume_grid import VolumeGridd
from scripts.evaluation.volume_inferer import label_inferer
from scripts.method import fusion
from scripts.method.active_learning import Acquisition
from scripts.method.network import SemSimNet
from scripts.precision import Precision


@pytest.fixture(autouse=True)
def numbers(monkeypatch):
    """Ones where Python asks for a number; what the device lacks."""
    item, tolist, bincount = torch.Tensor.item, torch.Tensor.tolist, torch.bincount

    def counted(x: torch.Tensor, weights: None = None, minlength: int = 0) -> torch.Tensor:
        return x.new_zeros(minlength) if x.is_meta else bincount(x, weights, minlength)

    monkeypatch.setattr(torch.Tensor, "item", lambda x: 1.0 if x.is_meta else item(x))
    for kind in (bool, float):
        monkeypatch.setattr(torch.Tensor, f"__{kind.__name__}__", lambda x, kind=kind: kind(x.item()))
    monkeypatch.setattr(torch.Tensor, "tolist", lambda x: torch.ones(x.shape).tolist() if x.is_meta else tolist(x))
    monkeypatch.setattr(torch, "bincount", counted)
    monkeypatch.setattr(Precision, "autocast", lambda self: contextlib.nullcontext())


@pytest.mark.parametrize("overlay", ["labeled_only", "fixmatch", "unimatch", "semsim_minus", "train", "literal",
                                     "paper", "volumes"])  # fmt: skip
def test_a_step_leaves_nothing_on_the_cpu(overlay, phantom_dir, tmp_path):
    size = [32, 32, 16] if overlay == "volumes" else 32
    flow = workflow(
        "train", *dict.fromkeys(("train", overlay)), dataset_dir=str(phantom_dir), output_dir=str(tmp_path),
        spatial_size=size, early_sizes=[], batch_size=2, epochs=1, show_progress=False, steps_per_epoch=1,
        device="$torch.device('meta')", **{"train#handlers": []},
    )  # fmt: skip
    trainer = flow.parser.get_parsed_content("train#trainer")
    batch = next(iter(trainer.data_loader))
    trainer._iteration(trainer, batch)
    gradients = [p.grad for p in trainer.network.parameters() if p.grad is not None]
    assert len(gradients) > 40 and all(gradient.is_meta for gradient in gradients)
    assert ("loss_u" in trainer.state.scalars) == (overlay != "labeled_only")


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("dims, size", [(2, 32), (3, [32, 32, 16])])
def test_prediction_leaves_nothing_on_the_cpu(dims, size, flips):
    network = SemSimNet(spatial_dims=dims, fusion="none").eval().to("meta")
    grid = SliceGridd("image", size, slice_axis=2) if dims == 2 else VolumeGridd("image", (1.0, 1.0, 1.0))
    volume = MetaTensor(torch.rand(1, 40, 36, 20), affine=torch.diag(torch.tensor([1.0, 1.0, 1.2, 1.0])))
    item = grid(AsVolumed("image")({"image": volume}))
    inputs = list_data_collate([item])["image"].to("meta")
    inferer = label_inferer(dims, size, 4, flip_tta=flips)
    with torch.no_grad():
        assert inferer.logits(inputs, network).is_meta
        assert inferer(inputs, network).shape == (1, 1, 40, 36, 20)


def test_what_is_written_lies_in_main_memory(phantom_dir, tmp_path, monkeypatch):
    """MONAI Label takes the prediction as the bundle's postprocessing leaves it, and its writers read no GPU."""
    given = {"dataset_dir": str(phantom_dir), "output_dir": str(tmp_path), "keep_largest": False, "label_values": None}
    flow = workflow("inference", "inference", **given)
    prepared, *steps, save = flow.parser.get_parsed_content("postprocessing").transforms
    item = flow.parser.get_parsed_content("preprocessing")(flow.parser.get_parsed_content("images")[0])
    item["pred"] = torch.zeros(1, *item["image"].meta["spatial_shape"], dtype=torch.uint8, device="meta")
    item = prepared(item)
    assert item["pred"].is_meta and type(save).__name__ == "SaveImaged"
    copy = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda x, *to, **also: copy(torch.zeros(x.shape) if x.is_meta else x, *to))
    for step in steps:
        item = step(item)
    assert not item["pred"].is_meta


def test_scores_for_active_learning_leave_nothing_on_the_cpu():
    network = SemSimNet(fusion="conv").eval().to("meta")
    acquisition = Acquisition(network, num_classes=4)
    acquisition.learn([{"image": torch.rand(1, 32, 32), "label": torch.zeros(1, 32, 32)}])
    assert acquisition.prototypes is not None and acquisition.prototypes.vectors.is_meta
    assert set(acquisition.score(torch.rand(3, 1, 32, 32))) == {"entropy", "disagreement"}


@pytest.mark.filterwarnings("ignore:.*no-op")
def test_a_resumed_optimizer_counts_its_steps_on_the_cpu(phantom_dir, tmp_path):
    """On a GPU it would wait in each step for the count of every parameter."""
    given = {
        "dataset_dir": str(phantom_dir), "output_dir": str(tmp_path), "spatial_size": 32, "early_sizes": [],
        "batch_size": 2, "epochs": 1, "show_progress": False, "steps_per_epoch": 1, "resume": "auto",
        "validate#dataset#data": [],
    }  # fmt: skip
    for device in ("cpu", "meta"):
        flow = workflow("train", "train", "semsim_minus", device=f"$torch.device('{device}')", **given)
        trainer = flow.parser.get_parsed_content("train#trainer")
        if device == "cpu":
            trainer.run()
    flow.parser.get_parsed_content("train#handlers#1")._load(trainer)
    states = trainer.optimizer.state.values()
    assert len(states) > 40 and all(state["exp_avg"].is_meta for state in states)
    assert all(state["step"].device.type == "cpu" for state in states)


def test_attention_takes_no_more_windows_than_a_gpu_has_blocks(monkeypatch):
    """Eight labelled slices and as many of both strong views, of 1024 pixels."""
    taken, attention = [], fusion.attention
    monkeypatch.setattr(fusion, "attention", lambda q, k, v: taken.append(len(q)) or attention(q, k, v))
    sfm = fusion.SpatialAwareFusion(2, (32, 64, 128)).to("meta")
    stages = [torch.empty(24, channels, *(side, side), device="meta")
              for channels, side in ((32, 512), (64, 256), (128, 128))]  # fmt: skip
    assert sfm(stages).shape == (24, 128, 256, 256)
    assert sum(taken) == 24 * 64**2 and max(taken) < 2**16
