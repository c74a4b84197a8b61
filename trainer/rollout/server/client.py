"""Client: one authenticated connection of a trainer to a rollout server. One call at a time; others may call it off."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from trainer.errors import ConfigError, ResourceError
from trainer.rollout.base import Caps
from trainer.rollout.server import secret
from trainer.rollout.server.frame import Frame, FrameError, OtherProtocol
from trainer.rollout.server.job import Aborted
from trainer.rollout.server.link import Gone, Link, heard
from trainer.rollout.server.messages import Columns

FIELD = "sampling.server.address"
CONNECT_SECONDS = 15.0
SILENCE_SECONDS = 60.0  # without a sign of life; a living server gives one every two seconds while it works


def reach(address: str) -> socket.socket:
    """Return a connection to HOST:PORT; raises Gone where nobody answers."""
    host, _, port = address.rpartition(":")
    try:
        return socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS)
    except (OSError, OverflowError) as error:
        raise Gone(f"nobody answers at {address} ({error})") from error


class Client:
    """Speaks to a server that has proved to know the token; Gone from any method means a new one is needed."""

    def __init__(self, address: str, token: str, hello: dict[str, Any], *, timeout: float) -> None:
        """`hello` says what the run is (`run`, `model`, `vocabulary`, `stop_ids`).

        `timeout` is how many seconds the engine may stand still. Raises Gone where nobody answers at the address, and
        ConfigError or ResourceError where somebody does who is not the server for this run.
        """
        self.address, self.timeout = address, timeout
        self.link = Link(reach(address))
        self._calls = 0
        try:
            self.welcome = self._shake_hands(token, hello)
            self.caps = Caps(**self.welcome["caps"])
        except (FrameError, KeyError, TypeError) as error:
            self.link.close()
            fix = "" if isinstance(error, OtherProtocol) else "; give the address that the server printed at its start"
            raise ConfigError(
                f"{FIELD}: {address} is no rollout server that this trainer can use: {error}{fix}", FIELD
            ) from error
        except BaseException:
            self.link.close()
            raise
        self.link.trusted = True

    def _shake_hands(self, token: str, hello: dict[str, Any]) -> dict[str, Any]:
        greeting = self.link.receive(CONNECT_SECONDS)
        theirs, ours = str(greeting.header.get("nonce", "")), secret.nonce()
        self.link.send({"type": "hello", "nonce": ours, "proof": secret.proof(token, "client", theirs, ours), **hello})
        answer = self.link.receive(CONNECT_SECONDS)
        if answer.type == "refused":
            text = f"{FIELD}: the rollout server at {self.address} refused: {answer.header.get('message')}"
            raise ResourceError(text) if answer.header.get("code") == "busy" else ConfigError(text, FIELD)
        if not secret.proved(token, "server", theirs, ours, answer.header.get("proof")):
            raise ConfigError(
                f"{FIELD}: what answers at {self.address} does not know the token; it is no server of ours", FIELD
            )
        return answer.header

    def call(
        self,
        type: str,
        fields: dict[str, Any] | None = None,
        columns: Columns | None = None,
        on_frame: Callable[[Frame], None] | None = None,
        *,
        meanwhile: Callable[[], None] | None = None,
    ) -> Frame:
        """Send a command and return its answer; messages on the way go to `on_frame`.

        `meanwhile` is done between the two, while the server works.

        Raises what the server could not do as the error it was there, Gone where it broke, Aborted where another
        thread called it off.
        """
        self._calls += 1
        number = self._calls
        self.link.send({"type": type, "call": number, **(fields or {})}, columns)
        if meanwhile:
            try:
                meanwhile()
            except RuntimeError as error:  # torch.distributed's word for a peer that went
                raise Gone(f"its weights could not be sent: {error}") from error
        while True:
            try:
                frame = self.link.receive(SILENCE_SECONDS)
            except FrameError as error:
                raise Gone(f"it sent what cannot be read: {error}") from error
            if frame.header.get("call") not in (number, 0):
                continue  # the rest of a call that was called off
            if frame.type == "done":
                return frame
            if frame.type == "error":
                raise self._error(frame)
            idle = frame.header.get("idle", 0)
            if frame.type == "beat" and isinstance(idle, int | float) and idle > self.timeout:
                raise Gone(f"it has not moved for {idle:.0f} seconds")
            if on_frame:
                on_frame(frame)

    def abort(self) -> None:
        """Call off what another thread waits for; nothing happens where nobody waits."""
        self.link.send({"type": "abort", "call": self._calls})

    def want(self, ids: list[int]) -> None:
        """Say of which requests of the run in progress to hear from now on."""
        self.link.send({"type": "want", "call": self._calls, "ids": ids})

    def close(self) -> None:
        self.link.close()

    def _error(self, frame: Frame) -> Exception:
        message = str(frame.header.get("message"))
        if frame.header.get("kind") == "aborted":
            return Aborted(message)
        return Gone(f"its engine broke: {message}") if frame.header.get("kind") == "broken" else heard(frame.header)
