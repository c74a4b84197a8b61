"""A shape, the data typed so far and the errors found: what the templates draw."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from webapp.runs.configform.data import rows
from webapp.runs.configform.shape import Choice, Group, Leaf, Node, Rows, as_text, join


@dataclass
class Bound:
    """A node with its place, its text and its error; `template` names how it is drawn."""

    spec: Node
    path: str
    text: str = ""
    default: str | None = None
    error: str = ""
    children: list[Bound] = field(default_factory=list)
    hidden: bool = False
    tag: str = ""

    @property
    def template(self) -> str:
        return f"runs/form/_{type(self.spec).__name__.lower()}.html"

    @property
    def id(self) -> str:
        return "f-" + self.path.replace(".", "-")

    @property
    def common(self) -> list[Bound]:
        return [child for child in self.children if not child.spec.advanced]

    @property
    def advanced(self) -> list[Bound]:
        return [child for child in self.children if child.spec.advanced]

    @property
    def changed(self) -> bool:
        """Whether this leaf, or any leaf below, differs from its default."""
        if isinstance(self.spec, Leaf):
            return self.default is not None and not _same(self.spec, self.text, self.default)
        return any(child.changed for child in self.children)

    @property
    def changes(self) -> int:
        return int(self.changed) if isinstance(self.spec, Leaf) else sum(child.changes for child in self.children)

    @property
    def troubled(self) -> bool:
        """Whether there is an error here or below: a folded group then opens."""
        return bool(self.error) or any(child.troubled for child in self.children)

    @property
    def open(self) -> bool:
        return any(child.troubled or child.changed for child in self.advanced)

    @property
    def option(self) -> Group | None:
        return self.spec.options.get(self.tag) if isinstance(self.spec, Choice) else None

    @property
    def show_if(self) -> str:
        """The condition for the script: {path of the sibling: [texts at which this shows]}."""
        parent, _, _ = self.path.rpartition(".")
        return (
            json.dumps({join(parent, name): _texts(value) for name, value in self.spec.show_if.items()})
            if self.spec.show_if
            else ""
        )

    def find(self, path: str) -> Bound | None:
        """Return the node at `path`, this one or one below."""
        if path == self.path:
            return self
        for child in self.children:
            if path == child.path or path.startswith(child.path + "."):
                return child.find(path)
        return None


def bind(
    node: Node, data: Mapping[str, str], errors: Mapping[str, str], defaults: Mapping[str, str], path: str = ""
) -> Bound:
    """Return the bound tree. `defaults` overrides the settings' own defaults, by path (a preset's parts)."""
    bound = Bound(node, path, error=errors.get(path, ""))
    match node:
        case Leaf():
            bound.default = defaults.get(path, node.default)
            bound.text = data.get(path, bound.default or "")
        case Group():
            _children(bound, node, data, errors, defaults)
        case Choice():
            bound.tag = data.get(join(path, "type"), node.default)
            bound.error = bound.error or errors.get(join(path, "type"), "")
            if bound.option:
                _children(bound, bound.option, data, errors, defaults)
        case Rows():
            bound.children = [bind(node.item, data, errors, defaults, join(path, index)) for index in rows(data, path)]
    return bound


def _children(
    bound: Bound, group: Group, data: Mapping[str, str], errors: Mapping[str, str], defaults: Mapping[str, str]
) -> None:
    bound.children = [bind(child, data, errors, defaults, join(bound.path, child.name)) for child in group.children]
    texts = {child.spec.name: child.text for child in bound.children}
    for child in bound.children:
        child.hidden = any(
            texts.get(name) not in _texts(wanted) for name, wanted in child.spec.show_if.items() if name in texts
        )


def _texts(value: Any) -> list[str]:
    return [as_text(item) for item in (value if isinstance(value, list | tuple) else [value])]


def _same(leaf: Leaf, text: str, default: str) -> bool:
    if text.strip() == default.strip() or (not text.strip() and leaf.kind in ("integer", "number")):
        return True
    if leaf.kind in ("integer", "number"):
        try:
            return float(text) == float(default)
        except ValueError:
            return False
    return False
