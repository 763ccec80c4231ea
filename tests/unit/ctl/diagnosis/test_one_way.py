"""What doctor reports of farms in the modes dsr and ipip."""

from __future__ import annotations

import pytest

from ctl.config.changes import change
from ctl.config.model import Config
from ctl.diagnosis.finding import Severity
from ctl.diagnosis.one_way import Hop, examine

SOURCES = {"v4": "10.0.0.1", "v6": "fd00::1"}
BACKENDS = {"v4": "10.0.1.11", "v6": "fd00:1::11"}
VIPS = {"v4": "10.0.0.100", "v6": "fd00::100"}


def configured(mode: str, family: str = "v4", backend: str = "") -> Config:
    length = 24 if family == "v4" else 64
    config = change(Config(), "vip.add", {"address": f"{VIPS[family]}/{length}", "device": "eth0"})
    config = change(config, "farm.add", {"name": "web", "vip": VIPS[family], "port": 80, "mode": mode})
    return change(config, "backend.add", {"farm": "web", "address": BACKENDS[backend or family], "port": 80})


def found(config: Config, hop: Hop | None, sources: dict[str, str] | None = None) -> list[tuple[Severity, str]]:
    hops = dict.fromkeys(BACKENDS.values(), hop)
    findings = examine(config, hops, SOURCES if sources is None else sources, frozenset(SOURCES.values()))
    return [(each.status, each.message) for each in findings]


def test_nothing_about_other_modes() -> None:
    assert found(configured("snat"), None) == []


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_a_dsr_backend_behind_a_router(family: str) -> None:
    config = configured("dsr", family)
    ((status, message),) = found(config, Hop("eth1", "10.0.0.254", 1500))
    assert status is Severity.FAIL and "needs backends on the link" in message and "10.0.0.254" in message
    ((status, _),) = found(config, Hop("eth1", "", 1500))
    assert status is Severity.OK


@pytest.mark.parametrize(
    ("family", "backend", "mtu", "status"),
    [
        ("v4", "v4", 1520, Severity.OK),
        ("v4", "v4", 1519, Severity.WARN),
        ("v4", "v6", 1540, Severity.OK),
        ("v4", "v6", 1539, Severity.WARN),
        ("v4", "v6", 1300, Severity.WARN),
        ("v6", "v6", 1320, Severity.WARN),
        ("v6", "v6", 1319, Severity.FAIL),
        ("v6", "v4", 1300, Severity.WARN),
        ("v6", "v4", 1299, Severity.FAIL),
    ],
)
def test_what_the_mtu_leaves(family: str, backend: str, mtu: int, status: Severity) -> None:
    ((found_status, message),) = found(configured("ipip", family, backend), Hop("eth1", "10.0.0.254", mtu))
    assert found_status is status
    assert status is Severity.OK or f"leaves {mtu - (20 if backend == 'v4' else 40)} bytes" in message


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_the_source(family: str) -> None:
    config, hop = configured("ipip", family), Hop("eth1", "", 1540)
    ((status, message),) = found(config, hop, {})
    assert status is Severity.FAIL and ("IPv4" if family == "v4" else "IPv6") in message
    ((status, message),) = found(config, hop, {family: "192.0.2.9" if family == "v4" else "fd00::9"})
    assert status is Severity.WARN and "no address of this node" in message
