"""What a component of a configuration is made by: MONAI hands its parser and its workflow to none of the entries."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def caller(kind: type[T], accepts: Callable[[T], bool] = lambda owner: True) -> T | None:
    """The nearest object of a class that this call comes out of, found among its callers; ``None`` where there is none.

    Args:
        kind: its class.
        accepts: whether an object is the one that is wanted.
    """
    frame = sys._getframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, kind) and accepts(owner):
            return owner
        frame = frame.f_back  # type: ignore[assignment]
    return None
