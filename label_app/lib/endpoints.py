"""MONAI Label's endpoints, told at once what is wrong with a request, and nothing done with it then."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

from fastapi import UploadFile
from monailabel.endpoints import datastore, infer, model, session
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks.task import AsyncTask

from lib import bundles
from lib.names import check_name, refuse
from lib.studies import known_image


def install() -> None:
    """Put the functions of this file in the place of MONAI Label's, which its routes call by name."""
    if getattr(AsyncTask, "semsim", False):
        return
    infer.run_inference = _checked_inference(infer.run_inference)
    datastore.add_image = _checked_image(datastore.add_image)
    datastore.save_label = save_label
    model.update_model = update_model
    session.create_session = _checked_session(session.create_session)
    AsyncTask.run = staticmethod(_checked_task(AsyncTask.run))
    AsyncTask.semsim = True


def _params(text: str) -> dict[str, Any]:
    params = json.loads(text) if text else {}
    if not isinstance(params, dict):
        raise refuse(f"params: expected an object, received {text[:80]}.")
    return params


def _suffix(file: UploadFile) -> str:
    """The ending of an uploaded file, one of those that the studies know."""
    patterns = getattr(app_instance().datastore(), "_extensions", ["*.nii.gz"])
    for pattern in patterns:
        if (file.filename or "x.nii.gz").lower().endswith(ending := pattern.removeprefix("*")):
            return ending
    raise refuse(f"{str(file.filename)[:80]!r}: expected a file that ends with {', '.join(patterns)}.")


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
        app, given = app_instance(), _params(params)
        if "image" in given or "model" in given:
            raise refuse("params: expected options; image and model belong into the address.")
        values = app.checked("infer", {**given, "model": model})
        if given.get("label_info"):
            values["label_info"] = given["label_info"]
        if file:
            _suffix(file)
        elif not session_id:
            known_image(app.datastore(), check_name("image", image))
        del values["model"]
        return original(background_tasks, model, image, session_id, json.dumps(values), file, label, output)

    return run_inference


def _checked_image(original: Any) -> Any:
    def add_image(
        background_tasks: Any, image: str | None = None, params: str = "{}", file: Any = None, user: str | None = None
    ) -> Any:
        _suffix(file)
        _params(params)
        return original(background_tasks, image, params, file, user)

    return add_image


def _checked_session(original: Any) -> Any:
    def create_session(background_tasks: Any, uncompress: bool = False, expiry: int = 0, files: Any = ()) -> Any:
        for file in files:
            check_name("file", os.path.basename(file.filename or "x.nii.gz"))
        return original(background_tasks, uncompress, expiry, files)

    return create_session


def save_label(
    background_tasks: Any, image: str, params: str = "{}", tag: str = "", label: Any = None, user: str | None = None
) -> dict[str, Any]:
    """A label as an annotator submits it: known image, segments by name, usable by a training; then it is kept."""
    app, info = app_instance(), _params(params)
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
    """Weights that somebody uploads: those of this network, or none. The ones before are kept in ``models_before``."""
    app = app_instance()
    app.known("model", model, app.bundles)
    bundle = Path(app.bundles[model])
    target = bundle / "models" / "model.pt"
    part = target.with_name(f"upload_{os.getpid()}.new")
    try:
        with part.open("wb") as buffer:
            shutil.copyfileobj(file.file, buffer)
        try:
            bundles.loaded(bundle, part, "cpu")
        except ValueError as error:
            raise refuse(str(error).replace(str(part), str(file.filename))) from error
        if target.is_file():
            before = bundle / "models_before" / f"{datetime.now():%Y%m%d_%H%M%S_%f}"
            before.mkdir(parents=True)
            for name in ("model.pt", "training.json"):
                if (bundle / "models" / name).is_file():
                    shutil.copy2(bundle / "models" / name, before / name)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return app.model_info(model)
