"""Text of tokens: the pieces of a completion join to its text, for every kind of tokenizer and for broken bytes."""

from __future__ import annotations

import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.trainer.runs import ROOT
from trainer.text import Detokenizer

SAMPLE = "naïve café 漢字 🙂🏳️‍🌈 \u202eevil\u202c tab\there\r\nzero\u200bwidth <b>bold</b> \x00\x1b[31m"


def byte_level() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    backend.train_from_iterator([SAMPLE, "the cat sat on the mat " * 5], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")


def sentencepiece() -> PreTrainedTokenizerFast:
    """Pieces with a marked space, and single bytes for what no piece covers, as Llama 2 and Gemma have them."""
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁the", "c", "a", "t"]
    backend = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


def pieces(text: str, offsets: list[int]) -> list[bytes]:
    data = text.encode()
    return [data[a:b] for a, b in zip(offsets, [*offsets[1:], len(data)], strict=True)]


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_the_text_is_what_the_tokenizer_decodes(make):
    tokenizer = make()
    ids = tokenizer(SAMPLE, add_special_tokens=False)["input_ids"]
    text, offsets = Detokenizer(tokenizer).decode(ids)
    assert text == SAMPLE == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert b"".join(pieces(text, offsets)).decode() == text
    for piece in pieces(text, offsets):
        piece.decode()  # no token's piece cuts a character


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_any_tokens_at_all_have_a_text(make):
    tokenizer, source = make(), random.Random()
    for _ in range(50):
        ids = [source.randrange(len(tokenizer)) for _ in range(source.randrange(1, 40))]
        text, offsets = Detokenizer(tokenizer).decode(ids)
        assert len(offsets) == len(ids)
        assert offsets == sorted(offsets)
        assert b"".join(pieces(text, offsets)).decode() == text


def test_a_character_belongs_to_the_token_that_completes_it():
    tokenizer = sentencepiece()
    ids = tokenizer("🙂a", add_special_tokens=False)["input_ids"]
    text, offsets = Detokenizer(tokenizer).decode(ids)
    assert [len(piece) for piece in pieces(text, offsets)] == [0, 0, 0, 4, 1]


def test_a_character_cut_off_at_the_end_is_marked():
    tokenizer = sentencepiece()
    ids = tokenizer("🙂", add_special_tokens=False)["input_ids"]
    assert Detokenizer(tokenizer).decode(ids[:2])[0] == "\ufffd"


def test_the_end_token_has_no_text_and_the_built_in_model_speaks_in_characters():
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "trainer/builtin/countdown-tiny")
    ids = [*tokenizer("2*7+5")["input_ids"], tokenizer.eos_token_id]
    assert Detokenizer(tokenizer).decode(ids) == ("2*7+5", [0, 1, 2, 3, 4, 5])
