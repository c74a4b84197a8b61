"""What of a server's settings is refused before a run starts, and what is only advised against."""

from __future__ import annotations

import pytest

from tests.trainer.runs import small
from trainer.config import leased_gpus
from trainer.errors import ConfigError
from trainer.passes import needs_scoring
from trainer.preflight import check

SERVED = {"server": {"enabled": True}}
STALE = {**SERVED, "staleness": 1}
ELSEWHERE = {"enabled": True, "address": "gpu7:7000"}


@pytest.mark.parametrize(("changes", "field", "words"), [
    ({"sampling": {"staleness": 1}}, "sampling.staleness", "turn on sampling.server.enabled"),
    ({"sampling": {**STALE, "staleness": 2}}, "sampling.staleness", "less than or equal to 1"),
    ({"sampling": SERVED, "resources": {"gpus": 2}}, "sampling.server.gpus", "needs one for its server"),
    ({"sampling": {"server": {**ELSEWHERE, "gpus": 1}}}, "sampling.server.gpus", "choose 0"),
    *(
        ({"sampling": {"server": {"address": text}}}, "sampling.server.address", "HOST:PORT")
        for text in ("gpu7", ":7000", "gpu7:", "gpu7:0", "gpu7:70000", "http://gpu7:7000", "gpu 7:7000")
    ),
    ({"sampling": STALE, "optimiser": {"old_logprobs": "engine"}}, "optimiser.old_logprobs", "choose"),
])  # fmt: skip
def test_what_cannot_work_is_refused_with_the_field_and_the_fix(changes, field, words):
    with pytest.raises(ConfigError, match=words) as caught:
        small(**changes)
    assert caught.value.field == field


def test_a_servers_gpu_is_leased_with_the_runs():
    served = {"server": {"enabled": True, "gpus": 1}}
    assert leased_gpus(small(sampling=served, resources={"gpus": 2})) == 3
    assert leased_gpus(small(sampling={"server": {"enabled": False, "gpus": 1}}, resources={"gpus": 2})) == 2
    assert leased_gpus(small(sampling={"server": ELSEWHERE}, resources={"gpus": 2})) == 2


def test_stale_samples_are_scored_and_nothing_but_a_correction_silences_the_advice():
    assert "other weights sampled" in needs_scoring(small(sampling=STALE))

    def advised(**changes) -> bool:
        report = check(small(**changes), deep=False)
        return any(warning.field == "sampling.staleness" for warning in report.warnings)

    assert advised(sampling=STALE)
    assert not advised(sampling=STALE, objective={"parts": [{"type": "ppo_clip", "correction": "token"}]})
    assert not advised(sampling=SERVED)
