"""The shape of a form, read off a pydantic model: leaves, groups, choices among parts and rows of parts."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from webapp.runs.configform.words import words

Kind = Literal["integer", "number", "switch", "select", "text", "area", "words", "numbers", "points"]
AREA_FROM = 1000  # characters a text may have before it gets several lines


@dataclass(frozen=True)
class Node:
    """What every part of a form has: its name in the parent, what is said of it and when it matters."""

    name: str
    label: str
    help: str = ""
    advanced: bool = False
    show_if: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Leaf(Node):
    """One input. `default` is in form text; None where a value must be given."""

    kind: Kind = "text"
    unit: str = ""
    knob: str = ""
    default: str | None = None
    optional: bool = False
    low: float | None = None
    high: float | None = None
    max_length: int | None = None
    options: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Group(Node):
    """A model: its fields in order. `tag` is the value of `type` where it is one of several."""

    children: tuple[Node, ...] = ()
    tag: str = ""

    def child(self, name: str) -> Node | None:
        return next((child for child in self.children if child.name == name), None)


@dataclass(frozen=True)
class Choice(Node):
    """One of several groups, told apart by `type`."""

    options: dict[str, Group] = field(default_factory=dict)
    default: str = ""


@dataclass(frozen=True)
class Rows(Node):
    """A list of groups or choices."""

    item: Choice | Group = None  # type: ignore[assignment]
    low: int = 0
    high: int = 64
    default: tuple[str, ...] = ()


@cache
def shape_of(model: type[BaseModel], name: str = "", label: str = "") -> Group:
    """Return the shape of `model`; a field of no known kind raises TypeError, so that none is lost."""
    children = tuple(_node(key, info) for key, info in model.model_fields.items() if key != "type")
    tag = _tag(model)
    return Group(
        name=name,
        label=label or getattr(model, "title", "") or words(tag or name),
        help=explanation(model),
        children=children,
        tag=tag,
    )


def explanation(model: type[BaseModel]) -> str:
    """Return the class docstring without its title: the first line of several, or what stands before a colon."""
    head, _, rest = (model.__doc__ or "").strip().partition("\n\n")
    text = " ".join((rest or head).split())
    title, _, after = text.partition(": ")
    return after[:1].upper() + after[1:] if not rest and after and len(title) < 40 else text


def _tag(model: type[BaseModel]) -> str:
    info = model.model_fields.get("type")
    return info.default if info is not None and isinstance(info.default, str) else ""


def _node(name: str, info: FieldInfo) -> Node:
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    common: dict[str, Any] = {
        "name": name,
        "label": info.title or words(name),
        "help": info.description or "",
        "advanced": bool(extra.get("advanced")),
        "show_if": extra.get("show_if") or {},
    }
    inner, optional = _unwrap(info.annotation)
    default = None if info.is_required() else info.get_default(call_default_factory=True)
    if models := _models(inner):
        return _choice(common, models, default)
    if get_origin(inner) is list and (models := _models(get_args(inner)[0])):
        return _rows(common, models, default, info)
    return _leaf(common, inner, info, extra, default, optional=optional)


def _choice(common: dict[str, Any], models: list[type[BaseModel]], default: Any) -> Choice | Group:
    if len(models) == 1 and not _tag(models[0]):
        shape = shape_of(models[0], common["name"], common["label"])
        return Group(**common, children=shape.children)
    options = {_tag(model): shape_of(model) for model in models}
    return Choice(**common, options=options, default=getattr(default, "type", "") or next(iter(options)))


def _rows(common: dict[str, Any], models: list[type[BaseModel]], default: Any, info: FieldInfo) -> Rows:
    item = _choice({"name": "", "label": common["label"]}, models, None)
    low, high = _bound(info, MinLen, "min_length") or 0, _bound(info, MaxLen, "max_length") or 64
    return Rows(
        **common,
        item=item,
        low=int(low),
        high=int(high),
        default=tuple(getattr(part, "type", "") for part in default or ()),
    )


def _leaf(
    common: dict[str, Any], inner: Any, info: FieldInfo, extra: dict[str, Any], default: Any, *, optional: bool
) -> Leaf:
    kind, options = _kind(common["name"], inner)
    longest = _bound(info, MaxLen, "max_length")
    if kind == "text" and ((longest or 0) > AREA_FROM or (isinstance(default, str) and "\n" in default)):
        kind = "area"
    return Leaf(
        **common,
        kind=kind,
        options=options,
        optional=optional,
        unit=extra.get("unit", ""),
        knob=extra.get("knob", ""),
        default=None if info.is_required() else as_text(default),
        low=_bound(info, Ge, "ge") if _bound(info, Ge, "ge") is not None else _bound(info, Gt, "gt"),
        high=_bound(info, Le, "le") if _bound(info, Le, "le") is not None else _bound(info, Lt, "lt"),
        max_length=int(longest) if longest else None,
    )


def _kind(name: str, inner: Any) -> tuple[Kind, tuple[tuple[str, Any], ...]]:
    if get_origin(inner) is Literal:
        return "select", tuple((as_text(value), value) for value in get_args(inner))
    simple: dict[Any, Kind] = {bool: "switch", int: "integer", float: "number", str: "text"}
    if inner in simple:
        return simple[inner], ()
    if get_origin(inner) in (list, tuple):
        members = [member for member in get_args(inner) if member is not Ellipsis]
        if get_origin(_unwrap(members[0])[0]) in (list, tuple):
            return "points", ()
        return ("numbers" if all(_unwrap(member)[0] in (int, float) for member in members) else "words"), ()
    members = [_unwrap(member)[0] for member in get_args(inner)]
    if members and set(members) <= {int, float}:
        return "number", ()
    if members and all(member in simple or get_origin(member) is Literal for member in members):
        return "text", ()
    raise TypeError(f"the form has no input for {name}: {inner}")


def _unwrap(annotation: Any) -> tuple[Any, bool]:
    """Return the annotation without Annotated and without None, and whether None was there."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType) and type(None) in get_args(annotation):
        rest = tuple(member for member in get_args(annotation) if member is not type(None))
        return (_unwrap(rest[0])[0] if len(rest) == 1 else Union[rest]), True  # noqa: UP007
    return annotation, False


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the models an annotation admits, or none where it is something else."""
    inner, _ = _unwrap(annotation)
    members = get_args(inner) if get_origin(inner) in (Union, types.UnionType) else (inner,)
    found = [_unwrap(member)[0] for member in members]
    return found if all(isinstance(member, type) and issubclass(member, BaseModel) for member in found) else []


def _bound(info: FieldInfo, constraint: type, attribute: str) -> float | None:
    return next((getattr(item, attribute) for item in info.metadata if isinstance(item, constraint)), None)


def as_text(value: Any) -> str:
    """Return a setting as the form writes it; the way back is pydantic's and `parse`'s."""
    if value is None or value is PydanticUndefined:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return repr(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, list | tuple):
        if value and isinstance(value[0], list | tuple):
            return ", ".join(":".join(as_text(number) for number in point) for point in value)
        return (", " if value and isinstance(value[0], int | float) else "\n").join(as_text(item) for item in value)
    return str(value)


def walk(node: Node, path: str = "") -> Iterator[tuple[str, Node]]:
    """Yield every node under `node` with its path; rows and choices count once, with `*` for an index."""
    yield path, node
    match node:
        case Group():
            for child in node.children:
                yield from walk(child, join(path, child.name))
        case Choice():
            for option in node.options.values():
                for child in option.children:
                    yield from walk(child, join(path, child.name))
        case Rows():
            yield from walk(node.item, join(path, "*"))


def join(path: str, name: str | int) -> str:
    return f"{path}.{name}" if path else str(name)
