"""What each control command makes of a configuration: `Config` in, a new `Config` out.

Decides which changes are allowed and what they lead to. Must not know the kernel, files, sockets or who asked. Farms a
change does not touch keep their identity; a change that changes nothing returns the very same `Config`; every other one
raises `generation` by one. Arguments come from the wire, so types and key names are checked here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from ctl.model import Config

Arguments = Mapping[str, object]
Change = Callable[[Config, Arguments], Config]


def change(config: Config, command: str, arguments: Arguments) -> Config:
    """Apply control command `command` ("farm.add", …: the keys of CHANGES). Raises InvalidInput or XlbError, naming what was expected."""
    return CHANGES[command](config, arguments)


def vip_add(config: Config, arguments: Arguments) -> Config:
    """address: "10.0.0.1/24" or "2001:db8::1/64", device: interface name, guard: bool = True."""
    ...


def vip_delete(config: Config, arguments: Arguments) -> Config:
    """address. Refused (XlbError) naming the farms that use it."""
    ...


def farm_add(config: Config, arguments: Arguments) -> Config:
    """name, vip, port (80 or "8000-8010") and any of: proto, mode, scheduler, snat_address, enabled, all_down, idle_timeout_s,
    health: {kind, interval_ms, timeout_ms, rise, fall, port, path, status, host}.
    """
    ...


def farm_set(config: Config, arguments: Arguments) -> Config:
    """name and any of farm_add's fields; those of `health` that are not given stay."""
    ...


def farm_delete(config: Config, arguments: Arguments) -> Config:
    """name."""
    ...


def farm_start(config: Config, arguments: Arguments) -> Config:
    """name."""
    ...


def farm_stop(config: Config, arguments: Arguments) -> Config:
    """name. New connections are refused, existing ones go on."""
    ...


def backend_add(config: Config, arguments: Arguments) -> Config:
    """farm, address, port and any of: weight, priority, draining."""
    ...


def backend_set(config: Config, arguments: Arguments) -> Config:
    """farm, address, port (which one) and any of: weight, priority, draining (False ends a drain)."""
    ...


def backend_drain(config: Config, arguments: Arguments) -> Config:
    """farm, address, port. The backend gets no new connections, existing ones go on."""
    ...


def backend_remove(config: Config, arguments: Arguments) -> Config:
    """farm, address, port."""
    ...


def replace_from_document(config: Config, document: Mapping[str, object]) -> Config:
    """The configuration a farms file (parsed TOML) describes; farms and backends that stay keep ids and, where equal, identity."""
    ...


CHANGES: Mapping[str, Change] = MappingProxyType(
    {
        "vip.add": vip_add,
        "vip.delete": vip_delete,
        "farm.add": farm_add,
        "farm.set": farm_set,
        "farm.delete": farm_delete,
        "farm.start": farm_start,
        "farm.stop": farm_stop,
        "backend.add": backend_add,
        "backend.set": backend_set,
        "backend.drain": backend_drain,
        "backend.remove": backend_remove,
    }
)
