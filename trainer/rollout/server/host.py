"""The server: sessions that queue jobs, one thread that works them off with the engine, and a keeper of both.

The engine runs in the main thread. It serves the processes of one run at a time. A server that belongs to a run ends
when that run's trainers have been gone for `linger` seconds, so none is left behind, and a trainer that starts again
soon finds it with the model loaded.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError, RunFailed, TrainerError
from trainer.rollout.server.backend import Backend
from trainer.rollout.server.job import Aborted, Batch, Job
from trainer.rollout.server.link import told
from trainer.rollout.server.session import HANDSHAKE_SECONDS, Refused, Session

BEAT = 2.0  # seconds between two signs of life to a client that waits
TOGETHER = 0.02  # seconds to wait for the runs of a trainer's other processes
GRACE = 10.0  # seconds from the wish to end to its enforcement
MOST_SESSIONS = 64


@dataclass
class Server:
    """Holds a backend and serves a run's trainers; `roots` are the folders that weights may be read from."""

    backend: Backend
    engine: str
    token: str
    digest: str
    roots: Sequence[Path]
    linger: float = 0.0  # seconds without a trainer after which it ends; 0: never
    owner: str = ""  # the run whose weights it has
    version: int | None = None
    sessions: set[Session] = field(default_factory=set)
    jobs: queue.Queue[Job] = field(default_factory=queue.Queue)
    pending: list[Job] = field(default_factory=list)  # queued or in work

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._ending, self._ended = threading.Event(), threading.Event()
        self._strangers: dict[Session, float] = {}  # since when clients have been at the door
        self._moved = self._alone_since = time.monotonic()

    def serve(self, listener: socket.socket) -> None:
        """Work off jobs until the end is asked for or nobody has been there for long."""
        for target, arguments in ((self._accept, (listener,)), (self._keep, ())):
            threading.Thread(target=target, args=arguments, daemon=True).start()
        try:
            while not self._ending.is_set():
                with contextlib.suppress(queue.Empty):
                    self._work(self.jobs.get(timeout=0.5))
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            listener.close()
            for session in list(self.sessions):
                session.link.close()
            self.backend.close()
            self._ended.set()

    def end(self, why: str) -> None:
        """End soon; callable from any thread."""
        if not self._ending.is_set():
            print(f"ending: {why}", flush=True)
        self._ending.set()
        for job in list(self.pending):
            job.dropped = True

    # -- sessions -------------------------------------------------------------------------------------------------

    def admit(self, session: Session, hello: dict[str, Any]) -> None:
        """Let a client in that knows the token; raises Refused for another model, or a second run at a time."""
        run, stop = str(hello.get("run", "")), hello.get("stop_ids")
        if hello.get("model") != self.digest or hello.get("vocabulary") != self.backend.vocabulary:
            raise Refused("model", "it holds another model than the run; start it with the run's own config")
        if not isinstance(stop, list) or not all(isinstance(index, int) for index in stop):
            raise Refused("model", "the run named no tokens that end a completion")
        with self._lock:
            if others := {other.run for other in self.sessions} - {run}:
                raise Refused("busy", f"it is busy with {min(others)}; wait for the end of that run, or start another")
            if len(self.sessions) >= MOST_SESSIONS:
                raise Refused("busy", f"it has {MOST_SESSIONS} clients already")
            if run != self.owner:
                self.owner, self.version = run, None
                self.backend.stop_at(stop)
            session.run = run
            self.sessions.add(session)
            self._strangers.pop(session, None)
        print(f"{session.peer}: {run} connected", flush=True)

    def left(self, session: Session) -> None:
        """Forget a client and what it asked for."""
        with self._lock:
            self._strangers.pop(session, None)
            self.sessions.discard(session)
            self._alone_since = time.monotonic()
        self.drop(session)

    def card(self) -> dict[str, Any]:
        """Return what a client may know of the server."""
        caps = {**asdict(self.backend.caps), "in_process": False}
        return {
            "engine": self.engine, "pid": os.getpid(), "caps": caps, "version": self.version,
            "device": self.backend.device.type,
        }  # fmt: skip

    def queue(self, job: Job) -> None:
        """Take a job on."""
        self.pending.append(job)
        self.jobs.put(job)

    def drop(self, session: Session, call: int | None = None) -> None:
        """Call off a session's job of this number, or all of them; the engine learns of it at its next token."""
        for job in self.jobs_of(session, call):
            job.answer("error", kind="aborted", message="called off")
            job.dropped = True

    def jobs_of(self, session: Session, call: int | None = None) -> list[Job]:
        """Return a session's jobs that are not done, or the one of this number."""
        return [job for job in list(self.pending) if job.session is session and call in (None, job.call)]

    # -- jobs -----------------------------------------------------------------------------------------------------

    def _work(self, job: Job) -> None:
        self._got_on()
        jobs = [job, *self._alike(job)]
        try:
            if not all(one.dropped for one in jobs):
                self._do(jobs)
        except Aborted:
            pass
        except TrainerError as error:
            self._tell(jobs, told(error))
        except Exception as error:  # an engine that broke is of no more use: a new process is
            traceback.print_exception(error)
            self._tell(jobs, {**told(error), "kind": "broken"})
            self.end("the engine broke")
        finally:
            for done in jobs:
                self.pending.remove(done)

    def _alike(self, job: Job) -> list[Job]:
        """Return further runs that can go along; whatever else waits keeps its order."""
        if job.type != "run" or len(self.sessions) < 2:
            return []
        time.sleep(TOGETHER)
        found = []
        while self.jobs.queue and self.jobs.queue[0].type == "run":
            found.append(self.jobs.get_nowait())
        return found

    def _do(self, jobs: list[Job]) -> None:
        job = jobs[0]
        if job.type in ("run", "score"):
            jobs = [one for one in jobs if self._has_version(one)]
            if job.type == "run" and jobs:
                batch = Batch(jobs, self._got_on)
                batch.deliver(self.backend.run(batch.requests, batch, batch.progress))
            elif jobs:
                job.answer("done", self.backend.score(job.requests))
        else:
            if job.type == "load":
                self._load(job)
            elif job.type == "sleep":
                self.version = None  # until it is given weights again
                self.backend.sleep()
            job.answer("done", version=self.version)

    def _has_version(self, job: Job) -> bool:
        """Return whether the server's weights are those a client means, and tell it where they are not."""
        wanted = job.frame.header.get("version")
        if wanted != self.version:
            text = f"weights of version {wanted} were asked for and the rollout server has version {self.version}"
            self._tell([job], told(RunFailed(text)))
        return wanted == self.version

    def _load(self, job: Job) -> None:
        from trainer.rollout.server.weights import read

        header, version = job.frame.header, job.frame.header.get("version")
        if not isinstance(version, int) or version < 0:
            raise RunFailed("weights came without a version")
        self.version = None  # neither the old ones nor the new ones, should anything fail
        if header.get("how") == "broadcast":
            tensors = self._line(job).receive(header.get("tensors") or [])
        else:
            tensors = read(self._allowed(str(header.get("path", ""))))
        self.backend.load(self._counted(tensors), version)
        self.version = version

    def _counted(self, tensors: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        for named in tensors:
            self._got_on()
            yield named

    def _line(self, job: Job) -> Any:
        from trainer.rollout.server.broadcast import Broadcast, common

        session, port = job.session, job.frame.header.get("port")
        if session.line is None or session.line.port != port:
            device = common(self.backend.device, job.frame.header.get("over"))
            session.line = Broadcast(device, 1, session.peer, int(port or 0))
        return session.line

    def _allowed(self, path: str) -> Path:
        found = Path(path).resolve()
        if any(found.is_relative_to(root.resolve()) for root in self.roots):
            return found
        raise ConfigError(
            f"the rollout server may not read weights from {path[:500]}; start it with --weights-root on a folder that "
            "both see and the run lies in",
            "sampling.server.address",
        )

    def _tell(self, jobs: Sequence[Job], fields: dict[str, Any]) -> None:
        for job in jobs:
            job.answer("error", **fields)

    def _got_on(self) -> None:
        self._moved = time.monotonic()

    # -- threads --------------------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        while not self._ending.is_set():
            try:
                connection, _ = listener.accept()
                session = Session(self, connection)
            except OSError:
                continue  # the client went, or the listener was closed
            if len(self._strangers) >= MOST_SESSIONS:
                session.link.close()
                continue
            self._strangers[session] = time.monotonic()
            threading.Thread(target=session.listen, daemon=True).start()

    def _keep(self) -> None:
        """Give signs of life, end a server that nobody needs, and see to it that an end comes."""
        while not self._ending.wait(BEAT):
            idle = time.monotonic() - self._moved
            for job in list(self.pending):
                job.answer("beat", idle=idle)
            for session, since in list(self._strangers.items()):
                if time.monotonic() - since > HANDSHAKE_SECONDS:
                    session.link.close()
            alone = time.monotonic() - self._alone_since
            if self.linger and not self.sessions and alone > self.linger:
                self.end(f"no trainer for {alone:.0f} seconds")
        if not self._ended.wait(GRACE):
            os._exit(1)  # the engine hangs


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; raises ConfigError where the address cannot be had."""
    try:
        return socket.create_server((host, port))
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"cannot listen on {host}:{port} ({reason}); give another --port, or none for any that is free, and an "
            "address of this machine as --host"
        ) from error
