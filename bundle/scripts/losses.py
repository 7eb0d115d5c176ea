"""The loss of SemSim: L = 1/2 (L_s + lambda L_u + lambda_intra L_intra + lambda_cross L_cross), eq. 18 and 19."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss, DiceLoss
from torch import Tensor, nn

from .network import Output, Streams, resize
from .similarity import (
    agreement,
    class_prototypes,
    cross_log_probabilities,
    cross_similarity,
    merge_regions,
    refine,
)
from .transforms import CutMix


def masked_dice(probabilities: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Soft Dice loss over the positions in ``mask`` (eq. 1 and 6), sums taken over the whole batch.

    Dice_c = 2 sum p_c y_c / (sum p_c^2 + sum y_c^2), mean over all classes, background included.

    Args:
        probabilities: ``(B, K, *spatial)``.
        target: class indices ``(B, *spatial)``.
        mask: ``(B, *spatial)`` bool.

    Returns:
        scalar in [0, 1]; 0, without gradient, where nothing is in the mask.

    Raises:
        ValueError: shapes that do not fit.
    """
    if target.shape != mask.shape or (probabilities.shape[0], *probabilities.shape[2:]) != tuple(target.shape):
        raise ValueError(
            "probabilities (B, K, *spatial) with target and mask (B, *spatial) expected, received "
            f"{tuple(probabilities.shape)}, {tuple(target.shape)} and {tuple(mask.shape)}."
        )
    inside = mask.unsqueeze(1).to(probabilities.dtype)
    one_hot = F.one_hot(target, probabilities.shape[1]).movedim(-1, 1).to(probabilities.dtype)
    return DiceLoss(batch=True, squared_pred=True)(probabilities * inside, one_hot * inside)


def full(x: Tensor) -> Tensor:
    """Float32 at least: losses are not computed in the half precision of an autocast network."""
    return x if x.dtype == torch.float64 else x.float()


#: Views of the unlabelled images that the student may see.
VIEWS = ("strong_1", "strong_2", "weak_perturbed")


class SemSimLoss(nn.Module):
    """Every term of the method and the streams it reads. A term of weight zero is not computed, nor what only it reads.

    The streams are ``labeled`` (x_l), ``weak`` (x_w, evaluated without gradient) and the views of the unlabelled
    images: ``strong_1`` (x_s1), ``strong_2`` (x_s2), ``weak_perturbed`` (x_w again, with feature dropout).
    """

    def __init__(
        self,
        *,
        num_classes: int,
        lambda_u: float = 0.5,
        lambda_intra: float = 0.25,
        lambda_cross: float = 0.25,
        threshold: float = 0.95,
        views: Mapping[str, float] | None = None,
        perturb: tuple[str, ...] = ("strong_1",),
        mask_source: str = "decoder",
        affinity_temperature: float = 0.1,
        affinity_axis: str = "row",
        refinement: str = "mean",
        prototype_temperature: float = 0.1,
        regions: int = 4,
        average_images: bool = True,
        prototype_gradient: bool = True,
        uncertainty_scale: float = 10.0,
        uncertainty_divergence: str = "softmax",
    ) -> None:
        """
        Args:
            num_classes: K, background included.
            lambda_u: weight of L_u (paper: 0.5).
            lambda_intra: weight of L_intra (paper: 0.25).
            lambda_cross: weight of L_cross (paper: 0.25).
            threshold: tau, confidence from which a pseudo-label counts (paper: 0.95).
            views: decoded views that L_u is summed over, with their weights. Default: ``strong_1`` alone.
            perturb: those of the views whose encoder features lose channels before the decoder.
            mask_source: whose confidence masks L_intra and L_cross: ``decoder``, or ``own`` (paper, eq. 6 and 13).
            affinity_temperature: t_a (literal: 1).
            affinity_axis: ``row``, or ``column`` (literal).
            refinement: ``mean``, or ``sum`` (literal).
            prototype_temperature: t_p (literal: 1).
            regions: N, sub-regions a side (paper: 4).
            average_images: mean (literal: sum) over the labelled images in eq. 9.
            prototype_gradient: whether L_cross also moves the prototypes.
            uncertainty_scale: r (paper: 1000).
            uncertainty_divergence: ``softmax``, or ``cosine`` (literal).

        Raises:
            ValueError: unknown ``mask_source``, view or perturbed view.
        """
        super().__init__()
        views = {"strong_1": 1.0} if views is None else {view: w for view, w in views.items() if w > 0}
        unknown = [v for v in (*views, *perturb) if v not in VIEWS]
        if unknown:
            raise ValueError(f"views and perturb should name {', '.join(VIEWS)}, received {unknown}.")
        if "weak_perturbed" in views and "weak_perturbed" not in perturb:
            raise ValueError("The view weak_perturbed should stand in `perturb` too, or it is the weak view once more.")
        if mask_source not in ("decoder", "own"):
            raise ValueError(f"mask_source should be decoder or own, received {mask_source!r}.")
        self.num_classes, self.threshold, self.mask_source = num_classes, threshold, mask_source
        self.lambda_u, self.lambda_intra, self.lambda_cross = lambda_u, lambda_intra, lambda_cross
        self.views = views
        self.perturb = tuple(perturb)
        self.affinity: dict[str, Any] = {
            "temperature": affinity_temperature,
            "axis": affinity_axis,
            "combine": refinement,
        }
        self.pooling: dict[str, Any] = {"temperature": prototype_temperature, "average_images": average_images}
        self.weighting: dict[str, Any] = {"scale": uncertainty_scale, "divergence": uncertainty_divergence}
        self.regions, self.prototype_gradient = regions, prototype_gradient
        self.supervised = DiceCELoss(
            softmax=True, to_onehot_y=True, batch=True, squared_pred=True, lambda_dice=0.5, lambda_ce=0.5
        )

    def student_streams(self, unlabeled: bool = True) -> Streams:
        """What the student computes in a step, with or without an unlabelled batch.

        By default ``labeled`` is decoded and fused (prototypes), ``strong_1`` decoded, perturbed and fused (L_u and
        L_intra), ``strong_2`` fused alone (L_cross needs no decoder).
        """
        if not unlabeled:
            return Streams(decode=("labeled",))
        intra, cross = self.lambda_intra > 0, self.lambda_cross > 0
        views = tuple(self.views) if self.lambda_u > 0 else ()
        if intra and "strong_1" not in views:
            views += ("strong_1",)
        fuse = ("strong_1",) * intra + ("labeled", "strong_2") * cross
        return Streams(decode=("labeled", *views), fuse=fuse, perturb=tuple(p for p in self.perturb if p in views))

    def weak_streams(self) -> Streams:
        """What is computed for the weak view: logits, and features where a similarity term reads them."""
        fuse = self.lambda_cross > 0 or self.lambda_intra > 0
        return Streams(decode=("weak",), fuse=("weak",) if fuse else ())

    def forward(
        self, student: Output, label: Tensor, weak: Output | None = None, mixes: Mapping[str, CutMix] | None = None
    ) -> dict[str, Tensor]:
        """
        Args:
            student: logits and features of ``labeled`` and of the views.
            label: class indices of the labelled images, ``(B, 1, *spatial)``.
            weak: logits and features of ``weak``, without gradient; ``None`` trains on labels alone.
            mixes: CutMix of each view that has one; pseudo-labels are pasted with the same boxes.

        Returns:
            scalars: ``loss``; the terms ``loss_s``, ``loss_u``, ``loss_intra``, ``loss_cross`` before weighting; the
            share of positions in their masks ``mask_*`` (of the weak view for L_u, as pasted for the others); the mean
            weight of L_cross ``agreement``; the share of each class among all pseudo-labels and all labels
            (``pseudo_c``, ``label_c``).
        """
        mixes = mixes or {}
        terms = {"loss_s": self.supervised(full(student.logits["labeled"]), label)}
        total = terms["loss_s"]
        shares = {"label": label}
        if weak is not None:
            # hard pseudo-labels, no gradient: p_w is a target and nothing else
            p_w = full(weak.logits["weak"].detach()).softmax(dim=1)
            confidence, pseudo = p_w.max(dim=1)
            shares["pseudo"] = pseudo
            if weak.features:
                p_w = resize(p_w, weak.features["weak"].shape[2:])  # I(p_w)
            if self.lambda_u > 0:
                terms.update(self._consistency(student, pseudo, confidence, mixes))
                total = total + self.lambda_u * terms["loss_u"]
            if self.lambda_intra > 0:
                terms.update(self._intra(student, weak, p_w, mixes.get("strong_1")))
                total = total + self.lambda_intra * terms["loss_intra"]
            if self.lambda_cross > 0:
                terms.update(self._cross(student, weak, p_w, label, mixes.get("strong_2")))
                total = total + self.lambda_cross * terms["loss_cross"]
        for name, values in shares.items():
            counts = torch.bincount(values.detach().flatten().long(), minlength=self.num_classes)
            terms.update({f"{name}_{c}": counts[c] / values.numel() for c in range(self.num_classes)})
        return {"loss": 0.5 * total, **terms}

    def _consistency(
        self, student: Output, pseudo: Tensor, confidence: Tensor, mixes: Mapping[str, CutMix]
    ) -> dict[str, Tensor]:
        """L_u, eq. 1: every view against the weak view's pseudo-label, where that is confident."""
        losses = []
        for view, weight in self.views.items():
            target, sure = paste(mixes.get(view), pseudo, confidence >= self.threshold)
            losses.append(weight * masked_dice(full(student.logits[view]).softmax(dim=1), target, sure))
        return {"loss_u": torch.stack(losses).sum(), "mask_u": (confidence >= self.threshold).float().mean()}

    def _sure(self, p_w: Tensor, own: Tensor) -> Tensor:
        """Where a similarity term counts: by the decoder's confidence in I(p_w), or by its own."""
        return (p_w.amax(dim=1) if self.mask_source == "decoder" else own) >= self.threshold

    def _intra(self, student: Output, weak: Output, p_w: Tensor, mix: CutMix | None) -> dict[str, Tensor]:
        """L_intra, eq. 4 to 6: x_s1's prediction rectified by its own affinities against the weak view's."""
        with torch.no_grad():
            p_w1 = refine(full(weak.features["weak"].detach()), p_w, **self.affinity)
        own, pseudo = p_w1.max(dim=1)
        target, mask = paste(mix, pseudo, self._sure(p_w, own))
        features = full(student.features["strong_1"])
        p_s = resize(full(student.logits["strong_1"]).softmax(dim=1), features.shape[2:])
        p_in = refine(features, p_s, **self.affinity)
        return {"loss_intra": masked_dice(p_in, target, mask), "mask_intra": mask.float().mean()}

    def _cross(
        self, student: Output, weak: Output, p_w: Tensor, label: Tensor, mix: CutMix | None
    ) -> dict[str, Tensor]:
        """L_cross, eq. 7 to 13: x_s2 described by the labelled images' classes against the weak view so described."""
        prototypes = class_prototypes(
            full(student.features["labeled"]), label[:, 0], num_classes=self.num_classes, regions=self.regions
        )
        features = full(student.features["strong_2"])
        size = features.shape[2:]
        with torch.no_grad():
            similarity = cross_similarity(
                full(weak.features["weak"].detach()), prototypes.detach(), regions=self.regions
            )
            log_w = cross_log_probabilities(similarity, prototypes.present, **self.pooling)
            own, pseudo = merge_regions(log_w, self.regions, size).exp().max(dim=1)
        target, mask = paste(mix, pseudo, self._sure(p_w, own))

        keys = prototypes if self.prototype_gradient else prototypes.detach()
        similarity = cross_similarity(features, keys, regions=self.regions)
        log_cr = merge_regions(cross_log_probabilities(similarity, keys.present, **self.pooling), self.regions, size)
        weight = agreement(similarity, keys.present, **self.weighting).unsqueeze(-1)
        weight = merge_regions(weight, self.regions, size)[:, 0]
        entropy = -log_cr.gather(1, target.unsqueeze(1))[:, 0]
        return {
            "loss_cross": (entropy * mask * weight).mean(),
            "mask_cross": mask.float().mean(),
            "agreement": weight.mean(),
        }


def paste(mix: CutMix | None, *maps: Tensor) -> tuple[Tensor, ...]:
    """Paste pseudo-labels and masks with the boxes that their view was mixed with."""
    return maps if mix is None else tuple(mix(m) for m in maps)
