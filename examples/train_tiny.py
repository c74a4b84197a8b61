"""Make the built-in tiny models: character models that play Countdown and Split the sum at a reward of 0.3 to 0.6.

    python examples/train_tiny.py [--shape gpt2|llama] [--out trainer/builtin/countdown-tiny] [--steps 800] [--seed 0]

A GPT-2 of 3 layers and width 96 (0.34 M parameters) learns both tasks from prompts of the training split, each answered
by a right expression drawn at random among all right ones, so that the policy knows many answers to each prompt: what
reinforcement learning may then collapse. Held-out prompts are never shown. Takes about a minute on one core.

The same size as a Llama (three heads of 32 that share keys and values, rotary positions, a gated MLP, a tied head) is
what vLLM runs on a CPU, where it knows no heads of 24; it is shaped like most models in use. It took 1200 steps.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from trainer.tasks.base import Row
from trainer.tasks.countdown import Countdown, solutions
from trainer.tasks.split_sum import SplitSum

CHARACTERS = "0123456789+-*=:"
PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
IGNORED = -100


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token for each character."""
    vocabulary = {token: index for index, token in enumerate([PAD, EOS, UNKNOWN, *CHARACTERS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN, padding_side="left",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def model(vocabulary: int, eos: int, pad: int) -> GPT2LMHeadModel:
    """Return the untrained policy."""
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=64, n_embd=96, n_layer=3, n_head=4, activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=eos, eos_token_id=eos, pad_token_id=pad,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def llama(vocabulary: int, eos: int, pad: int) -> LlamaForCausalLM:
    """Return the untrained policy in the shape that vLLM's CPU attention takes."""
    config = LlamaConfig(
        vocab_size=vocabulary, max_position_embeddings=128, hidden_size=96, intermediate_size=256, num_hidden_layers=3,
        num_attention_heads=3, num_key_value_heads=1, head_dim=32, tie_word_embeddings=True, bos_token_id=eos,
        eos_token_id=eos, pad_token_id=pad,
    )  # fmt: skip
    return LlamaForCausalLM(config)


SHAPES: dict[str, tuple[Callable[[int, int, int], PreTrainedModel], str]] = {
    "gpt2": (model, "countdown-tiny"),
    "llama": (llama, "countdown-tiny-llama"),
}


def answers(task: Countdown | SplitSum, row: Row) -> list[str]:
    """Return every right completion of a row."""
    if isinstance(task, Countdown):
        return list(solutions()[row.extra["digits"], int(row.answer)])
    total = int(row.answer)
    return [f"{first:02d}+{total - first:02d}" for first in range(total + 1)]


def batches(seed: int, size: int) -> itertools.chain[list[tuple[str, str]]]:
    """Yield batches of (prompt, right completion) without end, half from each task."""
    source = random.Random(seed)
    tasks = [Countdown(), SplitSum()]
    pools = [[(row.prompt, answers(task, row)) for row in task.rows("train", 0)] for task in tasks]

    def draw() -> list[tuple[str, str]]:
        chosen = [source.choice(pools[index % 2]) for index in range(size)]
        return [(prompt, source.choice(right)) for prompt, right in chosen]

    return itertools.chain.from_iterable([draw()] for _ in itertools.count())


def tensors(examples: list[tuple[str, str]], tok: PreTrainedTokenizerFast) -> tuple[torch.Tensor, torch.Tensor]:
    """Return right-padded input ids and labels [B, T]; only the completion and its end are learned."""
    rows = [(tok(prompt)["input_ids"], [*tok(answer)["input_ids"], tok.eos_token_id]) for prompt, answer in examples]
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.full((len(rows), width), tok.pad_token_id)
    labels = torch.full((len(rows), width), IGNORED)
    for index, (prompt, answer) in enumerate(rows):
        ids[index, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        labels[index, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    return ids, labels


def train(policy: PreTrainedModel, tok: PreTrainedTokenizerFast, steps: int, seed: int) -> None:
    """Supervised training with AdamW and a cosine to zero."""
    optimiser = torch.optim.AdamW(policy.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.01)
    for step, examples in zip(range(steps), batches(seed, size=128), strict=False):
        rate = 2e-3 * min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimiser.param_groups:
            group["lr"] = rate
        ids, labels = tensors(examples, tok)
        loss = policy(input_ids=ids, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimiser.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step:4d}  loss {loss.item():.3f}")


@torch.no_grad()
def sampled_reward(
    policy: PreTrainedModel, tok: PreTrainedTokenizerFast, task: Countdown | SplitSum, split: str
) -> float:
    """Return the mean reward of 8 samples for each of 64 prompts at temperature 1."""
    rows = [row for row in task.rows(split, 0)[:64] for _ in range(8)]
    batch = tok([row.prompt for row in rows], return_tensors="pt", padding=True)
    out = policy.generate(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], do_sample=True, max_new_tokens=12, top_k=0
    )
    texts = tok.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return sum(task.score(row, text) or 0.0 for row, text in zip(rows, texts, strict=True)) / len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="gpt2")
    parser.add_argument("--out", type=Path, help="a folder; by default the built-in's own")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    tok = tokenizer()
    shape, name = SHAPES[options.shape]
    policy = shape(len(tok), tok.eos_token_id, tok.pad_token_id)
    print(f"{sum(p.numel() for p in policy.parameters()):,} parameters, {len(tok)} tokens")
    train(policy, tok, options.steps, options.seed)
    policy.eval()
    for task in (Countdown(), SplitSum()):
        for split in ("train", "held_out"):
            print(f"{task.type} {split}: sampled reward {sampled_reward(policy, tok, task, split):.2f}")
    out = options.out or Path(__file__).parents[1] / "trainer/builtin" / name
    policy.save_pretrained(out)
    tok.save_pretrained(out)


if __name__ == "__main__":
    main()
