"""Which image to annotate next: scores of the images without a label, and the strategies that read them."""

from __future__ import annotations

import json
import logging
import os
import random
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.tasks.activelearning.epistemic import Epistemic
from monailabel.tasks.activelearning.random import Random
from monailabel.utils.others.class_utils import unload_module
from monailabel.utils.others.generic import name_to_device

from lib.studies import Books
from lib.usable import numbered

logger = logging.getLogger(__name__)

#: Keys of an image's info in the datastore.
KEYS = {"entropy": "semsim_entropy", "disagreement": "semsim_disagreement"}
STAMP = "semsim_model"
#: Between two writings of the scores.
SECONDS = 5
DESCRIPTIONS = {
    "entropy": "The image that the network is least sure of",
    "disagreement": "The image on which decoder and similarities disagree most",
}


class AnyRandom(Random):
    """MONAI Label's random strategy, which fails where every image was offered within the last second."""

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        try:
            return super().__call__(request, datastore)
        except ValueError:
            return {"id": random.choice(datastore.get_unlabeled_images()), "weight": 0}


class Highest(Epistemic):
    """MONAI Label's choice: of the images offered longest ago the one with the highest score.

    Its own writes numbers of a digit an image into its log, and fails at some thousand images.
    """

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        now, ranks = int(time.time()), {}
        for image in datastore.get_unlabeled_images():
            info = datastore.get_image_info(image)
            offered = info.get("strategy", {}).get(request["strategy"], {}).get("ts", 0)
            ranks[image] = min(now - offered, self.reset), info.get(self.key, 0)
        image = max(ranks, key=lambda name: ranks[name], default=None)
        return image and {"id": image, "score": ranks[image][1]}


def strategies(default: str) -> dict[str, Strategy]:
    """Every strategy by its name in the client's list, ``default`` first.

    Raises:
        ValueError: there is none of this name.
    """
    known: dict[str, Strategy] = {"random": AnyRandom()}
    known |= {name: Highest(key=key, desc=DESCRIPTIONS[name]) for name, key in KEYS.items()}
    if default not in known:
        raise ValueError(f"--conf strategy {default}: expected one of {', '.join(known)}; mend it and start again.")
    return {default: known[default], **known}


class Scores(ScoringMethod):
    """Scores the images without a label by the bundle's ``scripts/method/active_learning.py``.

    It runs in a process beside the server and writes a file of scores; the server enters them into the books.
    """

    def __init__(self, bundle: str | Path, studies: str) -> None:
        """
        Args:
            bundle: folder of the bundle.
            studies: whose images are scored.
        """
        super().__init__("Entropy of the prediction, and disagreement of decoder and similarities")
        self.bundle = Path(bundle)
        self.file = self.bundle / "scores" / f"{zlib.crc32(studies.encode()):08x}.json"
        self._entered = 0

    def enter(self, datastore: Datastore) -> None:
        """Enter new scores into the books."""
        stamp = self.file.stat().st_mtime_ns if self.file.is_file() else 0
        if stamp != self._entered:
            self._entered = stamp
            known = set(datastore.list_images())
            new = {image: info for image, info in self.written().items() if image in known}
            if isinstance(datastore, Books):
                if not datastore.update_images(new):  # the copy of an archive has not noticed a file yet
                    self._entered = 0
                return
            for image, info in new.items():
                datastore.update_image_info(image, info)

    def written(self) -> dict[str, dict[str, Any]]:
        """Scores by image, as far as they are written."""
        return json.loads(self.file.read_text()) if self.file.is_file() else {}

    def _write(self, scores: dict[str, dict[str, Any]]) -> None:
        self.file.parent.mkdir(exist_ok=True)
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(scores, indent=1))
        os.replace(part, self.file)

    @property
    def weights(self) -> Path:
        """The published weights."""
        return self.bundle / "models" / "model.pt"

    def due(self, datastore: Datastore) -> list[str]:
        """Images without a label and without a score of the present weights."""
        if not self.weights.is_file():
            return []
        stamp, written = self._stamp(datastore), self.written()
        return [i for i in datastore.get_unlabeled_images() if written.get(i, {}).get(STAMP) != stamp]

    def _stamp(self, datastore: Datastore) -> str:
        """What scores are of: the weights, and whether there are labels to compare with."""
        return f"{self.weights.stat().st_mtime_ns} {'labels' if datastore.get_labeled_images() else 'none'}"

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Score what is due; ``max_samples`` in the request limits how many."""
        images = self.due(datastore)
        images = images[: request.get("max_samples") or len(images)]
        if not images:
            return {"executed": 0, "failed": 0}
        start, failed, stamp = time.time(), 0, self._stamp(datastore)
        scores, saved = self.written(), time.time()
        sys.path.insert(0, str(self.bundle))
        unload_module("scripts")
        try:
            from scripts.errors import find_input_error
            from scripts.hosts.scoring import BundleScorer

            scorer = BundleScorer(self.bundle, device=name_to_device(request.get("device")))
            with tempfile.TemporaryDirectory() as folder:
                scorer.learn(numbered(self.bundle, datastore, datastore.datalist(), Path(folder), check=False)[0])
            for image in images:
                try:
                    found = scorer.score(datastore.get_image_uri(image))
                except Exception as error:
                    if (reason := find_input_error(error)) is None:
                        raise
                    logger.warning(f"{image}: not scored. {reason}")
                    failed, found = failed + 1, {}
                info = {KEYS[name]: value for name, value in found.items()}
                scores[image] = {**info, STAMP: stamp}
                logger.info(f"{image}: {info}")
                if time.time() - saved > SECONDS:
                    self._write(scores)
                    saved = time.time()
        finally:
            self._write(scores)
            sys.path.remove(str(self.bundle))
        return {"executed": len(images), "failed": failed, "seconds": round(time.time() - start, 3)}
