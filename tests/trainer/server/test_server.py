"""A server and its clients: what they give each other, and what they refuse."""

from __future__ import annotations

import socket
import struct
import threading
from dataclasses import replace

import pytest
import torch

from tests.trainer.runs import make, small, train
from tests.trainer.server.serving import engine, move, policy, requests, served
from trainer.errors import ConfigError, ResourceError, RunFailed
from trainer.rollout.hf import HfEngine
from trainer.rollout.server import engine as engines
from trainer.rollout.server import frame, host, job, secret
from trainer.rollout.server.backend import HfBackend
from trainer.rollout.server.client import Client
from trainer.rollout.server.frame import HEAD, MAGIC, Frame
from trainer.rollout.server.job import Aborted
from trainer.rollout.server.link import Gone, Link
from trainer.rollout.server.messages import pack_requests


@pytest.fixture(scope="module")
def backend() -> HfBackend:
    torch.set_num_threads(1)
    return HfBackend(small(), torch.device("cpu"))


@pytest.fixture
def trained(tmp_path, backend, monkeypatch):
    """A policy that has moved, its engine behind a server that has its weights, and the server."""
    monkeypatch.setenv(secret.VARIABLE, str(tmp_path / "token"))
    with served(tmp_path, backend) as (server, address):
        moved = policy()
        move(moved)
        found = engine(tmp_path, moved, address)
        found.sync_weights(3)
        yield moved, found, server
        found.close()


def connected(found, **changes) -> Client:
    """Return a further connection to the server of an engine."""
    hello = {**found.hello, **changes}
    return Client(found.client.address, secret.read(secret.declared()), hello, timeout=30)


class Watching:
    """Wants to hear of some requests, and from some moment on of one more."""

    def __init__(self, first: set[int], late: int) -> None:
        self.wanted, self.late = first, late
        self.heard: dict[int, list[int]] = {}
        self.complete: set[int] = set()

    def __call__(self, chunks) -> None:
        for chunk in chunks:
            self.heard.setdefault(chunk.id, []).extend(chunk.ids)
        self.wanted = self.wanted | {self.late}

    def ended(self, ids) -> None:
        self.complete |= set(ids)


def test_a_server_generates_what_the_trainer_itself_would(trained):
    moved, found, _ = trained
    asked = requests(9)
    ours = HfEngine(moved)
    ours.sync_weights(3)
    assert found.run(asked) == ours.run(asked)
    for theirs, mine in zip(found.score(asked[1:3]), ours.score(asked[1:3]), strict=True):
        assert theirs.ids == mine.ids
        assert theirs.logprob == pytest.approx(mine.logprob, abs=1e-5)
    assert not found.caps.in_process
    assert found.caps.exact_entropy


def test_what_is_too_much_for_a_message_comes_in_parts(trained, monkeypatch):
    _, found, _ = trained
    asked = requests(7)
    whole = found.run(asked)
    for tokens in (1, 20):
        monkeypatch.setattr(job, "PART_TOKENS", tokens)
        assert found.run(asked) == whole
    assert found.run([]) == []


def test_watchers_hear_what_they_want_to(trained):
    _, found, _ = trained
    asked = [replace(one, max_new=48) for one in requests(6)]
    watching, counts = Watching({asked[0].id}, asked[1].id), []
    done = found.run(asked, watching, lambda *figures: counts.append(figures))
    assert watching.heard[asked[0].id] == done[0].ids
    assert set(watching.heard) <= {asked[0].id, asked[1].id}
    assert watching.complete == {one.id for one in asked}
    assert counts[-1] == (6, 6)
    everything = {}
    found.run(asked, lambda chunks: [everything.setdefault(c.id, []).extend(c.ids) for c in chunks])
    assert everything == {one.id: generated.ids for one, generated in zip(asked, done, strict=True)}


def test_several_processes_of_a_run_share_an_engine(trained, tmp_path):
    moved, found, server = trained
    other = engine(tmp_path, moved, found.client.address)
    other.version = 3
    ours = HfEngine(moved)
    ours.sync_weights(3)
    shares, answers = [requests(4), requests(5)], [[], []]
    threads = [
        threading.Thread(target=lambda each=each, mine=mine, into=into: into.extend(each.run(mine)))
        for each, mine, into in zip((found, other), shares, answers, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine, got in zip(shares, answers, strict=True):
        assert [(one.id, one.ids) for one in got] == [(one.id, one.ids) for one in ours.run(mine)]
    other.client.close()
    assert len(server.sessions) <= 2


def test_the_probe_notices_a_server_that_kept_old_weights(trained, monkeypatch):
    moved, found, server = trained
    assert found.probe() < 1e-5
    move(moved)
    monkeypatch.setattr(server.backend, "load", lambda tensors, version: list(tensors))  # believes that it loaded them
    found.sync_weights(4)
    assert found.probe() > 1e-3


@pytest.mark.parametrize("how", ["folder", "broadcast"])
def test_weights_arrive_whole_and_tied_ones_once(tmp_path, backend, monkeypatch, how):
    monkeypatch.setenv(secret.VARIABLE, str(tmp_path / "token"))
    with served(tmp_path, backend) as (server, address):
        moved = policy()
        found = engine(tmp_path, moved, address, weights=how)
        for version in (0, 1):
            move(moved)
            assert found.sync_weights(version)
            assert not found.sync_weights(version)
            theirs = server.backend.policy.lm.state_dict()
            assert all(torch.equal(theirs[name], tensor) for name, tensor in moved.lm.state_dict().items())
            assert server.version == version
        found.close()
    left = sorted(path.name for path in (tmp_path / "run/server").glob("weights/*"))
    assert left == (["version-00000001"] if how == "folder" else [])


def test_adapters_arrive_merged(tmp_path, backend, monkeypatch):
    monkeypatch.setenv(secret.VARIABLE, str(tmp_path / "token"))
    adapted = policy(lora={"enabled": True, "rank": 4})
    with torch.no_grad():
        for parameter in adapted.parameters:  # the second matrix of an adapter begins at zero
            parameter.add_(0.1 * torch.randn_like(parameter))
    with served(tmp_path, backend) as (_, address):
        found = engine(tmp_path, adapted, address)
        found.sync_weights(0)
        assert found.probe() < 1e-4
        with adapted.base():
            assert found.probe() > 1e-2, "without its adapters the policy is another"
        found.close()


def test_weights_of_another_shape_or_name_are_refused_and_nothing_is_generated_with_them(trained, monkeypatch):
    from trainer.rollout import weights

    _, found, server = trained
    honest = weights.weights
    monkeypatch.setattr(weights, "weights", lambda policy: list(honest(policy))[:-1])
    with pytest.raises(RunFailed, match="1 weights were not sent"):
        found.sync_weights(4)
    assert server.version is None
    with pytest.raises(RunFailed, match="version 3 were asked for and the rollout server has version None"):
        found.run(requests(1))


def test_weights_are_read_from_declared_folders_only(trained):
    _, found, _ = trained
    for path in ("/etc", f"{found.folder.path}/../../..", "relative"):
        with pytest.raises(ConfigError, match="may not read weights from"):
            found.client.call("load", {"version": 5, "how": "folder", "path": path})


def test_a_sleeping_server_generates_nothing_until_it_has_weights_again(trained):
    _, found, _ = trained
    asked = requests(2)
    before = found.run(asked)
    found.sleep()
    with pytest.raises(RunFailed, match="has version None"):
        found.run(asked)
    found.wake()
    assert found.run(asked) == before


@pytest.fixture
def endless(trained, monkeypatch):
    """A run that takes minutes: thousands of completions that do not end by themselves, one after the other."""
    _, _, server = trained
    monkeypatch.setattr(server.backend.engine, "rows", 1)
    server.backend.stop_at([])
    one = requests(1, longest=48)[0]
    return pack_requests([replace(one, id=index, seed=index) for index in range(3000)])


def test_a_run_that_is_called_off_ends_at_once_and_the_server_goes_on(trained, endless):
    _, found, _ = trained
    further, begun = connected(found), threading.Event()
    header, columns = endless
    threading.Thread(target=lambda: (begun.wait(), further.abort())).start()
    with pytest.raises(Aborted):
        further.call("run", {"version": 3, **header}, columns, lambda frame: begun.set())
    further.close()
    assert len(found.run(requests(2, longest=3))) == 2


def test_a_client_that_leaves_takes_its_work_along(trained, endless):
    _, found, server = trained
    further = connected(found)
    header, columns = endless
    further.link.send({"type": "run", "call": 1, "version": 3, **header}, columns)
    further.link.receive(30)  # it is at work
    further.close()
    assert len(found.run(requests(2, longest=3))) == 2
    assert not [job for job in server.pending if len(job.requests) > 2]


def test_a_wrong_token_is_refused_and_not_given_away(trained, tmp_path):
    _, found, server = trained
    wrong = "x" * 32
    with pytest.raises(ConfigError, match="the token is wrong") as caught:
        Client(found.client.address, wrong, found.hello, timeout=5)
    assert caught.value.field == "sampling.server.address"
    assert len(server.sessions) == 1


def test_a_server_that_does_not_know_the_token_is_not_believed():
    """Somebody listens at the address and says welcome; it must be refused, and must not have seen the token."""
    listener, seen = socket.create_server(("127.0.0.1", 0)), []

    def impostor() -> None:
        link = Link(listener.accept()[0])
        link.send({"type": "greeting", "protocol": 1, "nonce": "0" * 32})
        hello = link.receive(10)
        seen.append(hello.header)
        link.send({"type": "welcome", "proof": hello.header["proof"], "caps": {}})

    thread = threading.Thread(target=impostor)
    thread.start()
    token = secret.nonce()
    with pytest.raises(ConfigError, match="does not know the token"):
        Client(f"127.0.0.1:{listener.getsockname()[1]}", token, {}, timeout=5)
    thread.join()
    listener.close()
    assert token not in str(seen)


@pytest.mark.parametrize(("changes", "error", "words"), [
    ({"model": "0" * 32}, ConfigError, "another model"),
    ({"vocabulary": 5}, ConfigError, "another model"),
    ({"run": "/another/run"}, ResourceError, "busy with"),
    ({"stop_ids": "all"}, ConfigError, "tokens that end"),
])  # fmt: skip
def test_who_does_not_fit_is_told_why(trained, changes, error, words):
    _, found, _ = trained
    with pytest.raises(error, match=words):
        connected(found, **changes)


def test_another_run_may_come_when_the_first_has_left_and_finds_no_weights(trained, tmp_path):
    _, found, server = trained
    found.client.close()
    for _ in range(100):
        if not server.sessions:
            break
        threading.Event().wait(0.05)
    other = connected(found, run="/another/run")
    assert other.welcome["version"] is None
    other.close()


@pytest.mark.parametrize("words", [
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    HEAD.pack(MAGIC, 1, 0, frame.MAX_GREETING + 1, 0),
    HEAD.pack(MAGIC, 1, 0, 20, 1 << 40),
    HEAD.pack(MAGIC, 7, 0, 2, 0) + b"{}",
    Frame({"type": "run", "call": 1}).encode(),
    Frame({"type": "hello", "nonce": "", "proof": None}).encode(),
    struct.pack("<I", 0xFFFFFFFF) * 64,
])  # fmt: skip
def test_hostile_words_at_the_door_end_the_connection_and_nothing_else(trained, words):
    _, found, _ = trained
    host, _, port = found.client.address.rpartition(":")
    with socket.create_connection((host, int(port)), 10) as stranger:
        stranger.settimeout(20)
        stranger.sendall(words)
        while stranger.recv(4096):
            pass  # a greeting, perhaps a refusal, then the end
    assert len(found.run(requests(1))) == 1


@pytest.mark.parametrize("header", [
    {"type": "shutdown", "call": 1}, {"type": "run"}, {"type": "run", "call": 1, "requests": -1},
    {"type": "run", "call": 1, "requests": 1, "samplers": [{"temperature": "hot"}], "taps": []},
])  # fmt: skip
def test_nonsense_from_a_friend_ends_its_connection_with_a_reason(trained, header):
    _, found, _ = trained
    further = connected(found)
    further.link.send(header)
    answer = further.link.receive(10)
    assert answer.type == "error"
    assert answer.header["message"]
    with pytest.raises(Gone):
        further.link.receive(10)
    further.close()
    assert len(found.run(requests(1))) == 1


def test_a_hung_engine_is_noticed(trained, monkeypatch):
    _, found, server = trained
    let_go = threading.Event()

    def hang(*_) -> None:
        let_go.wait(60)
        raise RunFailed("it hung")

    monkeypatch.setattr(server.backend, "run", hang)
    found.client.timeout = 0.1
    header, columns = pack_requests(requests(1))
    with pytest.raises(Gone, match="has not moved"):
        found.client.call("run", {"version": 3, **header}, columns)
    let_go.set()


def test_a_server_without_a_trainer_ends_by_itself(tmp_path, backend, monkeypatch):
    monkeypatch.setenv(secret.VARIABLE, str(tmp_path / "token"))
    monkeypatch.setattr(host, "BEAT", 0.05)
    trainers = policy()
    with served(tmp_path, backend, linger=2) as (server, address):
        found = engine(tmp_path, trainers, address)
        assert not server._ended.wait(3)  # one trainer is there, however silent
        found.close()
        assert server._ended.wait(20)


def test_an_engine_that_breaks_takes_its_server_along_and_says_why(trained, monkeypatch, capsys):
    _, found, server = trained

    def broken(*_) -> None:
        raise ValueError("device-side assert")

    monkeypatch.setattr(server.backend, "run", broken)
    monkeypatch.setattr(engines, "PATIENCE", 2.0)
    with pytest.raises(ResourceError, match=r"the rollout server .* lost .* resume the run"):
        found.run(requests(1))
    assert "is lost: its engine broke: ValueError: device-side assert" in capsys.readouterr().out
    assert server._ended.wait(20)


def test_somebody_elses_server_may_come_back(tmp_path, backend, monkeypatch):
    """Nothing is lost but time: the new one is given the weights and asked again."""
    monkeypatch.setenv(secret.VARIABLE, str(tmp_path / "token"))
    moved, asked = policy(), requests(3)
    with served(tmp_path, backend) as (_, address):
        found = engine(tmp_path, moved, address)
        found.sync_weights(2)
        before = found.run(asked)
    token = (tmp_path / "token").read_text()
    port = int(address.rpartition(":")[2])
    with served(tmp_path, backend, port=port) as (server, _):
        (tmp_path / "token").write_text(token)
        server.token = token
        assert server.version is None
        assert found.run(asked) == before
        assert (server.version, found.restarts) == (2, 1)
        found.close()


def test_nobody_at_the_address_is_said_with_the_fix(tmp_path, monkeypatch):
    monkeypatch.setenv(secret.VARIABLE, str(tmp_path / "token"))
    secret.make(tmp_path / "token")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free = f"127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(ResourceError, match=r"nobody answers at .* start it again") as raised:
        engine(tmp_path, policy(), free)
    assert raised.value.field == "sampling.server.address"
    monkeypatch.setattr("trainer.loop.Policy", None)  # it is said before weights are loaded
    with pytest.raises(ResourceError, match=r"nobody answers at .* start it again") as raised:
        train(make(tmp_path / "run", small(sampling={"server": {"enabled": True, "address": free}})))
    assert raised.value.field == "sampling.server.address"


def test_a_port_that_is_taken_and_what_is_no_server_are_said_with_the_fix(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port} .* another --port"):
            host.listen("127.0.0.1", port)
        answering = threading.Thread(target=lambda: listener.accept()[0].sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
        answering.start()
        with pytest.raises(ConfigError, match=r"is no rollout server .* give the address"):
            Client(f"127.0.0.1:{port}", "x" * 20, {}, timeout=5)
        answering.join()


def test_a_token_that_others_may_read_is_refused(tmp_path):
    secret.make(tmp_path / "token")
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
    (tmp_path / "token").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        secret.read(tmp_path / "token")
    with pytest.raises(ConfigError, match="cannot be read"):
        secret.read(tmp_path / "absent")
