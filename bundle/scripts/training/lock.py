"""One training at a time in a folder: two would mix their checkpoints, logs and weights."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import IO

from ..errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"


def locked(folder: Path) -> IO | None:
    """Claim a folder for this process, until it is released or the process ends, however it ends.

    Args:
        folder: of a training; made where it is missing.

    Returns:
        an open file, for :func:`release`; ``None`` where the system knows no locks.

    Raises:
        InputError: another process trains there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        return None
    file = (folder / LOCK_FILE).open("w")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno not in (errno.EACCES, errno.EAGAIN):  # a file system without locks
            return None
        raise InputError(
            f"{folder}: another process is training here; wait for its end, or give another --output_dir."
        ) from error
    return file


def release(file: IO | None) -> None:
    """Give a folder free again."""
    if file is not None and not file.closed:
        Path(file.name).unlink(missing_ok=True)
        file.close()
