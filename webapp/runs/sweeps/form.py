"""The sweep's fields of the new-run form: read from its data, written for a sweep to launch again."""

from __future__ import annotations

from webapp.runs.configform import Data, rows
from webapp.runs.sweeps.axes import Axes, write_seeds
from webapp.runs.sweeps.plan import Typed

PARAMETERS, PRESET = "sweep.parameters", "sweep.preset."


def read_typed(data: Data) -> Typed:
    """Return what stands in the sweep's fields."""
    return Typed(
        on=data.get("sweep.on") == "on",
        presets=tuple(
            name.removeprefix(PRESET) for name, text in data.items() if name.startswith(PRESET) and text == "on"
        ),
        seeds=data.get("sweep.seeds", ""),
        rows=tuple(
            (index, data.get(f"{PARAMETERS}.{index}.path", ""), data.get(f"{PARAMETERS}.{index}.values", ""))
            for index in rows(data, PARAMETERS)
        ),
    )


def write_axes(axes: Axes) -> Data:
    """Return the form data that stands for a sweep's axes."""
    found = {"sweep.on": "on", "sweep.seeds": write_seeds(axes.seeds)}
    found |= {PRESET + name: "on" for name in axes.presets}
    for index, parameter in enumerate(axes.parameters):
        found[f"{PARAMETERS}.{index}.path"] = parameter.path
        found[f"{PARAMETERS}.{index}.values"] = ", ".join(parameter.values)
    return found
