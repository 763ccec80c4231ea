"""Flow events are read from a real ring in bulk: in order, across the wrap, and never before they are submitted."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from bpf import libbpf, xdp
from bpf.loading import loader
from bpf.maps.event_ring import FlowEvents
from bpf.maps.pinned_map import PinnedMap
from tests.bpf.bed import why_not
from tests.bpf.small import Small, small_plane

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

RECORD_BYTES = 28
SLOT_BYTES = 40  # header and padding included; no divisor of the ring's size, so records lie across its end
SLOTS = mmap.PAGESIZE // SLOT_BYTES

SOURCE = """#include <uapi/linux/bpf.h>
struct event { u32 number; u64 twice[3]; } __attribute__((packed));
struct ring_table_t {
	int key;
	struct event leaf;
	int (*ringbuf_output)(void *, u64, u64);
	void *(*ringbuf_reserve)(u64);
	void (*ringbuf_discard)(void *, u64);
	void (*ringbuf_submit)(void *, u64);
	u32 max_entries;
};
__attribute__((section("maps/ringbuf:" PINS "/events"))) struct ring_table_t events = { .max_entries = 4096 };
BPF_TABLE_PINNED("array", u32, u32, turn, 1, PINS "/turn");
int xlb(struct xdp_md *context)
{
	u32 zero = 0, *turn_now = turn.lookup(&zero);
	struct event *event;

	if (!turn_now)
		return XDP_ABORTED;
	event = events.ringbuf_reserve(sizeof(*event));
	if (!event)
		return XDP_DROP;
	event->number = (*turn_now)++;
	event->twice[0] = event->twice[1] = event->twice[2] = 2 * (u64)event->number;
	if (context->data_end - context->data > 100)
		events.ringbuf_discard(event, BPF_RB_NO_WAKEUP);
	else
		events.ringbuf_submit(event, BPF_RB_NO_WAKEUP);
	return XDP_PASS;
}
"""


@dataclass(slots=True)
class Ring:
    """The program and a reader of its ring."""

    small: Small
    program: int
    pinned: PinnedMap
    events: FlowEvents

    def emit(self, count: int, *, discard: bool = False) -> int:
        """Run the program; returns the last verdict, XDP_DROP if the ring was full."""
        return xdp.test_run(self.program, bytes(200 if discard else 64), repeat=count).action

    def numbers(self, limit: int = 10_000) -> list[int]:
        records = self.events.read(limit)
        assert (records["twice"] == 2 * records["number"][:, None]).all()
        return list(records["number"].tolist())


@pytest.fixture(scope="module")
def pins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    with small_plane(tmp_path_factory.mktemp("ring")) as made:
        made.build.source.write_text(SOURCE)
        yield made


@pytest.fixture
def ring(pins: Small) -> Iterator[Ring]:
    layouts = pins.ensure(replace_pins=True).layouts
    pinned = pins.pinned_map(layouts, "events")
    program = libbpf.obj_get(loader.program_path(pins.build.bpf_dir))
    made = Ring(pins, program, pinned, FlowEvents(pinned.fd, pinned.value, pinned.max_entries))
    yield made
    made.events.close()
    pinned.close()
    os.close(program)


def test_the_layout_is_the_records(ring: Ring) -> None:
    assert ring.pinned.value == np.dtype([("number", "u4"), ("twice", "u8", (3,))])
    assert ring.pinned.value.itemsize == RECORD_BYTES


def test_nothing_there_is_nothing_read(ring: Ring) -> None:
    assert ring.numbers() == [] and ring.events.backlog() == 0


def test_records_come_in_order_and_once(ring: Ring) -> None:
    ring.emit(5)
    assert ring.events.backlog() == 5
    assert ring.numbers(limit=3) == [0, 1, 2]
    assert ring.numbers() == [3, 4]
    assert ring.numbers() == []


def test_records_wrap_many_times(ring: Ring) -> None:
    expected = 0
    for count in (100, 50, 102, 1, 101, 60, 90, 102):
        ring.emit(count)
        assert ring.numbers() == list(range(expected, expected + count))
        expected += count


def test_a_full_ring_loses_the_newest_and_continues_after_reading(ring: Ring) -> None:
    assert ring.emit(SLOTS + 10) == 1
    read = ring.numbers()
    assert read == list(range(len(read))) and SLOTS - 1 <= len(read) <= SLOTS
    assert ring.emit(1) == 2
    assert ring.numbers() == [len(read)]


def test_discarded_records_are_left_out(ring: Ring) -> None:
    ring.emit(2)
    ring.emit(3, discard=True)
    ring.emit(2)
    assert ring.numbers() == [0, 1, 5, 6]
    assert ring.events.backlog() == 0


def test_a_busy_record_and_what_follows_wait(ring: Ring) -> None:
    """What a program that is between reserve and submit leaves, written into a copy of the ring by hand."""
    ring.emit(4)
    events = ring.events
    data = events._data.copy()
    slots = data[: 4 * SLOT_BYTES].view(events._slot)
    slots["length"][2] |= 1 << 31
    events._data = data
    assert ring.numbers() == [0, 1]
    assert ring.numbers() == []
    slots["length"][2] ^= 1 << 31
    assert ring.numbers() == [2, 3]


def test_records_of_another_size_are_refused(ring: Ring) -> None:
    ring.emit(1)
    wrong = FlowEvents(ring.pinned.fd, np.dtype("V24"), ring.pinned.max_entries)
    with pytest.raises(ValueError, match=r"records of \{28\} bytes, not 24"):
        wrong.read(1)
    wrong.close()
    assert ring.numbers() == [0]


def test_the_next_reader_continues_where_the_last_stopped(ring: Ring) -> None:
    ring.emit(3)
    assert ring.numbers(limit=2) == [0, 1]
    with FlowEvents(ring.pinned.fd, ring.pinned.value, ring.pinned.max_entries) as after_restart:
        assert after_restart.read(10)["number"].tolist() == [2]
