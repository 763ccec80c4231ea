"""How configuration, counters and health look to people: plain dictionaries with the contract's names.

Decides the shape of `vip list`, `farm show` and `backend` answers. Pure; knows no sockets, no kernel, no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ctl.config.fields import backend_fields, farm_fields, health_fields
from ctl.config.model import Backend, CheckKind, Farm, HealthCheck, Vip
from ctl.config.validation import KINDS_OF
from ctl.health.check_machine import BackendHealth


@dataclass(frozen=True, slots=True)
class Traffic:
    """What passed since the counters were made; `in` is from clients, `out` from backends."""

    packets_in: int = 0
    bytes_in: int = 0
    packets_out: int = 0
    bytes_out: int = 0
    connections: int = 0
    drops: int = 0


NO_TRAFFIC = Traffic()


def _no_traffic(_: int) -> Traffic:
    return NO_TRAFFIC


def _no_health(_: int) -> BackendHealth | None:
    return None


@dataclass(frozen=True, slots=True)
class Readings:
    """What is measured rather than configured, by farm and backend id. `connections` are those of the last full sweep."""

    now_ms: int = 0
    farm_traffic: Callable[[int], Traffic] = _no_traffic
    backend_traffic: Callable[[int], Traffic] = _no_traffic
    backend_connections: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))
    health: Callable[[int], BackendHealth | None] = _no_health


def vip_view(vip: Vip) -> dict[str, Any]:
    """One line of `vip list`."""
    return {"address": vip.address, "prefix_length": vip.prefix_length, "device": vip.device, "guard": vip.guard}


def farm_view(farm: Farm, readings: Readings) -> dict[str, Any]:
    """The answer of `farm show`. `port` is a number, or "first-last" for a range."""
    traffic = readings.farm_traffic(farm.id)
    backends = [backend_view(backend, readings) for backend in farm.backends]
    return farm_fields(farm) | {
        "idle_timeout_s": farm.idle_timeout,
        "opening_timeout_s": farm.opening_timeout,
        "closing_timeout_s": farm.closing_timeout,
        "health": health_view(farm.health),
        "connections": sum(backend["connections"] for backend in backends),
        "new_connections": traffic.connections,
        "packets": traffic.packets_in + traffic.packets_out,
        "bytes": traffic.bytes_in + traffic.bytes_out,
        "drops": traffic.drops,
        "backends": backends,
    }


def backend_view(backend: Backend, readings: Readings) -> dict[str, Any]:
    """A backend of `farm show`: `connections` are open now, `new_connections` were opened since the counters were made."""
    traffic = readings.backend_traffic(backend.id)
    health = readings.health(backend.id)
    view: dict[str, Any] = backend_fields(backend) | {
        "state": backend_state(backend, health),
        "connections": readings.backend_connections.get(backend.id, 0),
        "new_connections": traffic.connections,
        "packets": traffic.packets_in + traffic.packets_out,
        "bytes": traffic.bytes_in + traffic.bytes_out,
        "packets_in": traffic.packets_in,
        "bytes_in": traffic.bytes_in,
        "packets_out": traffic.packets_out,
        "bytes_out": traffic.bytes_out,
        "last_error": "",
        "last_error_s": None,
        "state_for_s": None,
        "checked_s": None,
    }
    if health is not None:
        view |= {
            "last_error": health.last_error,
            "last_error_s": _ago_s(readings.now_ms, health.last_error_ms),
            "state_for_s": _ago_s(readings.now_ms, health.changed_ms),
            "checked_s": _ago_s(readings.now_ms, health.checked_ms),
        }
    return view


def backend_state(backend: Backend, health: BackendHealth | None) -> str:
    """ "down" wins over "drain": what a check found is worth more than what was wished."""
    if health is not None and not health.up:
        return "down"
    return "drain" if backend.draining else "up"


def health_view(check: HealthCheck) -> dict[str, Any]:
    """The check's settings; those a kind does not use are left out."""
    if check.kind is CheckKind.NONE:
        return {"kind": check.kind.value}
    view: dict[str, Any] = {
        "kind": check.kind.value,
        "interval_ms": check.interval_ms,
        "timeout_ms": check.timeout_ms,
        "rise": check.rise,
        "fall": check.fall,
        "port": check.port,
    }
    values = health_fields(check)
    if check.kind in (CheckKind.HTTP, CheckKind.HTTPS):
        view |= {name: values[name] for name in ("path", "status", "host")}
    view |= {name: values[name] for name, kinds in KINDS_OF.items() if check.kind in kinds}
    return view | {name: values[name] for name in ("interval_down_ms", "address") if values[name]}


def _ago_s(now_ms: int, then_ms: int | None) -> float | None:
    return None if then_ms is None else max(0, now_ms - then_ms) / 1000
