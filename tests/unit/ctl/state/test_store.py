"""The state file: a saved configuration survives truncation, damage and interrupted writes."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctl.config.changes import change
from ctl.config.model import Config
from ctl.config.record_codec import FORMAT_VERSION, DamagedRecord, Encoder, NewerRecord, decode
from ctl.errors import XlbError
from ctl.state.durable_files import Files
from ctl.state.store import CORRUPT, FILE, PREVIOUS, Store
from tests.unit.configs import configs


def small(generations: int) -> Config:
    config = change(Config(hash_seed=7), "vip.add", {"address": "10.0.0.1/24", "device": "eth0"})
    for number in range(generations - 1):
        config = change(config, "farm.add", {"name": f"f{number}", "vip": "10.0.0.1", "port": number + 1})
    return config


def body(generations: int) -> bytes:
    return Encoder().encode(small(generations))


def test_a_save_is_rolled_back_byte_for_byte(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save(body(2))
    written_by_another_version = body(3).replace(b'"generation":3', b'"generation": 3')
    store.save(written_by_another_version)
    store.save(body(4))
    store.take_back()
    assert store.stored() == written_by_another_version
    store.save(body(5))
    assert store.stored() == body(5) and sorted(each.name for each in tmp_path.iterdir()) == [FILE, PREVIOUS]


@settings(max_examples=100, deadline=None)
@given(configs())
def test_what_is_decoded_is_what_was_encoded(config: Config) -> None:
    assert decode(Encoder().encode(config)) == config


def test_every_cut_and_every_flipped_byte_is_noticed() -> None:
    text = Encoder().encode(small(3))
    for length in range(len(text)):
        with pytest.raises(DamagedRecord):
            decode(text[:length])
    for place in range(len(text)):
        for bit in (1, 128):
            damaged = bytearray(text)
            damaged[place] ^= bit
            with pytest.raises((DamagedRecord, NewerRecord)):
                decode(bytes(damaged))


@given(
    st.binary(max_size=200) | st.recursive(st.none() | st.integers(), st.lists).map(lambda v: json.dumps(v).encode() + b"\n")
)
def test_random_bytes_raise_only_the_declared_error(text: bytes) -> None:
    with pytest.raises(DamagedRecord):
        decode(text)


def test_a_farm_that_did_not_change_is_not_written_out_again() -> None:
    encoder, config = Encoder(), small(4)
    encoder.encode(config)
    before = dict(encoder._lines)
    encoder.encode(change(config, "farm.stop", {"name": "f1"}))
    assert [name for name, entry in encoder._lines.items() if entry[1] is not before[name][1]] == ["f1"]


def test_a_new_node_starts_empty(tmp_path: Path) -> None:
    report = Store(tmp_path / "state").load()
    assert (report.config, report.message, report.kept) == (Config(), "", None)
    assert not (tmp_path / "state").exists()


def test_saved_and_loaded_with_modes_for_root_only(tmp_path: Path) -> None:
    store = Store(tmp_path / "deep" / "state")
    store.save(body(2))
    store.save(body(3))
    assert Store(store.state_dir).load().config == small(3)
    assert stat.S_IMODE(store.state_dir.stat().st_mode) == 0o700
    for path in store.state_dir.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(path.name for path in store.state_dir.iterdir()) == [FILE, PREVIOUS]
    assert decode((store.state_dir / PREVIOUS).read_bytes()) == small(2)


def test_a_file_cut_at_any_byte_is_kept_and_the_last_good_one_used(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save(body(2))
    store.save(body(3))
    whole = store.path.read_bytes()
    for length in range(0, len(whole), 7):
        store.path.write_bytes(whole[:length])
        report = store.load()
        assert report.config == small(2)
        assert report.kept is not None and report.kept.read_bytes() == whole[:length]
        assert report.kept.name.startswith(CORRUPT) and not store.path.exists()
        assert f"saved as {report.kept}: started with generation 2, the last good one" in report.message
    again = store.load()
    assert again.config == small(2) and "is missing" in again.message


def test_without_an_intact_file_it_starts_empty_and_reports_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.path.write_text("not json\n")
    report = store.load()
    assert report.config == Config()
    assert "is damaged (line 1 is not JSON)" in report.message and "started empty" in report.message
    (tmp_path / PREVIOUS).write_text("")
    report = store.load()
    assert report.config == Config() and report.kept is not None and report.kept.read_text() == ""


def test_a_record_that_is_whole_but_wrong_is_damaged(tmp_path: Path) -> None:
    config = small(3)
    overlapping = replace(config, farms=dict(config.farms) | {"f1": replace(config.farms["f1"], port=1)})
    with pytest.raises(DamagedRecord, match="overlaps"):
        decode(Encoder().encode(overlapping))
    twice = replace(config, farms=dict(config.farms) | {"f1": replace(config.farms["f1"], id=config.farms["f0"].id)})
    with pytest.raises(DamagedRecord, match="same id"):
        decode(Encoder().encode(twice))


def test_a_newer_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.path.write_text(json.dumps({"xlb": "farms", "version": FORMAT_VERSION + 1}) + "\n")
    with pytest.raises(
        XlbError, match=r"farms\.jsonl: written in format 2 by a newer xlb; .* upgrade xlb, or move the file away"
    ):
        store.load()
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_an_unreadable_file_is_an_error_not_an_empty_start(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.path.mkdir()
    with pytest.raises(XlbError, match="cannot read"):
        store.load()


class PowerCut(BaseException):
    """Not an OSError: nothing runs after it."""


class Interrupted(Files):
    """Stops before its `steps`-th step, or with half of a file written."""

    def __init__(self, steps: int, failure: BaseException) -> None:
        self.left = steps
        self.failure = failure

    def _step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise self.failure

    def make_directory(self, path: Path) -> None:
        self._step()
        super().make_directory(path)

    def write_synced(self, path: Path, content: bytes) -> None:
        self._step()
        path.write_bytes(content[: len(content) // 2])
        self._step()
        super().write_synced(path, content)

    def remove(self, path: Path) -> None:
        self._step()
        super().remove(path)

    def link(self, existing: Path, new: Path) -> None:
        self._step()
        super().link(existing, new)

    def rename(self, old: Path, new: Path) -> None:
        self._step()
        super().rename(old, new)

    def sync_directory(self, path: Path) -> None:
        self._step()
        super().sync_directory(path)


STEPS = 8


@pytest.mark.parametrize("steps", range(STEPS + 1))
def test_killed_between_any_two_steps(tmp_path: Path, steps: int) -> None:
    Store(tmp_path).save(body(2))
    Store(tmp_path).save(body(3))
    interrupted = Store(tmp_path, Interrupted(steps, PowerCut()))
    if steps < STEPS:
        with pytest.raises(PowerCut):
            interrupted.save(body(4))
    else:
        interrupted.save(body(4))
    report = Store(tmp_path).load()
    assert report.config == small(4 if steps >= STEPS - 1 else 3) and report.message == ""
    Store(tmp_path).save(body(5))
    assert Store(tmp_path).load().config == small(5)


@pytest.mark.parametrize("steps", range(STEPS - 1))
def test_a_full_disk_gives_a_message_and_keeps_the_old_file(tmp_path: Path, steps: int) -> None:
    Store(tmp_path).save(body(3))
    with pytest.raises(
        XlbError, match=r"cannot store the configuration in .*farms\.jsonl: No space left on device; nothing was changed"
    ):
        Store(tmp_path, Interrupted(steps, OSError(28, "No space left on device"))).save(body(4))
    assert Store(tmp_path).load().config == small(3)


class Recorded(Files):
    """Records the order of the operations that matter for durability."""

    def __init__(self) -> None:
        self.order: list[str] = []

    def write_synced(self, path: Path, content: bytes) -> None:
        super().write_synced(path, content)
        self.order.append("file synced")

    def rename(self, old: Path, new: Path) -> None:
        super().rename(old, new)
        self.order.append(f"renamed to {new.name}")

    def sync_directory(self, path: Path) -> None:
        super().sync_directory(path)
        self.order.append("directory synced")


def test_synced_before_the_rename_and_after_it(tmp_path: Path) -> None:
    files = Recorded()
    store = Store(tmp_path, files)
    store.save(body(2))
    store.save(body(3))
    assert files.order[3:] == ["file synced", f"renamed to {PREVIOUS}", f"renamed to {FILE}", "directory synced"]


def test_a_failed_fsync_is_reported_as_an_error(tmp_path: Path) -> None:
    Store(tmp_path).save(body(3))
    with pytest.raises(XlbError, match="the change is written, but may not survive a power cut"):
        Store(tmp_path, Interrupted(STEPS - 1, OSError(5, "Input/output error"))).save(body(4))
    assert Store(tmp_path).load().config == small(4)
