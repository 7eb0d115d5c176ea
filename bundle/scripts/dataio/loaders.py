"""Slices of volumes, and the loader that gives a labelled and an unlabelled batch at every step."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, cast

import torch
import torch.nn.functional as F
from monai.data import CacheDataset, DataLoader, get_track_meta, set_track_meta
from monai.transforms import Compose, Randomizable
from monai.utils import convert_to_tensor, set_determinism
from torch.utils.data import Dataset, Sampler
from tqdm import tqdm

from ..distributed import rank_and_size
from ..errors import InputError, find_input_error, raise_all, reason
from ..memory import free_memory
from .files import case_name, image_files
from .label_resampling import resampled_label, scaled_positions
from .sizes import Stage, Stages
from .threads import OfEachThread, in_threads
from .transforms import apart, check_whole

logger = logging.getLogger("semsim")

#: What an item names files by.
KEYS = ("image", "label")


def read_item(transform: Callable[[Any], Any], item: Mapping[str, Any]) -> Mapping[str, Any]:
    """Apply ``transform`` to an item of a datalist.

    Raises:
        InputError: naming the files, whatever went wrong with them.
    """
    try:
        return transform(item)
    except Exception as error:
        found = find_input_error(error)
        if found is not None:
            raise InputError(str(found)) from error
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        label = f" with its label {item['label']}" if "label" in item else ""
        raise InputError(
            f"{item['image']}: could not be read as an image{label} ({type(root).__name__}: {reason(root)}); replace "
            "the file or take it out."
        ) from error


class VolumeDataset(CacheDataset):
    """Whole volumes, kept in memory; MONAI's ``CacheDataset`` that names every unusable file at once."""

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable[[Any], Any],
        *,
        cache_rate: float = 1.0,
        progress: bool = True,
    ) -> None:
        """Arguments as in MONAI's ``CacheDataset``, which caches nothing of a nested ``Compose``."""
        self.problems: list[str] = []
        if isinstance(transform, Compose):
            transform = transform.flatten()
        super().__init__(data, transform, cache_rate=cache_rate, progress=progress and len(data) > 0, num_workers=1)
        raise_all(self.problems)

    def _transform(self, index: int) -> Any:
        return read_item(lambda _: super(VolumeDataset, self)._transform(index), self.data[index])

    def _load_cache_item(self, idx: int) -> Any:
        try:
            return read_item(lambda _: super(VolumeDataset, self)._load_cache_item(idx), self.data[idx])
        except InputError as error:
            self.problems.append(str(error))
            return None


def whole_path(files: Any) -> Any:
    """A file that is there, or several, with the folder that it is in."""
    if isinstance(files, (list, tuple)):
        return [whole_path(file) for file in files]
    return os.path.abspath(files) if isinstance(files, (str, os.PathLike)) and os.path.exists(files) else files


@contextmanager
def without_meta() -> Iterator[None]:
    """Let MONAI's transforms work on plain tensors: of a slice, meta data is of no use and takes most of the time."""
    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)


class SliceDataset(Dataset, Randomizable):
    """2D slices of 3D volumes, read from the volume files; no slice is written to disk.

    Every volume is read and checked once when the dataset is made, and kept in memory as far as ``cache_rate`` allows.
    """

    #: what one item, and several, are called in messages
    unit = ("slice", "slices")
    #: what makes volumes smaller in memory, for messages
    smaller = "A smaller --spatial_size"

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        slice_transform: Callable[[dict[str, Any]], Any] | None = None,
        *,
        keys: Sequence[str] = ("image", "label"),
        cache_rate: float = 1.0,
        progress: bool = True,
        class_names: Sequence[str] = (),
    ) -> None:
        """
        Args:
            data: items of a datalist: ``image``, for labelled ones ``label``, and where only some slices are labelled
                ``labeled_slices``. An item of the list ``unlabeled`` contributes the slices that are not in it.
            transform: deterministic volume transforms; they give ``(C, H, W, slices)`` a key.
            slice_transform: random transforms on the dictionary of one slice, ``(C, H, W)`` a key.
            keys: keys whose last axis is the slice axis; one that an item lacks is skipped.
            cache_rate: fraction of the volumes kept in memory; the others are read again for every slice.
            progress: whether to show a progress bar while reading.
            class_names: names of the classes, to warn of those that no label shows; none: no warning.

        Raises:
            InputError: listing every file that cannot be used, or a transform that moves images without their labels.
        """
        if "label" in keys:
            raise_all(apart(slice_transform))
        # whole paths: ITK goes to another folder while it loads a part of itself, and takes all threads along
        self.data = [{**item, **{key: whole_path(item[key]) for key in KEYS if key in item}} for item in data]
        self.transform, self.slice_transform = transform, slice_transform
        self.keys = tuple(keys)
        self._cache: dict[int, dict[str, torch.Tensor]] = {}
        self._told = False
        #: pixels that slices are reduced to before ``slice_transform``; ``None``: as ``transform`` gives them
        self.size: tuple[int, ...] | None = None
        #: (volume, slice) for every index of the dataset
        self.index: list[tuple[int, int]] = []
        problems: list[str] = []
        count = round(cache_rate * len(self.data))
        shown: set[int] = set()
        transforms = OfEachThread(self.transform)

        def look(number: int) -> tuple[dict[str, torch.Tensor] | None, list[int], set[int]] | InputError:
            try:
                volume = self._read(number, transforms())
                own = self._slices(number, volume["image"].shape[0])
                values = self._shown(volume, own) if class_names and "label" in volume else set()
                return volume if number < count else None, own, values
            except InputError as error:
                return error

        with in_threads(look, range(len(self.data)), transforms.number) as found:
            hidden = not progress or not self.data
            for number, result in enumerate(tqdm(found, total=len(self.data), desc="Reading volumes", disable=hidden)):
                if isinstance(result, InputError):
                    problems.append(str(result))
                    continue
                volume, own, values = result
                self.index += [(number, k) for k in own]
                shown |= values
                if volume is not None:
                    self._cache[number] = volume
                    self._look_at_memory(count)
        raise_all(problems)
        if missing := [repr(name) for c, name in enumerate(class_names) if self.data and c not in shown]:
            logger.warning(f"No label of `training` shows {', '.join(missing)}: it cannot be learnt.")

    def _look_at_memory(self, count: int) -> None:
        """Warn once, early, where the ``count`` volumes that are to be kept will not fit: the system ends a process."""
        read = len(self._cache)
        if self._told or read < 4 or read & (read - 1):  # after 4, 8, 16, ... of them
            return
        size = sum(x.nbytes for volume in self._cache.values() for x in volume.values()) / read
        missing, free = size * (count - read), free_memory()
        if missing > free:
            self._told = True
            rate = int(80 * (free / size + read) / len(self.data)) / 100  # and a fifth for what else a training needs
            logger.warning(
                f"{count} volumes are to be kept in memory: by the first {read}, {missing / 1e9:.1f} GB more, and "
                f"{free / 1e9:.1f} GB are free. {self.smaller} takes less; with --cache_rate {rate:g} the volumes that "
                f"are not kept are read anew for every {self.unit[0]}, which is slow."
            )

    def _read(self, number: int, transform: Callable[[Any], Any] | None = None) -> dict[str, torch.Tensor]:
        """One volume as ``{key: (slices, C, H, W)}``, contiguous so that a slice is a view.

        Args:
            number: of the volume.
            transform: a thread's own copy of that of the dataset.
        """
        volume = read_item(transform or self.transform, self.data[number])
        return {
            key: convert_to_tensor(volume[key], track_meta=False).movedim(-1, 0).contiguous().clone()
            for key in self.keys
            if key in volume
        }

    def _slices(self, number: int, depth: int) -> list[int]:
        item = self.data[number]
        labeled = item.get("labeled_slices")
        if labeled is None:
            return list(range(depth))
        wrong = [k for k in labeled if not isinstance(k, int) or not 0 <= k < depth]
        if wrong:
            raise InputError(
                f"{item['image']}: labeled_slices should be 0 to {depth - 1}, received {wrong}; count from 0 along "
                "the slice axis as the file stores it."
            )
        unlabeled = item.get("stream") == "unlabeled"
        return [k for k in range(depth) if (k not in labeled) == unlabeled]

    def _shown(self, volume: Mapping[str, torch.Tensor], own: Sequence[int]) -> set[int]:
        """Label values that a volume shows in its slices ``own``."""
        return set(torch.unique(volume["label"][own]).int().tolist())

    def _cut(self, number: int, volume: Mapping[str, torch.Tensor], k: int) -> dict[str, Any]:
        """Slice ``k`` of volume ``number``, each key a copy."""
        return {key: self._reduced(key, volume[key][k]) for key in volume}

    def _reduced(self, key: str, stored: torch.Tensor) -> torch.Tensor:
        """A copy of a slice ``(C, H, W)`` in the size of this stage of the training."""
        if self.size is None or self.size == tuple(stored.shape[1:]):
            return stored.clone()
        if key == "label":
            return resampled_label(stored, [scaled_positions(n, m) for n, m in zip(stored.shape[1:], self.size)])
        return F.interpolate(stored[None], self.size, mode="bilinear", antialias=True)[0]

    def set_random_state(self, seed: int | None = None, state: Any = None) -> SliceDataset:
        if isinstance(self.slice_transform, Randomizable):
            self.slice_transform.set_random_state(seed, state)
        return self

    def randomize(self, data: Any) -> None:
        """Nothing of its own is drawn here; ``slice_transform`` draws."""

    def try_out(self) -> None:
        """Augment one slice by a copy of ``slice_transform``: what is wrong with it shows now, and nothing is drawn."""
        own, self.slice_transform = self.slice_transform, deepcopy(self.slice_transform)
        try:
            SliceDataset.set_random_state(self, 0)
            self[0]
        finally:
            self.slice_transform = own

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, position: int) -> dict[str, Any]:
        number, k = self.index[position]
        volume = self._cache.get(number) or self._read(number)
        source = self.data[number]
        item = self._cut(number, volume, k)
        if self.slice_transform is not None:
            with without_meta():
                item = dict(self.slice_transform(item))
            check_whole(item.get("label"))
        item["case"] = f"{source.get('case') or case_name(image_files(source)[0])}/{k}"
        return item


class EpochSampler(Sampler[int]):
    """A shuffled pass over a dataset of any wished length, drawn from ``(seed, epoch)`` alone.

    Where more indices are wanted than the dataset has, complete new permutations follow. In distributed training all
    ranks draw the same order and take turns.
    """

    def __init__(self, length: int, num_samples: int, *, seed: int = 0) -> None:
        """
        Args:
            length: items in the dataset.
            num_samples: indices that this rank wants in an epoch.
            seed: seed; streams with different seeds are shuffled independently.
        """
        self.length, self.num_samples, self.seed, self.epoch = length, num_samples, seed, 0

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        rank, size = rank_and_size()
        total = self.num_samples * size
        rounds = -(-total // self.length)
        order = torch.cat([torch.randperm(self.length, generator=generator) for _ in range(rounds)])[:total]
        return iter(order[rank::size].tolist())


class TwoStreamLoader:
    """Loader of ``{"labeled": batch, "unlabeled": batch}``; an epoch is one pass over the unlabelled slices.

    The labelled slices are shuffled and repeated for as many steps. Everything random in an epoch follows from
    ``(seed, epoch)``, whatever was drawn before: call ``set_epoch`` before iterating.
    """

    def __init__(
        self,
        labeled: SliceDataset,
        unlabeled: SliceDataset,
        *,
        batch_size: int = 8,
        seed: int = 0,
        num_workers: int = 0,
        use_unlabeled: bool = True,
        pin_memory: bool = False,
        steps: int | None = None,
        fill: bool = False,
        stages: Stages | None = None,
    ) -> None:
        """
        Args:
            labeled: slices with ``image`` and ``label``.
            unlabeled: slices with ``image`` and its strong views. When empty, training is supervised and an epoch is
                one pass over the labelled slices.
            batch_size: slices of *each* stream in a step, on each process.
            seed: seed of shuffling and augmentation.
            num_workers: processes that load and augment, for each stream.
            use_unlabeled: whether unlabelled slices are given out. Without them the number of steps and the order of
                the labelled slices stay the same, so that a supervised baseline sees the same labelled batches.
            pin_memory: whether batches are put into page-locked memory, for training on a GPU.
            steps: steps of an epoch, where it is not to be one pass; slices repeat as often as that takes.
            fill: whether slices repeat within a batch where there are fewer.
            stages: of the training: the size of the slices, and whether unlabelled ones take part; default: one stage,
                slices as the datasets give them.

        Raises:
            InputError: no labelled slice, or without ``steps`` and ``fill`` fewer slices than a batch.
        """
        if not len(labeled):
            raise InputError(
                "The datalist has no labelled case: expected at least one item with image and label in `training`, "
                "received none; label one and add it."
            )
        self.stages, self.alone = stages, False
        self.supervised = len(unlabeled) == 0
        self.use_unlabeled = use_unlabeled and not self.supervised
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0
        rank, size = rank_and_size()
        longest = labeled if self.supervised else unlabeled
        #: slices of each stream that a step may take on each process, for one pass to have a step
        self.most = len(longest) // size
        self.steps = steps or max(self.most // batch_size, int(fill))
        if not self.steps:
            raise InputError(
                f"Fewer {longest.unit[1]} than a batch: {len(longest)} "
                f"{'labelled' if self.supervised else 'unlabelled'} {longest.unit[1]} "
                f"for {size} x {batch_size}; add images or lower --batch_size to at most {self.most}."
            )
        if self.supervised and rank == 0:
            logger.warning("The datalist has no unlabelled image: this is supervised training on the labelled images.")

        def loader(dataset: SliceDataset, stream: int) -> DataLoader:
            return DataLoader(
                dataset,
                batch_size=batch_size,
                sampler=EpochSampler(len(dataset), self.steps * batch_size, seed=2 * seed + stream),
                num_workers=num_workers,
                generator=torch.Generator(),
                pin_memory=pin_memory,
            )

        self.labeled = loader(labeled, 0)
        self.unlabeled = loader(unlabeled, 1) if self.use_unlabeled else None
        if self.use_unlabeled and isinstance(unlabeled, SliceDataset):
            unlabeled.try_out()  # this stream may begin hours later

    def __len__(self) -> int:
        return self.steps

    @property
    def unit(self) -> tuple[str, str]:
        """What one item, and several, are called in messages: slices or patches."""
        return cast(SliceDataset, self.labeled.dataset).unit

    def set_steps(self, steps: int | None) -> TwoStreamLoader:
        """Set the steps of an epoch, where they are known only later; ``None`` leaves them. Returns the loader."""
        self.steps = steps or self.steps
        for loader in (self.labeled, self.unlabeled):
            if loader is not None:
                cast(EpochSampler, loader.sampler).num_samples = self.steps * self.batch_size
        return self

    def set_epoch(self, epoch: int, epochs: int | None = None) -> None:
        """Set the epoch (from 1) that the next pass belongs to, of how many; ``None``: as the last, in full size."""
        self.epoch = epoch
        if self.stages is not None:
            self.set_stage(self.stages.begin(epoch, epochs) if epochs else self.stages.last)

    def set_stage(self, stage: Stage) -> None:
        """Set the size of the slices of the next pass, and whether unlabelled ones take part in it."""
        self.alone = not stage.unlabeled
        for loader in (self.labeled, self.unlabeled):
            if loader is not None:
                cast(SliceDataset, loader.dataset).size = stage.size

    def _start(self, loader: DataLoader, stream: int) -> Iterator[dict[str, Any]]:
        rank, _ = rank_and_size()
        seed = (((self.seed * 100_003 + self.epoch) * 1_009 + rank) * 2 + stream) % 2**31
        cast(EpochSampler, loader.sampler).epoch = self.epoch
        loader.generator.manual_seed(seed)  # the seeds of the worker processes
        if loader.num_workers == 0:
            cast(SliceDataset, loader.dataset).set_random_state(seed)
        return iter(loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        labeled = self._start(self.labeled, 0)
        if self.unlabeled is None or self.alone:
            for batch_l in labeled:
                yield {"labeled": batch_l}
        else:
            for batch_u, batch_l in zip(self._start(self.unlabeled, 1), labeled):
                yield {"labeled": batch_l, "unlabeled": batch_u}


#: Where loading processes leave their batches, and the room that those of two streams may need, in bytes.
SHARED_MEMORY, LEAST_SHARED = "/dev/shm", 2**29


def loading_processes(device: torch.device) -> int:
    """Loading processes for each stream, where nobody says how many.

    On a GPU one: its steps would wait for the augmentation, which takes as long as they do or longer. None where
    processors or shared memory are short, and on a CPU, whose cores the training itself needs.

    Args:
        device: that the network is trained on.
    """
    if torch.device(device).type != "cuda":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores < 3 * int(os.environ.get("LOCAL_WORLD_SIZE", rank_and_size()[1])):  # processes on this machine
        return 0
    if os.path.isdir(SHARED_MEMORY) and (free := shutil.disk_usage(SHARED_MEMORY).free) < LEAST_SHARED:
        logger.warning(
            f"{SHARED_MEMORY} has {free / 1e6:.0f} MB free, too little for loading processes, so the GPU waits for "
            "data; give the container more shared memory (docker run --shm-size 1g)."
        )
        return 0
    return 1


def seed_everything(seed: int, epoch: int) -> None:
    """Seed the generators of python, numpy and torch for an epoch, so that it runs alike after a restart."""
    rank, _ = rank_and_size()
    set_determinism(seed=((seed * 100_003 + epoch) * 1_009 + rank) % 2**31, use_deterministic_algorithms=None)
