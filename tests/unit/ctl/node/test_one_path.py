"""One path for a change, single or in a pair: encoded once, and the same bytes on both disks and the link."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from unittest import mock

import pytest

from ctl.config.model import Config
from ctl.config.record_codec import Encoder
from ctl.errors import Code
from tests.fakes.daemon import running_daemon
from tests.fakes.pair import Site, paired_sites
from tests.refusals import refused

VIP = {"address": "10.77.0.100/24", "device": "eth0"}
WEB = {"name": "web", "vip": "10.77.0.100", "port": 80}


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Site, Site]]:
    with paired_sites(tmp_path) as both:
        yield both


@contextlib.contextmanager
def encodings() -> Iterator[list[Config]]:
    """The configurations that any node of this process encodes during the test."""
    made: list[Config] = []
    encode = Encoder.encode

    def counted(self: Encoder, config: Config) -> bytes:
        made.append(config)
        return encode(self, config)

    with mock.patch.object(Encoder, "encode", counted):
        yield made


def stored(site: Site) -> bytes:
    return (site.directory / "state" / "farms.jsonl").read_bytes()


def test_a_change_of_a_single_node_is_encoded_once(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        with encodings() as made:
            daemon.call("vip.add", **VIP)
            daemon.call("farm.add", **WEB)
        assert [config.generation for config in made] == [1, 2]


@pytest.mark.parametrize("asked", [0, 1])
def test_a_change_of_a_pair_is_encoded_once_and_has_the_same_bytes_everywhere(pair: tuple[Site, Site], asked: int) -> None:
    with encodings() as made:
        pair[asked].call("vip.add", **VIP)
        pair[asked].call("farm.add", **WEB)
    assert [list(config.farms) for config in made] == [[], ["web"]]
    members = [site.daemon.node.parts.membership.configuration for site in pair]
    documents = [member.replica.document for member in members if member is not None]
    assert stored(pair[0]) == stored(pair[1]) == documents[0].body == documents[1].body
    assert documents[0].version == documents[1].version


def test_a_refused_change_is_rolled_back_byte_for_byte(pair: tuple[Site, Site]) -> None:
    pair[0].call("vip.add", **VIP)
    before = stored(pair[0])
    pair[0].daemon.network.refuse_addresses = True
    with refused(Code.KERNEL_REFUSED):
        pair[0].call("vip.add", address="10.77.0.101/24", device="eth0")
    assert stored(pair[0]) == before == stored(pair[1])


def test_sizes_of_lookup_tables_that_a_peer_of_0_1_0_did_not_store_are_noted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its own tables follow from the backends, so this node's do too from then on: not silently."""
    with running_daemon(tmp_path) as daemon, caplog.at_level(logging.INFO):
        daemon.call("vip.add", **VIP)
        daemon.call("farm.add", **WEB, health={"kind": "none"})
        for number in (11, 12, 13):
            daemon.call("backend.add", farm="web", address=f"10.77.0.{number}")
        config = daemon.farms
        without = {name: replace(farm, kept_size=0) for name, farm in config.farms.items()}
        adopting = daemon.node.parts.local.transaction.adopt(
            replace(config, farms=MappingProxyType(without), generation=config.generation + 1)
        )
        asyncio.run_coroutine_threadsafe(adopting, daemon.loop).result(20)
    assert "lookup table of farm web changed from 16381 to 509 slots: " in caplog.text
