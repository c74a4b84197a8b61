"""ServerEngine: what the trainer sees of a rollout server, an Engine like any other.

Where the server dies in the middle of a wave, it is started again (or connected to again, where it is somebody else's),
given the weights it had, and asked for the same requests once more; their random numbers are the same. A second death
within the same wave ends the run with what it has.
"""

from __future__ import annotations

import atexit
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from trainer.config import RunConfig
from trainer.errors import ResourceError, RunFailed, TrainerError
from trainer.rollout.base import Caps, Chunk, Generation, GenRequest, Watcher
from trainer.rollout.ledger import OnChunk, OnProgress
from trainer.rollout.server import secret
from trainer.rollout.server.client import Client
from trainer.rollout.server.frame import Frame
from trainer.rollout.server.job import Aborted
from trainer.rollout.server.launcher import Launcher
from trainer.rollout.server.link import Gone
from trainer.rollout.server.messages import CHUNK, pack_requests, unpack_chunks, unpack_generations

if TYPE_CHECKING:
    from trainer.distributed import World
    from trainer.events import RunFolder
    from trainer.policy import Policy
    from trainer.rollout.server.broadcast import Broadcast

T = TypeVar("T")
LOOK = 0.2  # seconds between looks for a server that another process starts
PROBED = 32  # tokens of the text that both sides score


class ServerEngine:
    """Generates in a server; every process of a run has its own connection, the main one starts and ends the server."""

    def __init__(self, config: RunConfig, policy: Policy, world: World, folder: RunFolder) -> None:
        """Connect to the run's server, or start it; all processes must call this. Raises ConfigError, ResourceError."""
        from trainer.models import resolve
        from trainer.rollout.server.weights import digest

        self.settings, self.policy, self.world, self.folder = config.sampling.server, policy, world, folder
        self.launcher = None if self.settings.address else Launcher(config, folder)
        self.hello = {
            "run": str(folder.path.resolve()), "model": digest(resolve(config.model.source).path),
            "vocabulary": policy.vocabulary, "stop_ids": sorted(policy.stop_ids),
        }  # fmt: skip
        self.version: int | None = None
        self.restarts = 0
        self._sent: dict[str, Any] = {}  # how the weights of this version went to the server
        self._line: Broadcast | None = None
        self._closed = self._called_off = False
        try:
            self.client = self._connect()
        except BaseException:
            if self.launcher is not None:
                self.launcher.kill()
            raise
        atexit.register(self.close)  # where the trainer itself cannot be made, nobody else would end the server
        self.caps: Caps = replace(self.client.caps, in_process=False)

    # -- the Engine -----------------------------------------------------------------------------------------------

    def run(
        self, requests: Sequence[GenRequest], on_chunk: OnChunk | None = None, on_progress: OnProgress | None = None
    ) -> list[Generation]:
        """Return one Generation for each request, in order; raises ResourceError where the server is lost for good."""
        heard = _Heard(on_chunk, on_progress)
        return unpack_generations(self._insisting(lambda: self._ask("run", requests, heard)))

    def score(self, requests: Sequence[GenRequest]) -> list[Generation]:
        """Return the server's statistics of the prefix tokens of each request."""
        return unpack_generations(self._insisting(lambda: self._ask("score", requests)))

    def sync_weights(self, version: int) -> bool:
        """Send the policy's weights unless the server has them, and return whether they were sent.

        All processes must call this, while none generates.
        """
        if version == self.version:
            return False
        failed: TrainerError | None = None
        with self.policy.gathered():
            if self.world.main:
                try:
                    self._send(version)
                except TrainerError as error:
                    failed = error
        failed = self.world.broadcast(failed)
        if failed:
            raise failed
        self.version = version
        return True

    def rest(self) -> None:
        """Do nothing: a server's memory is its own."""

    def probe(self) -> float:
        """Return the largest difference between the server's and the policy's log-probs on a fixed text, nats.

        All processes must call this. Large after a sync means that the server kept old weights.
        """
        ids = tuple((place * 7919 + 11) % self.policy.vocabulary for place in range(PROBED))
        request = GenRequest(id=0, group=0, sample=0, prompt_ids=ids[:1], prefix_ids=ids[1:], seed=0, max_new=0)
        from trainer.policy import Trajectory

        ours = self.policy.score([Trajectory(ids[:1], ids[1:])], 1.0)["logprob"]
        theirs = ours.new_tensor(self.score([request])[0].logprob)
        return float((ours - theirs).abs().max())

    def abort(self) -> None:
        """Call off the run that another thread waits for, and any after it; it raises there."""
        self._called_off = True
        with contextlib.suppress(Gone):
            self.client.abort()

    def sleep(self) -> None:
        """Let the server give its device's memory back until `wake` or the next weights."""
        self._insisting(lambda: self.client.call("sleep"))

    def wake(self) -> None:
        """Give the server its weights back from the folder; those that went from memory to memory must be sent anew."""
        if not self._sent:
            raise RunFailed("a sleeping server needs new weights: call sync_weights")
        self._insisting(self._load, loads=False)

    def close(self) -> None:
        """Leave the server, and end it where it is the run's own."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        if self.launcher is not None and self.world.main:
            with contextlib.suppress(Gone, TrainerError):  # another thread may still wait on the first connection
                self._client(self.client.address, self.launcher.token()).call("stop")
            self.launcher.end(int(self.client.welcome["pid"]))
        self.client.close()

    # -- weights --------------------------------------------------------------------------------------------------

    def _send(self, version: int) -> None:
        from trainer.rollout.server.weights import weights_of, write

        tensors = weights_of(self.policy)
        if self.settings.weights == "folder":
            path = write(self.folder.server / "weights", version, tensors)
            self._sent = {"how": "folder", "path": str(path.resolve()), "version": version}
            self._insisting(self._load, loads=False)
        else:
            self._sent = {}  # what was in memory cannot be sent again in the middle of a wave
            self._insisting(lambda: self._broadcast(version, tensors), loads=False)

    def _load(self) -> None:
        """Let the server read the weights that were last written."""
        self.client.call("load", self._sent)

    def _broadcast(self, version: int, tensors: dict[str, Any]) -> None:
        """Announce the weights, send them, and wait for the server to have them."""
        from trainer.rollout.server.broadcast import Broadcast, described

        if self._line is None:
            self._line = Broadcast(self.policy.device, 0, self.client.link.connection.getsockname()[0])
        announced = {"how": "broadcast", "version": version, "port": self._line.port, "tensors": described(tensors)}
        line = self._line
        self.client.call("load", announced, meanwhile=lambda: line.send(tensors))

    # -- a server that dies ---------------------------------------------------------------------------------------

    def _insisting(self, ask: Callable[[], T], *, loads: bool = True) -> T:
        """Return the answer, with one more try at a server started anew; `loads` gives it the last weights first."""
        try:
            return ask()
        except Gone as error:
            if self._closed or self._called_off:
                raise Aborted("nobody waits for it any more") from error
            self._revive(error, loads=loads)
        try:
            return ask()
        except Gone as error:
            raise ResourceError(
                f"the rollout server at {self.client.address} was lost twice in a row ({error}); {self._advice()}"
            ) from error

    def _revive(self, lost: Gone, *, loads: bool) -> None:
        """Get a connection to a living server with the weights of this version."""
        print(f"the rollout server at {self.client.address} is lost: {lost}", flush=True)
        if loads and not self._sent and self.world.main and self.version is not None:
            raise ResourceError(
                f"the rollout server is lost ({lost}) and its weights with it; {self._advice()}"
            ) from lost
        self.restarts += 1
        self._line = None
        before = self.client.address
        self.client.close()
        try:
            if self.launcher is not None and self.world.main:
                self.launcher.kill()
            self.client = self._connect(before)
            if loads and self.version is not None:
                self._load() if self.world.main else self._wait_for_weights()
        except Gone as error:
            raise ResourceError(
                f"the rollout server at {before} is lost ({lost}) and cannot be had back ({error}); {self._advice()}"
            ) from error

    def _connect(self, before: str = "") -> Client:
        """Return a connection; `before` is the address of a server that is known to be gone."""
        if self.launcher is None:
            try:
                return self._client(self.settings.address, secret.read(secret.declared()))
            except Gone as error:
                raise ResourceError(f"sampling.server.address: {error}; {self._advice()}") from error
        return (self._own if self.world.main else self._of_another_process)(self.launcher, before)

    def _own(self, launcher: Launcher, before: str) -> Client:
        """Connect to the server of this run: one left by an attempt before, or a new one."""
        if (card := launcher.card()) and card.address != before:
            with contextlib.suppress(Gone, TrainerError):
                return self._client(card.address, launcher.token())
        try:
            return self._client(launcher.start().address, launcher.token())
        except Gone as error:
            raise ResourceError(f"the rollout server went as soon as it came ({error}); {self._advice()}") from error

    def _of_another_process(self, launcher: Launcher, before: str) -> Client:
        """Connect to the server that the main process starts; if that fails, its end ends this process too."""
        deadline = time.monotonic() + self.settings.start_timeout
        while time.monotonic() < deadline:
            if (card := launcher.card()) and card.address != before:
                with contextlib.suppress(Gone):
                    return self._client(card.address, launcher.token())
            time.sleep(LOOK)
        raise ResourceError(f"the main process started no rollout server in time; {self._advice()}")

    def _wait_for_weights(self) -> None:
        deadline = time.monotonic() + self.settings.timeout
        while self.client.call("status").header.get("version") != self.version:
            if time.monotonic() > deadline:
                raise Gone("it was not given its weights in time")
            time.sleep(LOOK)

    def _client(self, address: str, token: str) -> Client:
        return Client(address, token, self.hello, timeout=self.settings.timeout)

    def _advice(self) -> str:
        if self.launcher is None:
            return "start it again (python -m trainer.rollout.server) and resume the run"
        return f"{self.folder.server_log.name} in the run folder says more; resume the run"

    def _ask(self, type: str, requests: Sequence[GenRequest], heard: _Heard | None = None) -> Frame:
        fields, columns = pack_requests(requests)
        wishes = {}
        if heard:
            heard.want = self.client.want
            wishes = {"wanted": heard.wishes()}
        return self.client.call(type, {"version": self.version, **wishes, **fields}, columns, heard)


class _Heard:
    """Passes on what comes on the way; tokens that were heard before the server was lost are not told twice.

    A Watcher's wishes travel the other way, whenever they have changed.
    """

    def __init__(self, on_chunk: OnChunk | None, on_progress: OnProgress | None) -> None:
        self.on_chunk, self.on_progress = on_chunk, on_progress
        self.ends: dict[int, int] = {}  # of each watched request: behind the last token told
        self.wanted: list[int] | None = None
        self.want: Callable[[list[int]], None] = lambda ids: None  # tells the server

    def wishes(self) -> list[int] | None:
        """Return the ids that the hearer wants to hear of now; None where it has no mind of its own."""
        wanted = getattr(self.on_chunk, "wanted", None)
        self.wanted = None if wanted is None else sorted(wanted)
        return self.wanted

    def __call__(self, frame: Frame) -> None:
        if frame.type == "chunks" and self.on_chunk:
            if new := [chunk for chunk in map(self._new, unpack_chunks(frame)) if chunk.ids]:
                self.on_chunk(new)
        elif frame.type == "ended" and self.wanted is not None:
            cast(Watcher, self.on_chunk).ended(frame.columns["ids"].tolist())
        elif frame.type == "progress" and self.on_progress:
            self.on_progress(int(frame.header["done"]), int(frame.header["total"]))
        before = self.wanted
        if self.wishes() != before:
            self.want(self.wanted or [])

    def _new(self, chunk: Chunk) -> Chunk:
        end = chunk.first + len(chunk.ids)
        known = min(max(0, self.ends.get(chunk.id, 0) - chunk.first), len(chunk.ids))
        self.ends[chunk.id] = max(end, self.ends.get(chunk.id, 0))
        lists = {name: getattr(chunk, name)[known:] for name in CHUNK}
        return replace(chunk, first=chunk.first + known, **lists)
