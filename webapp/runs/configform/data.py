"""Between a config and flat form data: {dotted path: text}. `parse` undoes `flatten`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from webapp.runs.configform.shape import Choice, Group, Leaf, Node, Rows, as_text, join

Data = dict[str, str]
MAX_FIELDS = 4000
MAX_TEXT = 100_000  # characters of one field


def read(pairs: Iterable[tuple[str, str]]) -> Data:
    """Return posted pairs as form data; of several values the last counts (a checkbox follows its hidden `off`)."""
    found: Data = {}
    for name, value in pairs:
        if len(found) < MAX_FIELDS:
            found[name] = value[:MAX_TEXT].replace("\r\n", "\n").replace("\x00", "")
    return found


def flatten(node: Node, value: Any, path: str = "") -> Data:
    """Return the form data that stands for `value`, a dumped config or a part of it."""
    match node:
        case Leaf():
            return {path: as_text(value)}
        case Group():
            found = {join(path, "type"): node.tag} if node.tag else {}
            for child in node.children:
                if child.name in value:
                    found |= flatten(child, value[child.name], join(path, child.name))
            return found
        case Choice():
            option = node.options.get(value.get("type", node.default))
            return flatten(option, value, path) if option else {join(path, "type"): str(value.get("type"))}
        case Rows():
            found = {join(path, "rows"): str(len(value))}
            for index, item in enumerate(value):
                found |= flatten(node.item, item, join(path, index))
            return found
    raise TypeError(type(node).__name__)


def parse(node: Node, data: Mapping[str, str], path: str = "") -> Any:
    """Return the nested values of form data for pydantic to judge; empty means the default."""
    match node:
        case Leaf():
            return _leaf(node, data[path])
        case Group():
            values = {"type": node.tag} if node.tag else {}
            for child in node.children:
                here = join(path, child.name)
                if _given(child, data, here):
                    values[child.name] = parse(child, data, here)
            return values
        case Choice():
            tag = data.get(join(path, "type"), node.default)
            option = node.options.get(tag)
            return parse(option, data, path) if option else {"type": tag}
        case Rows():
            return [parse(node.item, data, join(path, index)) for index in rows(data, path)]
    raise TypeError(type(node).__name__)


def rows(data: Mapping[str, str], path: str) -> list[int]:
    """Return the indices of the rows under `path`, in order."""
    pattern = re.compile(re.escape(path) + r"\.(\d{1,4})\.")
    return sorted({int(match[1]) for name in data if (match := pattern.match(name))})


def below(data: Mapping[str, str], path: str) -> bool:
    return any(name.startswith(path + ".") for name in data)


def _given(node: Node, data: Mapping[str, str], path: str) -> bool:
    if not isinstance(node, Leaf):
        return below(data, path)
    if path not in data:
        return False
    if data[path].strip() or node.optional:
        return True
    return node.kind in ("text", "area", "words", "numbers", "points")  # an empty number means its default


def _leaf(leaf: Leaf, text: str) -> Any:
    if leaf.kind in ("text", "area"):
        return None if leaf.optional and text == "" else text
    text = text.strip()
    if leaf.optional and not text:
        return None
    match leaf.kind:
        case "select":
            return next((value for option, value in leaf.options if option == text), text)
        case "words":
            return [line.strip() for line in text.splitlines() if line.strip()]
        case "numbers":
            return [item.strip() for item in text.split(",") if item.strip()]
        case "points":
            return [
                tuple(number.strip() for number in item.split(":")) for item in re.split(r"[,\n]", text) if item.strip()
            ]
    return text
