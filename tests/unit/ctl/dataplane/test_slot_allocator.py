"""The slot allocator against a set of chunks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpf.constants import SLOTS_PER_CHUNK
from ctl.dataplane.slot_allocator import Run, SlotSpace, run_of

CHUNKS = 40


def chunks(runs: tuple[Run, ...]) -> set[int]:
    return {chunk for first, length in runs for chunk in range(first, first + length)}


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 10 * SLOTS_PER_CHUNK)), max_size=40))
def test_allocations_never_overlap_and_no_slot_is_lost(steps: list[tuple[bool, int]]) -> None:
    space, held = SlotSpace([(0, CHUNKS)]), list[Run]()
    for give_back, number in steps:
        if give_back and held:
            space.release(held.pop(number % len(held)))
        else:
            offset = space.allocate(number)
            if offset is None:
                assert all(length * SLOTS_PER_CHUNK < number for _, length in space.free)
                continue
            run = run_of(offset, number)
            assert run is not None and offset % SLOTS_PER_CHUNK == 0
            held.append(run)
        owned = chunks(tuple(held))
        assert len(owned) == sum(length for _, length in held), "two owners"
        assert owned.isdisjoint(chunks(space.free)) and owned | chunks(space.free) == set(range(CHUNKS))
        assert all(sum(one) < other[0] for one, other in zip(space.free, space.free[1:], strict=False)), "neighbours are joined"


@given(st.lists(st.tuples(st.integers(0, CHUNKS), st.integers(1, 10)), max_size=6))
def test_reserved_ranges_are_not_free(runs: list[Run]) -> None:
    space = SlotSpace([(0, CHUNKS)])
    for run in runs:
        space.reserve(run)
        assert not space.is_free(run)
    assert chunks(space.free) == set(range(CHUNKS)) - chunks(tuple(runs))


@pytest.mark.parametrize("run", [(0, 1), (3, 4), (9, 1), (2, 2)])
def test_free_slots_cannot_be_released(run: Run) -> None:
    with pytest.raises(ValueError, match="overlaps the free"):
        SlotSpace([(0, 3), (6, 4)]).release(run)


def test_a_service_without_slots_has_no_range() -> None:
    assert run_of(16, 0) is None
    assert run_of(16, 17) == (1, 2)
