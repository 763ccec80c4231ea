"""state_dir/cluster.json: saved settings are loaded; a damaged, newer or impossible file is refused with a message."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctl.errors import InvalidInput, XlbError
from ctl.state.cluster_file import FORMAT_VERSION, ClusterFile, ClusterSettings, Member, decode, encode
from ctl.state.durable_files import Files
from ctl.state.sealed import sealed
from sync.transport import Keys

ONE, TWO = Keys.generate(), Keys.generate()
SETTINGS = ClusterSettings(
    pair_id="0123456789abcdef" * 2,
    own=Member("lb1", "10.99.0.1", "10.77.0.1", 100, ONE.public),
    peer=Member("lb2", "10.99.0.2", "10.77.0.2", 50, TWO.public),
    secret_key=ONE.secret,
    creator=True,
    created_s=1_700_000_000,
)


def test_what_is_saved_is_loaded_and_only_root_may_read_it(tmp_path: Path) -> None:
    file = ClusterFile(tmp_path / "state")
    assert file.load() is None
    file.save(SETTINGS)
    assert file.load() == SETTINGS
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert file.load().keys == ONE  # type: ignore[union-attr]
    file.remove()
    file.remove()
    assert file.load() is None


def test_a_crash_while_saving_leaves_the_old_pair(tmp_path: Path) -> None:
    class Crash(Exception):
        pass

    class Crashing(Files):
        def rename(self, old: Path, new: Path) -> None:
            raise Crash

    ClusterFile(tmp_path).save(SETTINGS)
    with pytest.raises(Crash):
        ClusterFile(tmp_path, Crashing()).save(replace(SETTINGS, created_s=1))
    assert ClusterFile(tmp_path).load() == SETTINGS


def test_every_cut_is_noticed() -> None:
    text = encode(SETTINGS)
    for length in range(len(text.rstrip())):
        with pytest.raises(InvalidInput):
            decode(text[:length])


def test_a_newer_format_is_refused_and_kept(tmp_path: Path) -> None:
    document = sealed(json.loads(encode(SETTINGS)) | {"version": FORMAT_VERSION + 1})
    (tmp_path / "cluster.json").write_text(json.dumps(document))
    with pytest.raises(XlbError, match=rf"{tmp_path}/cluster.json: written in format 2 by a newer xlb.*upgrade xlb; nothing"):
        ClusterFile(tmp_path).load()
    assert (tmp_path / "cluster.json").exists()


def test_a_damaged_file_does_not_make_the_node_single(tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_bytes(b"{}")
    with pytest.raises(XlbError, match=r"cluster\.json is damaged: .*create the pair again"):
        ClusterFile(tmp_path).load()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pair_id": "short"}, "pair_id: expected 32"),
        ({"secret_key": "short"}, "secret_key: expected 40"),
        ({"peer": replace(SETTINGS.peer, name="lb1")}, 'both nodes are named "lb1"'),
        ({"peer": replace(SETTINGS.peer, priority=100)}, "both nodes have priority 100"),
        ({"peer": replace(SETTINGS.peer, priority=0)}, "peer.priority: expected 1 to 254"),
        ({"peer": replace(SETTINGS.peer, cluster_address="10.99.0.1")}, "both nodes have the cluster address 10.99.0.1"),
        ({"peer": replace(SETTINGS.peer, cluster_address="fd00::2")}, "different families"),
        ({"peer": replace(SETTINGS.peer, data_address="10.77.0.1")}, "both nodes have the address 10.77.0.1"),
        ({"peer": replace(SETTINGS.peer, public_key=ONE.public)}, "both nodes have the same key"),
        ({"own": replace(SETTINGS.own, name="a b")}, "own.name"),
        ({"own": replace(SETTINGS.own, cluster_address="lb1.example")}, "own.cluster_address"),
    ],
)
def test_impossible_values_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        replace(SETTINGS, **change)


@pytest.mark.parametrize("key", ["pair_id", "own", "creator", "created_s"])
def test_a_value_of_another_type_is_named(key: str) -> None:
    with pytest.raises(InvalidInput, match=f"^{key}: expected"):
        decode(json.dumps(sealed(json.loads(encode(SETTINGS)) | {key: 1.5})).encode())


@given(st.integers(0, 8 * len(encode(SETTINGS)) - 1))
def test_a_flipped_bit_is_found_or_harmless(bit: int) -> None:
    text = bytearray(encode(SETTINGS))
    text[bit // 8] ^= 1 << bit % 8
    with contextlib.suppress(InvalidInput):
        assert decode(bytes(text)) == SETTINGS  # in white space, or in the name of the digest's key


def test_a_damaged_file_is_replaced_by_its_copy_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = ClusterFile(tmp_path)
    file.save(SETTINGS)
    damaged = file.path.read_bytes().replace(b'"priority": 100', b'"priority": 101')
    file.path.write_bytes(damaged)
    assert file.load() == SETTINGS
    assert "cluster.json is damaged (its digest does not match its content)" in caplog.text
    (tmp_path / "cluster.json.copy").write_bytes(damaged)
    with pytest.raises(XlbError, match=r"cluster\.json is damaged: its digest"):
        file.load()
    file.remove()
    assert file.load() is None and list(tmp_path.iterdir()) == []


def test_the_daemon_restores_a_damaged_file_and_keeps_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = ClusterFile(tmp_path)
    file.save(SETTINGS)
    good = file.path.read_bytes()
    damaged = good.replace(b'"version": 1', b'"version": 9')
    file.path.write_bytes(damaged)
    assert file.load(repair=True) == SETTINGS and file.path.read_bytes() == good
    assert [path.read_bytes() for path in tmp_path.glob("cluster.json.corrupt-*")] == [damaged]
    assert "restored from" in caplog.text


def test_a_read_only_disk_does_not_keep_a_node_from_its_copy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class ReadOnly(Files):
        def link(self, existing: Path, new: Path) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    ClusterFile(tmp_path).save(SETTINGS)
    path = tmp_path / "cluster.json"
    path.write_bytes(path.read_bytes()[:-40])
    assert ClusterFile(tmp_path, ReadOnly()).load(repair=True) == SETTINGS
    assert "this node runs with" in caplog.text


def test_a_file_of_0_1_0_has_no_digest_and_is_read() -> None:
    document = json.loads(encode(SETTINGS))
    del document["sha256"]
    assert decode(json.dumps(document).encode()) == SETTINGS
