"""Session: one client's connection at the server, from the handshake to its end. Each has a thread that listens."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from trainer.rollout.server import secret
from trainer.rollout.server.frame import PROTOCOL, Frame, FrameError
from trainer.rollout.server.job import Job
from trainer.rollout.server.link import Gone, Link, told
from trainer.rollout.server.messages import unpack_requests

if TYPE_CHECKING:
    from trainer.rollout.server.host import Server

HANDSHAKE_SECONDS = 10.0
ENGINE_COMMANDS = frozenset({"run", "score", "load", "sleep"})


class Refused(Exception):
    """A client that may not come in; `code` says why in a word."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Session:
    """Reads a client's commands: answers what it can at once, and queues what takes the engine."""

    def __init__(self, server: Server, connection: socket.socket) -> None:
        self.server, self.link = server, Link(connection)
        self.peer = str(connection.getpeername()[0])
        self.run = ""  # the run that the client belongs to
        self.line: Any = None  # Broadcast, once weights came that way

    def listen(self) -> None:
        """Serve the client until it leaves or talks nonsense; what it had asked for is dropped then."""
        try:
            self._shake_hands()
            while True:
                self._obey(self.link.receive())
        except Gone:
            pass
        except Refused as error:
            self._last_word({"type": "refused", "code": error.code, "message": str(error)})
        except FrameError as error:
            self._last_word({"type": "error", "call": 0, **told(error)})
        finally:
            self.server.left(self)
            self.link.close()

    def _last_word(self, header: dict[str, Any]) -> None:
        print(f"{self.peer}: {header['message']}", flush=True)
        try:
            self.link.send(header)
        except Gone:
            return

    def _shake_hands(self) -> None:
        server, ours = self.server, secret.nonce()
        self.link.send({"type": "greeting", "protocol": PROTOCOL, "nonce": ours})
        hello = self.link.receive(HANDSHAKE_SECONDS)
        theirs = str(hello.header.get("nonce", ""))
        if hello.type != "hello" or not secret.proved(server.token, "client", ours, theirs, hello.header.get("proof")):
            raise Refused("token", "the token is wrong: both sides must read the same token file")
        server.admit(self, hello.header)
        self.link.trusted = True
        self.link.send(
            {"type": "welcome", "proof": secret.proof(server.token, "server", ours, theirs), **server.card()}
        )

    def _obey(self, frame: Frame) -> None:
        call = frame.header.get("call")
        if not isinstance(call, int):
            raise FrameError("a command has no number")
        if frame.type in ENGINE_COMMANDS:
            job = Job(self, call, frame)
            if frame.type in ("run", "score"):
                job.requests = unpack_requests(frame, self.server.backend.vocabulary)
                job.want(frame.header.get("wanted"))
            self.server.queue(job)
        elif frame.type == "abort":
            self.server.drop(self, call)
        elif frame.type == "want":
            for job in self.server.jobs_of(self, call):
                job.want(frame.header.get("ids"))
        elif frame.type == "status":
            self.link.send({"type": "done", "call": call, **self.server.card()})
        elif frame.type == "stop":
            self.link.send({"type": "done", "call": call})
            self.server.end(f"asked to by {self.run}")
        else:
            raise FrameError(f"there is no command {frame.type[:40]!r}")
