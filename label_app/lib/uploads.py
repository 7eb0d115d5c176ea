"""What an uploaded file is, by its first bytes: the kind that its ending says, with all its content in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import BinaryIO

from lib.names import refuse

#: How a file of each kind begins. Readers choose by content as well: a PNG may be a PostScript program, for instance.
BEGINNINGS = {
    ".nii.gz": (b"\x1f\x8b",),
    ".nii": (b"\x5c\x01\0\0", b"\0\0\x01\x5c", b"\x1c\x02\0\0", b"\0\0\x02\x1c"),  # 348 or 540, the header's size
    ".nrrd": (b"NRRD000",),
    ".png": (b"\x89PNG\r\n\x1a\n",),
    ".jpg": (b"\xff\xd8\xff",),
    ".tif": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}
#: A NRRD header ends with an empty line; one that names a file has its voxels in that.
HEADER_END = re.compile(rb"\n\r?\n")
ELSEWHERE = re.compile(rb"^[ \t]*data[ \t]*file[ \t]*:", flags=re.MULTILINE | re.IGNORECASE)
LONGEST_HEADER = 1 << 20
#: No ending, that of DICOM, or the end of a UID; with another one, readers would take the file for something else.
DICOM_NAME = re.compile(r"[^.]*|.*\.(dcm|dicom|ima|\d+)", flags=re.IGNORECASE)


def check_upload(name: str, file: BinaryIO, patterns: Sequence[str], *, dicom: bool = False) -> str:
    """The ending of an uploaded file, if its content is of that kind.

    Args:
        name: as the client calls it.
        file: its content; read from the start, and left there.
        patterns: of the studies, such as ``*.nii.gz``.
        dicom: whether a DICOM file will do, too; its ending is empty.

    Raises:
        HTTPException: 400, another ending, another content or a name with control characters.
    """
    if any(ord(sign) < 32 for sign in name):
        raise refuse(f"{name[:80]!r}: expected a plain file name.")
    file.seek(0)
    start = file.read(LONGEST_HEADER)
    file.seek(0)
    if dicom and start[128:132] == b"DICM" and DICOM_NAME.fullmatch(name):
        return ""
    known = [ending for ending in BEGINNINGS if f"*{ending}" in patterns]
    ending = next((ending for ending in known if name.lower().endswith(ending)), None)
    if ending is None:
        raise refuse(f"{name[:80]!r}: expected a file that ends with {', '.join(known)}{' or DICOM' if dicom else ''}.")
    if not start.startswith(BEGINNINGS[ending]):
        raise refuse(f"{name[:80]!r}: could not read it, expected the content of a {ending} file.")
    if ending == ".nrrd":
        end = HEADER_END.search(start)
        if end is None or ELSEWHERE.search(start[: end.start()].replace(b"\r", b"\n")):
            raise refuse(f"{name[:80]!r}: expected header and voxels in one file; save it as a single .nrrd.")
    return ending
