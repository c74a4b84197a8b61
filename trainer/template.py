"""Templates: other words around a prompt, and what they ask of an answer's form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Template:
    """A wording: {prompt} in `text` stands for the prompt as the task words it.

    `system` is said before, `opening` are the first words of the answer, which the model goes on from. An answer keeps
    the form where `asks` stand in it one after the other, the opening counted in.
    """

    text: str = "{prompt}"
    system: str = ""
    opening: str = ""
    asks: tuple[str, ...] = ()

    def words(self, prompt: str) -> str:
        """Return a prompt in these words; braces in it are data."""
        return self.text.replace("{prompt}", prompt)

    def messages(self, turns: Sequence[dict[str, str]]) -> list[dict[str, str]]:
        """Return a conversation with its last turn in these words; a system message of its own stays in front."""
        worded = [*turns[:-1], {**turns[-1], "content": self.words(turns[-1]["content"])}]
        if not self.system:
            return worded
        if worded[0]["role"] == "system":
            return [{**worded[0], "content": f"{worded[0]['content']}\n\n{self.system}"}, *worded[1:]]
        return [{"role": "system", "content": self.system}, *worded]

    def text_of(self, prompt: str) -> str:
        """Return all that is said to a model without a chat template, up to where it goes on."""
        return "\n\n".join(filter(None, (self.system, self.words(prompt), self.opening)))

    @property
    def form(self) -> dict[str, Any]:
        """Return what the form check needs, as plain JSON."""
        return {"opening": self.opening, "asks": list(self.asks)}


PLAIN = Template()


def keeps(form: dict[str, Any], completion: str) -> bool:
    """Return whether a completion has the form that its template asks for; linear in its length."""
    text, at = form["opening"] + completion, 0
    for mark in form["asks"]:
        at = text.find(mark, at)
        if at < 0:
            return False
        at += len(mark)
    return True
