"""Slices and streams: what an epoch holds, that it can be repeated, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandSimulateLowResolutiond,
)
from PIL import Image
from scripts.dataio import loaders
from scripts.dataio.datalist import read_datalist
from scripts.dataio.loaders import EpochSampler, SliceDataset, TwoStreamLoader, VolumeDataset
from scripts.dataio.transforms import AsVolumed, CheckVolumed, SliceGridd
from scripts.errors import InputError

KEYS = ["image", "label"]


@pytest.mark.parametrize("keys", ["image", ["label"]])
def test_an_image_is_not_moved_without_its_label(keys):
    with pytest.raises(
        InputError, match=r"RandFlipd to move image and label together, received the keys (image|label)"
    ):
        SliceDataset([], dict, Compose([RandGaussianNoised("image"), Compose([RandFlipd(keys)])]))
    SliceDataset([], dict, RandFlipd(keys), keys=["image"])  # unlabelled slices have none
    SliceDataset([], dict, RandSimulateLowResolutiond("image"))  # blurs


@pytest.mark.parametrize(("mode", "refused"), [("bilinear", True), (["bilinear", "nearest"], False)])
def test_labels_are_not_interpolated(phantom_dir, mode, refused):
    items = read_datalist(phantom_dir / "datalist.json", phantom_dir, "training")[:1]
    turned = RandAffined(KEYS, prob=1.0, rotate_range=0.5, mode=mode)
    dataset = SliceDataset(items, volume_transform(), turned.set_random_state(0), progress=False)
    if refused:
        with pytest.raises(InputError, match=r"whole numbers in labels, received .* mode: \[bilinear, nearest\]"):
            dataset[len(dataset) // 2]
    else:
        assert len(dataset[len(dataset) // 2]["label"].unique()) > 1


def volume_transform(channels=1, classes=4, size=32):
    return Compose([
        LoadImaged(KEYS, allow_missing_keys=True),
        EnsureChannelFirstd(KEYS, allow_missing_keys=True),
        CheckVolumed(in_channels=channels, num_classes=classes),
        AsVolumed(KEYS, allow_missing_keys=True),
        SliceGridd(KEYS, size, mode=["bilinear", "nearest"], allow_missing_keys=True),
    ])  # fmt: skip


def dataset(items, transform=None, **kwargs):
    return SliceDataset(items, transform or volume_transform(), progress=False, **kwargs)


def save(path, array, dtype=np.float32):
    nib.save(nib.Nifti1Image(np.asarray(array, dtype), np.diag([1.5, 1.5, 8, 1])), path)
    return str(path)


@pytest.fixture
def streams(phantom_dir):
    def make(**kwargs):
        noise = Compose([RandGaussianNoised("image", prob=1.0, std=0.1)])
        labeled = dataset(read_datalist(phantom_dir / "datalist.json", phantom_dir, "training"), slice_transform=noise)
        unlabeled = dataset(
            read_datalist(phantom_dir / "datalist.json", phantom_dir, "unlabeled"),
            slice_transform=Compose([RandGaussianNoised("image", prob=1.0, std=0.1)]),
            keys=["image"],
        )
        return TwoStreamLoader(labeled, unlabeled, **{"batch_size": 4, **kwargs})

    return make


def epoch(loader, number):
    loader.set_epoch(number)
    return list(loader)


def test_slices_come_with_their_label_and_their_name(phantom_dir):
    items = read_datalist(phantom_dir / "datalist.json", phantom_dir, "training")
    slices = dataset(items)
    depth = nib.load(items[0]["image"]).shape[2]
    assert len(slices) == depth
    one = slices[3]
    assert one["image"].shape == one["label"].shape == (1, 32, 32) and one["case"].endswith("/3")
    assert set(one["label"].unique().tolist()) <= {0, 1, 2, 3}
    one["image"].zero_()
    assert slices[3]["image"].abs().sum() > 0, "what a transform does to a slice never reaches the kept volume"
    assert torch.equal(dataset(items, cache_rate=0.0)[5]["image"], slices[5]["image"])


def test_an_epoch_is_one_pass_over_the_unlabelled_slices(streams):
    loader = streams()
    batches = epoch(loader, 1)
    names = [name for batch in batches for name in batch["unlabeled"]["case"]]
    assert len(batches) == len(loader) == len(loader.unlabeled.dataset) // 4
    assert len(set(names)) == len(names) and "label" not in batches[0]["unlabeled"]
    labeled = [name for batch in batches for name in batch["labeled"]["case"]]
    counts = {name: labeled.count(name) for name in labeled}
    assert max(counts.values()) - min(counts.values()) <= 1, "labelled slices cycle evenly"
    assert batches[0]["labeled"]["image"].shape == (4, 1, 32, 32)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_follows_from_seed_and_epoch_alone(streams, workers):
    def same(a, b):
        return all(torch.equal(x[s]["image"], y[s]["image"]) for x, y in zip(a, b) for s in ("labeled", "unlabeled"))

    first = streams(num_workers=workers)
    epoch(first, 1)
    second = epoch(first, 2)
    assert same(second, epoch(streams(num_workers=workers), 2)), "whatever was drawn before"
    assert not same(second, epoch(first, 3)) and not same(second, epoch(streams(num_workers=workers, seed=1), 2))


def test_a_faulty_augmentation_of_unlabelled_slices_shows_before_the_training(phantom_dir):
    """Their stream may begin after hours."""

    class Faulty(RandGaussianNoised):
        def __call__(self, data, lazy=None):
            super().__call__(data)
            raise ValueError("this transform fails")

    items = read_datalist(phantom_dir / "datalist.json", phantom_dir, "unlabeled")[:2]
    labeled, faulty = (dataset(items, slice_transform=t, keys=["image"]) for t in (None, Faulty("image", prob=1.0)))
    with pytest.raises(Exception, match="this transform fails"):
        TwoStreamLoader(labeled, faulty, batch_size=2)
    TwoStreamLoader(labeled, faulty, batch_size=2, use_unlabeled=False)  # nobody reads them


@pytest.mark.parametrize(
    ("device", "cores", "shared", "processes"),
    [("cuda:0", 4, 2**30, 1), ("cpu", 64, 2**30, 0), ("cuda", 2, 2**30, 0), ("cuda", 4, 64 * 2**20, 0)],
)
def test_a_gpu_does_not_wait_for_augmentation(monkeypatch, caplog, tmp_path, device, cores, shared, processes):
    """Where cores and shared memory allow it; Docker gives 64 MB of that, and a loading process would be killed."""
    monkeypatch.setattr(loaders.os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr(loaders, "SHARED_MEMORY", str(tmp_path))
    monkeypatch.setattr(loaders.shutil, "disk_usage", lambda _: SimpleNamespace(free=shared))
    assert loaders.loading_processes(torch.device(device)) == processes
    assert ("docker run --shm-size" in caplog.text) == (shared < 2**29)


def test_processes_of_other_machines_take_no_cores_here(monkeypatch, tmp_path):
    """Two machines with 8 cores and 2 GPUs each."""
    monkeypatch.setattr(loaders.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(loaders, "SHARED_MEMORY", str(tmp_path / "none"))
    monkeypatch.setattr(loaders, "rank_and_size", lambda: (0, 4))
    assert loaders.loading_processes(torch.device("cuda:0")) == 0, "four processes on one machine"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert loaders.loading_processes(torch.device("cuda:0")) == 1


def test_supervised_baseline_sees_the_same_labelled_batches(streams):
    both, alone = epoch(streams(), 1), epoch(streams(use_unlabeled=False), 1)
    assert len(both) == len(alone) and all("unlabeled" not in batch for batch in alone)
    assert all(torch.equal(a["labeled"]["image"], b["labeled"]["image"]) for a, b in zip(both, alone))


@pytest.mark.parametrize("length, wanted, ranks", [(10, 8, 1), (3, 8, 1), (11, 4, 2), (3, 4, 4)])
def test_sampler_shares_one_order_between_ranks(monkeypatch, length, wanted, ranks):
    drawn = []
    for rank in range(ranks):
        monkeypatch.setattr("scripts.dataio.loaders.rank_and_size", lambda rank=rank: (rank, ranks))
        drawn.append(list(EpochSampler(length, wanted)))
    together = [i for step in zip(*drawn) for i in step]
    assert len(together) == wanted * ranks and all(len(d) == wanted for d in drawn)
    for start in range(0, len(together) - length, length):
        assert sorted(together[start : start + length]) == list(range(length)), "complete permutations"
    assert together != sorted(together) or length < 4


def test_partly_labelled_volume_feeds_both_streams(tmp_path):
    image = save(tmp_path / "a.nii.gz", np.random.rand(20, 20, 6))
    label = save(tmp_path / "b.nii.gz", np.zeros((20, 20, 6)), np.uint8)
    item = {"image": image, "label": label, "labeled_slices": [1, 4]}
    labeled = dataset([{**item, "stream": "training"}])
    unlabeled = dataset([{"image": image, "labeled_slices": [1, 4], "stream": "unlabeled"}], keys=["image"])
    assert [labeled[i]["case"] for i in range(2)] == ["a/1", "a/4"] and len(labeled) == 2
    assert [unlabeled[i]["case"] for i in range(4)] == ["a/0", "a/2", "a/3", "a/5"]
    with pytest.raises(InputError, match="labeled_slices should be 0 to 5"):
        dataset([{**item, "labeled_slices": [6]}])


def test_every_bad_file_is_named_at_once(tmp_path):
    good = save(tmp_path / "good.nii.gz", np.random.rand(8, 8, 3))
    nan = save(tmp_path / "nan.nii.gz", np.full((8, 8, 3), np.nan))
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"not an image")
    for kind in (SliceDataset, VolumeDataset):
        with pytest.raises(InputError) as error:
            kind([{"image": p} for p in (good, nan, str(broken))], volume_transform(), progress=False)
        text = str(error.value)
        assert text.startswith("2 problems") and "nan.nii.gz" in text and "broken.nii.gz" in text, text
        assert "good" not in text and len(text.splitlines()) == 3
    uncached = VolumeDataset([{"image": str(broken)}], volume_transform(), cache_rate=0.0, progress=False)
    with pytest.raises(InputError, match=r"broken\.nii\.gz: could not be read"):
        uncached[0]


def test_volumes_are_read_once_however_their_transforms_are_nested(tmp_path):
    path = save(tmp_path / "a.nii.gz", np.random.rand(8, 8, 3))
    nested = Compose([volume_transform(), AsVolumed("image")])
    dataset = VolumeDataset([{"image": path}], nested, progress=False)
    first = dataset[0]["image"]
    (tmp_path / "a.nii.gz").unlink()
    assert torch.equal(dataset[0]["image"].as_tensor(), first.as_tensor()), "from memory"


def test_too_few_slices_and_no_labels(tmp_path, caplog):
    image = save(tmp_path / "a.nii.gz", np.random.rand(20, 20, 3))
    label = save(tmp_path / "b.nii.gz", np.zeros((20, 20, 3)), np.uint8)
    labeled, unlabeled = dataset([{"image": image, "label": label}]), dataset([{"image": image}], keys=["image"])
    with pytest.raises(InputError, match=r"3 unlabelled slices for 1 x 4; .* at most 3"):
        TwoStreamLoader(labeled, unlabeled, batch_size=4)
    with pytest.raises(InputError, match="no labelled case"):
        TwoStreamLoader(dataset([]), unlabeled, batch_size=2)
    with caplog.at_level("WARNING"):
        loader = TwoStreamLoader(labeled, dataset([]), batch_size=2)
    assert "supervised training" in caplog.text
    assert len(loader) == 1 and set(epoch(loader, 1)[0]) == {"labeled"}
    assert len(epoch(TwoStreamLoader(labeled, unlabeled, batch_size=3), 1)) == 1


def test_rgb_pictures(tmp_path):
    array = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    mask = (array[..., 0] > 100).astype(np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    Image.fromarray(array).save(tmp_path / "b.jpg")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    items = [{"image": str(tmp_path / n), "label": str(tmp_path / "mask.png")} for n in ("a.png", "b.jpg")]
    slices = dataset(items, volume_transform(channels=3, classes=2))
    assert len(slices) == 2 and slices[0]["image"].shape == (3, 32, 32)
    assert slices[0]["label"].sum() > 0


def test_mha_and_channels_in_several_files(tmp_path):
    import itk

    volume = np.random.rand(5, 24, 20).astype(np.float32)  # itk: slices first
    picture = itk.image_from_array(volume)
    picture.SetSpacing([1.0, 1.0, 6.0])
    itk.imwrite(picture, str(tmp_path / "a.mha"))
    assert len(dataset([{"image": str(tmp_path / "a.mha")}])) == 5
    files = [save(tmp_path / f"c{i}.nii.gz", np.full((20, 20, 3), i)) for i in range(2)]
    slices = dataset([{"image": files}], volume_transform(channels=2))
    assert slices[0]["image"].shape == (2, 32, 32) and slices[0]["image"].amax(dim=(1, 2)).tolist() == [0, 1]
