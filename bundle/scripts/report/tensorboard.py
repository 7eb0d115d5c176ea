"""What a training step sees, as images in TensorBoard."""

from __future__ import annotations

from typing import Any

import torch
from monai.engines import Workflow
from monai.engines.utils import IterationEvents
from torch import Tensor

from ..dataio.patches import middle_slice
from ..method.losses import Target
from ..training.trainer import StepViews
from .drawing import paint


class TrainingImages:
    """An image of some slices of a step, every few epochs; of patches the slice in their middle.

    Columns: unlabelled image, strong view (with its CutMix boxes), pseudo-label pasted with the same boxes, where it is
    confident (white), prediction of the strong view. Without unlabelled images: image, label, prediction.
    """

    def __init__(self, log_dir: str, *, interval: int = 1, images: int = 4) -> None:
        """
        Args:
            log_dir: folder of TensorBoard.
            interval: epochs between two images; the last step of the epoch is shown.
            images: how many slices.
        """
        self.log_dir, self.interval, self.images = log_dir, interval, images
        self.writer: Any = None

    def attach(self, engine: Workflow) -> None:
        """Register with a trainer."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self._write)

    @torch.no_grad()
    def _write(self, engine: Any) -> None:
        state = engine.state
        if state.iteration % state.epoch_length or state.epoch % min(self.interval, state.max_epochs):
            return
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(self.log_dir)
        loss, views = engine.loss_function, state.views
        classes = loss.num_classes
        if views.weak is None or "strong_1" not in views.student.logits:
            columns = [_grey(views.image_l), paint(views.label[:, 0], classes).movedim(0, 1),
                       _colours(views.student.logits["labeled"], classes)]  # fmt: skip
            name = "image, label, prediction"
        else:
            columns = self._unlabeled(views, loss.threshold, classes)
            name = "image, strong view, pseudo-label, mask, prediction"
        columns = [column[: self.images] for column in columns]
        if views.image_l.ndim == 5:
            columns = [middle_slice(column) for column in columns]
        rows = torch.cat(columns, dim=3)  # (B, 3, X, columns * Y)
        self.writer.add_image(name, rows.transpose(0, 1).flatten(1, 2), state.epoch)
        self.writer.flush()

    @staticmethod
    def _unlabeled(views: StepViews, threshold: float, classes: int) -> list[Tensor]:
        assert views.weak is not None and views.unlabeled is not None
        confidence, pseudo = views.weak.logits["weak"].float().softmax(dim=1).max(dim=1)
        mix = views.mixes.get("strong_1")
        target = Target(pseudo, confidence >= threshold).paste(mix, views.label)
        strong = views.unlabeled["image_strong_1"]
        return [
            _grey(views.unlabeled["image"]),
            _grey(strong if mix is None else mix(strong, views.image_l)),
            paint(target.pseudo, classes).movedim(0, 1),
            _grey(target.sure[:, None].float()),
            _colours(views.student.logits["strong_1"], classes),
        ]


def _grey(image: Tensor) -> Tensor:
    """``(B, C, *spatial)`` in [0, 1] -> ``(B, 3, *spatial)``: colour where there are three channels, else the first."""
    image = image.detach().float().cpu()
    return (image if image.shape[1] == 3 else image[:, :1].expand(-1, 3, *image.shape[2:])).clamp(0, 1)


def _colours(logits: Tensor, classes: int) -> Tensor:
    """Logits ``(B, K, *spatial)`` -> colours of the predicted classes ``(B, 3, *spatial)``."""
    return paint(logits.detach().argmax(dim=1), classes).movedim(0, 1)
