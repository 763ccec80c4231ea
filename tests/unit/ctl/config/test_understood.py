"""What an earlier version understands: its own code is asked, and its refusal is foreseen for each setting."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ctl.config.changes import change
from ctl.config.model import Config
from ctl.config.record_codec import Encoder
from ctl.config.settings import BACKEND_SETTINGS, FARM_SETTINGS, Setting
from ctl.config.understood import OF_0_1_0, names, unknown_to
from tests.earlier import code_of

ASK_0_1_0 = """
import enum, json, sys
from dataclasses import fields
from ctl import model, record
names = []
for kind, place in ((model.Farm, "farm"), (model.HealthCheck, "farm.health"), (model.Backend, "farm.backend")):
    for field in fields(kind):
        names.append(f"{place}.{field.name}")
        if isinstance(field.default, enum.StrEnum):
            names += [f"{place}.{field.name}={value}" for value in type(field.default)]
read = []
for line in json.load(sys.stdin):
    try:
        record.decode(line.encode())
        read.append("")
    except Exception as error:
        read.append(str(error) or "refused")
print(json.dumps([names, read]))
"""


def configured(farm: dict[str, Any], backend: dict[str, Any] | None = None) -> Config:
    config = Config()
    commands: tuple[tuple[str, dict[str, Any]], ...] = (
        ("vip.add", {"address": "10.0.0.1/24", "device": "eth0"}),
        ("vip.add", {"address": "10.0.0.2/24", "device": "eth0"}),
        *((("prefixes.set", {"name": "office"}),) if "allow" in farm else ()),
        ("farm.add", {"name": "web", "vip": "10.0.0.1", "port": 80} | farm),
        ("backend.add", {"farm": "web", "address": "10.0.1.1", "port": 80} | (backend or {})),
    )
    for command, arguments in commands:
        config = change(config, command, arguments)
    return config


KNOWN: list[Config] = [
    configured({}),
    configured({"scheduler": "source", "mode": "dnat", "all_down": "all", "idle_timeout_s": 60, "port": "80-90"}),
    configured({"snat_address": "10.0.0.2", "health": {"kind": "http", "path": "/x"}}, {"weight": 5, "draining": True}),
]
NOT_KNOWN: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("mode = dsr", {"mode": "dsr"}, {}),
    ("mode = ipip", {"mode": "ipip"}, {}),
    ("scheduler = leastconn", {"scheduler": "leastconn"}, {}),
    ("on_no_backend", {"on_no_backend": "drop"}, {}),
    ("opening_timeout_s", {"opening_timeout_s": 60}, {}),
    ("snat_address", {"snat_address": "10.0.0.1,10.0.0.2"}, {}),
    ("more_vips", {"vip": "10.0.0.1,10.0.0.2"}, {}),
    ("more_ports", {"port": "80,443"}, {}),
    ("tier_minimum", {"tier_minimum": 2}, {}),
    ("persistence_s", {"persistence_s": 60}, {}),
    ("persistence_return", {"persistence_return": False}, {}),
    ("max_connections", {"max_connections": 60}, {}),
    ("prefixes", {"allow": "office"}, {}),
    ("toa", {"toa": True}, {}),
    ("quic_cid", {"quic_cid": "prefix:8", "proto": "udp"}, {}),
    ("backend.max_connections", {}, {"max_connections": 5}),
    ("backend.drain_until", {}, {"draining": True, "drain_until": 5}),
]


def test_what_0_1_0_understands_is_what_its_code_has(tmp_path: Path) -> None:
    tree = code_of("0.1.0", tmp_path)
    records = [Encoder().encode(each).decode() for each in KNOWN]
    records += [Encoder().encode(configured(farm, backend)).decode() for _, farm, backend in NOT_KNOWN]
    asked = [sys.executable, "-c", ASK_0_1_0]
    done = subprocess.run(asked, cwd=tree, input=json.dumps(records), capture_output=True, text=True, check=True)
    understood, read = json.loads(done.stdout)
    assert set(understood) == set(OF_0_1_0)
    assert read[: len(KNOWN)] == [""] * len(KNOWN), "omitted at their default, it reads what has no new setting"
    assert all(read[len(KNOWN) :]), "it refuses each of the others"


@pytest.mark.parametrize("config", KNOWN)
def test_what_an_earlier_version_reads_is_not_refused(config: Config) -> None:
    assert unknown_to(OF_0_1_0, config) == unknown_to(names(), config) == ""


@pytest.mark.parametrize(("setting", "farm", "backend"), NOT_KNOWN, ids=[each[0] for each in NOT_KNOWN])
def test_the_setting_that_an_earlier_version_refuses_is_named(
    setting: str, farm: dict[str, Any], backend: dict[str, Any]
) -> None:
    config = configured(farm, backend)
    assert unknown_to(OF_0_1_0, config) == ("prefixes.office" if setting == "prefixes" else f"farm.web.{setting}")
    assert unknown_to(names(), config) == ""
    assert unknown_to(OF_0_1_0 | {"prefixes"}, config, config.farms) == "", "the same objects are not looked at again"


@pytest.mark.parametrize("setting", (*FARM_SETTINGS, *BACKEND_SETTINGS), ids=lambda each: f"{each.of}.{each.name}")
def test_every_setting_has_a_name(setting: Setting) -> None:
    place = "farm" if setting.of == "farm" else "farm.backend"
    assert f"{place}.{setting.name}" in names()
