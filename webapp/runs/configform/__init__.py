"""A form from a pydantic model: shape → flat data → bound nodes for the templates, and back to values."""

from webapp.runs.configform.bind import Bound, bind
from webapp.runs.configform.data import Data, flatten, parse, read, rows
from webapp.runs.configform.errors import locate, place
from webapp.runs.configform.shape import Choice, Group, Leaf, Node, Rows, shape_of, walk

__all__ = [
    "Bound",
    "Choice",
    "Data",
    "Group",
    "Leaf",
    "Node",
    "Rows",
    "bind",
    "flatten",
    "locate",
    "parse",
    "place",
    "read",
    "rows",
    "shape_of",
    "walk",
]
