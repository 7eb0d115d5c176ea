"""MONAI Label app: the bundle in ``model/`` segments, learns from all images, and asks for the next label.

    python -m monailabel.main start_server --app APP --studies DIR --host 127.0.0.1

where APP is made by ``assemble.py``. Options of ``--conf``: ``strategy`` (entropy, disagreement or random: the first in
the client's list), ``skip_scoring true``, ``origins`` (sites whose pages may send requests, comma-separated) and
``token_file`` (a file with a secret that every request has to bring).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lib import archive, gate, labels
from lib.active import Scores, strategies
from lib.auth import name_algorithms, read_token
from lib.infer import OPTIONS, Batch, Segmentation
from lib.names import LEVELS, checked, devices, refuse
from lib.studies import Studies, labelled
from lib.train import SemiSupervised
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.async_tasks.utils import tasks
from monailabel.utils.others.generic import strtobool
from requests import RequestException

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
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # for the processes that train: their threads do not spin
        #: MONAI Label trains, scores and predicts many images in processes of their own, which make an app, too
        self.is_server = "monailabel.app" in sys.modules
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name="SemSim",
            description="Segmentation learnt from a few labelled and many unlabelled images",
            version="0.1.0",
        )
        if self.is_server:
            from lib import endpoints

            endpoints.install()
            origins = str(self.conf.get("origins", "")).split(",")
            archive = "://" in studies
            gate.install(sys.modules["monailabel.app"].app, origins=origins, token=read_token(conf), archive=archive)

    def init_datastore(self) -> Datastore:
        if "://" not in self.studies:
            return Studies(
                self.studies,
                server=self.is_server,
                auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
                extensions=settings.MONAI_LABEL_DATASTORE_FILE_EXT,
                read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
            )
        archive.install(Path(next(iter(self.bundles.values()))), server=self.is_server)
        datastore = super().init_datastore()
        try:
            if self.is_server:
                datastore.list_images()
        except RequestException as error:
            raise ValueError(gate.no_answer(error)) from None
        return datastore

    def _download_dcmqi_tools(self) -> None:
        try:
            super()._download_dcmqi_tools()
        except Exception as error:
            logger.warning(
                f"itkimage2segimage: could not be fetched ({error}); without it the archive takes no label that is "
                f"submitted, and no prediction is made into DICOM. All else works. Put it into {self.app_dir}/bin; the "
                "Python package dcmqi contains it."
            )

    def cleanup_sessions(self) -> None:
        """Remove uploads whose time is over, also of earlier servers, and those that broke off."""
        if self._sessions is None:
            return
        for folder in [path for path in Path(self._sessions.store_path).glob("*") if path.is_dir()]:
            info, begun = None, folder.stat().st_mtime
            with contextlib.suppress(ValueError):
                info = self._sessions.get_session(folder.name, update_ts=False, fetch_cache=False)
            if (info.last_access_ts + info.expiry if info else begun + self._sessions.expiry) < time.time():
                self._sessions.remove_session(folder.name)

    def datastore(self) -> Datastore:
        """The datastore; in the server with what a scoring has written meanwhile."""
        if self.is_server:
            for task in self._scoring_methods.values():
                task.enter(self._datastore)
        return self._datastore

    def known(self, what: str, name: Any, among: Mapping[str, Any]) -> None:
        """Raise 404 where a request names what is not there."""
        if not isinstance(name, str) or name not in among:
            raise refuse(f"{what}: expected one of {', '.join(among)}; received {str(name)[:80]!r}.", 404)

    def checked(self, method: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """A request to ``train``, ``scoring``, ``batch_infer`` or ``infer``, with values that are offered alone."""
        if method == "scoring":
            self.known("method", request.get("method"), self._scoring_methods)
            return checked(request, {"device": devices(), "gpus": "", "max_samples": 0, "logging": LEVELS})
        self.known("model", request.get("model"), self._trainers if method == "train" else self._infers)
        if method == "train":
            counted = {"max_epochs": 20, "steps_per_epoch": 0}  # what a request may say in the place of minutes
            panel = {**counted, **self._trainers[request["model"]].config()}
            return checked(request, {**panel, "device": devices(), "gpus": ""})
        models = Path(self.bundles[request["model"]]) / "models"
        files = sorted((path.name for path in models.glob("*.pt")), key=len)
        panel = {**OPTIONS, "device": devices(), "gpus": "", "model_filename": files or ["model.pt"]}
        return checked(request, panel, strict=False)

    def checked_label(self, image: str, file: Path, info: Mapping[str, Any], tag: str) -> dict[str, Any]:
        """What the books say of a label that is submitted, once its file is numbered and looked at.

        Args:
            image: file of the image.
            file: of the label, renumbered in place where the names of its segments say so.
            info: as the client sent it, with ``label_info`` and the ``model`` that it is for.
            tag: of the label; drafts are looked at for the names of their segments alone.
        """
        named, model = info.get("label_info"), info.get("model")
        if named and not (isinstance(named, list) and all(isinstance(entry, dict) for entry in named)):
            raise refuse("label_info: expected a list of segments with name and idx.")
        bundle = Path(self.bundles.get(model if isinstance(model, str) else "", next(iter(self.bundles.values()))))
        final = tag == DefaultLabelTag.FINAL.value
        if final and info.get("empty") is True and "://" in self.studies:
            raise refuse(
                "empty: no archive takes a DICOM segmentation without a segment; leave this image without one."
            )
        try:
            if final or named:
                labels.check_readable(bundle, file)
            changed = labels.by_name(bundle, file, named)
            if final:
                labels.check(bundle, image, file, empty=info.get("empty") is True)
            if not final and not named and not changed:
                return dict(info)
            return {**info, "label_info": labels.present(bundle, file)}
        except ValueError as error:
            raise refuse(str(error)) from error

    def init_batch_infer(self) -> Batch:
        return Batch()

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        name = request.get("image")
        if isinstance(name, str) and os.path.basename(name) == name and os.path.exists(name):
            raise refuse(
                f"{name}: the folder that the server was started in has a file of this name, which MONAI Label would "
                "predict instead; start the server in another folder.", 409,
            )  # fmt: skip
        replaces = request.get("save_label") and request.get("label_tag") == DefaultLabelTag.FINAL.value
        if replaces and request.get("image") in self._datastore.get_labeled_images():  # asked again when it is saved
            raise labelled(request["image"])
        return super().infer(request, datastore)

    def batch_infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        several = request.get("multi_gpu", True) and torch.cuda.is_available()
        return super().batch_infer({**request, "multi_gpu": several}, datastore)

    def infer_wsi(self, request: Any, datastore: Datastore | None = None) -> Any:
        raise refuse("No whole slides here; ask for /infer/MODEL.", 404)

    def init_infers(self) -> dict[str, InferTask]:
        return {name: Segmentation(path, self.conf) for name, path in self.bundles.items()}

    def init_trainers(self) -> dict[str, TrainTask]:
        return {name: SemiSupervised(path, self.conf) for name, path in self.bundles.items()}

    def init_strategies(self) -> dict[str, Strategy]:
        return strategies(self.conf.get("strategy", DEFAULT_STRATEGY))

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        given = self.conf.get("skip_scoring", "false")
        try:
            skipped = strtobool(given)
        except ValueError:
            raise ValueError(f"--conf skip_scoring {given}: expected true or false; mend it and start again.") from None
        if skipped:
            return {}
        return {name: Scores(path, self.studies) for name, path in self.bundles.items()}

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        self.known("strategy", request.get("strategy") or next(iter(self._strategies)), self._strategies)
        return super().next_sample({**request, "strategy": request.get("strategy") or next(iter(self._strategies))})

    def async_scoring(self, method: str | None, params: Any = None) -> Any:
        """Start scoring, unless nothing is due or it runs: MONAI Label asks for it with every image it offers."""
        if method is None:
            waiting = any(task["status"] in ("SUBMITTED", "RUNNING") for task in tasks("scoring"))
            if waiting or not any(task.due(self.datastore()) for task in self._scoring_methods.values()):
                return {}
        return super().async_scoring(method, params)
