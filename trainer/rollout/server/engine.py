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
from typing import TYPE_CHECKING, Any, TypeVar

from trainer.config import RunConfig
from trainer.errors import ResourceError, RunFailed, TrainerError
from trainer.rollout.base import Caps, Generation, GenRequest
from trainer.rollout.ledger import OnChunk, OnProgress
from trainer.rollout.probe import difference
from trainer.rollout.server import secret
from trainer.rollout.server.client import FIELD, Client, reach
from trainer.rollout.server.frame import Frame
from trainer.rollout.server.heard import Heard
from trainer.rollout.server.job import Aborted
from trainer.rollout.server.launcher import Card, Launcher
from trainer.rollout.server.link import Gone
from trainer.rollout.server.messages import pack_requests, unpack_generations
from trainer.rollout.settings import ServerConfig

if TYPE_CHECKING:
    from trainer.distributed import World
    from trainer.events import RunFolder
    from trainer.policy import Policy
    from trainer.rollout.server.broadcast import Broadcast

T = TypeVar("T")
PATIENCE = 60.0  # seconds for somebody else's server to come back
LOOK = 0.5  # seconds between looks for it
FIX = "start it again (python -m trainer.rollout.server) and resume the run"  # for somebody else's server


def foresee(settings: ServerConfig) -> None:
    """Raise ConfigError or ResourceError where somebody else's server will not do, before a model is loaded for it."""
    if not settings.address:
        return
    secret.read(secret.declared())
    try:
        reach(settings.address).close()
    except Gone as error:
        raise ResourceError(f"{FIELD}: no rollout server can be had ({error}); {FIX}", FIELD) from error


class ServerEngine:
    """Generates in a server; every process of a run has its own connection, and the first one starts the server."""

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
        self.room = config.sampling.max_prompt_tokens + config.sampling.max_completion_tokens  # that it is started for
        self.version: int | None = None
        self.restarts = 0
        self._line: Broadcast | None = None
        self._closed = self._called_off = False
        try:
            self.client = self._connect()
        except Gone as error:
            raise self._lost(f"no rollout server can be had ({error})") from error
        finally:
            if self.launcher is not None and not hasattr(self, "client"):
                self.launcher.kill()
        atexit.register(self.close)  # where the trainer itself cannot be made, nobody else would end the server
        self.caps: Caps = replace(self.client.caps, in_process=False)

    # -- the Engine -----------------------------------------------------------------------------------------------

    def run(
        self, requests: Sequence[GenRequest], on_chunk: OnChunk | None = None, on_progress: OnProgress | None = None
    ) -> list[Generation]:
        """Return one Generation for each request, in order; raises ResourceError where the server is lost for good."""
        heard = Heard(on_chunk, on_progress)
        return self._insisting(lambda: self._ask("run", requests, heard))

    def score(self, requests: Sequence[GenRequest]) -> list[Generation]:
        """Return the server's statistics of the prefix tokens of each request."""
        return self._insisting(lambda: self._ask("score", requests))

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
        return difference(self.policy, self.score, room=self.room)

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
        if self.version is None or self.settings.weights == "broadcast":
            raise RunFailed("a sleeping server needs new weights: call sync_weights")
        version = self.version
        self._insisting(lambda: self._load(self.client, version), loads=False)

    def close(self) -> None:
        """Leave the server, and end it where it is the run's own."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        if self.launcher is not None:
            card = self.launcher.card()
            if card and self.world.main:
                with contextlib.suppress(Gone, TrainerError):  # another thread may still wait on the first connection
                    self._client(card.address, self.launcher.token()).call("stop")
            self.launcher.end(card.pid if card and self.world.main else None)
        self.client.close()

    # -- weights --------------------------------------------------------------------------------------------------

    def _send(self, version: int) -> None:
        from trainer.rollout.server.weights import write
        from trainer.rollout.weights import weights

        tensors = dict(weights(self.policy))
        if self.settings.weights == "folder":
            write(self.folder.server / "weights", version, tensors)
            self._insisting(lambda: self._load(self.client, version), loads=False)
        else:
            self._insisting(lambda: self._broadcast(version, tensors), loads=False)

    def _load(self, client: Client, version: int) -> None:
        """Let a server read the weights that were written last; every process can, of a version that all know."""
        from trainer.rollout.server.weights import place

        path = place(self.folder.server / "weights", version).resolve()
        client.call("load", {"how": "folder", "path": str(path), "version": version})

    def _broadcast(self, version: int, tensors: dict[str, Any]) -> None:
        """Announce the weights, send them, and wait for the server to have them."""
        from trainer.rollout.server.broadcast import Broadcast, common, described

        if self._line is None:
            device = common(self.policy.device, self.client.welcome.get("device"))
            self._line = Broadcast(device, 0, self.client.link.connection.getsockname()[0])
        line = self._line
        announced = {
            "how": "broadcast", "version": version, "port": line.port, "over": line.device.type,
            "tensors": described(tensors),
        }  # fmt: skip
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
            raise self._lost(
                f"the rollout server at {self.client.address} was lost twice in a row ({error})"
            ) from error

    def _revive(self, lost: Gone, *, loads: bool) -> None:
        """Get a connection to a living server with the weights of this version."""
        print(f"the rollout server at {self.client.address} is lost: {lost}", flush=True)
        if self.launcher is not None:
            print(self.launcher.last_words(), flush=True)
        again = loads and self.version is not None
        if again and self.settings.weights == "broadcast":  # what was in memory is being learned by now
            raise self._lost(f"the rollout server is lost ({lost}) and its weights with it") from lost
        self.restarts += 1
        self._line = None
        self.client.close()
        try:
            self.client = self._connect(self.client, self.version if again else None)
        except Gone as error:
            raise self._lost(f"the rollout server is lost ({lost}) and cannot be had back ({error})") from error

    def _connect(self, lost: Client | None = None, version: int | None = None) -> Client:
        """Return a connection to a server with weights of a version, if one is given; started where there is none.

        `lost` is the connection that there was. Whichever process of the run comes first does what is to be done.
        """
        if self.launcher is None:
            return self._with_weights(self._foreign(PATIENCE if lost else 0.0), version)
        with self.launcher.lock():
            card = self.launcher.card()
            if lost and card and card.address == lost.address:
                self.launcher.kill(int(lost.welcome["pid"]))
                card = None
            return self._with_weights(self._left(card) or self._started(), version)

    def _foreign(self, patience: float) -> Client:
        """Connect to a server that somebody else runs, and may start again within so many seconds."""
        deadline = time.monotonic() + patience
        while True:
            try:
                return self._client(self.settings.address, secret.read(secret.declared()))
            except Gone:
                if time.monotonic() > deadline:
                    raise
                time.sleep(LOOK)

    def _left(self, card: Card | None) -> Client | None:
        """Connect to a server of this run that is there already: of another process, or left by an attempt before."""
        assert self.launcher is not None
        if card:
            with contextlib.suppress(Gone, TrainerError):
                return self._client(card.address, self.launcher.token())
        return None

    def _started(self) -> Client:
        assert self.launcher is not None
        return self._client(self.launcher.start().address, self.launcher.token())

    def _with_weights(self, client: Client, version: int | None) -> Client:
        if version is not None and client.welcome["version"] != version:
            self._load(client, version)
        return client

    def _client(self, address: str, token: str) -> Client:
        return Client(address, token, self.hello, timeout=self.settings.timeout)

    def _lost(self, what: str) -> ResourceError:
        """Return the end of a run without its server, in a sentence with what to do."""
        log = f"{self.folder.server_log.name} in the run folder says more; resume the run"
        field, fix = (FIELD, FIX) if self.launcher is None else ("sampling.server", log)
        return ResourceError(f"{field}: {what}; {fix}", field)

    def _ask(self, type: str, requests: Sequence[GenRequest], heard: Heard | None = None) -> list[Generation]:
        """Return what the server made of requests; many come in parts."""
        found: list[Generation] = []

        def take(frame: Frame) -> None:
            if frame.type == "part":
                found.extend(unpack_generations(frame))
            elif heard:
                heard(frame)

        fields, columns = pack_requests(requests)
        wishes = {}
        if heard:
            heard.want = self.client.want
            wishes = {"wanted": heard.wishes()}
        last = self.client.call(type, {"version": self.version, **wishes, **fields}, columns, take)
        return found + unpack_generations(last)
