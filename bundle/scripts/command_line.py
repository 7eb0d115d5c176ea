"""Options of a command line, and functions as commands."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from .errors import InputError, one_line_errors

#: What fire takes for an option, and what for the end of the one before.
OPTION, FLAG = re.compile(r"--.|-[a-zA-Z]"), re.compile(r"--|-[a-zA-Z]")
#: What a switch may be followed by.
SWITCH = ("", "True", "False", "true", "1", "0")


def options_of(argv: Sequence[str]) -> dict[str, str]:
    """Names and texts of ``--name text`` and ``--name=text``, as fire takes them apart; no text for a bare name.

    To fire one dash is as good as two.
    """
    options = {}
    for token, following in zip(argv, [*argv[1:], "--"]):
        if OPTION.match(token):
            name, given, text = token.lstrip("-").partition("=")
            options[name.replace("-", "_")] = text if given else "" if FLAG.match(following) else following
    return options


def left_tilde(text: str) -> str:
    """What to say of a path that begins with ``~``, which no shell has replaced; empty for any other text."""
    if text != "~" and not text.startswith("~/"):
        return ""
    return (
        f"expected a path, received {text!r} with its ~, which shells replace neither behind = nor in quotes; give the "
        "whole path, or a space before it and no quotes around the ~."
    )


def command(function: Callable[..., Any], name: str = "") -> None:
    """Run a function as a command by fire, which would refuse an option that it has not after it has run.

    Args:
        function: its arguments are the options.
        name: of the command, where it is the first word; empty: there is none.

    Raises:
        InputError: an option that the function has not, or another text than True or False for a switch: fire takes
            any text for true, ``false`` as well; or a path that begins with ``~``.
    """
    import fire
    from fire.decorators import SetParseFns

    one_line_errors()
    known, given = inspect.signature(function).parameters, options_of(sys.argv[1:])
    if unknown := [option for option in given if option not in {*known, "help", "h"}]:
        raise InputError(f"Unknown option --{unknown[0]}; see --help.")
    for option, text in given.items():
        if option in known and isinstance(known[option].default, bool) and text not in SWITCH:
            raise InputError(f"--{option}: expected True or False, received {text!r}.")
        if line := left_tilde(text):
            raise InputError(f"--{option}: {line}")
    texts = {option: str for option, parameter in known.items() if parameter.annotation in (str, "str")}
    function = SetParseFns(**texts)(function)  # a folder may be called 2024, which fire would make a number of
    fire.Fire({name: function} if name else function)
