"""Options of a command line, and functions as commands."""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
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


def option_text(name: str, text: str) -> str:
    """An option with its text as to be given, behind ``=`` where the text would look like an option."""
    return f"--{name}{'=' if FLAG.match(text) else ' '}{text}"


def left_tilde(text: str) -> str:
    """What to say of a path that begins with ``~``, which no shell has replaced; empty for any other text."""
    if text != "~" and not text.startswith("~/"):
        return ""
    return (
        f"expected a path, received {text!r} with its ~, which shells replace neither behind = nor in quotes; give the "
        "whole path, or a space before it and no quotes around the ~."
    )


def bare_words(argv: Sequence[str]) -> list[str]:
    """The words that are neither an option nor the text of one."""
    before = ["", *argv]
    return [
        word for last, word in zip(before, argv) if not FLAG.match(word) and ("=" in last or not OPTION.match(last))
    ]


def required(function: Callable[..., Any]) -> list[str]:
    """Arguments that have no default."""
    known = inspect.signature(function).parameters.items()
    return [name for name, parameter in known if parameter.default is parameter.empty]


def help_of(function: Callable[..., Any], program: str) -> str:
    """What ``--help`` says of a function: its docstring as it is, its arguments as options.

    Args:
        function: its docstring is in Google's style.
        program: the words of the command.
    """
    from fire import docstrings

    said = docstrings.parse(inspect.getdoc(function) or "")
    described = {argument.name: argument.description or "" for argument in said.args or ()}
    known, needed = inspect.signature(function).parameters, required(function)
    usage = [program, *(f"--{name} {name.upper()}" for name in needed), *["[options]"] * (len(known) > len(needed))]
    parser = argparse.ArgumentParser(
        program,
        " ".join(usage),
        "\n\n".join(filter(None, (said.summary, said.description))),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    groups = {True: parser.add_argument_group("required"), False: parser.add_argument_group("options")}
    for name, parameter in known.items():
        default, text = parameter.default, described.get(name, "").replace("%", "%%")
        if default not in (parameter.empty, None, "", (), False):
            text += f" (default: {default})"
        action: Any = "store_true" if default is False else "store"
        groups[name in needed].add_argument(f"--{name}", help=text, action=action)
    return parser.format_help()


def command(function: Callable[..., Any], name: str = "") -> None:
    """Run a function as a command by fire, which would refuse what it cannot take after it has run.

    Args:
        function: its arguments are the options; those without a default may be given by their place instead.
        name: of the command, where it is the first word; empty: there is none.

    Raises:
        InputError: an option that the function has not, one that it lacks, or a word that belongs to no option;
            another text than True or False for a switch: fire takes any text for true, ``false`` as well; or a path
            that begins with ``~``.
    """
    import fire
    from fire.decorators import SetParseFns

    one_line_errors()
    known, argv, program = inspect.signature(function).parameters, sys.argv[1:], Path(sys.argv[0]).name
    if name:
        program += f" {name}"
        if argv and argv[0] != name and not FLAG.match(argv[0]):
            raise InputError(f"Expected {program}, received {argv[0]!r}; see --help.")
        argv = argv[argv[:1] == [name] :]
    given, bare = options_of(argv), bare_words(argv)
    if {"help", "h"} & {*given} or (name and len(sys.argv) == 1):
        sys.stdout.write(help_of(function, program))
        return
    if unknown := [option for option in given if option not in {*known, "help", "h"}]:
        raise InputError(f"Unknown option --{unknown[0]}; see --help.")
    ends = [token for token, after in zip(argv, [*argv[1:], "--"]) if FLAG.match(after) and "=" not in token]
    for option, text in given.items():
        if option in known and isinstance(known[option].default, bool) and text not in SWITCH:
            raise InputError(f"--{option}: expected True or False, received {text!r}.")
        if line := left_tilde(text):
            raise InputError(f"--{option}: {line}")
        if option in options_of(ends) and option in known and not isinstance(known[option].default, bool):
            raise InputError(f"--{option}: expected a value behind it, received none; give one, or leave it out.")
    lacking = [option for option in required(function) if option not in given]
    if len(bare) > len(lacking):
        raise InputError(
            f"{program}: {bare[len(lacking)]!r} belongs to no option. Several values of one are joined by commas, and "
            "a * that the shell replaces by names of files is no folder; see --help."
        )
    if missing := lacking[len(bare) :]:
        raise InputError(f"{program}: expected {', '.join(f'--{option}' for option in missing)} as well; see --help.")
    kinds = (str, "str", "str | None", "Names")
    texts = {option: str for option, parameter in known.items() if parameter.annotation in kinds}
    function = SetParseFns(**texts)(function)  # a folder may be called 2024, which fire would make a number of
    fire.Fire(function, argv)
