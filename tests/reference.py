"""Slow, obvious versions of the method's formulas: loops over images, positions and classes, in float64.

Written from the equations, not from the fast versions, to compare the latter with.
"""

from __future__ import annotations

import math

import numpy as np


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def affinity(features: np.ndarray, temperature: float) -> np.ndarray:
    """Eq. 4 for one image, ``features: (n, D)`` -> ``(n, n)``."""
    n = len(features)
    m = np.empty((n, n))
    for k1 in range(n):
        row = [math.exp(cosine(features[k1], features[k2]) / temperature) for k2 in range(n)]
        m[k1] = np.array(row) / sum(row)
    return m


def refine(features: np.ndarray, p: np.ndarray, temperature: float) -> np.ndarray:
    """Eq. 5 for one image, each position the mean of itself and its weighted mean: ``p: (n, K)`` -> ``(n, K)``."""
    m = affinity(features, temperature)
    result = np.empty_like(p)
    for k1 in range(len(p)):
        result[k1] = (p[k1] + sum(m[k1, k2] * p[k2] for k2 in range(len(p)))) / 2
    return result


def refine_printed(features: np.ndarray, p: np.ndarray, temperature: float) -> np.ndarray:
    """Eq. 5 as printed: I(p) + I(p) M with p as a matrix (K, n)."""
    return (p.T + p.T @ affinity(features, temperature)).T


def region_of(position: tuple[int, ...], size: tuple[int, ...], regions: int) -> tuple[int, ...]:
    return tuple(i // math.ceil(n / regions) for i, n in zip(position, size))


def prototypes(features: np.ndarray, labels: np.ndarray, num_classes: int, regions: int) -> dict:
    """Eq. 7, 8: ``features: (J, *spatial, D)``, ``labels: (J, *spatial)`` -> ``{(j, region, c): vector}``."""
    result = {}
    size = labels.shape[1:]
    for j in range(len(labels)):
        for c in range(num_classes):
            members = [i for i in np.ndindex(size) if labels[(j, *i)] == c]
            if not members:
                continue
            whole = np.mean([features[(j, *i)] for i in members], axis=0)
            for region in np.ndindex(*([regions] * len(size))):
                inside = [features[(j, *i)] for i in members if region_of(i, size, regions) == region]
                result[j, region, c] = np.mean(inside, axis=0) if inside else whole
    return result


def cross_probabilities(
    features: np.ndarray, protos: dict, images: int, num_classes: int, regions: int, temperature: float, average: bool
) -> np.ndarray:
    """Eq. 9 for one image, ``features: (*spatial, D)`` -> ``(*spatial, K)``."""
    size = features.shape[:-1]
    result = np.zeros((*size, num_classes))
    for i in np.ndindex(size):
        region = region_of(i, size, regions)
        for c in range(num_classes):
            terms = [
                math.exp(cosine(features[i], protos[j, region, c]) / temperature)
                for j in range(images)
                if (j, region, c) in protos
            ]
            result[(*i, c)] = (sum(terms) / len(terms) if average else sum(terms)) if terms else 0.0
        result[i] /= result[i].sum()
    return result


def agreement(
    features: np.ndarray, protos: dict, images: int, num_classes: int, regions: int, scale: float
) -> np.ndarray:
    """Eq. 11, 12 for one image, ``features: (*spatial, D)`` -> ``(*spatial)``."""
    size = features.shape[:-1]
    result = np.zeros(size)
    for i in np.ndindex(size):
        region = region_of(i, size, regions)
        m = {(j, c): cosine(features[i], protos[j, region, c]) for j in range(images) for c in range(num_classes)
             if (j, region, c) in protos}  # fmt: skip
        classes = sorted({c for _, c in m})
        q = np.zeros((images, num_classes))
        for j in range(images):
            mean_of = {c: np.mean([v for (_, k), v in m.items() if k == c]) for c in classes}
            e = {c: math.exp(m.get((j, c), mean_of[c])) for c in classes}  # an image abstains on what it lacks
            for c in classes:
                q[j, c] = e[c] / sum(e.values())
        mean = q.mean(axis=0)
        kl = [
            sum(q[j, c] * math.log(q[j, c] / mean[c]) for c in range(num_classes) if q[j, c] > 0) for j in range(images)
        ]
        result[i] = np.mean([math.exp(-scale * u) for u in kl])
    return result


def masked_dice(p: np.ndarray, target: np.ndarray, mask: np.ndarray) -> float:
    """``p: (B, K, n)``, ``target, mask: (B, n)``: 1 - mean over classes of 2 sum py / (sum p^2 + sum y^2)."""
    losses = []
    for c in range(p.shape[1]):
        both = pp = yy = 0.0
        for b in range(p.shape[0]):
            for i in range(p.shape[2]):
                if mask[b, i]:
                    y = float(target[b, i] == c)
                    both, pp, yy = both + p[b, c, i] * y, pp + p[b, c, i] ** 2, yy + y
        losses.append(1 - (2 * both + 1e-5) / (pp + yy + 1e-5))
    return float(np.mean(losses))


def nearest(mask: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Nearest resize of the trailing two axes: the pixel under the new pixel's centre."""
    rows = [int((i + 0.5) * mask.shape[-2] / size[0]) for i in range(size[0])]
    cols = [int((i + 0.5) * mask.shape[-1] / size[1]) for i in range(size[1])]
    return mask[..., rows, :][..., cols]
