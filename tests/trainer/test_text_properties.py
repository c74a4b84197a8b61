"""Any text in any script, cut into tokens anywhere, comes back whole, and every token covers its own part of it."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from trainer.text import Detokenizer

TRAINED_ON = [
    "the cat sat on the mat, naïve café, 漢字仮名交じり文, Việt Nam, हिन्दी",
    "🙂🏳️‍🌈👩‍👩‍👧👍🏽 مرحبا ประเทศไทย e\u0301 \u200b\ufeff",
    "def f(x):\n\treturn x ** 2\r\n",
]
ADDED, SPECIAL = "<tool>", "<|end|>"


def of(backend: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=SPECIAL, clean_up_tokenization_spaces=False)
    tokenizer.add_tokens([AddedToken(ADDED, normalized=False)])
    return tokenizer


@cache
def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2, Llama 3 and Qwen have it: merges of bytes, which may begin or end inside a character."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=[SPECIAL], initial_alphabet=alphabet)
    backend.train_from_iterator(TRAINED_ON * 3, trainer)
    return of(backend)


@cache
def sentencepiece() -> PreTrainedTokenizerFast:
    """As Llama 2 and Gemma have it: merges of characters, marked spaces, single bytes for what is not covered."""
    characters = sorted({sign for text in TRAINED_ON[:1] for sign in text.replace(" ", "▁")})
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("a", "t"), ("c", "at"), ("▁", "cat"), ("漢", "字")]
    pieces = ["<unk>", SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *characters]
    pieces += [one + other for one, other in merges if one + other not in pieces]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return of(backend)


BOTH = pytest.mark.parametrize("make", [byte_level, sentencepiece])
PIECES = st.one_of(
    st.sampled_from(
        [*"aZ0 \n\t\r.", " the", "cat", ADDED, "🙂", "👩\u200d👩\u200d👧\u200d👦", "🏳\ufe0f\u200d🌈", "👍🏽", "🇺🇸"]
    ),
    st.sampled_from(
        ["漢字", "かな", "한국어", "e\u0301", "a\u0323\u0302", "ा", "ที่", "مرحبا", "\u202e", "\u200b", "\ufeff", "\x00"]
    ),
    st.characters(exclude_categories=["Cs"]),
)
# SentencePiece has no sign of its own for "▁": it is a space there.
TEXTS = st.lists(PIECES, max_size=30).map("".join).map(lambda text: text.replace("▁", "_"))


detokenizer = cache(Detokenizer)


@cache
def single(tokenizer: PreTrainedTokenizerFast) -> dict[bytes, int]:
    """Return a token for each byte."""
    return {detokenizer(tokenizer).token(index): index for index in reversed(range(len(tokenizer)))}


def taken_apart(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> tuple[str, list[int], list[bytes]]:
    """Return text, offsets and each token's part of the text."""
    text, offsets = detokenizer(tokenizer).decode(ids)
    data = text.encode()
    if not ids:
        return text, offsets, []
    return text, offsets, [data[a:b] for a, b in zip(offsets, [*offsets[1:], len(data)], strict=True)]


def ids_of(tokenizer: PreTrainedTokenizerFast, count: int = 40) -> st.SearchStrategy[list[int]]:
    """Any tokens at all, special and added ones, and numbers that an embedding has and the vocabulary has not."""
    return st.lists(st.integers(0, len(tokenizer) + 3), max_size=count)


@BOTH
@settings(deadline=None)
@given(data=st.data())
def test_text_cut_by_its_tokenizer_comes_back(make, data):
    tokenizer, text = make(), data.draw(TEXTS)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    got, offsets, parts = taken_apart(tokenizer, ids)
    assert got == text == tokenizer.decode(ids)
    assert offsets == sorted(offsets)
    assert b"".join(parts).decode() == text
    for part in parts:
        part.decode()  # raises inside a character


@BOTH
@settings(deadline=None)
@given(data=st.data())
def test_text_cut_anywhere_comes_back_and_each_token_covers_what_it_completes(make, data):
    """Bytes one by one, mixed with whole tokens: what is shown after k tokens is every character complete by then."""
    tokenizer, pieces = make(), data.draw(st.lists(st.tuples(PIECES, st.booleans()), max_size=12))
    ids: list[int] = []
    for piece, whole in pieces:
        piece = piece.replace("▁", "_")
        cut = tokenizer(piece, add_special_tokens=False)["input_ids"]
        ids += cut if whole else [single(tokenizer)[bytes([byte])] for byte in piece.encode()]
    raw = [detokenizer(tokenizer).token(index) for index in ids]
    text = b"".join(raw).decode()
    got, offsets, _ = taken_apart(tokenizer, ids)
    assert got == text
    ends = {0}
    for sign in text:
        ends.add(max(ends) + len(sign.encode()))
    at = 0
    for offset, part in zip(offsets, raw, strict=True):
        assert offset == max(end for end in ends if end <= at)
        at += len(part)


@settings(deadline=None)
@given(data=st.data())
def test_any_byte_level_tokens_decode_as_the_tokenizer_does(data):
    tokenizer = byte_level()
    ids = [index for index in data.draw(ids_of(tokenizer)) if index < len(tokenizer)]
    got, offsets, parts = taken_apart(tokenizer, ids)
    assert got == tokenizer.decode(ids, skip_special_tokens=True)
    assert offsets == sorted(offsets)
    assert b"".join(parts).decode() == got


@settings(deadline=None)
@given(data=st.data())
def test_any_sentencepiece_tokens_decode_as_the_tokenizer_does_but_for_broken_bytes(data):
    """The library writes U+FFFD for each byte of a broken run; here it stands for each broken beginning of a sign."""
    tokenizer = sentencepiece()
    ids = data.draw(ids_of(tokenizer))
    got, offsets, parts = taken_apart(tokenizer, ids)
    assert offsets == sorted(offsets)
    assert b"".join(parts).decode() == got
    known = [index for index in ids if index < len(tokenizer)]
    if "\ufffd" not in got:
        assert got == tokenizer.decode(known, skip_special_tokens=True)
    raw = b"".join(detokenizer(tokenizer).token(index) for index in ids)
    assert got == raw.decode("utf-8", "replace")


@BOTH
@settings(deadline=None)
@given(data=st.data())
def test_what_is_shown_while_it_grows_is_what_is_recorded(make, data):
    """Piece by piece, and the rest at the end: the live text never has to be taken back."""
    tokenizer = make()
    ids = data.draw(ids_of(tokenizer))
    decoder, grown = detokenizer(tokenizer).decoder(), ""
    text, offsets, _ = taken_apart(tokenizer, ids)
    for index, offset in zip(ids, offsets, strict=True):
        assert len(grown.encode()) == offset
        grown += decoder.feed(index)
        assert text.startswith(grown)
    assert grown + decoder.flush() == text


@BOTH
def test_special_tokens_have_no_text_and_added_ones_have(make):
    tokenizer = make()
    end, tool = tokenizer.convert_tokens_to_ids([SPECIAL, ADDED])
    assert detokenizer(tokenizer).decode([tool, end, tool]) == (ADDED + ADDED, [0, len(ADDED), len(ADDED)])
