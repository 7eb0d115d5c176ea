"""Authentication with the PyJWT of today."""

from __future__ import annotations

import functools
import types

import jwt
from monailabel.endpoints.user import auth

#: Signatures by the realm's public key.
ALGORITHMS = ("RS256", "RS384", "RS512")


def name_algorithms() -> None:
    """Say which signatures count when a token is read.

    MONAI Label 0.8.5 does not; PyJWT 2 then refuses every token, so that nobody can use a server with authentication.
    """
    auth.jwt = types.SimpleNamespace(decode=functools.partial(jwt.decode, algorithms=list(ALGORITHMS)))
