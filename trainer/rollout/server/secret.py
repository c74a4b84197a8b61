"""The token of a server, and how both sides prove that they know it: an HMAC over each other's random numbers.

The token itself never travels, so a trainer that was sent to a wrong address gives nothing away.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from trainer.errors import ConfigError
from trainer.roots import home

VARIABLE = "ISENTROPE_SERVER_AUTH"  # names the file with the token of servers that somebody else runs
SHORTEST = 16  # characters of a token


def nonce() -> str:
    """Return a random number to be answered, hexadecimal."""
    return secrets.token_hex(16)


def proof(token: str, side: str, server: str, client: str) -> str:
    """Return what only someone who knows the token can say of both nonces; `side` keeps it from being echoed."""
    return hmac.new(token.encode(), f"{side}:{server}:{client}".encode(), hashlib.sha256).hexdigest()


def proved(token: str, side: str, server: str, client: str, claimed: object) -> bool:
    """Return whether a proof is right; takes the same time whatever is wrong with it."""
    return (
        isinstance(claimed, str)
        and claimed.isascii()
        and hmac.compare_digest(proof(token, side, server, client), claimed)
    )


def make(path: Path) -> str:
    """Write a new token that only this user can read; return it."""
    token = secrets.token_urlsafe(32)
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(token)
    return token


def read(path: Path) -> str:
    """Return the token in a file; raises ConfigError where there is none or others may read it."""
    field = "sampling.server.address"
    try:
        mode, token = path.stat().st_mode, path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{field}: the token of the rollout server cannot be read from {path}; put it there, or name its file in "
            f"{VARIABLE}",
            field,
        ) from error
    if mode & 0o077:
        raise ConfigError(f"{field}: others may read the token in {path}; run chmod 600 on it", field)
    if len(token) < SHORTEST:
        raise ConfigError(
            f"{field}: the token in {path} is shorter than {SHORTEST} characters; make a longer one", field
        )
    return token


def declared() -> Path:
    """Return the file with the token of servers that somebody else runs."""
    return Path(os.environ.get(VARIABLE) or home() / "rollout-server-token")
