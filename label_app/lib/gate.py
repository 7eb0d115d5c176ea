"""What stands before every request: who may send it, whose names it may give, and that none waits for another's work.

MONAI Label 0.8.5 answers pages of any origin, takes identifiers as parts of paths, and predicts in the loop that serves
all requests.
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import ipaddress
import json
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs, parse_qsl, unquote, urlsplit

from fastapi import FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException, MONAILabelException
from requests import RequestException
from starlette.requests import Request
from starlette.responses import JSONResponse

from lib.names import check_name, refuse

#: Parameters that become parts of paths.
NAMES = ("image", "id", "label", "tag", "session_id")
#: Requests that compute; one at a time, as MONAI Label's tasks are made.
WORK = ("/infer", "/scoring", "/train", "/batch")


def install(app: FastAPI, *, origins: Sequence[str] = (), token: str = "", archive: bool = False) -> None:
    """Put the gate in front of MONAI Label's application, which has started by the time the app is made.

    Args:
        app: MONAI Label's.
        origins: addresses of other sites (``https://viewer.example.org``) whose pages may send requests.
        token: shared secret that every request has to bring; empty: none.
        archive: whether the studies are an archive's, which MONAI Label hands requests on to.
    """
    app.middleware_stack = None
    app.add_exception_handler(MONAILabelException, _told)
    app.add_exception_handler(json.JSONDecodeError, _not_json)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(RecursionError, _too_deep)
    app.add_exception_handler(FileNotFoundError, _gone)
    app.add_exception_handler(OSError, _no_storage)
    app.add_exception_handler(RequestException, _no_answer)
    app.add_exception_handler(ValueError, _no_use)
    app.add_exception_handler(RuntimeError, _gone_meanwhile)
    app.add_middleware(Gate, origins=origins, token=token, archive=archive)
    app.middleware_stack = app.build_middleware_stack()


def _told(_: Request, error: Exception) -> JSONResponse:
    status = 404 if isinstance(error, (ImageNotFoundException, LabelNotFoundException)) else 400
    return JSONResponse({"detail": str(getattr(error, "msg", error))}, status)


def _not_json(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": f"params: expected JSON, could not read it ({error})."}, 400)


def _too_deep(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": "expected JSON that is nested less deeply."}, 400)


def _gone(_: Request, error: Exception) -> JSONResponse:
    name = os.path.basename(str(getattr(error, "filename", "") or ""))
    return JSONResponse(
        {"detail": f"{ascii(name)[1:-1][:80] or 'result'}: no such file; it may have been removed."}, 404
    )


def _no_storage(_: Request, error: Exception) -> JSONResponse:
    """A full disk, say, or a folder that may not be written; what was there before is as it was."""
    name, number = os.path.basename(str(getattr(error, "filename", "") or "")), getattr(error, "errno", None)
    full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    remedy = "free some space on the server" if full else "see to the server's disk and permissions"
    what = f"{ascii(name)[1:-1][:80] or 'this request'}: could not be served ({os.strerror(number or errno.EIO)})"
    told = refuse(f"{what}; {remedy} and send it again.", 507 if full else 500)
    return JSONResponse({"detail": told.detail}, told.status_code)


def no_answer(error: Exception) -> str:
    """What an archive answers that is down, say, or lets this server not in."""
    asked, answer = getattr(error, "request", None), getattr(error, "response", None)
    place = _place(str(getattr(asked, "url", ""))) or "the archive"
    what = f"answers {answer.status_code}" if answer is not None else f"gives no answer ({type(error).__name__})"
    return f"{place}: {what}; see that it runs and lets this server in, and try again."


def _no_answer(_: Request, error: Exception) -> JSONResponse:
    told = refuse(no_answer(error), 502)
    return JSONResponse({"detail": told.detail}, told.status_code)


def _no_use(_: Request, error: Exception) -> JSONResponse:
    """An image of an archive that cannot be used."""
    if type(error).__name__ != "InputError":
        raise error
    told = refuse(str(error), 422)
    return JSONResponse({"detail": told.detail}, told.status_code)


def _gone_meanwhile(request: Request, error: Exception) -> JSONResponse:
    """Starlette's own error for a file that another request has removed before it was sent."""
    if not str(error).startswith("File at path"):
        raise error
    return _gone(request, error)


def _invalid(_: Request, error: Exception) -> JSONResponse:
    """FastAPI's own answer repeats what was sent, and fails where that is no text."""
    problems = error.errors() if isinstance(error, RequestValidationError) else []
    lines = [f"{'.'.join(map(str, problem['loc']))[:80]}: {problem['msg']}" for problem in problems]
    return JSONResponse({"detail": ascii("; ".join(lines))[1:-1]}, 422)


class Gate:
    """ASGI middleware."""

    def __init__(self, app: Any, *, origins: Sequence[str], token: str, archive: bool) -> None:
        """Arguments as in :func:`install`."""
        self.app, self.token, self.archive = app, token, archive
        self.origins = [origin.strip().rstrip("/") for origin in origins if origin.strip()]
        self.hosts = {"localhost", socket.gethostname().lower(), socket.getfqdn().lower()}
        self.hosts |= {str(urlsplit(origin).hostname) for origin in self.origins}
        self.work = ThreadPoolExecutor(1, "work")
        self.quick = ThreadPoolExecutor(32, "quick")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                return
            await self.app(scope, receive, send)
            return
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        try:
            self._check_sender(headers)
            if (response := await self._signed_in(scope, receive, headers)) is None:
                self._check_names(scope)
        except HTTPException as error:
            response = JSONResponse({"detail": error.detail}, error.status_code, error.headers)
        if response is not None:
            await response(scope, receive, send)
            return
        working = scope["method"] == "POST" and scope["path"].startswith(WORK)
        await in_thread(self.work if working else self.quick, self.app, scope, receive, send)

    def _check_sender(self, headers: dict[str, str]) -> None:
        """Refuse pages of other origins, and names that lead here through somebody else's name server."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if origin is not None and _place(origin) != host and origin.rstrip("/") not in self.origins:
            raise refuse(
                f"Origin {origin[:80]!r}: pages of other sites may not send requests; start the server with --conf "
                "origins ADDRESS if this one may.", 403,
            )  # fmt: skip
        name = str(urlsplit(f"//{_place(f'//{host}')}").hostname or "")
        if not self.token and name not in self.hosts and not _is_address(name):
            raise refuse(
                f"Host {host[:80]!r}: expected this machine's name or address; start the server with --conf origins "
                "http://NAME:PORT, or with a token, if it has this name.", 403,
            )  # fmt: skip

    async def _signed_in(self, scope: Any, receive: Any, headers: dict[str, str]) -> JSONResponse | None:
        """With a token: the answers that MONAI Label's clients ask of a server with authentication."""
        if not self.token:
            return None
        path = scope["path"].rstrip("/")
        if path == "/auth":
            return JSONResponse({"enabled": True, "client_id": "", "realm": ""})
        if path == "/auth/token" and scope["method"] == "POST":
            given = parse_qs((await Request(scope, receive).body()).decode("latin-1")).get("password", [""])[0]
        else:
            kind, _, given = headers.get("authorization", "").partition(" ")
            given = given.strip() if kind.lower() == "bearer" else ""
        if not hmac.compare_digest(given.encode("latin-1", "replace"), self.token.encode()):
            raise HTTPException(401, "Expected the server's token as a bearer.", {"WWW-Authenticate": "Bearer"})
        if path.startswith("/auth/token"):
            return JSONResponse({"access_token": self.token, "token_type": "bearer"})
        return None

    def _check_names(self, scope: Any) -> None:
        path = unquote(scope["path"])
        if path.startswith("/reload"):
            raise refuse("/reload: a second copy of the app would keep books of its own; start the server anew.", 404)
        if path.startswith("/proxy") and not self.archive:
            raise refuse("/proxy: the studies are a folder, there is no archive to ask.", 404)
        if any(part in (".", "..") for part in path.replace("\\", "/").split("/")):
            raise refuse(f"{path[:80]!r}: expected a path without dots between slashes.")
        for key, value in parse_qsl(scope["query_string"].decode("latin-1")):
            if key in NAMES:
                check_name(key, value)
            if key == "uncompress" and value.lower() not in ("false", "0", "no", "off", "f", "n"):
                raise refuse(
                    "uncompress: archives are not unpacked here, for they may name files anywhere; send files."
                )


def _place(address: str) -> str:
    """Host and port of an address; empty where it is none."""
    try:
        return urlsplit(address).netloc
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def in_thread(
    pool: ThreadPoolExecutor, app: Callable[..., Awaitable[None]], scope: Any, receive: Any, send: Any
) -> None:
    """Serve a request in a loop of its own on another thread, so that what computes does not hold up this one."""
    loop = asyncio.get_running_loop()

    async def there() -> Any:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(receive(), loop))

    async def back(message: Any) -> None:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(send(message), loop))

    await loop.run_in_executor(pool, lambda: asyncio.run(app(scope, there, back)))
