"""Which rollout servers a run may name."""

from __future__ import annotations

import pytest

from webapp.runs.server_hosts import allowed, refusal

LOOPBACK = ("localhost:7000", "127.0.0.1:1", "[::1]:7000", "LocalHost:7000")
ELSEWHERE = (
    "gpu7:7000", "127.0.0.2:7000", "127.1:7000", "2130706433:7000", "[::ffff:10.0.0.1]:7000", "localhost.evil.org:7000",
    "127.0.0.1:80:7000",
)  # fmt: skip


@pytest.mark.parametrize("address", LOOPBACK)
def test_this_machine_always_may(address, settings):
    settings.SERVER_HOSTS = []
    assert allowed(address)


@pytest.mark.parametrize("address", ELSEWHERE)
def test_nothing_else_may_unless_it_is_declared(address, settings):
    settings.SERVER_HOSTS = ["gpu8", "gpu9:7000"]
    assert not allowed(address)
    settings.SERVER_HOSTS = ["*"]
    assert allowed(address)


def test_a_host_is_declared_for_all_ports_or_for_one(settings):
    settings.SERVER_HOSTS = ["GPU8", "gpu9:7000", "10.0.0.4", "fd00::8"]
    for address in ("gpu8:7000", "gpu8:22", "gpu9:7000", "10.0.0.4:7000", "[fd00::8]:7000"):
        assert allowed(address), address
    for address in ("gpu9:22", "10.0.0.40:7000", "[fd00::80]:7000"):
        assert not allowed(address), address


def test_an_address_that_is_not_used_is_not_refused(settings):
    settings.SERVER_HOSTS = []
    assert not refusal({})
    assert not refusal({"server": {"enabled": False, "address": "gpu7:7000"}})
    assert not refusal({"server": {"enabled": True, "address": ""}})
    assert "gpu7:7000" in refusal({"server": {"enabled": True, "address": "gpu7:7000"}})
