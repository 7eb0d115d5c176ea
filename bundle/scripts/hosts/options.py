"""Refuses options of a run that MONAI would accept although they have no effect or the opposite effect."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from pathlib import Path

from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser, ConfigWorkflow, run

from ..callers import caller
from ..command_line import options_of
from ..errors import raise_all
from .config_keys import nearest_key, problems_of
from .monai_label import inside

#: Text to write in the place of one that would be taken for true, or left out: MONAI drops options that are ``None``.
WORDS = {"false": "False", "null": "'$None'", "None": "'$None'"}
#: What ``--tracking`` reads beside its own keys of a config.
TRACKING = {"output_dir", "tracking_uri", "experiment_name", "run_name", "save_execute_config"}
#: The bundle's files that come first, those that come before a method's, and those of a method.
FIRST, BEFORE = ("train", "inference"), ("volumes", "paper")
METHODS = ("labeled_only", "fixmatch", "unimatch", "semsim_minus")


def _misordered(files: Sequence[str]) -> list[str]:
    """A line for each of the bundle's files that undoes one listed before it, for later files override earlier ones."""
    folder = Path(__file__).resolve().parents[2] / "configs"
    names = [path.stem if (path := Path(file).resolve()).parent == folder else file for file in files]
    problems = []
    for place, name in enumerate(names):
        undone = names[:place] if name in FIRST else [n for n in names[:place] if name in BEFORE and n in METHODS]
        if undone:
            problems.append(
                f"--config_file: expected {name}.yaml before {', '.join(undone)}, which it would undo, received it "
                "behind, and later files override earlier ones; change their order."
            )
    return problems


def check_options(argv: Sequence[str] | None = None) -> None:
    """Refuse misspelt options, which MONAI adds to the config unread, and words that it misreads.

    ``false`` is a text to it and so true, and an option that is ``None`` is left out.

    Args:
        argv: a command line, ``[program, "run", ...]``; default: this process's, if it is one of ``monai.bundle run``,
            and the configuration that is about to run, from wherever its keys came. Not MONAI Label's, which hands over
            keys of its own.

    Raises:
        InputError: one line for each such option.
    """
    if argv is None:
        argv = sys.argv
        if inside():
            return
        if Path(argv[0]).parts[-2:] != ("bundle", "__main__.py") or argv[1:2] != ["run"]:
            argv = []
        workflow = caller(ConfigWorkflow)
        found = problems_of(workflow) if workflow is not None else []
    else:
        found = []
    options = options_of(argv)
    problems = [
        f"--{name}: expected {word}, received {text!r}, which MONAI takes for something else; write --{name} {word}."
        for name, text in options.items()
        if (word := WORDS.get(text) or (WORDS["None"] if text and DefaultParseValue(text) is None else None))
    ]
    files = DefaultParseValue(options.get("config_file", ""))
    if files:
        known = {*ConfigParser.load_config_files(files), *inspect.signature(run).parameters} - {"override"}
        known |= TRACKING if "tracking" in options else set()
        for name in options:
            first = name.replace("::", "#").split("#")[0]
            if first not in known:
                hint = nearest_key(first, known, "--")
                problems.append(f"--{name}: expected a key of {options['config_file']}, received {first!r}; {hint}")
        problems += _misordered(files.split(",") if isinstance(files, str) else files)
    told = " ".join(problems)
    problems += [line for line in found if line.split(":")[0] not in told]
    raise_all(problems, "options")
