"""Reads and writes what this program keeps: JSON, tables, and files that are whole or not there."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import InputError, chain


def cell(text: str) -> str:
    """A text for a cell of a table: one that spreadsheets would run as a formula gets a quote in front."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def json_text(content: Any) -> str:
    """JSON that other programs can read: a number that is none (nan, infinity) becomes ``null``."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(part) for key, part in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(part) for part in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(content), indent=2, allow_nan=False) + "\n"


def check_folder(folder: str | os.PathLike, option: str, given: str | os.PathLike) -> None:
    """That files can be written into a folder, which need not be there yet, before there is something to write.

    Args:
        folder: the folder.
        option: whose value ``given`` names it.

    Raises:
        InputError: one of the names above is no folder, or may not be written.
    """
    wanted = Path(folder).absolute()
    there = next(path for path in (wanted, *wanted.parents) if os.path.lexists(path))
    if not there.is_dir():
        raise InputError(f"--{option} {given}: expected a folder, {there} is no folder; give another name.")
    if not os.access(there, os.W_OK):
        raise InputError(
            f"--{option} {given}: not permitted to write in {there}; give an --{option} that may be written."
        )


def check_new(output: str, option: str = "output") -> None:
    """That ``--output``, a file, is not there yet and can be written, before images are read for it.

    Args:
        output: the file.
        option: what it was given as.

    Raises:
        InputError: as of :func:`check_folder`.
    """
    if os.path.lexists(output):
        raise InputError(f"{output}: exists already; give another name or remove it first.")
    check_folder(Path(output).parent, option, output)


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """The object in a JSON file that this program wrote; empty where there is none.

    Raises:
        InputError: it is cut off, or no JSON object.
    """
    if not os.path.isfile(path):
        return {}
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(
            f"{path}: expected a whole JSON file, received one that cannot be read ({error}); copy it anew from where "
            "it was written, or undo what was edited."
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, received a {type(content).__name__}; copy it anew.")
    return content


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, as :func:`replace_file` does."""
    replace_file(path, lambda file: file.write(text.encode()))


def replace_file(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write beside ``path`` and rename: whatever happens meanwhile, ``path`` is the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        part.unlink(missing_ok=True)
        for cause in chain(error):  # a full disk is reported without a name
            if isinstance(cause, OSError):
                cause.filename = cause.filename or str(path)
        raise
    os.replace(part, path)
