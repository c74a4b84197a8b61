"""From an error's path in the config to the field of the form that shows it, in plain words."""

from __future__ import annotations

from collections.abc import Mapping

from webapp.runs.configform.shape import Choice, Group, Node, Rows, join

PLAIN = {
    "Input should be a valid integer, unable to parse string as an integer": "Must be a whole number.",
    "Input should be a valid integer, got a number with a fractional part": "Must be a whole number.",
    "Input should be a valid number, unable to parse string as a number": "Must be a number.",
    "Input should be a finite number": "Must be a finite number.",
    "Field required": "Must be given.",
    "Input should be a valid boolean, unable to interpret input": "Must be on or off.",
}


def place(node: Node, errors: Mapping[str, str]) -> dict[str, str]:
    """Return the errors by form path, the first of each path."""
    found: dict[str, str] = {}
    for path, message in errors.items():
        found.setdefault(locate(node, path), plain(message))
    return found


def locate(node: Node, path: str) -> str:
    """Return the deepest form path that contains a config path; pydantic's union tags are not part of it."""
    at, parts = "", path.split(".") if path else []
    while parts:
        head = parts.pop(0)
        if isinstance(node, Choice):
            if head in node.options and parts:
                return _below(node.options[head], at, parts)
            known = [option.child(head) for option in node.options.values() if option.child(head)]
            if not known:
                return at
            node = known[0]  # type: ignore[assignment]
        elif isinstance(node, Rows) and head.isdigit():
            node = node.item
        elif isinstance(node, Group) and (child := node.child(head)):
            node = child
        else:
            return at
        at = join(at, head)
    return at


def _below(node: Node, at: str, parts: list[str]) -> str:
    rest = locate(node, ".".join(parts))
    return join(at, rest) if rest else at


def plain(message: str) -> str:
    """Return pydantic's sentence in the form's voice."""
    if message in PLAIN:
        return PLAIN[message]
    message = (
        message.replace("Input should be", "Must be")
        .replace("String should have", "Must have")
        .replace("List should have", "Must have")
    )
    return message if message.endswith((".", "!", "?")) else message + "."
