"""Patches of volumes: where they are drawn, what lies around them, and what is kept in memory."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import torch
from scripts.dataio import loaders
from scripts.dataio.patches import PatchDataset
from test_volumes import KEYS, SIZE, prepared, write


def test_patches_have_one_size_and_enough_of_every_organ(tmp_path):
    """Half of the patches are centred on an organ, the small one as often as the large one; the others lie anywhere."""
    items = [write(tmp_path, "large", (60, 50, 40)), write(tmp_path, "small", (12, 50, 10))]
    dataset = PatchDataset(items, prepared(), spatial_size=SIZE, patches=40, foreground=0.5, progress=False)
    assert len(dataset) == 80
    patches = [dataset[k] for k in range(40)]
    assert {tuple(p[key].shape) for p in patches for key in KEYS} == {(1, *SIZE)}
    assert patches[3]["case"] == "large/3"
    centers = [int(p["label"][0, 8, 8, 8]) for p in patches]
    assert sum(c == 2 for c in centers) >= 8 and 10 <= sum(c > 0 for c in centers) < 40
    nowhere = PatchDataset(items[:1], prepared(), spatial_size=SIZE, patches=40, foreground=0.0, progress=False)
    assert sum(int(nowhere[k]["label"][0, 8, 8, 8]) == 2 for k in range(40)) <= 4
    padded = dataset[50]
    assert padded["image"].shape == (1, *SIZE) and float(padded["image"][:, :2].abs().max()) == 0
    first = patches[0]["image"].clone()
    patches[0]["image"].zero_()
    dataset.set_random_state(0)
    assert dataset[0]["image"].abs().sum() > 0 and first.shape == (1, *SIZE), "a patch is a copy"


def test_a_patch_of_air_is_drawn_anew(tmp_path):
    item = write(tmp_path, "air", (64, 24, 24))
    image = np.zeros((64, 24, 24), np.int16)
    image[:36] = np.random.default_rng(0).integers(1, 9, (36, 24, 24))
    nib.save(nib.Nifti1Image(image, np.diag([1.5, 1.5, 1.5, 1])), item["image"])
    dataset = PatchDataset([{"image": item["image"]}], prepared(), spatial_size=SIZE, patches=30, progress=False)
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
