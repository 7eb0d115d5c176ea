"""Patches of volumes: where they are drawn, what lies around them, what an epoch of them holds, what is refused."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import samples
import torch
from helpers import volume_transform
from monai.transforms import Compose, RandGaussianNoised
from scripts.dataio import loaders
from scripts.dataio.loaders import SliceDataset, TwoStreamLoader
from scripts.dataio.patches import PatchDataset
from scripts.dataio.sizes import Stages
from scripts.errors import InputError

SIZE = (16, 16, 16)


def test_patches_have_one_size_and_enough_of_every_organ(tmp_path):
    """Half of the patches are centred on an organ, the small one as often as the large one; the others lie anywhere."""
    items = [samples.write_ct(tmp_path, "large", (60, 50, 40)), samples.write_ct(tmp_path, "small", (12, 50, 10))]
    dataset = PatchDataset(items, volume_transform(), spatial_size=SIZE, patches=40, foreground=0.5, progress=False)
    assert len(dataset) == 80
    patches = [dataset[k] for k in range(40)]
    assert {tuple(p[key].shape) for p in patches for key in ("image", "label")} == {(1, *SIZE)}
    assert patches[3]["case"] == "large/3"
    centers = [int(p["label"][0, 8, 8, 8]) for p in patches]
    assert sum(c == 2 for c in centers) >= 8 and 10 <= sum(c > 0 for c in centers) < 40
    nowhere = PatchDataset(items[:1], volume_transform(), spatial_size=SIZE, patches=40, foreground=0.0, progress=False)
    assert sum(int(nowhere[k]["label"][0, 8, 8, 8]) == 2 for k in range(40)) <= 4
    padded = dataset[50]
    assert padded["image"].shape == (1, *SIZE) and float(padded["image"][:, :2].abs().max()) == 0
    first = patches[0]["image"].clone()
    patches[0]["image"].zero_()
    dataset.set_random_state(0)
    assert dataset[0]["image"].abs().sum() > 0 and first.shape == (1, *SIZE), "a patch is a copy"


def test_a_patch_of_air_is_drawn_anew(tmp_path):
    item = samples.write_ct(tmp_path, "air", (64, 24, 24))
    image = np.zeros((64, 24, 24), np.int16)
    image[:36] = np.random.default_rng(0).integers(1, 9, (36, 24, 24))
    nib.save(nib.Nifti1Image(image, np.diag([1.5, 1.5, 1.5, 1])), item["image"])
    dataset = PatchDataset(
        [{"image": item["image"]}], volume_transform(), spatial_size=SIZE, patches=30, progress=False
    )
    assert sum(bool(dataset[k]["image"].any()) for k in range(30)) == 30


def test_a_patch_of_air_is_drawn_anew_whatever_value_air_has_in_each_channel():
    image = torch.stack([torch.full((64, 16, 16), 0.2), torch.full((64, 16, 16), 0.7)])
    image[:, :36] += torch.rand(2, 36, 16, 16)
    dataset = PatchDataset([{"image": "two channels"}], lambda _: {"image": image}, spatial_size=16, progress=False)
    drawn = [dataset[0]["image"] for _ in range(30)]
    assert all(float(patch[0].std()) > 0 for patch in drawn)


def test_volumes_that_will_not_fit_into_memory_are_warned_of_early(monkeypatch, caplog):
    """16 kB each, as float32: the first four say that 100 of them will not fit into 1 MB."""
    free = {"bytes": 10**6}
    monkeypatch.setattr(loaders, "free_memory", lambda: free["bytes"])

    def read(items: int, rate: float = 1.0) -> list[str]:
        caplog.clear()
        PatchDataset([{"image": f"{k}"} for k in range(items)], lambda _: {"image": torch.rand(1, 16, 16, 16)},
                     spatial_size=16, progress=False, cache_rate=rate)  # fmt: skip
        return [r.getMessage() for r in caplog.records if "kept in memory" in r.getMessage()]

    (told,) = read(100)
    assert told.startswith("100 volumes are to be kept in memory: by the first 4, 0.0 GB more")
    assert "--spacing" in told and "--cache_rate 0.52" in told and "every patch" in told
    assert not read(50) and not read(100, rate=0.52), "so many fit"
    free["bytes"] = 0
    assert read(5) and not read(4)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_of_patches_follows_from_seed_and_epoch_alone(tmp_path, workers):
    ct = samples.make_isotropic_ct(tmp_path)
    lists = json.loads((ct / "datalist.json").read_text())

    def loader(seed=0):
        streams = [
            PatchDataset(
                [{key: str(ct / path) for key, path in item.items()} for item in lists[name]],
                volume_transform(), Compose([RandGaussianNoised("image", prob=1.0)]), spatial_size=16, patches=4,
                foreground=0.5, progress=False,
            )
            for name in ("training", "unlabeled")
        ]  # fmt: skip
        stages = Stages(16, spatial_dims=3)
        return TwoStreamLoader(*streams, batch_size=2, seed=seed, num_workers=workers, stages=stages)

    def epoch(streams, number):
        streams.set_epoch(number, 5)
        return [batch[name]["image"] for batch in streams for name in ("labeled", "unlabeled")]

    first = loader()
    assert len(first) == 4, "2 volumes of 4 patches, in pairs"
    epoch(first, 1)
    second = epoch(first, 2)
    assert all(torch.equal(a, b) for a, b in zip(second, epoch(loader(), 2))), "whatever was drawn before"
    assert not any(torch.equal(a, b) for a, b in zip(second, epoch(first, 3)))
    assert not any(torch.equal(a, b) for a, b in zip(second, epoch(loader(1), 2)))


def test_too_few_patches_are_called_patches(tmp_path):
    item = samples.write_ct(tmp_path, "a")
    labeled = PatchDataset([item], volume_transform(), spatial_size=16, patches=2, progress=False)
    with pytest.raises(InputError, match=r"Fewer patches than a batch: 2 unlabelled patches for 1 x 4"):
        TwoStreamLoader(labeled, labeled, batch_size=4)
    assert isinstance(labeled, SliceDataset)


def test_volumes_and_options_that_make_no_patches_are_refused(tmp_path):
    flat = samples.write_ct(tmp_path, "flat", (20, 20, 1))
    with pytest.raises(InputError, match=r"flat\.nii\.gz: expected a volume of several slices.*20 x 20 x 1"):
        PatchDataset([flat], volume_transform(), spatial_size=16, progress=False)
    partly = {**samples.write_ct(tmp_path, "partly"), "labeled_slices": [3]}
    with pytest.raises(InputError, match=r"partly\.nii\.gz: labeled_slices: in 3D"):
        PatchDataset([partly], volume_transform(), spatial_size=16, progress=False)
    with pytest.raises(InputError, match="patches: expected a whole number"):
        PatchDataset([], volume_transform(), spatial_size=16, patches=0)
    with pytest.raises(InputError, match="foreground: a share"):
        PatchDataset([], volume_transform(), spatial_size=16, foreground=2)
