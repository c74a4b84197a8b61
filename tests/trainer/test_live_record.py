"""The record is the same whoever watches: all prompts, nobody, or through a live file without room."""

from __future__ import annotations

import pyarrow.parquet as pq

from tests.trainer.runs import make, small, train
from trainer.events import Control


def test_what_is_recorded_does_not_depend_on_who_watches(tmp_path, monkeypatch):
    recorded = []
    for name, shown, room, watch in [
        ("none", 0, 1 << 20, []),
        ("all", 16, 1 << 20, [0, 1, 2, 3]),
        ("full", 16, 300, [2]),
    ]:
        monkeypatch.setattr("trainer.stream.LIVE_BYTES", room)
        config = small(
            optimiser={"steps": 1, "warmup_steps": 0}, checkpoint={"every_steps": 0}, recording={"live_samples": shown},
            evaluation={"every_steps": 0},
        )  # fmt: skip
        folder = make(tmp_path / name, config)
        folder.control.write_text(Control(watch=watch).model_dump_json())
        assert train(folder)[0] == "finished"
        assert folder.live.stat().st_size <= room
        rows = [pq.read_table(folder.rollout_file(step)).to_pylist() for step in (1,)]
        recorded.append(repr(rows))  # NaN equals itself there
    assert [len(step) for step in rows] == [16]
    assert recorded[0] == recorded[1] == recorded[2]
