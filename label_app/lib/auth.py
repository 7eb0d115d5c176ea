"""Authentication with the PyJWT of today."""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping
from pathlib import Path

import jwt
from monailabel.config import settings
from monailabel.endpoints.user import auth

#: Signatures by the realm's public key.
ALGORITHMS = ("RS256", "RS384", "RS512")


def name_algorithms() -> None:
    """Say which signatures count when a token is read.

    MONAI Label 0.8.5 does not; PyJWT 2 then refuses every token, so that nobody can use a server with authentication.
    """
    auth.jwt = types.SimpleNamespace(decode=functools.partial(jwt.decode, algorithms=list(ALGORITHMS)))


def read_token(conf: Mapping[str, str]) -> str:
    """The shared secret of ``--conf token_file``; empty where there is none.

    Raises:
        ValueError: a file that cannot be read, or a secret too short to be one.
    """
    if not (file := conf.get("token_file")):
        return ""
    if settings.MONAI_LABEL_AUTH_ENABLE:
        raise ValueError(f"token_file {file}: expected a token or an OpenID provider, received both; choose one.")
    token = Path(file).read_text().strip() if Path(file).is_file() else ""
    if len(token) < 16 or not token.isascii():
        raise ValueError(f"token_file {file}: expected a file with a secret of 16 plain characters or more.")
    return token
