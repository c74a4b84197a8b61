"""Live frames: what viewers see of a step while it is sampled, and whom they chose."""

from __future__ import annotations

import json
import os
import random
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from transformers import AutoTokenizer

from tests.trainer.runs import ROOT
from trainer import events
from trainer import wishes as wishes_module
from trainer.events import Control, RunFolder
from trainer.live_view import GROUPS_PER_FRAME, SHOWN_PER_GROUP, TOKENS_PER_FRAME, LiveView
from trainer.rollout import Chunk, Generation, GenRequest
from trainer.rollout import ledger as ledger_module
from trainer.rollout.ledger import Ledger
from trainer.stream import LiveStream, Silent, Stream
from trainer.text import Detokenizer

TOKENIZER = AutoTokenizer.from_pretrained(ROOT / "trainer/builtin/countdown-tiny")
LETTERS = [TOKENIZER.convert_tokens_to_ids(sign) for sign in "0123456789"]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    """Reports, looks at the control file and news are due at once."""
    monkeypatch.setattr(ledger_module, "CHUNK_SECONDS", 0.0)
    monkeypatch.setattr(wishes_module, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr("trainer.live_view.NEWS_SECONDS", 0.0)


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


@pytest.fixture
def stream(folder):
    stream = Stream(folder, 1)
    yield stream
    stream.close()


@pytest.fixture
def view(stream):
    def make(limit: int = 16) -> LiveView:
        stream.begin_step()
        return LiveView(stream, 1, 1, Detokenizer(TOKENIZER), limit=limit)

    return make


def ask(folder: RunFolder, *groups: int) -> None:
    """Replace control.json as the supervisor does."""
    aside = folder.path / "aside.json"
    aside.write_text(Control(watch=list(groups)).model_dump_json())
    os.replace(aside, folder.control)


def requests(groups: int, samples: int, *, length: int = 6, **changes) -> list[GenRequest]:
    return [
        GenRequest(group * samples + sample, group, sample, (1,), 0, length, watch=True, **changes)
        for group in range(groups)
        for sample in range(samples)
    ]


def prompts(asked: list[GenRequest]) -> dict[int, str]:
    return {request.group: f"prompt {request.group}" for request in asked}


class Sampling:
    """The real ledger under an engine that draws digits: `step` gives every request one token more."""

    def __init__(self, asked: list[GenRequest], watcher) -> None:
        self.ledger, self.rng = Ledger(asked, TOKENIZER.all_special_ids, watcher), random.Random()

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            rows = np.flatnonzero(~self.ledger.finished)
            known = np.array([[-self.rng.random(), self.rng.random()] for _ in rows], dtype=np.float32)
            self.ledger.record(rows, np.array(self.rng.choices(LETTERS, k=len(rows))), known)
            self.ledger.report()

    def finish(self, view: LiveView) -> list[Generation]:
        while not self.ledger.finished.all():
            self.step()
        done = self.ledger.generations()
        view.end(done)
        return done


class Seen:
    """What a viewer makes of live.bin."""

    def __init__(self, folder: RunFolder) -> None:
        self.prompts, self.ends, self.groups = {}, {}, defaultdict(dict)
        self.text, self.ids, self.entropy = defaultdict(str), defaultdict(list), defaultdict(list)
        for frame, _ in events.frames(folder.live.read_bytes()):
            if frame.kind == events.KIND_TOKENS:
                self._tokens(frame)
                continue
            content = json.loads(frame.payload)
            if frame.kind == events.KIND_PROMPT:
                assert frame.rollout not in self.prompts, "a completion is introduced once"
                self.prompts[frame.rollout] = content
            elif frame.kind == events.KIND_END:
                self.ends[frame.rollout] = content
            elif frame.kind == events.KIND_GROUPS:
                for group in content["groups"]:
                    self.groups[group["group"]] |= group

    def _tokens(self, frame: events.Frame) -> None:
        assert frame.rollout in self.prompts, "tokens follow their prompt"
        at = self.prompts[frame.rollout].get("prefix_tokens", 0) + len(self.ids[frame.rollout])
        assert frame.first == at, "no gap, nothing twice"
        count = frame.count
        self.ids[frame.rollout] += np.frombuffer(frame.payload, "<u4", count).tolist()
        lengths = np.frombuffer(frame.payload, "<u2", count, 4 * count)
        self.entropy[frame.rollout] += np.frombuffer(frame.payload, "<f2", count, 6 * count).tolist()
        text = frame.payload[10 * count :]
        assert lengths.sum() == len(text)
        self.text[frame.rollout] += text.decode()


def test_unasked_the_first_few_of_several_groups_are_shown(view, folder):
    asked = requests(8, 6)
    live = view()
    live.wave(asked, prompts(asked))
    done = Sampling(asked, live).finish(live)
    seen = Seen(folder)
    shown = [(content["group"], content["sample"]) for content in seen.prompts.values()]
    assert shown == [(group, sample) for group in range(4) for sample in range(SHOWN_PER_GROUP)]
    assert not any(content["picked"] for content in seen.prompts.values())
    for generation in done:
        if generation.id in seen.prompts:
            assert seen.ids[generation.id] == generation.ids
            assert seen.ends[generation.id]["finish_reason"] == generation.finish_reason
            assert seen.entropy[generation.id] == pytest.approx(generation.entropy, abs=1e-3)
            assert seen.text[generation.id] == TOKENIZER.decode(generation.ids)


def test_every_group_of_the_step_is_listed_with_what_is_done(view, folder):
    asked = requests(GROUPS_PER_FRAME + 3, 2)
    live = view()
    live.wave(asked, prompts(asked))
    sampling = Sampling(asked, live)
    sampling.step(2)
    groups = Seen(folder).groups
    assert list(groups) == list(range(GROUPS_PER_FRAME + 3))
    assert groups[66] == {"group": 66, "prompt": "prompt 66", "size": 2}
    sampling.finish(live)
    assert {group["done"] for group in Seen(folder).groups.values()} == {2}


def test_a_group_picked_in_the_middle_is_shown_from_its_first_token(view, folder):
    asked = requests(9, 6, length=12)
    live = view()
    live.wave(asked, prompts(asked))
    sampling = Sampling(asked, live)
    sampling.step(5)
    assert 7 not in {content["group"] for content in Seen(folder).prompts.values()}
    ask(folder, 7)
    sampling.step(2)
    now = Seen(folder)
    picked = [index for index, content in now.prompts.items() if content["group"] == 7]
    assert len(picked) == 6
    assert all(len(now.ids[index]) == 7 for index in picked)
    done = {generation.id: generation for generation in sampling.finish(live)}
    last = Seen(folder)
    assert all(last.ids[index] == done[index].ids for index in picked)


def test_a_group_that_had_ended_before_it_was_picked_is_still_shown(view, folder):
    asked = [*requests(9, 2, length=3), GenRequest(99, 8, 2, (1,), 0, 20, watch=True)]
    live = view(limit=4)
    live.wave(asked, prompts(asked))
    sampling = Sampling(asked, live)
    sampling.step(6)
    ask(folder, 5)
    sampling.step(2)
    seen = Seen(folder)
    assert {len(seen.ids[index]) for index in (10, 11)} == {3}


def test_two_viewers_get_their_groups_and_leaving_ends_only_ones_own(view, folder):
    asked = requests(9, 5, length=12)
    live = view()
    live.wave(asked, prompts(asked))
    sampling = Sampling(asked, live)
    ask(folder, 6, 8)
    sampling.step(3)
    ask(folder, 8)
    sampling.step(3)
    seen = Seen(folder)
    lengths = {group: {len(seen.ids[group * 5 + sample]) for sample in range(5)} for group in (6, 8)}
    assert lengths == {6: {3}, 8: {6}}


def test_a_picked_group_shows_at_most_as_many_as_the_limit(view, folder):
    asked = requests(2, 40)
    ask(folder, 1)
    live = view(limit=10)
    live.wave(asked, prompts(asked))
    Sampling(asked, live).finish(live)
    counts = defaultdict(int)
    for content in Seen(folder).prompts.values():
        counts[content["group"]] += 1
    assert counts == {0: 4, 1: 10}


def test_a_fork_is_shown_with_its_parent_prefix_and_place(view, folder):
    first = requests(2, 4, length=8)
    live = view(limit=8)
    live.wave(first, prompts(first))
    done = Sampling(first, live).finish(live)
    prefix = tuple(done[2].ids[:3])
    fork = GenRequest(50, 0, 4, (1,), 0, 5, prefix_ids=prefix, parent=2, fork_at=3, watch=True)
    live.wave([fork], prompts(first))
    (grown,) = Sampling([fork], live).finish(live)
    seen = Seen(folder)
    shown = seen.prompts[50]
    assert (shown["parent"], shown["fork_at"], shown["prefix"]) == (2, 3, TOKENIZER.decode(prefix))
    assert seen.ids[50] == grown.ids
    assert seen.groups[0] == {"group": 0, "prompt": "prompt 0", "size": 5, "done": 5}


def test_an_engine_that_tells_nothing_on_the_way_is_shown_at_the_end(view, folder):
    asked = requests(1, 2)
    live = view()
    live.wave(asked, prompts(asked))
    silent = Sampling(asked, None)
    done = silent.finish(live)
    seen = Seen(folder)
    assert [seen.ids[0], seen.ids[1]] == [done[0].ids, done[1].ids]


def test_an_engine_that_asks_nothing_may_tell_everything(view, folder):
    asked = requests(9, 3)
    live = view(limit=4)
    live.wave(asked, prompts(asked))
    sampling = Sampling(asked, lambda chunks: live(chunks))
    sampling.finish(live)
    assert len(Seen(folder).prompts) == 4


def test_long_news_of_one_completion_are_cut_into_frames(view, folder):
    asked = [GenRequest(0, 0, 0, (1,), 0, 3 * TOKENS_PER_FRAME, watch=True)]
    live = view()
    live.wave(asked, prompts(asked))
    count = 2 * TOKENS_PER_FRAME + 5
    ids, values = random.choices(LETTERS, k=count), [0.5] * count
    live([Chunk(0, 0, ids, values, values)])
    frames = [f for f, _ in events.frames(folder.live.read_bytes()) if f.kind == events.KIND_TOKENS]
    assert [frame.count for frame in frames] == [TOKENS_PER_FRAME, TOKENS_PER_FRAME, 5]
    assert Seen(folder).ids[0] == ids


def test_bounds_of_entropy_travel_with_the_tokens(view, folder):
    asked = requests(1, 1)
    live = view()
    live.wave(asked, prompts(asked))
    live([Chunk(0, 0, LETTERS[:2], [-1.0, -2.0], [1.0, 1.5], low=[0.5, 1.25], high=[1.5, 1.75])])
    (frame,) = [f for f, _ in events.frames(folder.live.read_bytes()) if f.kind == events.KIND_BOUNDED]
    columns = np.frombuffer(frame.payload, "<f2", 8, 6 * 2).reshape(4, 2).tolist()
    assert columns == [[1.0, 1.5], [-1.0, -2.0], [0.5, 1.25], [1.5, 1.75]]
    assert frame.payload[14 * 2 :] == b"01"


def test_a_process_beside_the_first_shows_what_is_asked_for_under_numbers_of_its_own(folder):
    side = LiveStream(folder, 2)
    live = LiveView(side, 1, 1, Detokenizer(TOKENIZER), limit=16)
    asked = requests(3, 2)
    asked.append(replace(asked[2], id=6, parent=2, fork_at=1, prefix_ids=(LETTERS[0],)))
    live.wave(asked, prompts(asked))
    assert not live.wanted
    ask(folder, 1)
    Sampling(asked[:6], live).finish(live)
    side.close()
    assert not folder.live.exists()
    found = [frame for frame, _ in events.frames(folder.live_of(2).read_bytes())]
    told = {frame.rollout for frame in found if frame.kind != events.KIND_GROUPS}
    assert told == {2 * events.RANK_STRIDE + index for index in (2, 3, 6)}
    forks = [json.loads(frame.payload) for frame in found if frame.rollout == 2 * events.RANK_STRIDE + 6]
    assert forks[0]["parent"] == 2 * events.RANK_STRIDE + 2
    listed = [
        group for frame in found if frame.kind == events.KIND_GROUPS for group in json.loads(frame.payload)["groups"]
    ]
    assert {entry["group"] for entry in listed} == {0, 1, 2}  # so that a viewer can choose them


def test_a_step_writes_no_more_than_its_room(view, folder, stream, monkeypatch):
    monkeypatch.setattr("trainer.stream.LIVE_BYTES", 4000)
    asked = requests(1, 4, length=500)
    live = view()
    live.wave(asked, prompts(asked))
    done = Sampling(asked, live).finish(live)
    assert [len(generation.ids) for generation in done] == [500] * 4
    assert 3000 < folder.live.stat().st_size <= 4000
    stream.begin_step()
    stream.progress(2, "sample", 0, 1)
    assert folder.live.stat().st_size > 0


def test_nothing_is_shown_where_nobody_can_look(folder, view):
    asked = requests(2, 2)
    silent = LiveView(Silent(), 1, 1, Detokenizer(TOKENIZER), limit=16)
    for live in (silent, view(limit=0)):
        live.wave(asked, prompts(asked))
        Sampling(asked, live).finish(live)
        assert live.wanted == frozenset()
    assert folder.live.read_bytes() == b""


@pytest.mark.parametrize("content", ["", "{", '{"watch": "all"}', '{"watch": [-1, 4000000000]}'])
def test_a_control_file_of_nonsense_changes_nothing_that_is_shown(view, folder, content):
    asked = requests(6, 2)
    live = view(limit=2)
    live.wave(asked, prompts(asked))
    folder.control.write_text(content)
    Sampling(asked, live).finish(live)
    assert set(Seen(folder).prompts) == {0, 1}
