"""What the program reports to the daemon of a pair."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bpf.constants import EventType
from bpf.dataplane import Array
from tests.bpf.bed import Bed, Family


@contextmanager
def ring(bed: Bed, family: Family) -> Iterator[Callable[[], Array]]:
    """A function that takes all records since its last call."""
    reader = bed.plane.flow_events(family.name)
    assert reader is not None
    with reader:
        reader.read(1 << 20)
        yield lambda: reader.read(1 << 20)


def kinds(records: Array) -> list[EventType]:
    return [EventType(record["type"]) for record in records]
