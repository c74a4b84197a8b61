"""Which rollout servers a run may name: those of this machine, and hosts that an admin has declared.

A trainer connects to whatever `sampling.server.address` says, sends it the model's weights and trains on its answers.
People with a shell may do that anyway; people with the form only towards hosts that somebody answers for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.conf import settings

FIELD = "sampling.server.address"
VARIABLE = "ISENTROPE_SERVER_HOSTS"
OURSELVES = frozenset({"localhost", "127.0.0.1", "[::1]"})
ANY = "*"


def refusal(sampling: Mapping[str, Any]) -> str:
    """Return why a run's server may not be used, or ""; `sampling` is that section of a resolved config."""
    server = sampling.get("server", {})
    address = str(server.get("address", "")) if server.get("enabled") else ""
    if not address or allowed(address):
        return ""
    return (
        f"{address} is no rollout server that runs may use; leave the address empty, so that the run starts its own, "
        f"or ask an admin to declare the host in {VARIABLE}."
    )


def allowed(address: str) -> bool:
    """Return whether HOST:PORT is declared, by its host or with its port; names are compared as they are written."""
    address = address.lower()
    host = address.rpartition(":")[0]
    declared = {entry.lower() for entry in settings.SERVER_HOSTS} | OURSELVES
    return ANY in declared or host in declared or host.strip("[]") in declared or address in declared
