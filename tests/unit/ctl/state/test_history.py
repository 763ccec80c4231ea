"""The history of the configuration: bounded, readable, and no hindrance to anything else."""

from __future__ import annotations

import errno
import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest

from ctl.config.changes import change
from ctl.config.model import Config, Provenance
from ctl.config.record_codec import FORMAT_VERSION, Encoder, _digest, _line, decode, decode_header
from ctl.errors import Code, XlbError
from ctl.state.durable_files import Files
from ctl.state.history import MOST, History
from ctl.state.store import FILE, PREVIOUS, Store
from tests.refusals import invalid, refused

MADE = Provenance("alice", "lb1", "farm.add", 1_800_000_000, "farm web added")


def config(generation: int, epoch: int = 0) -> Config:
    with_vip = change(Config(hash_seed=7), "vip.add", {"address": "10.0.0.1/24", "device": "eth0"})
    made, pair = replace(MADE, command=f"change {generation}"), "p" if epoch else ""
    return replace(with_vip, generation=generation, provenance=made, pair=pair, epoch=epoch)


def body(generation: int, epoch: int = 0) -> bytes:
    return Encoder().encode(config(generation, epoch))


def kept(directory: Path, *generations: int, history: History | None = None) -> History:
    store, history = Store(directory), history or History(directory)
    for generation in generations:
        store.save(body(generation))
        history.keep()
    return history


def names(history: History) -> list[str]:
    return [each.name for each in history.entries()]


def test_each_generation_is_kept_with_its_bytes_and_its_user(tmp_path: Path) -> None:
    history = kept(tmp_path, 1, 2, 3)
    newest, middle, _ = history.entries()
    assert names(history) == ["3", "2", "1"]
    assert newest.path == tmp_path / FILE and newest.path.read_bytes() == body(3) and middle.path.read_bytes() == body(2)
    assert middle.path.stat().st_ino == (tmp_path / PREVIOUS).stat().st_ino, "no second copy"
    (tmp_path / FILE).write_bytes(b"damaged in place")
    assert names(history) == ["?.3", "2", "1"] and history.read(history.find("2")) == config(2)
    (tmp_path / FILE).write_bytes(body(3))
    assert middle.header is not None and middle.header.provenance == replace(MADE, command="change 2")
    assert history.read(history.find("2")) == config(2)
    before = history.before(history.find("2"))
    assert before is not None and (before[0].name, before[1]) == ("1", config(1))
    assert history.before(history.find("1")) is None


def test_a_configuration_is_kept_once_and_what_was_undone_is_not(tmp_path: Path) -> None:
    history = kept(tmp_path, 1, 2)
    history.keep()
    Store(tmp_path).save(body(3))
    Store(tmp_path).take_back()  # the same bytes in a new file
    history.keep()
    assert names(history) == ["2", "1"]
    assert names(kept(tmp_path, 4)) == ["4", "2", "1"]


def test_it_has_the_last_fifty_and_one_to_compare_with(tmp_path: Path) -> None:
    history = kept(tmp_path, *range(1, MOST + 10))
    assert names(history) == [str(generation) for generation in range(MOST + 9, 8, -1)] and len(names(history)) == MOST + 1


def test_its_size_is_bounded_but_the_newest_stays(tmp_path: Path) -> None:
    size = len(body(1))
    assert names(kept(tmp_path, *range(1, 9), history=History(tmp_path, most_bytes=3 * size))) == ["8", "7", "6", "5"]
    assert names(kept(tmp_path, 9, history=History(tmp_path, most_bytes=1))) == ["9", "8"]


def test_the_first_start_after_an_upgrade_has_two(tmp_path: Path) -> None:
    Store(tmp_path).save(body(4))
    Store(tmp_path).save(body(5))
    History(tmp_path).keep()
    assert names(History(tmp_path)) == ["5", "4"]


def test_a_number_that_occurs_twice_has_two_names(tmp_path: Path) -> None:
    store, history = Store(tmp_path), History(tmp_path)
    for text in (body(3), body(4), body(3, epoch=2)):
        store.save(text)
        history.keep()
    assert names(history) == ["3", "4", "3.1"]
    assert history.read(history.find("3")).epoch == 2
    assert history.read(history.find("3.3")).epoch == 2, "a name stays when another of its number comes"
    assert history.read(history.find("3.1")).epoch == 0


def test_what_lost_in_a_split_is_in_the_list(tmp_path: Path) -> None:
    history = kept(tmp_path, 1)
    (tmp_path / "farms.conflict-3-12.jsonl").write_bytes(body(12, epoch=3))
    (tmp_path / "farms.conflict-10-1.jsonl").write_bytes(body(1, epoch=10))
    (tmp_path / "farms.conflict-3-x.jsonl").write_bytes(b"not one of ours")
    assert names(history) == ["1", "conflict-10-1", "conflict-3-12"]
    entry = history.find("conflict-3-12")
    assert entry.conflict and history.read(entry) == config(12, epoch=3) and history.before(entry) is None


@pytest.mark.parametrize("name", ["", "x", "-1", "1e3", "1.2.3", "../../etc/passwd", "conflict-3", "9" * 40, "1\n", "\u0661"])
def test_what_is_no_name_is_refused(tmp_path: Path, name: str) -> None:
    with invalid(Code.INVALID_VALUE, "generation"):
        kept(tmp_path, 1).find(name)


@pytest.mark.parametrize("name", ["2", "1.2", "conflict-3-12"])
def test_an_unknown_generation_is_refused(tmp_path: Path, name: str) -> None:
    with invalid(Code.UNKNOWN_GENERATION, "generation") as refusal:
        kept(tmp_path, 1).find(name)
    assert "xlbctl history" in str(refusal.value)


def test_damage_is_named_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    history = kept(tmp_path, 1, 2, 3, 4, 5)
    three, two = history.find("3").path, history.find("2").path
    for path, text in ((three, body(3)[:-20]), (two, json.dumps({"xlb": "farms", "version": FORMAT_VERSION + 1}).encode())):
        path.unlink()  # the bytes of a file that is in the history are never written
        path.write_bytes(text)
    (tmp_path / "farms.history-notes.txt").write_text("an operator's")
    (tmp_path / "farms.history-00000099.jsonl").mkdir()
    assert names(history) == ["5", "4", "3", "?.2", "1"]
    with refused(Code.DAMAGED_FILE):
        history.read(history.find("3"))
    before = history.before(history.find("4"))
    assert before is not None and before[0].name == "1"
    with refused(Code.NEWER_FORMAT):
        history.read(history.entries()[3])
    assert names(kept(tmp_path, 6))[0] == "6" and not caplog.records


def test_without_its_files_it_begins_anew(tmp_path: Path) -> None:
    history = kept(tmp_path, 1, 2)
    for path in tmp_path.iterdir():
        path.unlink()
    assert names(history) == []
    history.keep()
    assert names(kept(tmp_path, 3)) == ["3"]


class Failing(Files):
    """Fails at its `steps`-th step that changes something, and at all later ones."""

    def __init__(self, steps: int, failure: BaseException) -> None:
        self.left, self.failure = steps, failure

    def _step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise self.failure

    def link(self, existing: Path, new: Path) -> None:
        self._step()
        super().link(existing, new)

    def remove(self, path: Path) -> None:
        self._step()
        super().remove(path)

    def sync_directory(self, path: Path) -> None:
        self._step()
        super().sync_directory(path)


class Killed(BaseException):
    """Not an Exception: nothing runs after it."""


@pytest.mark.parametrize("steps", range(4))
def test_killed_between_any_two_steps_the_next_start_makes_it_whole(tmp_path: Path, steps: int) -> None:
    kept(tmp_path, *range(1, MOST + 2))
    Store(tmp_path).save(body(MOST + 2))
    try:
        History(tmp_path, Failing(steps, Killed())).keep()
    except Killed:
        assert steps < 3
    else:
        assert steps == 3, "a step more than the test knows"
    assert Store(tmp_path).load().config.generation == MOST + 2
    history = History(tmp_path)
    history.keep()
    assert names(history)[:2] == [str(MOST + 2), str(MOST + 1)] and len(names(history)) == MOST + 1
    assert all(history.read(entry).generation == int(entry.name) for entry in history.entries())


@pytest.mark.parametrize("steps", range(2))
def test_a_failure_is_logged_once_and_raises_nothing(tmp_path: Path, steps: int, caplog: pytest.LogCaptureFixture) -> None:
    failure = OSError(errno.EROFS, os.strerror(errno.EROFS))
    history = kept(tmp_path, 1, 2, history=History(tmp_path, Failing(steps, failure)))
    kept(tmp_path, 3, history=history)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "the configuration before is not kept in the history" in record.getMessage() and "Read-only" in record.getMessage()
    assert Store(tmp_path).load().config.generation == 3


def test_a_directory_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    history = kept(tmp_path / "state", 1)
    (tmp_path / "state").rename(tmp_path / "away")
    (tmp_path / "state").write_text("")
    history.keep()
    with pytest.raises(XlbError, match="cannot read"):
        history.entries()


def test_on_a_full_disk_the_oldest_make_space(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    history, size = kept(tmp_path, 1, 2, 3, 4, 5), len(body(1))
    assert not history.free(4 * size), "removing all would not be enough"
    assert names(history) == ["5", "4", "3", "2", "1"]
    assert history.free(size + 1)
    assert names(history) == ["5", "4", "3"]
    assert not History(tmp_path / "other").free(1)
    assert [record.getMessage() for record in caplog.records] == [
        "the disk is full: the 2 oldest generations were removed from the history for a change"
    ]


def test_no_provenance_is_known_of_a_record_of_version_0_1_0(tmp_path: Path) -> None:
    Store(tmp_path).save(Encoder().encode(replace(config(1), provenance=None)))
    history = History(tmp_path)
    history.keep()
    (entry,) = history.entries()
    assert entry.header is not None and entry.header.provenance is None


@pytest.mark.parametrize(
    "wrong",
    [None, 7, [], {}, {"user": "a"}]
    + [
        {"user": "a", "node": "b", "command": "c", "time_s": 1, "changes": "d"} | each
        for each in (
            {"user": 7},
            {"node": "a\nb"},
            {"changes": "x" * 5000},
            {"time_s": "1"},
            {"time_s": -1},
            {"time_s": True},
            {"time_s": 2**70},
        )
    ],
)
def test_a_strange_provenance_is_left_out_and_the_record_is_read(wrong: object) -> None:
    lines = body(1).splitlines(keepends=True)
    header = json.loads(lines[0]) | {"provenance": wrong}
    lines = [_line(header), *lines[1:-1]]
    found = decode(b"".join([*lines, _line({"sha256": _digest(lines)})]))
    assert found.provenance is None and found == config(1)


def test_more_fields_of_a_later_version_are_ignored() -> None:
    header = json.loads(body(1).splitlines()[0])
    header["provenance"]["signature"] = "later"
    assert decode_header(_line(header)).provenance == replace(MADE, command="change 1")
