"""The epoch file: it survives crashes, damage is reported, and a slow disk does not change the order of writes."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from ctl.cluster.epoch_writer import EpochWriter
from ctl.errors import XlbError
from ctl.state.durable_files import Files
from ctl.state.epoch_file import COPY, EpochFile, EpochState
from sync.failover.types import Leases


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    file = EpochFile(tmp_path / "state")
    assert file.load() == (EpochState(), "")
    terms = EpochState(7, 9, True, 30_000_000, 300_000_000)
    file.save(terms)
    assert EpochFile(tmp_path / "state").load() == (terms, "")
    assert file.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff",
        b"[]",
        b'{"xlb": "farms"}',
        b'{"xlb": "epoch"}',
        b'{"xlb": "epoch", "version": 1, "epoch": -1, "reserved": 0, "maintenance": false}',
        b'{"xlb": "epoch", "version": 1, "epoch": 1, "reserved": true, "maintenance": false}',
        b'{"xlb": "epoch", "version": 1, "epoch": 1, "reserved": 2, "maintenance": 0}',
        b'{"xlb": "epoch", "version": 2, "epoch": 1, "reserved": 2, "maintenance": false, "lease_ns": 1, "peer_lease_ns": 0}',
        b'{"xlb": "epoch", "version": 2, "epoch": 1, "reserved": 2, "maintenance": false, "lease_ns": 0, "peer_lease_ns": 1e8}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_file_is_saved_under_another_name_and_reported(tmp_path: Path, text: bytes) -> None:
    file = EpochFile(tmp_path)
    file.path.write_bytes(text)
    terms, warning = file.load()
    assert terms == EpochState()
    assert "is damaged" in warning and str(file.path) in warning
    kept = [path for path in tmp_path.iterdir() if path != file.path]
    assert [path.read_bytes()[:100] for path in kept] == [text[:100]]
    assert not file.path.exists()


def test_a_newer_file_is_refused_and_stays(tmp_path: Path) -> None:
    file = EpochFile(tmp_path)
    file.path.write_text('{"xlb": "epoch", "version": 3}')
    with pytest.raises(XlbError, match="upgrade xlb"):
        file.load()
    assert file.path.exists()


def test_a_file_from_before_leases_were_stored_is_read(tmp_path: Path) -> None:
    file = EpochFile(tmp_path)
    file.path.write_text('{"xlb": "epoch", "version": 1, "epoch": 7, "reserved": 9, "maintenance": true}')
    assert file.load() == (EpochState(7, 9, True), "")


def test_a_flipped_digit_is_found(tmp_path: Path) -> None:
    file = EpochFile(tmp_path)
    file.save(EpochState(7, 1007))
    file.path.write_bytes(file.path.read_bytes().replace(b"1007", b"1003"))
    assert "its digest does not match its content" in file.load()[1]


@pytest.mark.parametrize("bit", range(0, 512 * 8, 61))
def test_a_flipped_bit_costs_nothing(tmp_path: Path, bit: int) -> None:
    """Not even maintenance mode, which a node without a copy would forget. Two of three bits are in white space."""
    file, state = EpochFile(tmp_path), EpochState(7, 1007, True, 30_000_000, 300_000_000, "lb1/lb2")
    file.save(state)
    text = bytearray(file.path.read_bytes())
    text[bit // 8] ^= 1 << bit % 8
    file.path.write_bytes(text)
    loaded, warning = file.load()
    assert loaded == state
    if warning:
        assert "is damaged" in warning and "restored from" in warning
        assert [path.read_bytes() for path in tmp_path.glob("epoch.json.corrupt-*")] == [text]
        assert EpochFile(tmp_path).load() == (state, ""), "it was written again"


def test_a_file_and_a_copy_that_are_damaged_are_learned_from_the_peer(tmp_path: Path) -> None:
    file = EpochFile(tmp_path)
    file.save(EpochState(7, 1007))
    for path in (file.path, tmp_path / COPY):
        path.write_bytes(path.read_bytes().replace(b"1007", b"1003"))
    state, warning = file.load()
    assert state == EpochState() and "learns the epoch from its peer" in warning


def test_nothing_of_a_pair_is_left_when_it_ends(tmp_path: Path) -> None:
    file = EpochFile(tmp_path)
    file.save(EpochState(7, 1007))
    file.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_copy_that_cannot_be_written_does_not_prevent_the_write(tmp_path: Path) -> None:
    class NoCopies(Files):
        def write_synced(self, path: Path, content: bytes) -> None:
            if path.name.startswith(COPY):
                raise OSError(5, "Input/output error")
            super().write_synced(path, content)

    EpochFile(tmp_path, NoCopies()).save(EpochState(7, 1007))
    assert EpochFile(tmp_path).load() == (EpochState(7, 1007), "")


def test_leases_and_epochs_do_not_overwrite_each_other(tmp_path: Path) -> None:
    async def scene() -> None:
        completed: list[str] = []
        writer = EpochWriter(EpochFile(tmp_path), EpochState())
        writer.save_leases(Leases(30_000_000, 120_000_000), lambda: completed.append("leases"))
        writer.save(1, 2, lambda: completed.append("epochs"))
        await writer.idle()
        assert completed == ["leases", "epochs"]
        assert EpochFile(tmp_path).load()[0] == EpochState(1, 2, False, 30_000_000, 120_000_000)
        writer.close()

    asyncio.run(scene())


class SlowDisk(Files):
    """Waits before each write of the file, not of its copy, until the test releases it; fails while `broken`."""

    def __init__(self) -> None:
        self.gate = threading.Semaphore(0)
        self.broken = 0

    def write_synced(self, path: Path, content: bytes) -> None:
        if path.name.startswith(COPY):
            super().write_synced(path, content)
            return
        assert self.gate.acquire(timeout=10)
        if self.broken:
            self.broken -= 1
            raise OSError(28, "No space left on device")
        super().write_synced(path, content)


def test_newer_epochs_replace_queued_ones_and_every_request_completes(tmp_path: Path) -> None:
    async def scene() -> None:
        disk, completed = SlowDisk(), []
        writer = EpochWriter(EpochFile(tmp_path, disk), EpochState())
        for number in (2, 4, 6):
            writer.save(number - 1, number, lambda number=number: completed.append(number))  # type: ignore[misc]
        await asyncio.sleep(0)
        assert completed == []
        disk.gate.release()
        await writer.idle()
        assert completed == [2, 4, 6]
        assert EpochFile(tmp_path).load()[0] == EpochState(5, 6)
        writer.close()

    asyncio.run(scene())


def test_epochs_queued_while_the_disk_is_busy_are_written_next(tmp_path: Path) -> None:
    async def scene() -> None:
        disk, completed = SlowDisk(), []
        writer = EpochWriter(EpochFile(tmp_path, disk), EpochState())
        writer.save(1, 2, lambda: completed.append("first"))
        await asyncio.sleep(0)  # the first write has started
        writer.save(3, 4, lambda: completed.append("second"))
        disk.gate.release(2)
        await writer.idle()
        assert completed == ["first", "second"]
        assert EpochFile(tmp_path).load()[0] == EpochState(3, 4)
        writer.close()

    asyncio.run(scene())


def test_a_failed_write_is_retried_until_it_succeeds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        disk, completed = SlowDisk(), []
        disk.broken = 1
        disk.gate.release(2)
        writer = EpochWriter(EpochFile(tmp_path, disk), EpochState())
        writer.save(1, 2, lambda: completed.append(2))
        await writer.idle()
        assert completed == [2]
        assert EpochFile(tmp_path).load()[0] == EpochState(1, 2)
        writer.close()

    asyncio.run(scene())
    assert "cannot store" in caplog.text and "No space left" in caplog.text
