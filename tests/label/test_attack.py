"""The attack of ``attack.py``: that it notices what it looks for, and (long) that nothing is found."""

from __future__ import annotations

import gzip
import io
import zipfile

import pytest
from attack import SECRET, Canaries, attack, tells


def test_the_canaries_notice(tmp_path):
    """Code that ran, a file outside that was read, changed or made; and not what the server may write."""
    canaries = Canaries(tmp_path / "a")
    for name in ("app", "studies"):
        (canaries.folder / name).mkdir()
    (canaries.folder / "app" / "main.py").write_text("x")
    canaries.watch()
    (canaries.folder / "studies" / "new.nii.gz").write_text("x")
    (canaries.marks / "ran_1").touch()
    (canaries.folder / "app" / "main.py").write_text("y")
    (canaries.folder / "planted.py").touch()
    (canaries.outside / "secret.txt").read_text()
    (canaries.folder / "studies" / "link").symlink_to(canaries.outside)
    found = canaries.broken()
    assert {"code ran: ran_1", "outside: opened secret.txt", "changed: app/main.py", "changed: planted.py"} <= set(
        found
    )
    assert any(line.startswith("a link") for line in found) and not any("new.nii.gz" in line for line in found)


def test_an_answer_that_tells_is_recognised():
    text = f"x{SECRET}y".encode()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a", gzip.compress(text))
    assert all(map(tells, (text, b"--x\r\n\r\n" + gzip.compress(text), archive.getvalue(), b"root:x:0:0:root:/root")))
    assert not any(map(tells, (b"", b"nothing", gzip.compress(b"nothing"), b"PK\x03\x04", b"\x1f\x8b\x08x")))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_three_minutes_of_attack(tmp_path):
    report = attack(tmp_path / "attack", minutes=3)
    assert report["findings"] == [] and report["requests"] > 100
