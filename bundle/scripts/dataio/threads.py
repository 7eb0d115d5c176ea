"""Files that are read by several threads, in the order of the list."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from copy import deepcopy
from typing import Any, TypeVar

import torch

from ..memory import free_memory

T = TypeVar("T")
R = TypeVar("R")

#: Threads at most, and the free memory in bytes that each should have: what a CT of 500 slices takes on its way.
MOST, ROOM = 4, 4e9


def reading_threads() -> int:
    """How many threads read: as many as torch computes with (``OMP_NUM_THREADS``), if memory allows, at most four."""
    return max(1, min(MOST, torch.get_num_threads(), int(free_memory() / ROOM)))


@contextmanager
def in_threads(function: Callable[[T], R], items: Iterable[T], number: int | None = None) -> Iterator[Iterator[R]]:
    """Results of ``function`` for every item, in their order, computed by threads ahead of their use.

    What is left when the context ends, by an error or an interruption say, is not begun.

    Args:
        function: called in several threads at once.
        items: what it is called with.
        number: of threads; default :func:`reading_threads`.
    """
    threads = ThreadPoolExecutor(number or reading_threads(), "reading")
    with threads as pool, closing(pool.map(function, items)) as results:  # type: ignore[type-var]
        yield results


class OfEachThread:
    """Gives each of :attr:`number` threads a copy of something that may keep state, such as a transform.

    Attributes:
        number: of threads: :func:`reading_threads`, or one for something that cannot be copied.
    """

    def __init__(self, original: Any) -> None:
        """
        Args:
            original: given to the first thread that asks; it is not used meanwhile.
        """
        self._own = threading.local()
        try:
            self._left = [*(deepcopy(original) for _ in range(reading_threads() - 1)), original]
        except Exception:  # it holds a lock, or a file
            self._left = [original]
        self.number = len(self._left)

    def __call__(self) -> Any:
        if not hasattr(self._own, "copy"):
            self._own.copy = self._left.pop()
        return self._own.copy
