"""Single cases under a trained network: predictions beside the truth, affinities, features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.inferers import Inferer
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from ..dataio.files import case_name, evenly, image_files, is_picture
from ..dataio.geometry import states_grid
from ..dataio.loaders import read_item
from ..dataio.readers import image_loader
from ..method.fusion import resize
from ..method.network import SemSimNet, Streams
from ..method.similarity import nearest
from ..precision import precision
from .planes import Planes, as_axes, as_planes

Item = Mapping[str, Any]


class CasePictures:
    """Predictions of single cases on the grid of their files, ready to be drawn."""

    def __init__(
        self,
        data: Sequence[Item],
        transform: Callable[[Any], Any],
        network: torch.nn.Module,
        inferer: Inferer,
        postprocessing: Callable[[Any], Any],
        device: str | torch.device,
        *,
        slice_axis: str | int | Sequence[str] | None = None,
    ) -> None:
        """
        Args:
            data: items of the evaluated list, in its order.
            transform: preprocessing of the evaluation; it gives ``image`` for the network and ``label`` as in the file.
            network: in evaluation mode, on ``device``.
            inferer: predicts a volume.
            postprocessing: of the evaluation; turns ``pred`` into class indices on the file's grid.
            device: where to predict.
            slice_axis: what slices are stacked along; ``None``: the coarsest axis; several: one row of slices each.
        """
        self.data, self.transform, self.network = list(data), transform, network
        self.inferer, self.postprocessing, self.device = inferer, postprocessing, device
        self.slice_axis = slice_axis

    @torch.no_grad()
    def planes(self, index: int) -> list[Planes]:
        """Image, prediction and truth of one case, for each ``slice_axis``."""
        item = dict(read_item(self.transform, self.data[index]))
        item["pred"] = self.inferer(item["image"][None].to(self.device), self.network)[0].cpu()
        prediction = self.postprocessing(item)["pred"]
        picture = is_picture(image_files(self.data[index])[0])
        image = image_loader()(self.data[index]["image"])
        labels = {"prediction": prediction, "truth": item["label"]}
        axes = as_axes(self.slice_axis, picture=picture)
        return [as_planes(image, labels, picture=picture, slice_axis=axis) for axis in axes]


@dataclass(frozen=True)
class Slice:
    """One slice with its features.

    Attributes:
        name: case and slice number.
        image: ``(C, H, W)`` as the network sees it.
        features: f~ of unit length, ``(D, h, w)``.
        classes: at the size of the features, ``(h, w)``: true ones of a labelled slice, else predicted ones.
        picture: whether rows of the file run downwards.
        oriented: whether the file says where right and front (of a picture: right and up) are.
    """

    name: str
    image: Tensor
    features: Tensor
    classes: Tensor
    picture: bool = False
    oriented: bool = False

    def upright(self, array: np.ndarray) -> np.ndarray:
        """``(H, W)`` or ``(H, W, 3)``, pointing right and front, -> rows and columns as in :func:`as_planes`."""
        array = array.swapaxes(0, 1)
        if self.oriented:
            return array[::-1, ::-1]
        return array if self.picture else array[::-1]


class FeatureLook:
    """Features f~ of some labelled and unlabelled slices."""

    def __init__(
        self,
        network: SemSimNet,
        labeled: Sequence[Item],
        unlabeled: Sequence[Item],
        transform: Callable[[Any], Any],
        device: str | torch.device,
        *,
        temperature: float = 0.1,
        slices: int = 12,
        per_class: int = 200,
        amp: bool | str = False,
    ) -> None:
        """
        Args:
            network: with the fusion that it was trained with, on ``device``.
            labeled: items of ``training``.
            unlabeled: items of ``unlabeled``.
            transform: preprocessing of the training: volumes ``(C, H, W, slices)``.
            device: where to compute.
            temperature: t_a.
            slices: how many of each list to look at, of as many volumes as there are, evenly spaced.
            per_class: points of a class and list in the scatter plot, at most.
            amp: what the network computes in, see :func:`~scripts.precision.precision`.
        """
        self.network, self.transform, self.device = network, transform, device
        self.lists = {"labelled": list(labeled), "unlabelled": list(unlabeled)}
        self.temperature, self.number, self.per_class = temperature, slices, per_class
        self.precision = precision(amp, device)

    @property
    def possible(self) -> bool:
        """Whether the network has fused features."""
        return self.network.fusion is not None

    def slices(self, stream: str) -> list[Slice]:
        """Some slices of a list; of labelled volumes those that show most."""
        items = self.lists[stream]
        chosen = evenly(items, self.number)
        each = -(-self.number // len(chosen))
        return [one for item in chosen for one in self._look(item, stream == "labelled", each)]

    @torch.no_grad()
    def _look(self, item: Item, labeled: bool, count: int) -> list[Slice]:
        """``count`` slices of a volume; a labelled volume's own among those with the most classes."""
        volume = read_item(self.transform, item)
        image = torch.as_tensor(volume["image"]).movedim(-1, 0)  # (slices, C, H, W)
        numbers = list(range(len(image)))
        if labeled:
            label = torch.as_tensor(volume["label"]).movedim(-1, 0)
            allowed = item.get("labeled_slices") or numbers
            classes = {k: len(torch.unique(label[k])) for k in allowed}
            numbers = [k for k in allowed if classes[k] == max(classes.values())]
        elif len(numbers) > 2:
            numbers = numbers[1:-1]  # the ends often show nothing
        numbers = evenly(numbers, count)
        part = image[numbers].float().to(self.device)
        network = self.network.eval()

        def maps() -> list[torch.Tensor]:
            output: Any = network({"x": part}, Streams(decode=("x",), fuse=("x",)))
            return [output.logits["x"], output.features["x"]]

        logits, fused = self.precision.predicted(maps)
        features = F.normalize(fused, dim=1).cpu()
        size = features.shape[2:]
        shown = nearest(label[numbers], size) if labeled else resize(logits.softmax(dim=1), size).argmax(dim=1).cpu()
        path = image_files(item)[0]
        name = item.get("case") or case_name(path)
        meta = getattr(volume["image"], "meta", {})
        oriented = states_grid(meta.get("original_affine", np.eye(4)), meta)
        return [
            Slice(f"{name}, slice {k}", part[i].cpu(), features[i], shown[i], is_picture(path), oriented)
            for i, k in enumerate(numbers)
        ]

    def points(self, slices: Sequence[Slice], *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Features ``(N, D)`` and classes ``(N,)`` drawn from slices, at most ``per_class`` of each class."""
        features = torch.cat([s.features.flatten(1).T for s in slices]).numpy()
        classes = torch.cat([s.classes.flatten() for s in slices]).numpy()
        rng = np.random.default_rng(seed)
        kept = [rng.permutation(np.flatnonzero(classes == c))[: self.per_class] for c in np.unique(classes) if c >= 0]
        order = np.concatenate(kept)
        return features[order], classes[order]

    def affinities(
        self, chosen: Slice, class_names: Sequence[str]
    ) -> tuple[np.ndarray, dict[str, tuple[tuple[float, float], np.ndarray]]]:
        """The image of a slice and, for a pixel in the midst of each class, where M (eq. 4) finds its like.

        Args:
            chosen: the slice.
            class_names: background first; a class that the slice does not show is left out.

        Returns:
            image ``(rows, columns[, 3])`` in [0, 1]; by class the pixel (row, column) and its weights.
        """
        features = chosen.features.flatten(1)  # (D, n), of unit length
        size = tuple(chosen.classes.shape)
        maps = {}
        for c, name in enumerate(class_names):
            mask = np.pad((chosen.classes == c).numpy(), 1)
            if c == 0 or not mask.any():
                continue
            x, y = np.unravel_index(distance_transform_edt(mask)[1:-1, 1:-1].argmax(), size)
            marked = np.zeros(size)
            marked[x, y] = 1
            row, column = np.argwhere(chosen.upright(marked))[0]
            scale = chosen.image.shape[1] / size[0]
            pixel = ((row + 0.5) * scale - 0.5, (column + 0.5) * scale - 0.5)
            cosines = features[:, x * size[1] + y] @ features
            weights = torch.softmax(cosines / self.temperature, dim=0)  # a row of M, without the n x n map
            maps[name] = (pixel, chosen.upright(weights.reshape(size).numpy()))
        image = chosen.image.movedim(0, -1).numpy()
        image = image if image.shape[-1] == 3 else image[..., 0]
        return chosen.upright(image).clip(0, 1), maps
