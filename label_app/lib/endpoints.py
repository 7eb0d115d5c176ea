"""MONAI Label's endpoints, told at once what is wrong with a request, and nothing done with it then."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fastapi import UploadFile
from monailabel.endpoints import activelearning, datastore, infer, logs, model, session
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks import utils
from monailabel.utils.async_tasks.task import AsyncTask
from starlette.background import BackgroundTask

from lib import bundles, labels
from lib.archive import NOT_MADE
from lib.names import check_image_info, check_name, read_object, refuse
from lib.studies import known_image
from lib.uploads import check_upload

logger = logging.getLogger(__name__)

CHECKSUM = re.compile(r"((MD5|SHA256|SHA512):)?[0-9a-fA-F]{1,128}")


class Heard(subprocess.Popen):
    """A process that counts as running until all that it has said is read: MONAI Label would leave out the end.

    That is where a training says why it has failed.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.speaking = True
        assert self.stdout is not None
        readline = self.stdout.readline

        def heard() -> Any:
            line = readline()
            self.speaking = bool(line)
            return line

        self.stdout.readline = heard  # type: ignore[method-assign]

    def poll(self) -> int | None:
        code = super().poll()
        return None if self.speaking else code


def install() -> None:
    """Put the functions of this file in the place of MONAI Label's, which its routes call by name."""
    if getattr(AsyncTask, "semsim", False):
        return
    infer.run_inference = _checked_inference(infer.run_inference)
    infer.nifti_to_dicom_seg = _named_by_value(infer.nifti_to_dicom_seg)
    datastore.add_image = _checked_image(datastore.add_image)
    datastore.download_image = _checked_download(datastore.download_image)
    datastore.save_label = save_label
    datastore.update_image_info = _checked_image_info(datastore.update_image_info)
    datastore.update_label_info = _checked_label_info(datastore.update_label_info)
    datastore.download_dataset = _checked_dataset(datastore.download_dataset)
    logs.get_logs = _whole_logs(logs.get_logs)
    activelearning.sample = _checked_sample(activelearning.sample)
    model.update_model = update_model
    session.create_session = _checked_session(session.create_session)
    AsyncTask.run = staticmethod(_checked_task(AsyncTask.run))
    AsyncTask.semsim = True
    utils.subprocess = SimpleNamespace(Popen=Heard, PIPE=subprocess.PIPE, STDOUT=subprocess.STDOUT)


def _suffix(file: UploadFile, *, dicom: bool = False) -> str:
    """The ending of an uploaded file, one of those that the studies know."""
    patterns = getattr(app_instance().datastore(), "_extensions", ["*.nii.gz"])
    return check_upload(file.filename or "x.nii.gz", file.file, patterns, dicom=dicom)


def _checked_task(original: Any) -> Any:
    def run(
        method: str, request: Any = None, params: Any = None, force_sync: bool = False, enqueue: bool = False
    ) -> Any:
        request = app_instance().checked(method, {**(request or {}), **(params or {})})
        return original(method, request=request, force_sync=force_sync, enqueue=enqueue)

    return run


def _checked_inference(original: Any) -> Any:
    def run_inference(
        background_tasks: Any, model: str, image: str = "", session_id: str = "", params: str = "{}",
        file: Any = None, label: Any = None, output: Any = None,
    ) -> Any:  # fmt: skip
        app, given = app_instance(), read_object("params", params)
        if "image" in given or "model" in given:
            raise refuse("params: expected options; image and model belong into the address.")
        values = app.checked("infer", {**given, "model": model})
        if told := given.get("label_info"):
            if not (isinstance(told, list) and all(isinstance(entry, dict) for entry in told)):
                raise refuse("label_info: expected a list of segments with name and idx.")
            known = {str(entry.get("name", "")).strip().lower(): entry for entry in told}
            names = bundles.class_names(Path(app.bundles[model]))[1:]
            values["label_info"] = [{**known.get(name.lower(), {}), "name": name} for name in names]
        if file:
            _suffix(file)
        elif not session_id:
            known_image(app.datastore(), check_name("image", image))
        if label:
            logger.info("label: no option here, left out.")
        del values["model"]
        return original(background_tasks, model, image, session_id, json.dumps(values), file, None, output)

    return run_inference


def _named_by_value(original: Any) -> Any:
    def nifti_to_dicom_seg(folder: str, label: str, label_info: list[dict[str, Any]], **options: Any) -> Any:
        """A prediction may lack classes; MONAI Label would give the names of the first ones to those that it has."""
        image = os.path.basename(folder)
        if not (values := labels.values_of(Path(label))):
            raise refuse(f"{image}: nothing is predicted in it, and DICOM has no segmentation without a segment.", 422)
        try:
            made = original(folder, label, [label_info[value - 1] for value in values], **options)
        except FileNotFoundError:
            made = ""
        if not (made and os.path.isfile(made)):
            raise refuse(f"{image}: {NOT_MADE}", 500)
        return made

    return nifti_to_dicom_seg


def _checked_image(original: Any) -> Any:
    def add_image(
        background_tasks: Any, image: str | None = None, params: str = "{}", file: Any = None, user: str | None = None
    ) -> Any:
        _suffix(file)
        check_image_info(read_object("params", params))
        return original(background_tasks, image, params, file, user)

    return add_image


def _checked_image_info(original: Any) -> Any:
    def update_image_info(image: str, info: str = "{}", user: str | None = None) -> Any:
        check_image_info(read_object("info", info))
        return original(image, info, user)

    return update_image_info


def _checked_download(original: Any) -> Any:
    def download_image(image: str, check_only: bool = False, check_sum: str | None = None) -> Any:
        if check_sum and not CHECKSUM.fullmatch(check_sum):
            raise refuse(f"check_sum: expected SHA256:NUMBER, with MD5 and SHA512 too, received {check_sum[:80]!r}.")
        return original(image, check_only, check_sum)

    return download_image


def _checked_label_info(original: Any) -> Any:
    def update_label_info(label: str, tag: str, info: str = "{}", user: str | None = None) -> Any:
        read_object("info", info)
        return original(label, tag, info, user)

    return update_label_info


def _checked_sample(original: Any) -> Any:
    def sample(strategy: str, params: dict[str, Any] | None = None, user: str | None = None) -> Any:
        """What a request says beside the strategy is who asks; the books keep that."""
        client = (params or {}).get("client_id")
        return original(strategy, {"client_id": check_name("client_id", str(client))} if client else {}, user)

    return sample


def _checked_dataset(original: Any) -> Any:
    def download_dataset(limit_cases: int | None = None) -> Any:
        """An archive that is removed once it is sent."""
        if not app_instance().datastore().datalist():
            raise refuse("dataset: no image has a label yet.", 404)
        response = original(limit_cases)
        response.background = BackgroundTask(os.unlink, response.path)
        return response

    return download_dataset


def _whole_logs(original: Any) -> Any:
    def get_logs(logger_file: str, lines: int | None, html: bool, text: bool, refresh: int | None) -> Any:
        """All lines are read before they are sent: the file grows meanwhile, beyond the length that was announced."""
        if (lines or 0) > 0:
            return original(logger_file, lines, html, text, refresh)
        return original(logger_file, 1_000_000, False, True, refresh)

    return get_logs


def _checked_session(original: Any) -> Any:
    def create_session(background_tasks: Any, uncompress: bool = False, expiry: int = 0, files: Any = ()) -> Any:
        for file in files:
            check_name("file", os.path.basename(file.filename or "x.nii.gz"))
            _suffix(file, dicom=True)
        return original(background_tasks, uncompress, expiry, files)

    return create_session


def save_label(
    background_tasks: Any, image: str, params: str = "{}", tag: str = "", label: Any = None, user: str | None = None
) -> dict[str, Any]:
    """A label as an annotator submits it: known image, segments by name, usable by a training; then it is kept."""
    app, info = app_instance(), read_object("params", params)
    tag = check_name("tag", tag or DefaultLabelTag.FINAL.value)
    uri = known_image(app.datastore(), image)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{image}{_suffix(label)}"
        with file.open("wb") as buffer:
            shutil.copyfileobj(label.file, buffer)
        info = app.checked_label(uri, file, info, tag)
        label_id = app.datastore().save_label(image, str(file), tag, info)
    return {**(app.on_save_label(image, label_id) or {}), "image": image, "label": label_id}


def update_model(background_tasks: Any, model: str, file: UploadFile) -> dict[str, Any]:
    """Weights that somebody uploads: those of this network and its settings, or none. Those before are kept."""
    app = app_instance()
    app.known("model", model, app.bundles)
    bundle = Path(app.bundles[model])
    target = bundle / "models" / "model.pt"
    part = target.with_name(f"upload_{os.getpid()}_{threading.get_ident()}.new")
    try:
        with part.open("wb") as buffer:
            shutil.copyfileobj(file.file, buffer)
        try:
            bundles.loaded(bundle, part, "cpu")
            bundles.check_told(bundle, part)
        except ValueError as error:
            raise refuse(str(error).replace(str(part), str(file.filename))) from error
        bundles.module(bundle, "hosts.monai_label").keep_published(bundle)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return app.model_info(model)
