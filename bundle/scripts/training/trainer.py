"""The training step of SemSim, FixMatch and UniMatch, as a MONAI trainer."""

from __future__ import annotations

import copy
import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from ignite.engine import Events
from ignite.metrics import Metric
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.inferers import Inferer
from monai.transforms import Transform
from monai.utils.enums import CommonKeys as Keys
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ..dataio.loaders import TwoStreamLoader, seed_everything
from ..errors import InputError
from ..method.augmentation import CutMix, RandCutMix
from ..method.losses import SemSimLoss
from ..method.network import Output, plain_output, takes_streams
from ..precision import precision

logger = logging.getLogger("semsim")


def twin(network: nn.Module) -> nn.Module:
    """A second view of a network: its own modules with their own training mode, the very same parameters and buffers.

    So the weak view has a mode and a batch norm of its own, and no step switches modes.
    """
    base = unwrapped(network)
    shared = {id(t): t for t in itertools.chain(base.parameters(), base.buffers())}
    return copy.deepcopy(base, shared)


def unwrapped(network: nn.Module) -> nn.Module:
    """The network itself, where it is in DistributedDataParallel."""
    return network.module if isinstance(network, DistributedDataParallel) else network


@contextmanager
def frozen_statistics(network: nn.Module, frozen: bool = True) -> Iterator[None]:
    """Batch norm in training mode that leaves the running statistics as they are."""
    layers = [m for m in network.modules() if frozen and isinstance(m, _BatchNorm)]
    momenta = [m.momentum for m in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta):
            layer.momentum = momentum


class Teacher:
    """The network that predicts the weak view: the student itself, with a batch norm of its own."""

    def __init__(self, network: nn.Module, *, batch_norm: str = "evaluation") -> None:
        """
        Args:
            network: the student, already on its device.
            batch_norm: ``evaluation`` (running statistics) or ``exclusive`` (the weak batch's own statistics, which
                also enter the running ones; the student's batches with their strong views and dropped channels do not).

        Raises:
            InputError: unknown ``batch_norm``.
        """
        if batch_norm not in ("evaluation", "exclusive"):
            raise InputError(f"weak_batch_norm: expected exclusive or evaluation, received {batch_norm!r}; give one.")
        self.exclusive = batch_norm == "exclusive"
        self.network = twin(network).eval()  # no channel is dropped from what makes the pseudo-labels
        for layer in self.network.modules():
            if isinstance(layer, _NormBase):
                layer.train(self.exclusive)


@dataclass(frozen=True)
class StepViews:
    """What a step has computed, for handlers of ``LOSS_COMPLETED`` to look at: ``engine.state.views``, gone afterwards.

    Attributes:
        image_l, label: labelled images and their class indices, ``(B, C, *spatial)`` and ``(B, 1, *spatial)``.
        student: logits and features of the student's streams, with their graph.
        unlabeled: weak and strong views before CutMix; ``None`` in a supervised step.
        weak: logits and features of the weak view.
        mixes: boxes of each view that has them.
    """

    image_l: Tensor
    label: Tensor
    student: Output
    unlabeled: Mapping[str, Tensor] | None
    weak: Output | None
    mixes: Mapping[str, CutMix]


class SemSimTrainer(SupervisedTrainer):
    """Weak-to-strong consistency with two streams.

    A step on x_l (labelled) and x_u (unlabelled, weakly augmented):

    1. the teacher predicts the weak view, x_u as it is, without gradient: the pseudo-labels;
    2. each strong view is given boxes of its own, filled from another image of the batch or a labelled one (CutMix);
    3. the student sees labelled images and strong views in one forward, in training mode: one batch-norm pass;
    4. the loss compares them, pasting pseudo-labels with the same boxes, and the optimizer steps.

    Batches are ``{"labeled": {"image", "label"}, "unlabeled": {"image", "image_strong_1", "image_strong_2"}}``; without
    ``unlabeled`` the step is supervised. The loss says which views it reads and what of them: logits from the decoder,
    fused features f~, or both. Shuffling, augmentation and CutMix of an epoch follow from (seed, epoch).
    """

    loss_function: SemSimLoss

    def __init__(
        self,
        device: str | torch.device,
        max_epochs: int,
        train_data_loader: TwoStreamLoader,
        network: nn.Module,
        optimizer: Optimizer,
        loss_function: SemSimLoss,
        *,
        cutmix: RandCutMix | None = None,
        teacher: Teacher | None = None,
        non_blocking: bool = False,
        inferer: Inferer | None = None,
        postprocessing: Transform | None = None,
        key_train_metric: dict[str, Metric] | None = None,
        additional_metrics: dict[str, Metric] | None = None,
        train_handlers: Sequence | None = None,
        amp: bool | str = False,
        decollate: bool = True,
    ) -> None:
        """
        Args:
            device: where to train.
            max_epochs: epochs; one is a pass over the unlabelled slices.
            train_data_loader: loader of both streams.
            network: a ``SemSimNet``, already on ``device``, or one in DistributedDataParallel; for a loss that reads
                neither features nor perturbed views any network from images to logits.
            optimizer: of its parameters.
            loss_function: the terms; it also says which streams are computed.
            cutmix: draws the boxes; ``None`` for no CutMix.
            teacher: predicts the weak view; ``None``: the student itself in evaluation mode.
            inferer: calls the network on the student's streams; it has to pass a mapping through.
            amp: mixed precision: ``auto``, true or false; see :func:`~scripts.precision.precision`.
            non_blocking, postprocessing, key_train_metric, additional_metrics, train_handlers, decollate: as in MONAI's
            ``SupervisedTrainer``.

        Raises:
            InputError: similarity terms with a network that has no fusion, perturbed views with one that has no encoder
                of its own, a loss that names no streams, unknown ``amp``.
        """
        if not hasattr(loss_function, "student_streams"):
            raise InputError(
                f"loss: expected SemSimLoss or a class derived from it, received {type(loss_function).__name__}; see "
                "`A loss term of your own` in docs/HOWTO.md."
            )
        self.precision = precision(amp, device)
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            train_data_loader=train_data_loader,
            network=network,
            optimizer=optimizer,
            loss_function=loss_function,
            non_blocking=non_blocking,
            inferer=inferer,
            postprocessing=postprocessing,
            key_train_metric=key_train_metric,
            additional_metrics=additional_metrics,
            train_handlers=train_handlers,
            amp=self.precision.scaled,  # MONAI: whether there is a scaler
            decollate=decollate,
        )
        self.cutmix = cutmix
        network.train()
        self.teacher = teacher or Teacher(network)
        self.plain, streams = not takes_streams(self.teacher.network), loss_function.student_streams()
        if self.plain and (streams.fuse or streams.perturb):
            raise InputError(
                f"network_def: {type(self.teacher.network).__name__} turns images into logits and no more, which is "
                "enough for configs/labeled_only.yaml and configs/fixmatch.yaml; for other methods see `A network of "
                "your own` in docs/HOWTO.md."
            )
        if streams.fuse and getattr(self.teacher.network, "fusion", None) is None:
            raise InputError(
                "The network has `fusion: none`, which gives no features for the similarity terms: expected sfm or "
                "conv, or loss#lambda_intra, loss#lambda_cross and loss#lambda_labeled of 0 (see "
                "configs/fixmatch.yaml)."
            )
        self.add_event_handler(Events.STARTED, lambda: logger.info(f"Computing in {self.precision}."))
        self.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)

    def _start_epoch(self) -> None:
        if isinstance(self.data_loader, TwoStreamLoader):
            seed_everything(self.data_loader.seed, self.state.epoch)
            self.data_loader.set_epoch(self.state.epoch, self.state.max_epochs)
        self.network.train()

    def _to_device(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: value.to(self.state.device, non_blocking=self.non_blocking) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }

    def _iteration(  # type: ignore[override]
        self, engine: SemSimTrainer, batchdata: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, Any]:
        """One step; returns the labelled images, labels and predictions, and every scalar of the loss by name."""
        labeled = self._to_device(batchdata["labeled"])
        unlabeled = self._to_device(batchdata["unlabeled"]) if "unlabeled" in batchdata else None
        engine.state.batch = batchdata["labeled"]  # what postprocessing and metrics look at
        engine.state.output = {Keys.IMAGE: labeled["image"], Keys.LABEL: labeled["label"]}
        engine.optimizer.zero_grad(set_to_none=True)

        student, weak, mixes = self._forward(labeled["image"], unlabeled)
        engine.state.output[Keys.PRED] = student.logits["labeled"]
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        scalars = self.loss_function(student, labeled["label"], weak, mixes)  # in float32
        loss = scalars[Keys.LOSS]
        engine.state.output[Keys.LOSS] = loss
        engine.state.views = StepViews(labeled["image"], labeled["label"], student, unlabeled, weak, mixes)
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        engine.state.views = None
        # one transfer for all scalars
        values = dict(zip(scalars, torch.stack([s.detach() for s in scalars.values()]).tolist()))
        self._check_finite(values, batchdata)

        if engine.scaler is not None:
            engine.scaler.scale(loss).backward()
            engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
            engine.scaler.step(engine.optimizer)
            engine.scaler.update()
        else:
            loss.backward()
            engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
            engine.optimizer.step()
        if engine.state.iteration % engine.state.epoch_length == 0:
            self._check_weights()
        engine.state.output.update(values)
        engine.state.scalars = values
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def _forward(
        self, image_l: Tensor, unlabeled: Mapping[str, Tensor] | None
    ) -> tuple[Output, Output | None, dict[str, CutMix]]:
        """Student and weak view; the streams that the loss does not read are not computed."""
        streams = self.loss_function.student_streams(unlabeled is not None)
        views = sorted({*streams.decode, *streams.fuse} - {"labeled"})  # a fixed order of random draws
        images, weak, mixes = {"labeled": image_l}, None, {}
        if unlabeled is not None and views:
            image_u_weak = unlabeled["image"]
            # a context of its own: weights cast without gradient must not be reused for the student
            with torch.no_grad(), self.precision.autocast():
                if self.plain:
                    weak = plain_output(self.teacher.network, {"weak": image_u_weak}, self.loss_function.num_classes)
                else:
                    weak = self.teacher.network({"weak": image_u_weak}, self.loss_function.weak_streams())
            for view in views:
                if view == "weak_perturbed":
                    images[view] = image_u_weak
                    continue
                images[view] = unlabeled[f"image_{view}"]
                if self.cutmix is not None:
                    mixes[view] = self.cutmix(image_u_weak, len(image_l))
                    images[view] = mixes[view](images[view], image_l)
        with self.precision.autocast(), frozen_statistics(self.network, self.teacher.exclusive and weak is not None):
            if self.plain:
                call = partial(self.inferer, network=self.network)
                student = plain_output(call, images, self.loss_function.num_classes)
            else:
                student = self.inferer(images, self.network, streams=streams)  # type: ignore[arg-type]
        return student, weak, mixes

    def _check_finite(self, values: Mapping[str, float], batchdata: Mapping[str, Mapping[str, Any]]) -> None:
        if math.isfinite(values[Keys.LOSS]):
            return
        terms = ", ".join(f"{name} {value:g}" for name, value in values.items() if name.startswith("loss"))
        cases = "; ".join(f"{stream}: {', '.join(batch.get('case', []))}" for stream, batch in batchdata.items())
        raise InputError(
            f"The loss is not finite at iteration {self.state.iteration} ({terms}). Slices of that batch: {cases}. "
            f"Look at these images, {self._remedy()}"
        )

    def _check_weights(self) -> None:
        """That nothing but numbers is written: a step may spoil the weights after a loss that was finite."""
        state = [value for value in unwrapped(self.network).state_dict().values() if value.is_floating_point()]
        if not torch.stack([value.isfinite().all() for value in state]).all():
            raise InputError(
                f"The weights are not finite after iteration {self.state.iteration}, and are not saved; those of the "
                f"epoch before are. Look at the images, {self._remedy()}"
            )

    def _remedy(self) -> str:
        exact = "go on with --resume auto --amp False, " if self.precision.mixed else ""
        return f"{exact}or begin anew in another --output_dir with a lower --learning_rate."
