"""Random valid configurations for property tests."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from typing import Any

from hypothesis import strategies as st

from ctl.config.model import Backend, CheckKind, CheckVia, Config, Farm, HealthCheck, Mode, PrefixList, Protocol, Vip
from ctl.config.prefixes import parse_texts
from ctl.config.settings import CHECK_SETTINGS, FARM_SETTINGS, Setting
from ctl.config.validation import KINDS_OF

_NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,12}", fullmatch=True)
_CHECKS = st.builds(
    HealthCheck,
    kind=st.sampled_from(CheckKind),
    interval_ms=st.integers(1000, 9000),
    timeout_ms=st.integers(1, 1000),
    rise=st.integers(1, 9),
    fall=st.integers(1, 9),
    port=st.integers(0, 65535),
    path=st.from_regex(r"/[!-~]{0,20}", fullmatch=True),
    status=st.sampled_from(["200", "200-399", "301-599"]),
    host=st.from_regex(r"[!-~]{0,20}", fullmatch=True),
    interval_down_ms=st.sampled_from([0, 9000, 3_600_000]),
    address=st.sampled_from(["", "192.0.2.1", "2001:db8::1"]),
)


@st.composite
def checks(draw: st.DrawFn) -> HealthCheck:
    """With the settings of the kind."""
    check = draw(_CHECKS)
    values: dict[str, Any] = {
        setting.name: CheckVia.BACKEND if setting.name == "via" else draw(values_of(setting))  # via VIP: in one-way modes only
        for setting in CHECK_SETTINGS
        if check.kind in KINDS_OF.get(setting.name, ())
    }
    if check.kind is CheckKind.COMMAND:
        values["command"] = (
            "/bin/check",
            *draw(st.lists(st.text(st.characters(blacklist_categories=["Cs"], min_codepoint=1)))),
        )
    if check.kind is CheckKind.DNS:
        values |= {"query": values["query"] or "a", "answer": ""}
    if not values.get("verify"):
        values["ca_file"] = ""
    return replace(check, **values)


_SPECIAL = {"allow", "deny", "toa", "quic_cid", "on_backend_down", "on_backend_removed"}
"""Settings that not every farm may have."""


def values_of(setting: Setting) -> st.SearchStrategy[object]:
    """Every value of a setting."""
    if setting.allowed:
        return st.sampled_from([type(setting.default)(each) for each in setting.allowed])  # type: ignore[call-arg]
    if isinstance(setting.default, bool):
        return st.booleans()
    if isinstance(setting.default, int):
        edges = st.sampled_from([setting.default, *setting.among, setting.low, setting.high])
        return st.sampled_from([setting.default, *setting.among]) if setting.among else edges
    return st.just("") | st.from_regex(setting.pattern, fullmatch=True)


@st.composite
def prefix_lists(draw: st.DrawFn) -> PrefixList:
    """A few prefixes of each family."""
    lines = [
        str(ip_network((address.to_bytes(bits // 8, "big"), draw(st.integers(0, bits))), strict=False))
        for bits in (32, 128)
        for address in draw(st.lists(st.integers(0, 2**bits - 1), max_size=3))
    ]
    return parse_texts(draw(_NAMES), lines, "prefixes")


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """Both families, ranges, every option; listeners never overlap because each farm has its own 150 ports."""
    four, six = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    vips = [Vip(f"10.0.0.{n + 1}", draw(st.integers(1, 32)), "eth0", draw(st.booleans())) for n in range(four)]
    vips += [Vip(f"2001:db8::{n + 1:x}", draw(st.integers(1, 128)), "eth1.5", draw(st.booleans())) for n in range(six)]
    names = draw(st.lists(_NAMES, unique=True, max_size=5)) if vips else []
    lists = {each.name: each for each in draw(st.lists(prefix_lists(), max_size=2))}
    farms: dict[str, Farm] = {}
    next_id = 1
    for number, name in enumerate(names):
        vip = draw(st.sampled_from(vips)).address
        more = tuple(
            draw(st.lists(st.sampled_from([each.address for each in vips if each.address != vip] or [""]), unique=True))
        )
        more = tuple(each for each in more if each)
        first = 150 * number + draw(st.integers(1, 50))
        servers = "2001:db8:1::{:x}" if ":" in vip else "10.0.1.{}"
        backends = [
            Backend(
                0,
                servers.format(last),
                draw(st.integers(1, 65000)),
                draw(st.integers(0, 65535)),
                draw(st.integers(0, 255)),
                draw(st.booleans()),
            )
            for last in draw(st.lists(st.integers(1, 250), unique=True, max_size=4))
        ]
        farms[name] = Farm(
            id=number + 1,
            name=name,
            vip=vip,
            port=first,
            port_last=first + draw(st.sampled_from([0, 0, 1, 49])),
            protocol=draw(st.sampled_from(Protocol)),
            mode=draw(st.sampled_from([Mode.SNAT, Mode.DNAT])),
            more_vips=more,
            more_ports=draw(st.sampled_from([(), ((first + 60, first + 60), (first + 70, first + 80))])),
            snat_address=draw(st.sampled_from(["", *(each.address for each in vips if (":" in each.address) == (":" in vip))])),
            health=draw(st.just(HealthCheck()) | checks()),
            backends=tuple(replace(backend, id=next_id + offset) for offset, backend in enumerate(backends)),
            allow=draw(st.sampled_from(["", *lists])),
            deny=draw(st.sampled_from(["", *lists])),
            **{each.name: draw(values_of(each)) for each in FARM_SETTINGS if each.name not in _SPECIAL},  # type: ignore[arg-type]
        )
        next_id += len(backends)
    return Config(
        generation=draw(st.integers(0, 2**40)),
        hash_seed=draw(st.integers(0, 2**32 - 1)),
        next_id=next_id,
        vips={vip.address: vip for vip in vips},
        farms=farms,
        prefixes=lists,
    )


def without_ids(config: Config) -> tuple[object, object, object]:
    """The part of a configuration that a farms file holds."""
    farms = {
        name: replace(farm, id=0, kept_size=0, backends=tuple(replace(each, id=0) for each in farm.backends))
        for name, farm in config.farms.items()
    }
    return dict(config.vips), farms, dict(config.prefixes)
