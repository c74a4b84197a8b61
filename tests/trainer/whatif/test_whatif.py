"""What-if on rollout files: the trainer's own run, four tokens by hand, and every preset against `evaluate`."""

from __future__ import annotations

import dataclasses
import json
import math
import secrets
import struct
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.trainer.runs import make, small, train
from trainer.errors import ConfigError
from trainer.objectives import PRESETS, Objective, ObjectiveConfig, evaluate
from trainer.recorder import METADATA
from trainer.whatif import KINDS, effect, own, packed, read, row, table
from trainer.whatif.recording import Recording
from trainer.whatif.table import predicted


@pytest.fixture(scope="module", params=[1, 2], ids=["one update", "two minibatches"])
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """A real step of the tiny model under an objective that masks tokens and moves entropy."""
    config = small(
        optimiser={"steps": 2, "minibatches_per_step": request.param, "learning_rate": 3e-3, "warmup_steps": 0},
        objective={"preset": "top-entropy-mask", "parts": [{"type": "entropy_bonus", "coefficient": 0.02}]},
    )
    folder = make(tmp_path_factory.mktemp("run"), config)
    train(folder)
    return read(folder.rollout_file(1))


def four_tokens(path: Path, **columns: list) -> Path:
    """Write a file of two completions of one prompt, two tokens each: right then wrong, from a coin of p and 1 - p."""
    rows = {
        "group": [0, 0], "sample": [0, 1], "row_key": ["a", "a"], "prompt": ["?", "?"], "completion": ["ab", "cd"],
        "reward": [1.0, 0.0], "reward_parts": ["{}", "{}"], "right": [True, False], "answer": ["x", "y"],
        "advantage": [0.7071, -0.7071], "finish_reason": ["stop", "stop"],
        "branch_parent": [None, None], "branch_token": [None, None],
        "token_ids": [[1, 2], [3, 4]], "byte_offsets": [[0, 1], [0, 1]],
        "logprob": [[math.log(p) for p in pair] for pair in ((0.9, 0.5), (0.2, 0.6))],
        "entropy": [[coin(p) for p in pair] for pair in ((0.9, 0.5), (0.2, 0.6))],
        "engine_logprob": [[-0.1, -0.6], [-1.6, -0.5]],
        "weight": [[0.7071, 0.7071], [-0.7071, 0.0]], "entropy_weight": [[0.0, 0.0], [0.0, 0.0]],
        "flags": [[0, 0], [0, 0]],
    }  # fmt: skip
    rows |= columns
    said = {
        "step": 3, "total_steps": 9, "seed": 0, "max_completion_tokens": 2, "knobs": {}, "prompts": 1,
        "minibatches": 1, "completions": 2, "options": {}, "objective": {"preset": "grpo", "parts": []},
    }  # fmt: skip
    import pyarrow as pa

    kinds = {name: pa.list_(pa.float32()) for name in ("logprob", "entropy", "engine_logprob", "weight")}
    made = pa.table({name: pa.array(values, kinds.get(name)) for name, values in rows.items()})
    made = made.replace_schema_metadata({METADATA: json.dumps(said).encode()})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(made, path)
    return path


def coin(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


def moments(p: float) -> tuple[float, float, float]:
    """Return sum p^2, sum p^2 log p and the squared norm of the entropy's gradient of a coin."""
    both = (p, 1 - p)
    return (
        sum(q * q for q in both),
        sum(q * q * math.log(q) for q in both),
        sum((q * (math.log(q) + coin(p))) ** 2 for q in both),
    )


# -- a real run ------------------------------------------------------------------------------------------------------


def test_the_runs_own_objective_comes_out_as_it_was(recorded: Recording) -> None:
    assert recorded.objective is not None
    again, was = effect(recorded, recorded.objective, recorded.step.knobs), own(recorded)
    torch.testing.assert_close(again.weight, was.weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(again.entropy_weight, was.entropy_weight, rtol=1e-3, atol=1e-5)
    assert torch.equal(again.kind, was.kind)
    assert bool(recorded.weight.any())
    first = next(table(recorded, []))
    assert (first.preset, first.notes, first.exact) == ("top-entropy-mask", [], True)
    assert first.masked > 0.5


def test_equals_evaluate_on_the_same_numbers(recorded: Recording) -> None:
    if recorded.minibatches > 1:
        pytest.skip("evaluate takes one update")
    batch = recorded.batch
    lists = {name: getattr(batch, name).tolist() for name in ("logprob", "entropy", "old_logprob", "sequence")}
    lists |= {name: getattr(batch, name).tolist() for name in ("old_entropy", "engine_logprob", "sum_p2", "group")}
    lists |= {"sum_p2_logp": batch.sum_p2_logp.tolist(), "reward": batch.reward.tolist()}
    lists |= {"length": batch.length.tolist(), "truncated": batch.truncated.tolist()}
    lists |= {name: getattr(recorded.step, name) for name in ("step", "total_steps", "seed", "max_completion_tokens")}
    compared = 0
    for name in PRESETS:
        config = ObjectiveConfig(preset=name)
        if recorded.missing(Objective(config)) or set(Objective(config).needs) - set(lists) - {"entropy_grad"}:
            continue
        expected, found = evaluate(config, lists), effect(recorded, config)
        assert found.weight.tolist() == pytest.approx(expected["weight"], rel=1e-12, abs=1e-12), name
        entropy = [-value * batch.tokens for value in expected["grad_entropy"]]
        assert found.entropy_weight.tolist() == pytest.approx(entropy, rel=1e-12, abs=1e-12), name
        compared += 1
    assert compared > 10


def test_every_preset_has_figures_or_says_why_not(recorded: Recording) -> None:
    rows = list(table(recorded))[1:]
    assert [one.preset for one in rows] == list(PRESETS)
    for one in rows:
        if one.refused:
            assert "needs" in one.refused
            continue
        assert one.exact
        assert one.push + one.pull == pytest.approx(one.mass)
        assert 0 <= one.touched <= 1
        assert one.masked + one.clipped <= 1
        assert math.isfinite(one.change)
    plain = next(one for one in rows if one.preset == "grpo")
    if recorded.minibatches == 1:
        assert plain.mass == pytest.approx(1)


def test_the_answer_unpacks_to_the_effect(recorded: Recording) -> None:
    config = ObjectiveConfig(preset="clip-cov")
    done = effect(recorded, config)
    data = packed(recorded, done, row(recorded, config, done=done))
    (size,) = struct.unpack_from("<I", data)
    header, base = json.loads(data[4 : 4 + size]), -(-(4 + size) // 8) * 8
    kinds = {"f16": np.float16, "u8": np.uint8}
    for name, expected in (("weight", done.weight), ("kind", done.kind), ("own_kind", own(recorded).kind)):
        spec = header["columns"][name]
        found = np.frombuffer(data, kinds[spec["dtype"]], spec["length"], base + spec["offset"])
        assert spec["offset"] % 8 == 0
        assert found.astype(float) == pytest.approx(expected.double().numpy(), rel=1e-3, abs=1e-6)
    assert header["row"]["preset"] == "clip-cov"


# -- by hand ---------------------------------------------------------------------------------------------------------


def test_four_tokens_by_hand(tmp_path: Path) -> None:
    """GRPO's advantages of rewards 1 and 0 are +-1/sqrt 2, and entropy changes by -w (S - N) at each coin."""
    pairs = ((0.9, 0.5), (0.2, 0.6))
    extra = zip(*(zip(*(moments(p) for p in pair), strict=True) for pair in pairs), strict=True)
    columns = dict(
        zip(("sum_p2", "sum_p2_logp", "entropy_gain"), (list(map(list, both)) for both in extra), strict=True)
    )
    recording = read(four_tokens(tmp_path / "step-00000003.parquet", **columns))
    found = effect(recording, ObjectiveConfig(preset="grpo"))
    level = math.sqrt(0.5)
    assert found.weight.tolist() == pytest.approx([level, level, -level, -level], abs=1e-5)
    assert [KINDS[kind] for kind in found.kind] == ["push", "push", "pull", "pull"]
    expected = 0.0
    for p, weight in zip((0.9, 0.5, 0.2, 0.6), (level, level, -level, -level), strict=True):
        s2, s2l, _ = moments(p)
        expected -= weight * (p * (math.log(p) + coin(p)) - (coin(p) * s2 + s2l)) / 4
    shown = row(recording, ObjectiveConfig(preset="grpo"))
    assert shown.exact
    assert shown.change == pytest.approx(expected, rel=1e-4)
    assert (shown.mass, shown.push, shown.touched) == (pytest.approx(1), pytest.approx(0.5), 1)


def test_an_entropy_bonus_adds_its_gain(tmp_path: Path) -> None:
    pairs = ((0.9, 0.5), (0.2, 0.6))
    gains = [[moments(p)[2] for p in pair] for pair in pairs]
    flat = {"sum_p2": [[0.5] * 2] * 2, "sum_p2_logp": [[-0.3] * 2] * 2}
    recording = read(four_tokens(tmp_path / "step-00000003.parquet", **flat, entropy_gain=gains))
    config = ObjectiveConfig(preset="entropy-bonus", parts=[{"type": "entropy_bonus", "coefficient": 0.5}])
    shown = row(recording, config)
    assert shown.change_entropy == pytest.approx(0.5 * sum(map(sum, gains)) / 4, rel=1e-5)
    assert shown.change == pytest.approx(shown.change_policy + shown.change_entropy)


def test_a_file_without_moments_is_estimated_and_says_so(tmp_path: Path) -> None:
    recording = read(four_tokens(tmp_path / "step-00000003.parquet"))
    found = effect(recording, ObjectiveConfig(preset="grpo"))
    shown = row(recording, ObjectiveConfig(preset="grpo"))
    sampled = [p * (math.log(p) + coin(p)) for p in (0.9, 0.5, 0.2, 0.6)]
    mean = sum(sampled) / 4
    expected = -sum(g * (s - mean) for g, s in zip(found.gradient.tolist(), sampled, strict=True)) / 4
    assert not shown.exact
    assert shown.change == pytest.approx(expected, rel=1e-5)
    refused = row(recording, ObjectiveConfig(preset="ucas")).refused
    assert refused.startswith("not computable here: needs")
    with pytest.raises(ConfigError, match="logsumexp"):
        effect(recording, ObjectiveConfig(preset="ucas"))


def test_the_estimate_is_near_the_truth_on_drawn_tokens() -> None:
    """On many tokens that the policy itself drew, the two agree in the mean."""
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    dice = np.random.default_rng(seed)
    p = dice.dirichlet([1.0, 0.6, 0.3], 200_000)
    drawn = p[np.arange(len(p)), (dice.random(len(p))[:, None] > p.cumsum(1)).sum(1).clip(0, 2)]
    entropy = -(p * np.log(p.clip(1e-300))).sum(1)
    now = {
        "logprob": np.log(drawn), "entropy": entropy, "sum_p2": (p**2).sum(1),
        "sum_p2_logp": (p**2 * np.log(p.clip(1e-300))).sum(1),
        "gain": (p**2 * (np.log(p.clip(1e-300)) + entropy[:, None]) ** 2).sum(1),
    }  # fmt: skip
    tensors = {name: torch.tensor(values) for name, values in now.items()}
    from trainer.batch import TokenBatch
    from trainer.whatif.effect import Effect

    gain, ones = tensors.pop("gain"), torch.ones(len(p), dtype=torch.float64)
    batch = TokenBatch(
        **tensors, sequence=torch.zeros(len(p), dtype=torch.long), position=torch.arange(len(p)),
        group=torch.zeros(1, dtype=torch.long), reward=torch.zeros(1), length=torch.tensor([len(p)]),
        extra={"entropy_gain": gain},
    )  # fmt: skip
    made = Effect(ones, torch.tensor(dice.normal(1, 1, len(p))), ones, ones.byte())

    class Bare:
        now = batch

    exact = predicted(Bare, made)  # type: ignore[arg-type]
    Bare.now = dataclasses.replace(batch, sum_p2=None, extra={})
    rough = predicted(Bare, made)  # type: ignore[arg-type]
    assert (exact[2], rough[2]) == (True, False)
    assert rough[0] == pytest.approx(exact[0], abs=0.01)
    assert rough[1] == pytest.approx(exact[1], abs=0.01)


def test_kinds_of_clip_mask_and_filter(tmp_path: Path) -> None:
    """One token of each: past the clip, below the entropy quantile, in a completion cut off at the limit."""
    later = [[math.log(0.9), math.log(0.7)], [math.log(0.2), math.log(0.6)]]  # token 1 rose by 40 %
    path = four_tokens(tmp_path / "step-00000003.parquet", current_logprob=later)
    clipped = effect(read(path), ObjectiveConfig(preset="grpo"))
    assert [KINDS[kind] for kind in clipped.kind] == ["push", "clipped", "pull", "pull"]
    assert clipped.weight[1] == 0
    masked = effect(read(path), ObjectiveConfig(preset="grpo", parts=[{"type": "top_entropy", "share": 0.5}]))
    assert [KINDS[kind] for kind in masked.kind] == ["masked", "clipped", "masked", "pull"]
    path = four_tokens(tmp_path / "step-00000003.parquet", finish_reason=["stop", "length"])
    filtered = effect(read(path), ObjectiveConfig(preset="grpo", parts=[{"type": "overlong_filter"}]))
    assert [KINDS[kind] for kind in filtered.kind] == ["push", "push", "masked", "masked"]
    assert filtered.gradient[0] == pytest.approx(2 * float(filtered.weight[0]))  # half the tokens left the denominator


def test_recorded_weights_tell_what_the_run_did(tmp_path: Path) -> None:
    path = four_tokens(tmp_path / "step-00000003.parquet", flags=[[0, 1], [0, 0]], weight=[[0.7, 0.0], [-0.7, 0.0]])
    assert [KINDS[kind] for kind in own(read(path)).kind] == ["push", "masked", "pull", "clipped"]
    first = next(table(read(path), []))
    assert "from the recorded weights" in first.notes[0]
    assert first.mass == pytest.approx(1.4 / (4 * math.sqrt(0.5)), rel=1e-3)


# -- files that are not as they should be ----------------------------------------------------------------------------


def test_an_ungraded_completion_teaches_nothing(tmp_path: Path) -> None:
    recording = read(four_tokens(tmp_path / "s-3.parquet", reward=[1.0, None]))
    found = effect(recording, ObjectiveConfig(preset="grpo"))
    assert [KINDS[kind] for kind in found.kind][2:] == ["masked", "masked"]


def test_plain_grpo_is_the_measure_of_mass_whatever_counts(tmp_path: Path) -> None:
    """An ungraded completion and one drawn at another temperature leave GRPO's denominator; its mass stays 1."""
    rows = {
        "group": [0, 0, 0, 0],
        "sample": [0, 1, 2, 3],
        "reward": [1.0, 0.0, None, 1.0],
        "flags": [[0] * 2] * 3 + [[4] * 2],
    }
    path = four_tokens(tmp_path / "s-3.parquet")
    doubled = pq.read_table(path).to_pydict()
    columns = {name: [*values, *values] for name, values in doubled.items()} | rows
    recording = read(four_tokens(path, **columns))
    shown = row(recording, ObjectiveConfig(preset="grpo"))
    assert recording.batch.auxiliary.tolist() == [False, False, False, True]
    assert shown.mass == pytest.approx(1)
    assert (shown.touched, shown.masked) == (0.5, 0.5)


def test_broken_and_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "step-00000001.parquet"
    with pytest.raises(FileNotFoundError):
        read(path)
    path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ConfigError, match="step-00000001"):
        read(path)
    import pyarrow as pa

    pq.write_table(pa.table({"token_ids": [[1]]}), path)
    with pytest.raises(ConfigError, match="no column"):
        read(path)


def test_a_file_without_its_facts_takes_the_runs_config(tmp_path: Path) -> None:
    path = four_tokens(tmp_path / "run" / "rollouts" / "step-00000003.parquet")
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    with pytest.raises(ConfigError, match=r"no config\.json"):
        read(path)
    make(tmp_path / "run", small(objective={"preset": "dapo"}))
    recording = read(path)
    assert (recording.step.step, recording.described) == (3, False)
    assert recording.objective.preset == "dapo"
