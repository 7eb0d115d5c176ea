"""What a request may say: names that stay inside the studies, and values that the panel offers."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from fastapi import HTTPException
from monailabel.utils.others.generic import device_list

logger = logging.getLogger(__name__)

#: A plain file name: no slash, backslash, control character or other sign that file systems read, no dot in front.
NAME = re.compile(r"(?![.~])[^/\\:*?\"<>|\x00-\x1f\x7f]{1,200}")
#: A tag is a folder below ``labels``.
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,60}")
#: Keys that say what a request is about; the app looks each of them up.
ABOUT = ("model", "method", "image", "images", "client_id", "user")
#: Keys of MONAI Label's own panel that a request may leave empty alone.
EMPTY = ("run_id", "tracking", "tracking_uri", "tracking_experiment_name", "tracking_run_name")
#: Lengths of a training below which nothing is learnt.
LEAST = {"max_epochs": 1, "minutes": 0.001}
LEVELS = ["DEBUG", "INFO", "WARNING", "ERROR"]


def refuse(message: str, status: int = 400) -> HTTPException:
    """The answer to a request that is not served: one line, also in the log."""
    logger.warning(f"{status}: {message}")
    return HTTPException(status, message)


def check_name(what: str, value: str) -> str:
    """``value``, if it is a plain name.

    Raises:
        HTTPException: 400, it is not.
    """
    if not (TAG if what.endswith("tag") else NAME).fullmatch(value):
        raise refuse(f"{what}: expected a plain name without slashes, received {value[:80]!r}.")
    return value


def read_object(what: str, text: str) -> dict[str, Any]:
    """An object in JSON, such as every program reads again: no ``NaN``, no half characters, not nested without end.

    Raises:
        HTTPException: 400, it is none.
    """
    try:
        value = json.loads(text or "{}")
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise refuse(f"{what}: expected JSON, could not read it ({ascii(error)[:80]}).") from error
    if not isinstance(value, dict):
        raise refuse(f"{what}: expected an object, received {text[:80]!r}.")
    return value


def check_image_info(info: Mapping[str, Any]) -> None:
    """Refuse what strategies stumble over when they choose an image.

    Raises:
        HTTPException: 400, scores, which are the server's own, or a ``strategy`` that does not say when it was offered.
    """
    if scores := [key for key in info if key.startswith("semsim_")]:
        raise refuse(f"{scores[0][:80]}: the server writes its scores itself; leave it out.")
    offered = info.get("strategy", {})
    entries = list(offered.values()) if isinstance(offered, dict) else [None]
    if not all(isinstance(entry, dict) and isinstance(entry.get("ts", 0), int) for entry in entries):
        raise refuse('info: expected for strategy an object such as {"random": {"ts": 1700000000}}.')


def devices() -> list[str]:
    """Every name of a device that a request may give."""
    count = torch.cuda.device_count()
    return [*device_list(), "cpu", "cuda", *(f"cuda:{n}" for n in range(max(count, 1)))]


def checked(given: Mapping[str, Any], panel: Mapping[str, Any], *, strict: bool = True) -> dict[str, Any]:
    """The values of a request, each of the kind that the panel offers.

    Nothing else reaches a configuration, where MONAI evaluates text that begins with ``$``.

    Args:
        given: keys and values as they came.
        panel: what is offered: a list of choices, or a value of the kind that is expected.
        strict: whether a key that the panel does not have is refused; otherwise it is left out.

    Raises:
        HTTPException: 400 in one line.
    """
    values, unknown = {}, []
    for key, value in given.items():
        if key in ABOUT:
            for part in value if isinstance(value, list) else [value]:
                if part not in (None, ""):
                    check_name(key, str(getattr(part, "value", part)))
            values[key] = value
        elif key in EMPTY:
            if value not in (None, "", "None", ["None", "mlflow"]):
                raise refuse(f"{key}: no request decides that, received {str(value)[:80]!r}; leave it out.")
        elif key in panel:
            values[key] = _fitting(key, value, panel[key])
        elif strict:
            raise refuse(f"{str(key)[:80]!r}: expected one of {', '.join(panel)}; leave it out or mend its name.")
        else:
            unknown.append(str(key)[:80])
    if unknown:
        logger.info(f"{', '.join(unknown[:10])}{' and more' if len(unknown) > 10 else ''}: no option here, left out.")
    return values


def _fitting(key: str, value: Any, offered: Any) -> Any:
    if key == "gpus":
        if not isinstance(value, str) or not re.fullmatch(r"|all|\d{1,3}(,\d{1,3})*", value):
            raise refuse(f"gpus: expected all, or numbers like 0,1, received {str(value)[:80]!r}.")
        return value
    if isinstance(offered, str):
        return check_name(key, str(value))
    if isinstance(offered, bool):
        if str(value).lower() not in ("true", "false", "0", "1"):
            raise refuse(f"{key}: expected true or false, received {str(value)[:80]!r}.")
        return str(value).lower() in ("true", "1")
    if isinstance(offered, (list, tuple)):
        return _choice(key, value, offered)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not -1 <= number <= 1_000_000 or (number < 0 and key != "val_split"):
        raise refuse(f"{key}: expected a number like {offered}, received {str(value)[:80]!r}.")
    if number < LEAST.get(key, -1):
        raise refuse(f"{key}: expected a number like {offered}, received {number:g}.")
    if key == "val_split" and number >= 1:
        raise refuse(f"val_split: expected a share below 1 of the labelled images, received {number:g}.")
    return int(number) if isinstance(offered, int) and number.is_integer() else number


def _choice(key: str, value: Any, offered: Sequence[Any]) -> Any:
    if isinstance(value, list) and value and [str(v) for v in value] == [str(c) for c in offered][: len(value)]:
        value = value[0]  # the whole list of choices: the first is preselected
    for choice in offered:
        if not isinstance(value, (dict, bool)) and str(value) == str(choice):
            return choice
    shown = ", ".join(map(str, offered)) or "nothing yet"
    raise refuse(f"{key}: expected one of {shown}; received {str(value)[:80]!r}.")
