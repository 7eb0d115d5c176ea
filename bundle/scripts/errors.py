"""One clear line for bad input instead of a traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import TracebackType


class InputError(ValueError):
    """Input that cannot be used. The message names the file, what was expected, what was received and the remedy."""


def raise_all(problems: Iterable[str]) -> None:
    """Raise one :class:`InputError` that lists every problem, so that a user can mend them all at once.

    Args:
        problems: one line each; nothing is raised when there is none.
    """
    problems = list(problems)
    if len(problems) == 1:
        raise InputError(problems[0])
    if problems:
        raise InputError(f"{len(problems)} problems in the data:\n  " + "\n  ".join(problems))


def find_input_error(error: BaseException | None) -> InputError | None:
    """The :class:`InputError` in the chain of causes of ``error``, or ``None``."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        # compared by name: a reloaded module has another class object of the same name
        if type(error).__name__ == InputError.__name__:
            return error  # type: ignore[return-value]
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def one_line_errors() -> None:
    """Let the running program end with ``ERROR: <message>`` and exit code 1 when its input is at fault.

    Other exceptions keep their traceback. Meant for command lines: it replaces ``sys.excepthook`` of the process.
    """
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        found = find_input_error(error)
        if found is None:
            previous(kind, error, trace)
        else:
            print(f"ERROR: {found}", file=sys.stderr)

    sys.excepthook = hook
