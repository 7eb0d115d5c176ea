"""One clear line instead of a traceback, for bad input and for lack of memory or disk space."""

from __future__ import annotations

import errno
import re
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator
from types import TracebackType

from tqdm import tqdm

#: what gloo says of a process that is gone
LOST = ("closed by peer", "Connection reset", "Broken pipe", "imed out", "imeout")
#: what is said of memory that is full, by the system, by CUDA with its libraries, and by Apple's GPUs
NO_MEMORY = ("allocate memory", "out of memory", "_STATUS_ALLOC_FAILED")
#: what is said of a disk that is full, by the system and by numpy
FULL = ("No space left", "File too large", "quota exceeded", "requested and")
#: Numbers that the system has for a file where a folder has to be, or the reverse, and for a name that cannot be.
MISPLACED = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)
#: Those for storage that is out of reach: a disk that fails, or a network folder that is gone.
OUT_OF_REACH = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH)
#: What to do next, and what needs less memory, by what was running.
GO_ON = {
    "training": "what was written stays usable: go on with --resume auto",
    "prediction": "what was written stays usable: go on with --existing skip",
}
SMALLER = {
    "training": "Lower --batch_size or --spatial_size, or take --fusion_checkpoint True or configs/semsim_minus.yaml; "
    "`run planning` says what fits.",
    "prediction": "Lower --slice_batch, close other programs, or on a GPU give --device cpu.",
}


class InputError(ValueError):
    """Input that cannot be used. The message names the file, what was expected, what was received and the remedy."""


def raise_all(problems: Iterable[str], where: str = "data") -> None:
    """Raise one :class:`InputError` that lists every problem, so that a user can mend them all at once.

    Args:
        problems: one line each; nothing is raised when there is none.
        where: what they are problems of.
    """
    problems = list(dict.fromkeys(problems))  # what is wrong with an option, each file would say again
    if len(problems) == 1:
        raise InputError(problems[0])
    if problems:
        raise InputError(f"{len(problems)} problems in the {where}:\n  " + "\n  ".join(problems))


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """``error`` and its causes, the nearest first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


def find_input_error(error: BaseException | None) -> InputError | None:
    """The :class:`InputError` in the chain of causes of ``error``, or ``None``."""
    for cause in chain(error):
        # compared by name: a reloaded module has another class object of the same name
        if type(cause).__name__ == InputError.__name__:
            text = str(cause)
            if text.startswith("Caught "):  # in a loading process, whose traceback PyTorch put into the message
                return InputError(text.rsplit(f"{InputError.__name__}: ", 1)[-1].strip())
            return cause  # type: ignore[return-value]
    return None


def reason(error: BaseException) -> str:
    """The line of a message that says what went wrong: ITK begins with its source, and its NRRD reader ends with it."""
    lines = [line for line in str(error).strip().splitlines() if line and not line.endswith(":")]
    own = [line for line in lines if line.startswith("[nrrd]")][-1:] or lines
    return own[0][:200] if own else ""


def not_written(error: BaseException) -> tuple[str, str] | None:
    """The file that MONAI says has no suitable writer, whatever the reason was, and the reason; ``None`` for others."""
    text = str(error)
    found = re.search(r"cannot find a suitable writer for (.+)\.\n", text)
    return (found[1], text.strip().splitlines()[-1]) if found else None


def out_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out, of the machine or of a GPU, in the chain of causes of ``error``."""
    return any(
        isinstance(cause, MemoryError)
        or type(cause).__name__ == "OutOfMemoryError"
        or any(sign in str(cause) for sign in NO_MEMORY)
        for cause in chain(error)
    )


def explain(error: BaseException, task: str = "training") -> str | None:
    """What happened and what to do about it, in one line; ``None`` where only a traceback helps.

    Args:
        error: what ended the program.
        task: what was running: ``training`` or ``prediction``.
    """
    found = find_input_error(error)
    if found is not None:
        return str(found)
    for cause in chain(error):
        text, kind = str(cause), type(cause).__name__
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return f"{cause.filename or 'output'}: no space left to write ({cause.strerror}); free some, {GO_ON[task]}."
        if isinstance(cause, OSError) and cause.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            return (
                f"{cause.filename}: not permitted ({cause.strerror}); give files that may be read and an --output_dir "
                "that may be written."
            )
        if isinstance(cause, OSError) and cause.filename and cause.errno in MISPLACED:
            return f"{cause.filename}: cannot be written or read there ({cause.strerror}); give another name."
        if isinstance(cause, OSError) and cause.filename and cause.errno in OUT_OF_REACH:
            return f"{cause.filename}: the storage is out of reach ({cause.strerror}); mend that, {GO_ON[task]}."
        if written := not_written(cause):
            file, reason = written
            if any(sign in reason for sign in FULL):
                return f"{file}: no space left to write ({reason}); free some, {GO_ON[task]}."
            return (
                f"{file}: could not be written ({reason}); give an --output_dir that may be written, or another "
                "--output_ext."
            )
        if out_of_memory(cause):
            return f"Out of memory. {SMALLER[task]} Otherwise {GO_ON[task]}."
        if text.startswith("DataLoader worker") or (
            isinstance(cause, (ConnectionError, EOFError)) and _of_worker(cause)
        ):
            less, first = " or a lower --cache_rate" if task == "training" else "", (text or kind).splitlines()[0]
            return (
                f"A loading process was killed, often because memory ran out ({first}) Use "
                f"fewer --num_workers{less}; {GO_ON[task]}."
            )
        if kind.startswith("Dist") or ("gloo" in text and any(sign in text for sign in LOST)):
            reason = text.splitlines()[0]
            return f"Another process of this run has ended, and its own message counts ({reason}); {GO_ON[task]}."
        if text and (type(cause).__module__.startswith("mlflow") or text.startswith("MLflow")):
            return f"mlflow_tracking_uri: {text.splitlines()[0]} Correct it, or leave it out; {GO_ON[task]}."
        if isinstance(cause, KeyError) and (
            missing := re.search(r"Key `(\w+)` of transform `(\w+)` was missing", text)
        ):
            return (
                f"{missing[2]}: expected keys of what it is given, received {missing[1]}, which is not there ("
                "unlabelled images have no label); correct its keys in the YAML file."
            )
        if isinstance(cause, TypeError) and (line := _unknown_argument(cause)):
            return line
        if isinstance(cause, KeyboardInterrupt):
            return f"Stopped by hand; {GO_ON[task]}."
    return None


def _unknown_argument(error: BaseException) -> str | None:
    """The line for a key in a component of a configuration that the component does not take; ``None`` for others."""
    found = re.search(r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'", str(error))
    frames = traceback.extract_tb(error.__traceback__)
    if not found or not frames or frames[-1].name != "instantiate":  # MONAI's; anywhere else it is an error of ours
        return None
    return f"{found[1]}: expected arguments that it takes, received {found[2]!r}; correct that key or leave it out."


def _of_worker(error: BaseException) -> bool:
    """Whether an error came up where a loading process hands over its tensors."""
    frames = traceback.extract_tb(error.__traceback__)
    return any("multiprocessing" in frame.filename for frame in frames)


def one_line_errors(task: str = "training") -> None:
    """Let the running program end with ``ERROR: <message>`` and exit code 1 where :func:`explain` knows what happened.

    Other exceptions keep their traceback. Meant for command lines: it replaces ``sys.excepthook`` of the process.

    Args:
        task: what is running, as in :func:`explain`.
    """
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if hasattr(signal, "SIGCHLD"):  # torch raises where another loading process ends, here too
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        message = explain(error, task)
        if message is None:
            previous(kind, error, trace)
        else:
            tqdm.write(f"ERROR: {message}", file=sys.stderr)  # on a line of its own, whatever progress bar is open

    sys.excepthook = hook
