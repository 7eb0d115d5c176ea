"""The loss of SemSim: L = 1/2 (L_s + lambda_u L_u + lambda_intra L_intra + lambda_cross L_cross), eq. 18 and 19."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor, nn

from ..distributed import rank_and_size
from ..errors import InputError
from .augmentation import CutMix
from .fusion import resize
from .network import Output, Streams
from .similarity import (
    LOWEST_TEMPERATURE,
    Prototypes,
    agreement,
    class_prototypes,
    cross_log_probabilities,
    cross_similarity,
    full,
    merge_regions,
    nearest,
    refine,
)


def masked_dice(probabilities: Tensor, target: Tensor, mask: Tensor, *, batch: bool = True) -> Tensor:
    """Soft Dice loss over the positions in ``mask`` (eq. 1 and 6).

    Dice_c = 2 sum p_c y_c / (sum p_c^2 + sum y_c^2), mean over all classes, background included.

    Args:
        probabilities: ``(B, K, *spatial)``.
        target: class indices ``(B, *spatial)``.
        mask: ``(B, *spatial)`` bool.
        batch: sums over the whole batch; false: Dice of every image, then their mean.

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
    return DiceLoss(batch=batch, squared_pred=True)(probabilities * inside, one_hot * inside)


#: Views of the unlabelled images that the student may see.
VIEWS = ("strong_1", "strong_2", "weak_perturbed")


class SemSimLoss(nn.Module):
    """Every term of the method and the streams it reads. A term of weight zero is not computed, nor what only it reads.

    The streams are ``labeled`` (x_l), ``weak`` (x_w, evaluated without gradient) and the views of the unlabelled
    images: ``strong_1`` (x_s1), ``strong_2`` (x_s2), ``weak_perturbed`` (x_w again, with feature dropout).

    A step with it in a loop of one's own::

        >>> from scripts.method.augmentation import RandCutMix
        >>> from scripts.method.network import SemSimNet
        >>> network, loss = SemSimNet(out_channels=4, fusion="conv"), SemSimLoss(num_classes=4)
        >>> image_l, label = torch.rand(2, 1, 64, 64), torch.randint(4, (2, 1, 64, 64))
        >>> image_u = torch.rand(2, 1, 64, 64)  # weakly augmented
        >>> strong = {"strong_1": image_u**0.5, "strong_2": image_u**2}  # the same images, strongly augmented
        >>> mixes = {view: RandCutMix()(image_u) for view in strong}
        >>> images = {"labeled": image_l} | {view: mix(strong[view]) for view, mix in mixes.items()}
        >>> with torch.no_grad():
        ...     weak = network.eval()({"weak": image_u}, loss.weak_streams())
        >>> student = network.train()(images, loss.student_streams())
        >>> terms = loss(student, label, weak, mixes)
        >>> terms["loss"].backward()
        >>> [name for name in terms if name.startswith("loss_")]
        ['loss_s', 'loss_u', 'loss_intra', 'loss_cross']
    """

    def __init__(
        self,
        *,
        num_classes: int,
        lambda_u: float = 0.5,
        lambda_intra: float = 0.25,
        lambda_cross: float = 0.25,
        lambda_labeled: float = 0.0,
        threshold: float = 0.8,
        views: Mapping[str, float] | None = None,
        perturb: Sequence[str] = (),
        mask_source: str = "decoder",
        affinity_temperature: float = 0.1,
        affinity_axis: str = "row",
        refinement: str = "mean",
        prototype_temperature: float = 0.1,
        regions: int = 4,
        average_images: bool = True,
        uncertainty_scale: float = 10.0,
        uncertainty_divergence: str = "softmax",
        dice: str = "batch",
        gather_prototypes: bool = False,
    ) -> None:
        """
        Args:
            num_classes: K, background included.
            lambda_u: weight of L_u (paper: 0.5).
            lambda_intra: weight of L_intra (paper: 0.25).
            lambda_cross: weight of L_cross (paper: 0.25).
            lambda_labeled: weight of L_labeled, by which labelled images that are described by each other show their
                labels, from the first step on (not in the paper: 0).
            threshold: tau, confidence from which a pseudo-label counts (paper: 0.95).
            views: decoded views that L_u is summed over, with their weights. Default: ``strong_1`` alone.
            perturb: those of the views whose encoder features lose channels before the decoder (paper: ``strong_1``).
            mask_source: whose confidence masks L_intra and L_cross: ``decoder``, or ``own`` (paper, eq. 6 and 13).
            affinity_temperature: t_a (literal: 1).
            affinity_axis: ``row``, or ``column`` (literal).
            refinement: ``mean``, or ``sum`` (literal).
            prototype_temperature: t_p (literal: 1).
            regions: N, sub-regions a side (paper: 4).
            average_images: mean (literal: sum) over the labelled images in eq. 9.
            uncertainty_scale: r (paper: 1000).
            uncertainty_divergence: ``softmax``, or ``cosine`` (literal).
            dice: Dice of the whole ``batch``, or of each ``image``.
            gather_prototypes: in distributed training, whether L_cross describes a process's unlabelled images by the
                labelled images of all processes. With this, ``dice: image`` and batch norm that is synchronised the
                mean of the losses over processes, and the gradient, are those of one process with the whole batch and
                ``dice: image``.

        Raises:
            InputError: an unknown choice or view, or an affinity temperature that is too low to compute with.
        """
        super().__init__()
        choices = {
            "dice": (dice, ("batch", "image")),
            "mask_source": (mask_source, ("decoder", "own")),
            "affinity_axis": (affinity_axis, ("row", "column")),
            "refinement": (refinement, ("mean", "sum")),
            "uncertainty_divergence": (uncertainty_divergence, ("softmax", "cosine")),
        }
        for name, (chosen, known) in choices.items():
            if chosen not in known:
                raise InputError(f"loss#{name}: expected {' or '.join(known)}, received {chosen!r}.")
        if affinity_axis == "row" and not affinity_temperature >= LOWEST_TEMPERATURE:
            raise InputError(
                f"loss#affinity_temperature: expected {LOWEST_TEMPERATURE} or more, received {affinity_temperature!r}."
            )
        self.batch_dice, self.gather_prototypes = dice == "batch", gather_prototypes
        given = {"strong_1": 1.0} if views is None else views
        if not isinstance(given, Mapping) or not all(type(w) in (int, float) for w in given.values()):
            raise InputError(f"loss#views: expected a weight for each view, \"{{'strong_1': 1}}\", received {given!r}.")
        views = {view: w for view, w in given.items() if w > 0}
        if (lambda_u > 0 and not views) or any(w < 0 for w in given.values()):
            raise InputError(f"loss#views: expected a weight above 0 for one view or more, received {given}.")
        unknown = [v for v in (*views, *perturb) if v not in VIEWS]
        if unknown:
            raise InputError(f"views and perturb should name {', '.join(VIEWS)}, received {unknown}.")
        if "weak_perturbed" in views and "weak_perturbed" not in perturb:
            raise InputError("The view weak_perturbed should stand in `perturb` too, or it is the weak view once more.")
        if lambda_u > 0 and (idle := {*perturb} - {*views, *(["strong_1"] if lambda_intra > 0 else [])}):
            raise InputError(
                f"loss#perturb: expected some of the views {', '.join(views)}, received {', '.join(idle)}."
            )
        self.num_classes, self.threshold, self.mask_source = num_classes, threshold, mask_source
        self.lambda_u, self.lambda_intra, self.lambda_cross = lambda_u, lambda_intra, lambda_cross
        self.lambda_labeled = lambda_labeled
        self.views = views
        self.perturb = tuple(perturb)
        self.affinity: dict[str, Any] = {
            "temperature": affinity_temperature,
            "axis": affinity_axis,
            "combine": refinement,
        }
        self.pooling: dict[str, Any] = {"temperature": prototype_temperature, "average_images": average_images}
        self.weighting: dict[str, Any] = {"scale": uncertainty_scale, "divergence": uncertainty_divergence}
        self.regions = regions

    def student_streams(self, unlabeled: bool = True) -> Streams:
        """What the student computes in a step, with or without an unlabelled batch.

        By default ``labeled`` is decoded and fused (prototypes), ``strong_1`` decoded and fused (L_u and L_intra),
        ``strong_2`` fused alone (L_cross needs no decoder).
        """
        if not unlabeled:
            return Streams(decode=("labeled",), fuse=("labeled",) * (self.lambda_labeled > 0))
        intra, cross = self.lambda_intra > 0, self.lambda_cross > 0
        views = tuple(self.views) if self.lambda_u > 0 else ()
        if intra and "strong_1" not in views:
            views += ("strong_1",)
        fuse = ("strong_1",) * intra + ("labeled",) * (cross or self.lambda_labeled > 0) + ("strong_2",) * cross
        return Streams(decode=("labeled", *views), fuse=fuse, perturb=tuple(p for p in self.perturb if p in views))

    def weak_streams(self) -> Streams:
        """What is computed for the weak view: logits, and features where a similarity term reads them."""
        fuse = self.lambda_cross > 0 or self.lambda_intra > 0
        return Streams(decode=("weak",), fuse=("weak",) if fuse else ())

    def forward(
        self,
        student: Output,
        label: Tensor,
        weak: Output | None = None,
        mixes: Mapping[str, CutMix] | None = None,
    ) -> dict[str, Tensor]:
        """
        Args:
            student: logits and features of ``labeled`` and of the views.
            label: class indices of the labelled images, ``(B, 1, *spatial)``; negative ones mark pixels to ignore,
                which enter no term.
            weak: logits and features of ``weak``, without gradient; ``None`` trains on labels alone.
            mixes: CutMix of each view that has one; pseudo-labels are pasted with the same boxes.

        Returns:
            scalars: ``loss``; its terms ``loss_s``, ``loss_labeled``, ``loss_u``, ``loss_intra``, ``loss_cross``, those
            that are computed, before weighting; the fraction of positions in the masks ``mask_*`` (of the weak view for
            L_u, as pasted for the others); the mean weight of L_cross ``agreement``; the fraction of each class among
            all pseudo-labels and all labels (``pseudo_c``, ``label_c``).
        """
        mixes = mixes or {}
        terms = {"loss_s": self._supervised(full(student.logits["labeled"]), label)}
        total = terms["loss_s"]
        shares = {"label": label}
        cross = weak is not None and self.lambda_cross > 0
        prototypes = self._prototypes(student, label) if cross or self.lambda_labeled > 0 else None
        if prototypes is not None and self.lambda_labeled > 0:
            terms["loss_labeled"] = self._labeled(full(student.features["labeled"]), prototypes, label)
            total = total + self.lambda_labeled * terms["loss_labeled"]
        if weak is not None:
            targets = self._targets(weak, prototypes if cross else None)
            shares["pseudo"] = targets["u"].pseudo
            if self.lambda_u > 0:
                terms.update(self._consistency(student, targets["u"], label, mixes))
                total = total + self.lambda_u * terms["loss_u"]
            if self.lambda_intra > 0:
                terms.update(self._intra(student, targets["intra"], label, mixes))
                total = total + self.lambda_intra * terms["loss_intra"]
            if prototypes is not None and cross:
                terms.update(self._cross(student, prototypes, targets["cross"], label, mixes))
                total = total + self.lambda_cross * terms["loss_cross"]
        for name, values in shares.items():
            from_one = (values.detach().flatten().long() + 1).clamp(min=0)  # 0: not judged
            counts = torch.bincount(from_one, minlength=self.num_classes + 1)[1:]
            fractions = counts / counts.sum().clamp(min=1)
            terms.update({f"{name}_{c}": fractions[c] for c in range(self.num_classes)})
        return {"loss": 0.5 * total, **terms}

    def _supervised(self, logits: Tensor, label: Tensor) -> Tensor:
        """L_s, eq. 2, where the label is not negative: the mean of cross entropy and soft Dice."""
        inside, target = label[:, 0] >= 0, label[:, 0].long().clamp(min=0)
        entropy = (F.cross_entropy(logits, target, reduction="none") * inside).sum() / inside.sum().clamp(min=1)
        dice = masked_dice(logits.softmax(dim=1), target, inside, batch=self.batch_dice)
        return 0.5 * dice + 0.5 * entropy

    def _prototypes(self, student: Output, label: Tensor) -> Prototypes:
        """G of the labelled images, eq. 7 and 8."""
        features = full(student.features["labeled"])
        own = class_prototypes(features, label[:, 0], num_classes=self.num_classes, regions=self.regions)
        return own.gathered() if self.gather_prototypes else own

    @torch.no_grad()
    def _targets(self, weak: Output, prototypes: Prototypes | None) -> dict[str, Target]:
        """Hard pseudo-labels of each term and where they count: p_w, p_w1 and p_w2 are targets and nothing else."""
        decoded = full(weak.logits["weak"]).softmax(dim=1)
        p = {"u": decoded}
        sources = dict(p)  # whose confidence counts
        if weak.features:
            features = weak.features["weak"]
            small = resize(decoded, features.shape[2:])  # I(p_w)
            if self.lambda_intra > 0:
                p["intra"] = refine(features, small, **self.affinity)
            if prototypes is not None:
                p["cross"] = self._described(full(features), prototypes)[1].exp()
            sources |= {term: small if self.mask_source == "decoder" else p[term] for term in p if term != "u"}
        # indices by max: on a CPU argmax over the channels takes seven times as long
        targets = {t: Target(p[t].max(dim=1).indices, sources[t].amax(dim=1) >= self.threshold) for t in p}
        if prototypes is not None:
            # where a class is meant that no labelled image shows, p_cr has nothing to say: not in L_cross
            known, pseudo = prototypes.present.any(dim=0), targets["cross"].pseudo
            meant = sources["cross"].max(dim=1).indices
            targets["cross"] = Target(pseudo, targets["cross"].sure & known[meant] & known[pseudo])
        return targets

    def _described(self, features: Tensor, prototypes: Prototypes) -> tuple[Tensor, Tensor]:
        """Eq. 9: cosines with the prototypes by sub-region, and log p_cr ``(B, K, *spatial)``."""
        similarity = cross_similarity(features, prototypes, regions=self.regions)
        log_p = cross_log_probabilities(similarity, prototypes.present, **self.pooling)
        return similarity, merge_regions(log_p, self.regions, features.shape[2:])

    def _labeled(self, features: Tensor, prototypes: Prototypes, label: Tensor) -> Tensor:
        """L_labeled: cross entropy of p_cr of each labelled image, described by all others, with its label.

        Mean over all positions, as in L_cross; those that nobody judged, or whose class no other image shows, count as
        zero.
        """
        similarity = cross_similarity(features, prototypes, regions=self.regions)  # (J, R, L, J, K)
        target = nearest(label, features.shape[2:])
        first = rank_and_size()[0] * len(features) if self.gather_prototypes else 0  # of this process among all
        losses = []
        for j in range(len(features)):
            others = prototypes.present.clone()
            others[first + j] = False
            log_p = cross_log_probabilities(similarity[j : j + 1], others, **self.pooling)
            log_p = merge_regions(log_p, self.regions, features.shape[2:])[0]
            judged = target[j].clamp(min=0)
            known = others.any(dim=0)[judged] & (target[j] >= 0)
            losses.append((-log_p.gather(0, judged[None])[0] * known).mean())
        return torch.stack(losses).mean()

    def _consistency(
        self, student: Output, target: Target, label: Tensor, mixes: Mapping[str, CutMix]
    ) -> dict[str, Tensor]:
        """L_u, eq. 1: every view against the weak view's pseudo-label, where that is confident."""
        losses = []
        for view, weight in self.views.items():
            pasted = target.paste(mixes.get(view), label)
            p_s = full(student.logits[view]).softmax(dim=1)
            losses.append(weight * masked_dice(p_s, pasted.pseudo, pasted.sure, batch=self.batch_dice))
        return {"loss_u": torch.stack(losses).sum(), "mask_u": target.sure.float().mean()}

    def _intra(self, student: Output, target: Target, label: Tensor, mixes: Mapping[str, CutMix]) -> dict[str, Tensor]:
        """L_intra, eq. 4 to 6: x_s1's prediction rectified by its own affinities against the weak view's."""
        target = target.paste(mixes.get("strong_1"), label)
        features = student.features["strong_1"]
        p_s = resize(full(student.logits["strong_1"]).softmax(dim=1), features.shape[2:])
        p_in = refine(features, p_s, **self.affinity)
        return {
            "loss_intra": masked_dice(p_in, target.pseudo, target.sure, batch=self.batch_dice),
            "mask_intra": target.sure.float().mean(),
        }

    def _cross(
        self, student: Output, prototypes: Prototypes, target: Target, label: Tensor, mixes: Mapping[str, CutMix]
    ) -> dict[str, Tensor]:
        """L_cross, eq. 7 to 13: x_s2 described by the labelled images' classes against the weak view so described."""
        target = target.paste(mixes.get("strong_2"), label)
        features = full(student.features["strong_2"])
        similarity, log_cr = self._described(features, prototypes)
        weight = agreement(similarity, prototypes.present, **self.weighting).unsqueeze(-1)
        weight = merge_regions(weight, self.regions, features.shape[2:])[:, 0]
        entropy = -log_cr.gather(1, target.pseudo.unsqueeze(1))[:, 0]
        return {
            "loss_cross": (entropy * target.sure * weight).mean(),
            "mask_cross": target.sure.float().mean(),
            "agreement": weight.mean(),
        }


@dataclass(frozen=True)
class Target:
    """Pseudo-labels of unlabelled images.

    Attributes:
        pseudo: class indices ``(B, *spatial)``.
        sure: which of them count, ``(B, *spatial)`` bool.
    """

    pseudo: Tensor
    sure: Tensor

    def paste(self, mix: CutMix | None, label: Tensor) -> Target:
        """With the boxes that a view was mixed with.

        Args:
            mix: boxes and partners; ``None`` for none.
            label: true labels of the labelled images ``(J, 1, *)`` of any resolution, which count unless negative.
        """
        if mix is None:
            return self
        true = nearest(label, self.pseudo.shape[1:])
        return Target(mix(self.pseudo, true.clamp(min=0)), mix(self.sure, true >= 0))
