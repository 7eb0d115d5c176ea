"""MONAI Label app: the bundle in ``model/`` segments, learns from all images, and asks for the next label.

    python -m monailabel.main start_server --app APP --studies DIR --host 127.0.0.1

where APP is made by ``assemble.py``. Options of ``--conf``: ``strategy`` (entropy, disagreement or random: the first in
the client's list), ``skip_scoring true``.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lib.active import Scores, strategies
from lib.auth import name_algorithms
from lib.infer import Segmentation
from lib.train import SemiSupervised
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.async_tasks.utils import tasks
from monailabel.utils.others.generic import strtobool

logger = logging.getLogger(__name__)

#: benchmarks/ANNOTATION.md compares them.
DEFAULT_STRATEGY = "disagreement"


class SemSimApp(MONAILabelApp):
    """One or more bundles below ``model/``, each under the name of its folder."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        found = sorted((Path(app_dir) / "model").glob("*/configs/metadata.json"))
        self.bundles = {path.parents[1].name: str(path.parents[1]) for path in found}
        if not self.bundles:
            raise ValueError(
                f"{app_dir}/model: expected a bundle (a folder with configs/metadata.json), found none; make the app's "
                "folder with label_app/assemble.py."
            )
        name_algorithms()
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name="SemSim",
            description="Segmentation learnt from a few labelled and many unlabelled images",
            version="0.1.0",
        )

    def init_infers(self) -> dict[str, InferTask]:
        return {name: Segmentation(path, self.conf) for name, path in self.bundles.items()}

    def init_trainers(self) -> dict[str, TrainTask]:
        return {name: SemiSupervised(path, self.conf) for name, path in self.bundles.items()}

    def init_strategies(self) -> dict[str, Strategy]:
        return strategies(self.conf.get("strategy", DEFAULT_STRATEGY))

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        if strtobool(self.conf.get("skip_scoring", "false")):
            return {}
        return {name: Scores(path) for name, path in self.bundles.items()}

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        return super().next_sample({**request, "strategy": request.get("strategy") or next(iter(self._strategies))})

    def async_scoring(self, method: str | None, params: Any = None) -> Any:
        """Start scoring, unless nothing is due or it runs: MONAI Label asks for it with every image it offers."""
        if method is None:
            waiting = any(task["status"] in ("SUBMITTED", "RUNNING") for task in tasks("scoring"))
            if waiting or not any(task.due(self.datastore()) for task in self._scoring_methods.values()):
                return {}
        return super().async_scoring(method, params)
