"""What limits new connections: lists, rate, half-open connections, and the connections of farms and backends; leastconn."""

from __future__ import annotations

from collections.abc import Callable

from bpf.constants import HALF_OPEN_WINDOWS, MAX_CANDIDATES, RATE_BURST_NS, Scheduler
from bpf.dataplane import PutFarmLimits, ServiceValue
from tests.model.bits import COUNTED
from tests.model.packet import Verdict
from tests.model.state import Client, Flow, HalfOpen, Key, State

PRESSURE_WINDOW_SHIFT, PRESSURE_HOLD_TICKS = 4, 150  # a second, ten seconds


def is_listed(state: State, number: int, address: bytes) -> bool:
    """Does a prefix of the list cover the address?"""
    bits = 8 * len(address)

    def covers(prefix: bytes) -> bool:
        unused = bits - prefix[-1]
        return int.from_bytes(address) >> unused == int.from_bytes(prefix[:-1]) >> unused

    return any(covers(prefix) for prefix in state.prefixes.get(number, {}).get(len(address), ()))


def client_of(limits: PutFarmLimits, address: bytes) -> Client:
    size = len(address)
    unused = 8 * size - (limits.client_prefix_v4 if size == 4 else limits.client_prefix_v6)
    return limits.farm, (int.from_bytes(address) >> unused << unused).to_bytes(size)


def admit(state: State, key: Key, service: ServiceValue) -> Client | None:
    """May the client open a connection? Raises the verdict if not. Returns the client whose half-open ones will include it."""
    limits, opening = state.farm_limits.get(service.farm), None
    if limits is None:
        return None
    denied = limits.deny and is_listed(state, limits.deny, key.source)
    if denied or (limits.allow and not is_listed(state, limits.allow, key.source)):
        raise Verdict("drop_denied")
    if limits.max_connections and load(state.farm_loads, service.farm) >= limits.max_connections:
        raise Verdict("drop_farm_full")
    client = client_of(limits, key.source)
    if limits.max_half_open:
        windows = state.half_open.setdefault(client, HalfOpen(window_of(state, limits), [0] * HALF_OPEN_WINDOWS))
        advance(windows, window_of(state, limits))
        if sum(windows.opened) >= limits.max_half_open:
            raise Verdict("drop_half_open")
        opening = client
    if limits.rate_interval_ns:
        check_rate(state, client, limits.rate_interval_ns)
    return opening


def check_rate(state: State, client: Client, interval_ns: int) -> None:
    """A bucket that holds the connections of RATE_BURST_NS: the time when it is full again (ITU-T I.371)."""
    full_at = state.rates.get(client, 0)
    if full_at <= state.now_ns:
        state.rates[client] = state.now_ns + interval_ns
    elif full_at - state.now_ns > RATE_BURST_NS - interval_ns:
        raise Verdict("drop_rate")
    else:
        state.rates[client] = full_at + interval_ns


# --- half-open -----------------------------------------------------------------------------------------------


def window_of(state: State, limits: PutFarmLimits) -> int:
    return state.tick // (limits.half_open_ticks or 1)


def advance(windows: HalfOpen, window: int) -> None:
    """Empty those that have begun since."""
    for number in range(1, min(HALF_OPEN_WINDOWS, window - windows.window & 0xFFFFFFFF) + 1):
        windows.opened[(windows.window + number) % HALF_OPEN_WINDOWS] = 0
    windows.window = window


def count_half_open(state: State, client: Client | None, flow: Flow) -> None:
    windows = state.half_open.get(client) if client else None
    if windows:
        windows.opened[windows.window % HALF_OPEN_WINDOWS] += 1
        flow.state |= COUNTED


def leave_half_open(state: State, address: bytes, forward: Flow) -> None:
    """The connection is answered, or over."""
    if not forward.state & COUNTED:
        return
    forward.state &= ~COUNTED
    limits = state.farm_limits.get(forward.farm)
    windows = state.half_open.get(client_of(limits, address)) if limits else None
    if not limits or not windows:
        return
    advance(windows, window_of(state, limits))
    for number in range(HALF_OPEN_WINDOWS):  # probably one of the last
        at = (windows.window - number) % HALF_OPEN_WINDOWS
        if windows.opened[at]:
            windows.opened[at] -= 1
            return


# --- loads ---------------------------------------------------------------------------------------------------


def load(loads: dict[int, int], number: int) -> int:
    return max(0, loads.get(number, 0))


def change_load(state: State, flow: Flow, by: int) -> None:
    for loads, number in ((state.farm_loads, flow.farm), (state.backend_loads, flow.backend)):
        loads[number] = loads.get(number, 0) + by


def is_full(state: State, number: int) -> bool:
    limit = state.backend_limits.get(number, (0, 0))[1]
    return bool(limit) and load(state.backend_loads, number) >= limit


def with_capacity(
    state: State, key: Key, service: ServiceValue, start: int, is_affine: bool, select: Callable[[], int], kept: Flow | None
) -> int:
    """The selected backend, or another one if it is full; of leastconn the least loaded. kept: an open entry on its backend."""
    limits = state.farm_limits.get(service.farm)
    least = service.scheduler == Scheduler.LEASTCONN and not is_affine
    for _ in range(2):  # round robin tries another turn
        number = select()
        if kept and kept.backend == number:
            return number
        if not least and not (limits and limits.backends_limited and is_full(state, number)):
            return number
    return best_candidate(state, key, service, start, first=not least)


def best_candidate(state: State, key: Key, service: ServiceValue, start: int, first: bool) -> int:
    """The one with the fewest connections for its weight, or the first that is not full. Raises drop_backend_full."""
    limits = state.farm_limits.get(service.farm)
    listed = (limits.candidates_v4 if len(key.source) == 4 else limits.candidates_v6) if limits else ()
    places = listed or tuple(state.slots.get(service.slot_offset + n, 0) for n in range(service.slot_count))
    best, best_load, best_weight = 0, 0, 0
    for number in range(min(len(places), MAX_CANDIDATES)):
        backend = places[(start + number) % len(places)]
        weight, limit = state.backend_limits.get(backend, (0, 0))
        following = load(state.backend_loads, backend) + 1
        if not backend or (limit and following > limit):
            continue
        if not best or (not first and following * best_weight < best_load * weight):
            best, best_load, best_weight = backend, following, weight
    if not best:
        raise Verdict("drop_backend_full")
    return best


# --- floods of SYNs ------------------------------------------------------------------------------------------


def is_pressed(state: State, size: int) -> bool:
    """Are embryonic connections evicted before they can be established?"""
    return 0 < state.pressure[size].until - state.tick & 0xFFFFFFFF <= PRESSURE_HOLD_TICKS


def add_pressure(state: State, size: int) -> None:
    """A connection was opened."""
    pressure, window = state.pressure[size], state.tick >> PRESSURE_WINDOW_SHIFT
    if pressure.window != window:
        pressure.window, pressure.opened = window, 0
    pressure.opened += 1
    if pressure.opened > state.max_embryonic // 2:
        pressure.until = state.tick + PRESSURE_HOLD_TICKS & 0xFFFFFFFF


def relieve_pressure(state: State, size: int) -> None:
    """A connection was established."""
    pressure = state.pressure[size]
    pressure.opened = max(0, pressure.opened - 1)
