"""SemSim written down as the paper reads, to measure the fast step against. It is not to be optimised.

The affinity map is formed, the CutMix partner is a batch with a forward of its own (as in the public code of this line
of work), every similarity is worked out where it is used. 2D only, image sides that the windows divide. Batch-norm
grouping, formulas and random draws are those of the bundle with `weak_batch_norm: evaluation` and `copy_paste: 0`, so
that loss and gradients agree with it; parameters have the names of ``SemSimNet``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from monai.networks.nets import BasicUNet
from scripts.method.fusion import SpatialAwareFusion
from scripts.method.network import UNet
from torch import Tensor, nn

WINDOWS = (8, 4, 2)
TAU, T_A, T_P, R, N = 0.95, 0.1, 0.1, 10.0, 4
LAMBDA_U, LAMBDA_INTRA, LAMBDA_CROSS = 0.5, 0.25, 0.25
EPS = 1e-6


class NaiveFusion(SpatialAwareFusion):
    """SFM, III-D: the modules of the bundle's, every map formed."""

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        maps = [project(stage) for project, stage in zip(self.projections, stages)]
        tokens = []
        for m, w in zip(maps, WINDOWS):
            windows = m.unfold(2, w, w).unfold(3, w, w)  # (B, D, S, S, w, w)
            tokens.append(windows.permute(0, 2, 3, 4, 5, 1).flatten(3, 4))  # (B, S, S, w * w, D)
        x = torch.cat(tokens, dim=3)
        shape = x.shape
        x = x.flatten(0, 2)
        x = x + self.attention(self.norm_attention(x))
        x = x + self.mlp(self.norm_mlp(x))
        parts = x.view(shape).split([w * w for w in WINDOWS], dim=3)
        size = maps[1].shape[2:]
        split = []
        for part, w, m in zip(parts, WINDOWS, maps):
            windows = part.unflatten(3, (w, w)).permute(0, 5, 1, 3, 2, 4)  # (B, D, S, w, S, w)
            restored = windows.reshape(m.shape)
            split.append(
                restored if restored.shape[2:] == size else F.interpolate(restored, size=size, mode="bilinear")
            )
        return self.fuse(torch.cat(split, dim=1))


class NaiveSemSim(nn.Module):
    """Network and loss of one step; ``forward`` returns the loss."""

    def __init__(
        self, in_channels: int = 1, num_classes: int = 4, features: tuple[int, ...] = (16, 32, 64, 128, 256, 16)
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.backbone = BasicUNet(2, in_channels, num_classes, features, norm="batch", upsample="nontrainable")
        self.fusion = NaiveFusion(2, features[1:4], 128)

    def decode(self, stages: list[Tensor]) -> Tensor:
        unet = self.backbone
        x = unet.upcat_4(stages[4], stages[3])
        x = unet.upcat_3(x, stages[2])
        x = unet.upcat_2(x, stages[1])
        return unet.final_conv(unet.upcat_1(x, stages[0]))

    def predict(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities and f~ of an unlabelled batch, in evaluation mode and without gradient."""
        self.eval()
        with torch.no_grad():
            stages = UNet.encode(self.backbone, image)
            probabilities, fused = self.decode(stages).softmax(dim=1), self.fusion(stages[1:4])
        self.train()
        return probabilities, fused

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """
        Args:
            batch: ``labeled`` and ``label``; ``weak``, ``strong_1``, ``strong_2`` of the unlabelled images and
                ``partner_weak``, ``partner_1``, ``partner_2`` of their CutMix partners, ``(B, C, H, W)``; ``box_1`` and
                ``box_2``, ``(B, 1, H, W)`` bool.
        """
        box_1, box_2 = batch["box_1"], batch["box_2"]
        p_weak, f_weak = self.predict(batch["weak"])
        p_mix, f_mix = self.predict(batch["partner_weak"])

        x_l = batch["labeled"]
        x_s1 = torch.where(box_1, batch["partner_1"], batch["strong_1"])
        x_s2 = torch.where(box_2, batch["partner_2"], batch["strong_2"])
        b, u = x_l.shape[0], x_s1.shape[0]
        stages = UNet.encode(self.backbone, torch.cat([x_l, x_s1, x_s2]))
        fused = self.fusion(stages[1:4])
        f_l, f_s1, f_s2 = fused.split([b, u, u])
        decoder_in = [torch.cat([s[:b], F.dropout2d(s[b : b + u], 0.5)]) for s in stages]
        logits_l, logits_s1 = self.decode(decoder_in).split([b, u])

        y = batch["label"][:, 0].long()
        everywhere = torch.ones_like(y, dtype=torch.bool)
        loss_s = 0.5 * F.cross_entropy(logits_l, y) + 0.5 * dice(logits_l.softmax(dim=1), y, everywhere)

        confidence, pseudo = paste(box_1, p_weak, p_mix).max(dim=1)
        p_s = logits_s1.softmax(dim=1)
        loss_u = dice(p_s, pseudo, confidence >= TAU)

        size = fused.shape[2:]
        small_1 = F.interpolate(box_1.to(p_s.dtype), size=size, mode="nearest-exact") > 0.5
        small_2 = F.interpolate(box_2.to(p_s.dtype), size=size, mode="nearest-exact") > 0.5
        i_weak, i_mix = (F.interpolate(p, size=size, mode="bilinear") for p in (p_weak, p_mix))
        target = paste(small_1, rectify(f_weak, i_weak), rectify(f_mix, i_mix)).argmax(dim=1)
        mask = paste(small_1, i_weak, i_mix).amax(dim=1) >= TAU
        loss_intra = dice(rectify(f_s1, F.interpolate(p_s, size=size, mode="bilinear")), target, mask)

        one_hot = F.interpolate(batch["label"].to(fused.dtype), size=size, mode="nearest-exact")[:, 0].long()
        prototypes, present = class_prototypes(f_l, F.one_hot(one_hot, self.num_classes).movedim(-1, 1).to(fused.dtype))
        q_weak, _ = describe(f_weak, prototypes.detach(), present)
        q_mix, _ = describe(f_mix, prototypes.detach(), present)
        target = paste(small_2, q_weak, q_mix).argmax(dim=1)
        confidence, meant = paste(small_2, i_weak, i_mix).max(dim=1)
        mask = (confidence >= TAU) & present.any(dim=0)[meant]
        log_q, similarity = describe(f_s2, prototypes, present)
        entropy = -log_q.gather(1, target[:, None])[:, 0]
        loss_cross = (entropy * mask * certainty(similarity.detach(), present)).mean()
        return 0.5 * (loss_s + LAMBDA_U * loss_u + LAMBDA_INTRA * loss_intra + LAMBDA_CROSS * loss_cross)


def paste(box: Tensor, weak: Tensor, partner: Tensor) -> Tensor:
    return torch.where(box, partner, weak)


def dice(p: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Masked Dice, eq. 1."""
    inside = mask[:, None].to(p.dtype)
    y = F.one_hot(target, p.shape[1]).movedim(-1, 1).to(p.dtype) * inside
    p = p * inside
    axes = (0, 2, 3)
    return (1 - (2 * (p * y).sum(axes) + 1e-5) / ((p**2).sum(axes) + (y**2).sum(axes) + 1e-5)).mean()


def rectify(features: Tensor, p: Tensor) -> Tensor:
    """Eq. 4 and 5, the n x n map formed."""
    f = F.normalize(features, dim=1, eps=EPS).flatten(2)
    m = torch.softmax(f.transpose(1, 2) @ f / T_A, dim=-1)
    return (p + (p.flatten(2) @ m.transpose(1, 2)).view_as(p)) / 2


def regions_of(size: torch.Size) -> list[tuple[slice, slice]]:
    h, w = (-(-n // N) for n in size)
    return [(slice(i * h, (i + 1) * h), slice(j * w, (j + 1) * w)) for i in range(N) for j in range(N)]


def class_prototypes(features: Tensor, one_hot: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 7 and 8: ``(J, D, N * N, K)`` and which image shows which class, ``(J, K)``."""
    whole = torch.einsum("jdhw,jkhw->jdk", features, one_hot) / one_hot.sum((2, 3)).clamp(min=1)[:, None]
    result = []
    for rows, columns in regions_of(features.shape[2:]):
        f, y = features[:, :, rows, columns], one_hot[:, :, rows, columns]
        count = y.sum((2, 3))[:, None]
        mean = torch.einsum("jdhw,jkhw->jdk", f, y) / count.clamp(min=1)
        result.append(torch.where(count > 0, mean, whole))
    return torch.stack(result, dim=2), one_hot.sum((2, 3)) > 0


def describe(features: Tensor, prototypes: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 9: log p_cr ``(B, K, h, w)`` and the cosines ``(B, J, K, h, w)``."""
    f, keys = F.normalize(features, dim=1, eps=EPS), F.normalize(prototypes, dim=1, eps=EPS)
    similarity = features.new_zeros(f.shape[0], *present.shape, *f.shape[2:])
    for region, (rows, columns) in enumerate(regions_of(f.shape[2:])):
        similarity[..., rows, columns] = torch.einsum("bdhw,jdk->bjkhw", f[:, :, rows, columns], keys[:, :, region])
    shown = present[None, :, :, None, None]
    evidence = (torch.exp(similarity / T_P) * shown).sum(dim=1) / shown.sum(dim=1).clamp(min=1)
    evidence = evidence.clamp(min=1e-30)  # a class that no image shows
    return (evidence / evidence.sum(dim=1, keepdim=True)).log(), similarity


def certainty(similarity: Tensor, present: Tensor) -> Tensor:
    """Eq. 11 and 12: the weight U_bar, ``(B, h, w)``."""
    shown = present[None, :, :, None, None]
    count = shown.sum(dim=1, keepdim=True)
    consensus = (similarity * shown).sum(dim=1, keepdim=True) / count.clamp(min=1)
    opinion = torch.where(shown, similarity, consensus).masked_fill(count == 0, float("-inf"))
    q = opinion.softmax(dim=2)
    mean = q.mean(dim=1, keepdim=True)
    divergence = (torch.xlogy(q, q) - torch.xlogy(q, mean)).sum(dim=2).clamp(min=0)
    return torch.exp(-R * divergence).mean(dim=1)
