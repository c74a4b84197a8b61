"""Text of tokens: which bytes of a completion's text each token stands for.

A tokenizer's `decode` gives one string and forgets the seams. Here each token has its own bytes (byte-level BPE,
SentencePiece pieces with byte fallback, or plain pieces), and an incremental UTF-8 decoder turns them into text, so a
character made of several tokens belongs to the token that completes it and broken bytes become U+FFFD where they stand.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable
from typing import Any

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_of_character() -> dict[str, int]:
    """Return the inverse of GPT-2's printable stand-ins for bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}


class Detokenizer:
    """Gives the bytes of single tokens of a fast tokenizer; special tokens have none."""

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        decoder = json.loads(backend.to_str())["decoder"] if backend is not None else None
        kinds = set(re.findall(r'"type": "(\w+)"', json.dumps(decoder)))
        self._byte_level = _byte_of_character() if "ByteLevel" in kinds else None
        self._pieces = bool(kinds & {"Metaspace", "ByteFallback"})
        self._tokenizer, self._special = tokenizer, set(tokenizer.all_special_ids)
        self._added = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
        self._known: dict[int, bytes] = {}

    def token(self, index: int) -> bytes:
        """Return the bytes of one token."""
        known = self._known.get(index)
        if known is None:
            known = self._known[index] = self._bytes(index)
        return known

    def _bytes(self, index: int) -> bytes:
        if index in self._special:
            return b""
        if index in self._added:
            return self._added[index].encode("utf-8", "replace")
        piece = self._tokenizer.convert_ids_to_tokens(index)
        if piece is None:  # the embedding may be wider than the vocabulary
            return b""
        if self._byte_level is not None:
            if all(character in self._byte_level for character in piece):
                return bytes(self._byte_level[character] for character in piece)
            return piece.encode("utf-8", "replace")
        if self._pieces:
            match = BYTE_TOKEN.fullmatch(piece)
            return bytes([int(match[1], 16)]) if match else piece.replace("\u2581", " ").encode("utf-8", "replace")
        return piece.encode("utf-8", "replace")

    def decoder(self) -> PieceDecoder:
        """Return a decoder for the tokens of one completion."""
        return PieceDecoder(self)

    def decode(self, ids: Iterable[int]) -> tuple[str, list[int]]:
        """Return the text and, for each token, the byte offset in it (UTF-8) at which the token's text begins."""
        decoder, pieces, offsets, at = self.decoder(), [], [], 0
        for index in ids:
            piece = decoder.feed(index)
            pieces.append(piece)
            offsets.append(at)
            at += len(piece.encode())
        pieces.append(decoder.flush())
        return "".join(pieces), offsets


class PieceDecoder:
    """Turns tokens into text as they come; a character appears with the token that completes it."""

    def __init__(self, detokenizer: Detokenizer) -> None:
        self._detokenizer = detokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, index: int) -> str:
        """Return the text that this token completes."""
        return self._utf8.decode(self._detokenizer.token(index))

    def flush(self) -> str:
        """Return U+FFFD for bytes left incomplete at the end, else nothing."""
        return self._utf8.decode(b"", final=True)
