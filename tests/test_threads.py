"""Files are read by several threads, and nothing but the time tells."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict

import numpy as np
import pytest
import samples
import torch
from conftest import BUNDLE
from monai.transforms import Compose, EnsureChannelFirstd
from scripts.dataio import threads
from scripts.dataio.loaders import SliceDataset
from scripts.dataio.patches import PatchDataset
from scripts.dataio.readers import LoadFilesd
from scripts.dataio.threads import in_threads, reading_threads
from scripts.dataio.transforms import AsVolumed, SliceGridd
from scripts.dataio.volume_grid import VolumeGridd
from scripts.errors import InputError
from scripts.preparation.survey import survey

KEYS = ["image", "label"]


@pytest.fixture
def number(monkeypatch):
    """Sets how many threads read."""
    return lambda n: monkeypatch.setattr(threads, "reading_threads", lambda: n)


def test_results_come_in_the_order_of_the_list(number):
    number(4)
    names = set()

    def read(n: int) -> int:
        names.add(threading.current_thread().name)
        time.sleep(0.02 * (n % 4 == 0))
        return n * n

    with in_threads(read, range(40)) as results:
        assert list(results) == [n * n for n in range(40)]
    assert len(names) == 4


def test_what_is_left_after_an_interruption_is_not_begun(number):
    number(2)
    begun = []

    def read(n: int) -> int:
        begun.append(n)
        time.sleep(0.01)
        return n

    with pytest.raises(KeyboardInterrupt), in_threads(read, range(1000)) as results:
        for _ in results:
            raise KeyboardInterrupt
    assert len(begun) < 50


def test_as_many_threads_as_torch_has_and_memory_allows(monkeypatch):
    monkeypatch.setattr(threads, "free_memory", lambda: 64e9)
    for given, expected in ((1, 1), (2, 2), (16, 4)):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=given: n)
        assert reading_threads() == expected
    monkeypatch.setattr(threads, "free_memory", lambda: 9e9)
    assert reading_threads() == 2, "each has room for a large volume"
    monkeypatch.setattr(threads, "free_memory", lambda: 0)
    assert reading_threads() == 1


@pytest.fixture
def folder(tmp_path):
    """Images of every kind of reader, turned against each other, with labels."""
    images, labels = {}, {}
    writers = {"nii.gz": samples.write_nifti, "mha": samples.write_itk, "": samples.write_dicom}
    for n in range(24):
        end, write = list(writers.items())[n % 3]
        array, label = samples.blob((20 + n, 18, 6), seed=n)
        case = f"case{n:02d}"
        images[case] = tmp_path / "images" / (f"{case}.{end}" if end else case)
        write(images[case], array)
        if end:
            labels[case] = tmp_path / "labels" / f"{case}.{end}"
            write(labels[case], label)
    return images, labels


def test_a_survey_finds_the_same(folder, number):
    images, labels = folder
    labels["case00"].write_bytes(b"no label")
    found = []
    for n in (1, 6):
        number(n)
        found.append(survey(images, labels))
    for kind in ("images", "labels"):
        one, several = (getattr(result, kind) for result in found)
        assert list(one) == list(several) and len(one) == (24 if kind == "images" else 15)
        for case in one:
            np.testing.assert_equal(asdict(one[case]), asdict(several[case]))
    assert found[0].problems == found[1].problems and "case00" in found[0].problems[0]


@pytest.mark.parametrize("dims", [2, 3])
def test_a_training_reads_the_same(folder, number, dims):
    """Volumes are turned and resampled by their headers, which no thread may take from another."""
    grid = SliceGridd(KEYS, 16, mode=["bilinear", "nearest"]) if dims == 2 else VolumeGridd(
        KEYS, [2.0, 2.0, 4.0], mode=["trilinear", "nearest-exact"]
    )  # fmt: skip
    transform = Compose([LoadFilesd(KEYS), EnsureChannelFirstd(KEYS), AsVolumed(KEYS), grid])
    items = [{"image": str(folder[0][case]), "label": str(label)} for case, label in folder[1].items()]
    read = []
    for n in (1, 6):
        number(n)
        options = {"progress": False, "class_names": ["background", "organ"]}
        read.append(
            SliceDataset(items, transform, **options) if dims == 2
            else PatchDataset(items, transform, spatial_size=16, **options)
        )  # fmt: skip
    assert read[0].index == read[1].index and len(read[0].index) > 16
    for volume, (key, other) in ((n, pair) for n in range(16) for pair in read[0]._cache[n].items()):
        assert torch.equal(other, read[1]._cache[volume][key]), (volume, key)
    assert type(transform.transforms[-1]) is type(grid) and transform.transforms[-1] is grid, "the copies were theirs"
    (folder[1]["case00"]).write_bytes(b"no label")
    (folder[1]["case09"]).write_bytes(b"no label")
    with pytest.raises(InputError, match=r"(?s)case00.*case09"):
        SliceDataset(items, transform, progress=False)


def test_paths_of_the_working_folder_in_a_process_of_its_own(folder):
    """ITK goes to a folder of its own while it loads: what is found there must not depend on it."""
    images, _ = folder
    root = next(iter(images.values())).parents[1]
    for n in range(16):
        samples.write_itk(root / "nrrd" / f"c{n}.nrrd", samples.blob((16, 14, 5), seed=n)[0])
    code = (
        "from pathlib import Path; from scripts.dataio import threads; threads.reading_threads = lambda: 4\n"
        "from scripts.preparation.survey import survey\n"
        "files = {p.stem: p for p in sorted(Path('nrrd').iterdir())}\n"
        "found = survey(files, {}); assert not found.problems and len(found.images) == 16, found.problems\n"
        "assert found.images['c0'].path == Path('nrrd/c0.nrrd')\n"
        "from scripts.dataio.loaders import SliceDataset; from scripts.dataio.readers import LoadFilesd\n"
        "from monai.transforms import Compose, EnsureChannelFirstd\n"
        "read = Compose([LoadFilesd('image'), EnsureChannelFirstd('image')])\n"
        "print(len(SliceDataset([{'image': str(p)} for p in files.values()], read, progress=False)))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(BUNDLE)}
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=env, capture_output=True, encoding="utf-8")
    assert done.returncode == 0 and done.stdout.split()[-1] == "80", done.stdout + done.stderr
