"""Scores of unlabelled images for active learning: the image with the highest score should be annotated next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..dataio.files import evenly
from ..errors import InputError
from ..precision import precision
from .fusion import resize
from .network import SemSimNet, Streams
from .similarity import (
    Prototypes,
    class_prototypes,
    cross_log_probabilities,
    cross_similarity,
    merge_regions,
    refine,
)


def entropy(probabilities: Tensor) -> Tensor:
    """H(p) = - sum_c p_c log p_c of every position.

    Args:
        probabilities: ``(B, K, *spatial)``.

    Returns:
        ``(B, *spatial)`` in [0, log K], in nats.
    """
    return -torch.xlogy(probabilities, probabilities).sum(dim=1)


def disagreement(predictions: Sequence[Tensor]) -> Tensor:
    """Jensen-Shannon divergence of several predictions: the entropy of their mean less the mean of their entropies.

    Args:
        predictions: distributions ``(B, K, *spatial)`` of one shape.

    Returns:
        ``(B, *spatial)`` in [0, log K]; 0 where all agree, however unsure each of them is.

    Raises:
        ValueError: fewer than two predictions.
    """
    if len(predictions) < 2:
        raise ValueError(f"Two predictions at least can disagree, received {len(predictions)}.")
    p = torch.stack(list(predictions))
    mean_entropy = torch.stack([entropy(q) for q in p]).mean(dim=0)
    return (entropy(p.mean(dim=0)) - mean_entropy).clamp(min=0)


class Acquisition:
    """Scores whole images by what the network knows of them.

    ``entropy`` is the mean entropy of the decoder's prediction over all pixels. ``disagreement`` compares three
    predictions for every position at the resolution of f~: the decoder's, the same refined by the affinities within the
    image (p_in, eq. 5), and the one from similarity to the labelled images (p_cr, eq. 9).
    """

    def __init__(
        self,
        network: SemSimNet,
        *,
        num_classes: int,
        regions: int = 4,
        affinity_temperature: float = 0.1,
        prototype_temperature: float = 0.1,
        batch_size: int = 8,
        amp: bool | str = False,
    ) -> None:
        """
        Args:
            network: in evaluation mode, on its device.
            num_classes: K, background included.
            regions: N, as in training.
            affinity_temperature: t_a, as in training.
            prototype_temperature: t_p, as in training.
            batch_size: slices at a time.
            amp: what the network computes in, see :func:`~scripts.precision.precision`.
        """
        self.network, self.num_classes, self.regions = network, num_classes, regions
        self.t_a, self.t_p, self.batch_size = affinity_temperature, prototype_temperature, batch_size
        self.prototypes: Prototypes | None = None
        self.precision = precision(amp, self.device)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @torch.no_grad()
    def learn(self, slices: Iterable[Mapping[str, Any]], *, most: int = 64) -> None:
        """Take the classes' prototypes from labelled slices, which ``disagreement`` compares with.

        Args:
            slices: sequence of ``image (C, H, W)`` and ``label (1, H, W)``; patches with a third axis in 3D.
            most: slices to take at most, spread evenly over the sequence.

        Raises:
            InputError: the network has no fused features.
        """
        if self.network.fusion is None:
            raise InputError(
                "Disagreement needs the fused features of the network, which `fusion: none` has not; score by entropy."
            )
        chosen = evenly(list(slices), most)
        vectors, present = [], []
        for k in range(0, len(chosen), self.batch_size):
            batch = chosen[k : k + self.batch_size]
            image = torch.stack([torch.as_tensor(item["image"]) for item in batch]).to(self.device)
            label = torch.stack([torch.as_tensor(item["label"])[0] for item in batch]).to(self.device)
            (features,) = self._predicted(image, Streams(fuse=("x",)))
            found = class_prototypes(features, label, num_classes=self.num_classes, regions=self.regions)
            vectors.append(found.vectors)
            present.append(found.present)
        self.prototypes = Prototypes(torch.cat(vectors), torch.cat(present)) if vectors else None

    @torch.no_grad()
    def score(self, image: Tensor) -> dict[str, float]:
        """Scores of one image.

        Args:
            image: its slices, ``(slices, C, H, W)``, or patches that cover it, ``(patches, C, X, Y, Z)``.

        Returns:
            ``entropy``, and where prototypes have been learnt ``disagreement``: means over all pixels and slices.
        """
        values: dict[str, list[Tensor]] = {}
        fuse = ("x",) if self.prototypes is not None else ()
        for part in image.split(self.batch_size):
            logits, *fused = self._predicted(part.to(self.device), Streams(decode=("x",), fuse=fuse))
            p = logits.softmax(dim=1)
            values.setdefault("entropy", []).append(entropy(p).flatten(1).mean(dim=1))
            if self.prototypes is not None:
                (features,) = fused
                opinions = self._opinions(features, resize(p, features.shape[2:]), self.prototypes)
                values.setdefault("disagreement", []).append(disagreement(opinions).flatten(1).mean(dim=1))
        return {name: float(torch.cat(parts).mean()) for name, parts in values.items()}

    def _predicted(self, image: Tensor, streams: Streams) -> list[Tensor]:
        """Logits and features, those of the two that ``streams`` asks for."""

        def maps() -> list[Tensor]:
            output = self.network({"x": image}, streams)
            return [*output.logits.values(), *output.features.values()]

        return self.precision.predicted(maps)

    def _opinions(self, features: Tensor, decoded: Tensor, prototypes: Prototypes) -> list[Tensor]:
        """The decoder's prediction, p_in and p_cr, each ``(B, K, *spatial)`` at the size of f~."""
        similarity = cross_similarity(features, prototypes, regions=self.regions)
        log_p = cross_log_probabilities(similarity, prototypes.present, temperature=self.t_p)
        described = merge_regions(log_p, self.regions, features.shape[2:]).exp()
        return [decoded, refine(features, decoded, temperature=self.t_a), described]
