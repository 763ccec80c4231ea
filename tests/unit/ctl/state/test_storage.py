"""What is wrong with a state directory, on real file systems: full, read-only, gone."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctl.state import storage
from ctl.state.durable_files import Files
from ctl.state.epoch_file import SECTOR_BYTES, EpochFile, EpochState


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    directory = tmp_path / "state"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(directory)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr.decode().strip()}")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def fill(directory: Path) -> Path:
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    return filler


def message(directory: Path, paired: bool = False) -> str:
    found = storage.problem(directory, paired)
    return found.message if found else ""


def test_a_full_disk_is_seen_and_the_epoch_is_stored_all_the_same(small_disk: Path) -> None:
    file = EpochFile(small_disk)
    file.save(EpochState(1, 1001))
    assert storage.problem(small_disk, False) is None
    filler = fill(small_disk)
    assert "full disk" in message(small_disk)
    with pytest.raises(OSError, match="No space"):
        Files().replace(small_disk / "farms.jsonl", bytes(8192))
    file.save(EpochState(700, 1700, True))
    assert EpochFile(small_disk).load() == (EpochState(700, 1700, True), "")
    assert file.path.stat().st_size == SECTOR_BYTES
    filler.unlink()
    assert storage.problem(small_disk, False) is None


def test_a_read_only_file_system_is_seen(small_disk: Path) -> None:
    file = EpochFile(small_disk)
    file.save(EpochState(1, 1001))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert "read-only" in message(small_disk)
    with pytest.raises(OSError, match="Read-only"):
        file.save(EpochState(3, 1003))
    assert EpochFile(small_disk).load() == (EpochState(1, 1001), "")


def test_a_directory_that_is_gone_and_a_pair_whose_file_is_gone_are_seen(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    directory.mkdir()
    assert storage.problem(directory, False) is None and "cluster.json is gone" in message(directory, True)
    (directory / "cluster.json").touch()
    assert storage.problem(directory, True) is None
    shutil.rmtree(directory)
    assert "is gone" in message(directory)
