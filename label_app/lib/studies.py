"""The folder of images and labels. The server alone writes its books, and no label that was submitted is lost."""

from __future__ import annotations

import functools
import json
import logging
import os
import shutil
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from filelock import FileLock
from monailabel.datastore.local import DataModel, LocalDatastore
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException

from lib.names import check_name, refuse

logger = logging.getLogger(__name__)

#: Between two looks at a folder that keeps changing.
SECONDS = 0.5
#: How 3D Slicer ends the names of its segmentations.
SEGMENTATION = ".seg.nrrd"
#: Folders of labels below the images.
OWN = ("labels", "labels_before")
#: Endings of images in any case; MONAI Label takes some of them, as they are written.
IMAGES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".dcm", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


def replaces_none(info: Mapping[str, Any] | None, tag: Any) -> bool:
    """Whether what is saved is a prediction that would count as a label: it takes the place of none.

    Args:
        info: of the books. A label that is submitted has ``label_info`` there, a prediction what the model says.
        tag: that it is saved under.
    """
    final = str(getattr(tag, "value", tag)) == DefaultLabelTag.FINAL.value
    return final and "params" in (info or {}) and "label_info" not in (info or {})


def labelled(image: str) -> HTTPException:
    """The answer to a prediction that would take the place of a label."""
    return refuse(f"{image}: has a label, and no prediction takes its place.", 409)


def locked(method: Callable[..., Any]) -> Callable[..., Any]:
    """One caller at a time, of what has a ``mutex``: requests, predictions and the watch each have their thread."""

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self.mutex:
            return method(self, *args, **kwargs)

    return call


class Books(LocalDatastore):
    """What MONAI Label knows of images and labels. The server alone writes it, at once or not at all.

    A class of these sets ``server`` (whether this process is the server) and ``mutex``.
    """

    server: bool
    mutex: Any

    @locked
    def update_images(self, infos: Mapping[str, Mapping[str, Any]]) -> bool:
        """``update_image_info`` for several images at once; whether the books know all of them."""
        known = {image: entry.image.info for image in infos if (entry := self._datastore.objects.get(image))}
        new = [image for image, info in known.items() if info != {**info, **infos[image]}]
        for image in new:
            known[image].update(infos[image])
        if new:
            self._update_datastore_file()
        return len(known) == len(infos)

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """As MONAI Label's, which leaves its file behind where it fails, and would hold up every other request."""
        pairs = self.datalist()
        handle, name = tempfile.mkstemp(suffix=".zip")
        try:
            with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w") as archive:
                for pair in pairs[: limit_cases if (limit_cases or 0) > 0 else None]:
                    for kind, path in pair.items():
                        archive.write(path, f"{kind}/{os.path.basename(path)}")
                archive.writestr("metadata.json", json.dumps(self.json(), indent=2, default=str))
        except BaseException:
            os.unlink(name)
            raise
        return name

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        try:
            super()._init_from_datastore_file(throw_exception)
        except ValueError:
            raise ValueError(
                f"{self._datastore_config_path}: expected MONAI Label's notes on images and labels, received a damaged "
                "file; move it away and start again: images and labels are found anew, scores are computed anew."
            ) from None

    def _update_datastore_file(self, lock: bool = True) -> None:
        if not self.server:
            return
        path = Path(self._datastore_config_path)
        part = path.with_suffix(".part")
        content = self._datastore.model_dump(exclude={"base_path"})
        with self.mutex:
            part.write_text(json.dumps(content, indent=2, default=str))
            os.replace(part, path)
            self._config_ts = os.stat(path).st_mtime


class Studies(Books):
    """MONAI Label's folder, whose replaced labels are kept.

    A label that is submitted again, or removed, moves to ``labels_before/<tag>`` below the studies.
    """

    def __init__(self, folder: str, *, server: bool, auto_reload: bool, **options: Any) -> None:
        """
        Args:
            folder: of the images.
            server: whether this is the server; other processes read the books and never write them.
            auto_reload: whether the folder is watched.
            options: of MONAI Label's.
        """
        self.mutex, self.server, self.changed = threading.RLock(), server, threading.Event()
        self.passed_over: set[str] = set()
        if not server:
            options["read_only"] = True
        options["extensions"] = [e for e in options["extensions"] if e not in ("*.svs", "*.xml")]  # of whole slides
        super().__init__(folder, auto_reload=auto_reload and server, **options)
        if hasattr(self, "_handler"):
            self._handler.on_moved = self._on_any_event  # files that are renamed into place, ours among them
            threading.Thread(target=self._follow, daemon=True).start()

    def _on_any_event(self, event: Any) -> None:
        if self._datastore_config_path not in (event.src_path, event.dest_path):  # those books are written here
            self.changed.set()

    def _follow(self) -> None:
        """Look at the folder once for all that has changed meanwhile: thousands of files may be copied into it."""
        while self.changed.wait():
            self.changed.clear()
            try:
                self.refresh()
            except OSError as error:
                logger.warning(f"{self._datastore_path}: could not be read or its books not be written ({error}).")
            time.sleep(SECONDS)

    def _inside(self, path: str | Path) -> Path:
        """``path``, if it lies in the studies and no link leads out."""
        resolved = Path(path).resolve()
        if not resolved.is_relative_to(Path(self._datastore_path).resolve()):
            raise refuse(f"{Path(path).name!r}: expected a place inside the studies.")
        return resolved

    @locked
    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        name, ext = self._to_id(os.path.basename(image_filename))
        image_id = check_name("image", image_id or name)
        if image_id in self._datastore.objects:
            raise refuse(f"{image_id}: exists already; give another name, or remove that image first.", 409)
        target = self._inside(Path(self._datastore.image_path()) / self._filename(image_id, ext))
        before = target.exists()
        try:
            return super().add_image(image_id, image_filename, image_info)
        except OSError:
            if not before:  # a part of the image would be taken for one
                target.unlink(missing_ok=True)
            raise

    @locked
    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        image = self._datastore.objects.get(image_id)
        if image is None:
            raise ImageNotFoundException(f"{image_id}: no such image.")
        tag = str(getattr(label_tag, "value", label_tag))
        _, ext = self._to_id(os.path.basename(label_filename))
        folder = Path(self._datastore.label_path(check_name("tag", tag)))
        name = self._filename(check_name("image", image_id), ext)
        target = self._inside(folder / name)
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f".{name}.part"
        try:
            shutil.copyfile(label_filename, part)
            about = part.stat()
            with FileLock(self._lock_file):  # many images are predicted in a process whose books are of its start
                if replaces_none(label_info, tag) and self._files(image_id, tag):
                    raise labelled(image_id)
                self._set_aside(image_id, tag)
                os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
        info = {**(label_info or {}), "ts": int(time.time()), "name": name}
        info["stored"] = [about.st_size, about.st_mtime_ns]  # by which the file is known again
        image.labels[tag] = DataModel(info=info, ext=ext)
        self._update_datastore_file()
        return image_id

    @locked
    def remove_label(self, label_id: str, label_tag: str) -> None:
        self._set_aside(check_name("label", label_id), check_name("tag", label_tag))
        self.refresh()

    def _set_aside(self, image_id: str, tag: str) -> None:
        """Move the files of a label to ``labels_before``; drafts are not kept."""
        before = Path(self._datastore_path) / "labels_before" / tag
        for ext, file in self._files(image_id, tag).items():
            if tag == DefaultLabelTag.FINAL.value:
                before.mkdir(parents=True, exist_ok=True)
                file.rename(before / f"{image_id}_{datetime.now():%Y%m%d_%H%M%S_%f}{ext}")
            else:
                file.unlink()

    def _files(self, image_id: str, tag: str) -> dict[str, Path]:
        """The files of a label on the disk, by their endings."""
        folder = Path(self._datastore.label_path(tag))
        endings = [SEGMENTATION, *(pattern.removeprefix("*") for pattern in self._extensions)]
        files = {ext: folder / self._filename(image_id, ext) for ext in endings}
        return {ext: file for ext, file in files.items() if file.is_file()}

    def _list_files(self, path: str, patterns: Any) -> dict[str, str]:
        """The newest first: of several files of one label it counts. Segmentations beside the images are none."""
        found = super()._list_files(path, patterns)
        if path == self._datastore.image_path():
            found = {k: v for k, v in found.items() if not k.endswith(SEGMENTATION)}
        return {k: found[k] for k in sorted(found, key=lambda k: -_written(os.path.join(path, found[k])))}

    def _to_id(self, file: str) -> tuple[str, str]:
        """Name and ending; MONAI Label's takes the ending away wherever it occurs in the name."""
        endings = [SEGMENTATION, *sorted((p.removeprefix("*") for p in self._extensions), key=len, reverse=True)]
        ending = next((ending for ending in endings if file.endswith(ending)), Path(file).suffix)
        return file.removesuffix(ending), ending

    def _add_non_existing_images(self) -> int:
        """Of several files of one name the books know one; the others are named, once, and images of other endings."""
        changed = super()._add_non_existing_images()
        endings = tuple(pattern.removeprefix("*") for pattern in self._extensions)
        files = [name for name in sorted(os.listdir(self._datastore.image_path())) if not name.startswith(".")]
        odd = [n for n in files if n.lower().endswith(IMAGES) and not n.endswith((*endings, SEGMENTATION))]
        if new := [name for name in odd if name not in self.passed_over]:
            self.passed_over.update(new)
            more = f" and {len(new) - 1} more" if len(new) > 1 else ""
            logger.warning(
                f"{new[0]}{more}: left out; expected the endings {', '.join(endings)}, in small letters. Rename or "
                "convert such images."
            )
        for folder in [name for name in files if name not in (*OWN, *self.passed_over)]:
            path = Path(self._datastore.image_path()) / folder
            if path.is_dir():
                self.passed_over.add(folder)
                if inside := next((f.name for f in path.rglob("[!.]*") if f.name.lower().endswith(IMAGES)), None):
                    logger.warning(
                        f"{folder}/: left out with {inside} and what else is in it; expected all images in one folder, "
                        "each under its own name. Move them there."
                    )
        for file in self._list_files(self._datastore.image_path(), self._extensions):
            image, ext = self._to_id(file)
            entry = self._datastore.objects.get(image)
            if entry and entry.image.ext != ext and file not in self.passed_over:
                self.passed_over.add(file)
                logger.warning(
                    f"{file}: left out, for {image}{entry.image.ext} has the same name; rename one of the two."
                )
        return changed

    def _add_non_existing_labels(self, tag: str) -> int:
        """Also the newest file of a label, in the place of an older one with another ending."""
        changed = super()._add_non_existing_labels(tag)
        folder = Path(self._datastore.label_path(tag))
        for file in reversed(self._list_files(str(folder), self._extensions)):  # the newest last
            image, ext = self._to_id(file)
            label = self._datastore.label(image, tag)
            if label is None or label.ext == ext:
                continue
            before = folder / self._filename(image, label.ext)
            if not before.is_file() or before.stat().st_mtime_ns < (folder / file).stat().st_mtime_ns:
                logger.info(f"{tag}: {file} is newer than {before.name} and counts.")
                info = {"ts": int(time.time()), "name": file}
                self._datastore.objects[image].labels[tag] = DataModel(info=info, ext=ext)
                changed += 1
        return changed

    @locked
    def strays(self) -> list[str]:
        """A line for each file among the final labels that belongs to no image."""
        folder = Path(self._datastore.label_path(DefaultLabelTag.FINAL.value))
        endings = tuple(pattern.removeprefix("*") for pattern in self._extensions)
        return [
            f"labels/final/{name}: expected the name of an image, found none called {self._to_id(name)[0]}; rename the "
            f"file like its image, with one of the endings {', '.join(endings)}."
            for name in sorted(p.name for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
            if not name.endswith(endings) or self._to_id(name)[0] not in self._datastore.objects
        ]


def _written(path: str) -> int:
    """When a file was written last; 0 where it has gone since it was listed."""
    try:
        return os.stat(path).st_mtime_ns
    except FileNotFoundError:
        return 0


for _name in (
    "datalist", "get_image_uri", "get_image_info", "get_label_uri", "get_label_info", "get_labeled_images",
    "get_unlabeled_images", "list_images", "status", "json", "remove_image", "update_image_info", "update_label_info",
    "refresh", "_on_modify_event",
):  # fmt: skip
    setattr(Studies, _name, locked(getattr(LocalDatastore, _name)))


def known_image(datastore: Any, image: str) -> str:
    """The file of an image.

    Raises:
        HTTPException: 404, there is none.
    """
    uri = datastore.get_image_uri(image)
    if not uri or not os.path.exists(uri):
        raise HTTPException(404, f"{image}: no such image.")
    return uri
