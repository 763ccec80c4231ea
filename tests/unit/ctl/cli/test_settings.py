"""Every setting of ctl/config/settings.py by every way in: a wrong type, range or combination is named and changes nothing."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.shell_completion import ShellComplete

from bpf import constants
from ctl.api.client import Client
from ctl.cli.main import main
from ctl.config.farms_file import to_text
from ctl.config.settings import BACKEND_SETTINGS, FARM_SETTINGS, Setting
from ctl.errors import XlbError
from tests.fakes.cli import run
from tests.fakes.daemon import running_daemon

SETTINGS = (*FARM_SETTINGS, *BACKEND_SETTINGS)
VIPS = ("10.77.0.100", "2001:db8::100")
FARM: Mapping[str, Any] = {"name": "web", "vip": VIPS[0], "port": 80, "health": {"kind": "none"}}
BACKEND: Mapping[str, Any] = {"address": "10.77.0.11", "port": 80}


@dataclass(frozen=True, slots=True)
class Site:
    """A daemon with two VIPs and, unless a test adds it itself, no farm."""

    client: Client
    config: Path

    def xlbctl(self, *arguments: str) -> tuple[int, str]:
        code, _, err = run("--config", str(self.config), *arguments)
        return code, err

    def export(self) -> object:
        return self.client.call("config.export", {})

    def document(self, farm: Mapping[str, Any], backend: Mapping[str, Any] | None) -> dict[str, Any]:
        vips = [{"address": f"{vip}/{64 if ':' in vip else 24}", "device": "eth0"} for vip in VIPS]
        return {"vip": vips, "farm": [{**farm, **({"backend": [backend]} if backend else {})}]}

    def refused(self, farm: Mapping[str, Any], backend: Mapping[str, Any] | None, tmp_path: Path) -> Iterator[str]:
        """The messages of the API and of the farms file for a farm, or for the backend of a farm."""
        before = self.export()
        if backend is None:
            yield self._refused_call("farm.add", farm)
        elif str(farm.get("mode", "snat")).upper() in constants.Mode.__members__:
            self.client.call("farm.add", dict(farm))
            made = self.export()
            yield self._refused_call("backend.add", {"farm": farm["name"], **backend})
            assert self.export() == made
            self.client.call("farm.delete", {"name": farm["name"]})
        file = tmp_path / "farms.toml"
        file.write_text(to_text(self.document(farm, backend)))
        for command in ("apply", "diff"):
            code, err = self.xlbctl(command, "-f", str(file))
            assert code == 2 and err.count("\n") == 1
            yield err
        assert self.export() == before

    def _refused_call(self, command: str, arguments: Mapping[str, Any]) -> str:
        with pytest.raises(XlbError) as caught:
            self.client.call(command, dict(arguments))
        assert caught.value.exit_code == 2
        return str(caught.value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running_daemon(tmp_path_factory.mktemp("daemon")) as daemon, Client(daemon.socket_path) as client:
        site = Site(client, daemon.config)
        for vip in VIPS:
            assert site.xlbctl("vip", "add", f"{vip}/{64 if ':' in vip else 24}", "--dev", "eth0")[0] == 0
        client.call("prefixes.set", {"name": "office"})
        yield site


def wrong_values(setting: Setting) -> list[object]:
    """Of the wrong type, and beyond either end."""
    if isinstance(setting.default, bool):
        return ["yes", 1]
    if isinstance(setting.default, enum.StrEnum):
        return [7, "nonsense", True]
    if isinstance(setting.default, int):
        beyond = [508] if setting.among else [setting.low - 1, setting.high + 1]
        return ["5", 1.5, True, *beyond]
    return [7, "no; good", "x" * 100]


def right_value(setting: Setting) -> object:
    """Another one than the default."""
    if isinstance(setting.default, bool):
        return not setting.default
    if isinstance(setting.default, enum.StrEnum):
        return next(each.value for each in type(setting.default) if each is not setting.default and each.value != "move")
    if isinstance(setting.default, int):
        return (setting.among or [each for each in (setting.low, setting.high) if each != setting.default])[0]
    return {"quic_cid": "server-id:1:3", "quic_id": "c0ffee"}.get(setting.name, "office")


def with_value(setting: Setting, value: object) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """A farm, or a farm and a backend, with this value and what it needs besides."""
    farm, backend = dict(FARM), dict(BACKEND)
    if setting.name.startswith("quic"):
        farm |= {"proto": "udp", "quic_cid": "server-id:1:3"}
    if setting.name == "drain_until" and value:
        backend["draining"] = True
    if setting.name == "drain_then":
        backend |= {"draining": True, "drain_until": 2_000_000_000}
    if setting.of == "farm":
        return farm | {setting.name: value}, None
    return farm, backend | {setting.name: value}


def case(setting: Setting) -> str:
    return f"{setting.of}.{setting.name}"


@pytest.mark.parametrize("setting", SETTINGS, ids=case)
def test_a_wrong_value_is_named_and_changes_nothing(site: Site, setting: Setting, tmp_path: Path) -> None:
    for value in wrong_values(setting):
        for message in site.refused(*with_value(setting, value), tmp_path):
            assert f".{setting.name}: expected" in message, "it names the setting"
            got = json.dumps(value) if not isinstance(value, str) else value[:64]
            assert got in message, "it names the value"
            assert all(each in message for each in setting.allowed if each), "it names what is allowed"
            if isinstance(setting.default, int) and not isinstance(setting.default, bool) and not setting.among:
                assert f"{setting.low} to {setting.high}" in message


@pytest.mark.parametrize("setting", SETTINGS, ids=case)
def test_a_right_value_is_kept_shown_and_set_back(site: Site, setting: Setting) -> None:
    value = right_value(setting)
    farm, backend = with_value(setting, value)
    site.client.call("farm.add", farm)
    try:
        shown = site.client.call("farm.show", {"name": "web"})
        if backend is not None:
            site.client.call("backend.add", {"farm": "web", **backend})
            (shown,) = site.client.call("farm.show", {"name": "web"})["backends"]
        if setting.name == "draining":
            assert shown["state"] == "drain"
        else:
            assert shown[setting.name] == value or setting.name.endswith("_timeout_s")
        exported = site.client.call("config.export", {})["farm"][0]
        assert (exported if backend is None else exported["backend"][0])[setting.name] == value
        default = setting.default.value if isinstance(setting.default, enum.StrEnum) else setting.default
        if setting.of == "farm":
            site.client.call("farm.set", {"name": "web", setting.name: default})
        else:
            site.client.call("backend.set", {"farm": "web", "address": "10.77.0.11", setting.name: default})
        exported = site.client.call("config.export", {})["farm"][0]
        assert setting.name not in (exported if backend is None else exported["backend"][0]) or setting.name == "weight"
    finally:
        site.client.call("farm.delete", {"name": "web"})


def option_of(setting: Setting) -> str:
    return "--" + setting.name.removesuffix("_s").replace("_", "-")


@pytest.mark.parametrize("setting", [each for each in SETTINGS if each.has_option], ids=case)
def test_a_wrong_option_is_named_and_changes_nothing(site: Site, setting: Setting) -> None:
    before = site.export()
    command = ["farm", "add", "web", "--vip", VIPS[0], "--port", "80"]
    if setting.of == "backend":
        command = ["backend", "add", "web", "10.77.0.11"]
    if isinstance(setting.default, bool):
        code, err = site.xlbctl(*command, f"{option_of(setting)}=maybe")
        assert code == 2 and option_of(setting) in err
    else:
        for value in wrong_values(setting):
            if value == "5" or (value == 7 and type(setting.default) is str):
                continue  # on the command line it has the right type
            code, err = site.xlbctl(*command, option_of(setting), str(value))
            assert (code, err.count("\n")) == (2, 1) and option_of(setting) in err and str(value)[:64] in err
    assert site.export() == before


def _alone(setting: Setting) -> tuple[dict[str, Any], dict[str, Any] | None]:
    farm = dict(FARM) | ({"proto": "udp"} if setting.name == "quic_cid" else {})
    value = right_value(setting)
    return (farm | {setting.name: value}, None) if setting.of == "farm" else (farm, dict(BACKEND) | {setting.name: value})


Combination = tuple[dict[str, Any], dict[str, Any] | None, str]

COMBINATIONS: list[Combination] = [
    (
        {"toa": True, "mode": "dnat"},
        None,
        "web.toa: expected false unless the farm is tcp and snat, got true with tcp and dnat",
    ),
    (
        {"toa": True, "proto": "udp"},
        None,
        "web.toa: expected false unless the farm is tcp and snat, got true with udp and snat",
    ),
    ({"quic_cid": "prefix:8"}, None, 'web.quic_cid: expected "" unless the farm is udp, got "prefix:8" with tcp'),
    ({"quic_cid": "prefix:21", "proto": "udp"}, None, 'web.quic_cid: expected "" or "prefix:N" with N from 1 to 20'),
    ({"quic_cid": "server-id:10:11", "proto": "udp"}, None, "web.quic_cid: expected OFFSET + LENGTH of at most 20 bytes"),
    ({"on_backend_down": "move"}, None, 'web.on_backend_down: expected "" or keep or reset'),
    ({"on_backend_removed": "move"}, None, 'web.on_backend_removed: expected "" or keep or reset'),
    ({"persistence_prefix_v4": 33}, None, "web.persistence_prefix_v4: expected 8 to 32, got 33"),
    ({"mode": "dsr"}, {"port": 81}, "port: expected the farm's port 80 (mode dsr changes no port), got 81"),
    ({"mode": "ipip"}, {"port": 81}, "port: expected the farm's port 80 (mode ipip changes no port), got 81"),
    ({"mode": "dsr"}, {"address": "2001:db8::9"}, "address: expected an IPv4 address like the farm's VIP"),
    ({}, {"quic_id": "00"}, 'quic_id: expected "" unless the farm\'s quic_cid is server-id:OFFSET:LENGTH, got "00"'),
    (
        {"proto": "udp", "quic_cid": "server-id:1:2"},
        {"quic_id": "00"},
        'quic_id: expected 2 bytes, as quic_cid = "server-id:1:2", got "00"',
    ),
    ({}, {"drain_until": 5}, "drain_until: expected 0 for a backend that is not draining, got 5; set draining too"),
    ({}, {"drain_then": "cut", "draining": True}, "drain_then: expected keep without drain_until, got cut"),
]


@pytest.mark.parametrize(("farm", "backend", "message"), COMBINATIONS, ids=[each[2][:60] for each in COMBINATIONS])
def test_a_wrong_combination_is_named_and_changes_nothing(
    site: Site, farm: dict[str, Any], backend: dict[str, Any] | None, message: str, tmp_path: Path
) -> None:
    of_backend = None if backend is None else {**BACKEND, **backend}
    for refusal in site.refused({**FARM, **farm}, of_backend, tmp_path):
        assert message.removeprefix("web.") in refusal


def test_two_backends_with_one_server_id(site: Site) -> None:
    site.client.call("farm.add", {**FARM, "proto": "udp", "quic_cid": "server-id:1:2"})
    try:
        site.client.call("backend.add", {"farm": "web", **BACKEND, "quic_id": "c0de"})
        with pytest.raises(XlbError, match=r'expected an id of its own, got "c0de", which backend 10\.77\.0\.11:80 has'):
            site.client.call("backend.add", {"farm": "web", "address": "10.77.0.12", "quic_id": "c0de"})
        with pytest.raises(XlbError, match="quic_id: expected"):
            site.client.call("farm.set", {"name": "web", "quic_cid": ""})
    finally:
        site.client.call("farm.delete", {"name": "web"})


@pytest.mark.parametrize("adding", ["add", "set"])
def test_completion_offers_every_option_and_every_choice(adding: str) -> None:
    completion = ShellComplete(main, {}, "xlbctl", "_XLBCTL_COMPLETE")
    for noun, of in (("farm", FARM_SETTINGS), ("backend", BACKEND_SETTINGS)):
        offered = [each.value for each in completion.get_completions([noun, adding, "web"], "--")]
        shown = [each for each in of if each.has_option]
        assert {option_of(each) for each in shown} <= set(offered)
        for setting in shown:
            if setting.allowed:
                values = [each.value for each in completion.get_completions([noun, adding, "web", option_of(setting)], "")]
                assert set(setting.allowed) - {""} <= set(values)
