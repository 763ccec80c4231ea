"""Opens a new connection at a steady pace, or takes such connections: a process of its own, so that nothing else delays it.

    probe_process.py connect ADDRESS PORT INTERVAL_US    one record per attempt on stdout, until stdin ends
    probe_process.py accept PORT                         takes connections and closes them

A record is two 64-bit numbers: nanoseconds of CLOCK_MONOTONIC when the attempt began, and how many it took until the connection
was there; negative for one that failed, -1 where no answer came within GIVE_UP_NS, else minus the error's number. Standard
library only, because it starts quickly then.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
import struct
import sys
import time
from collections import deque

GIVE_UP_NS = 500_000_000
"""Less than the second after which a lost SYN is sent again: an answer always belongs to the attempt."""
WRITE_EVERY_NS = 20_000_000
RECORD = struct.Struct("=qq")

_CLOCK_MONOTONIC = 1
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def connect(address: str, port: int, interval_ns: int) -> None:
    """Until stdin ends. An attempt that is due while this process was kept from running is made as soon as it runs."""
    with contextlib.suppress(OSError):  # without real time the prober's own delays would look like the balancer's
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    timer, poll = _timer(interval_ns), select.epoll()
    poll.register(timer, select.EPOLLIN)
    poll.register(0, select.EPOLLIN | select.EPOLLHUP)
    pending: dict[int, tuple[socket.socket, int]] = {}
    order: deque[tuple[int, int]] = deque()  # (began, descriptor), oldest first
    records, written_ns = bytearray(), 0

    def finish(descriptor: int, took_ns: int) -> None:
        one, began_ns = pending.pop(descriptor)
        records.extend(RECORD.pack(began_ns, took_ns))
        one.close()

    stopping = False
    while not stopping or pending:
        for descriptor, _ in poll.poll():
            now_ns = time.monotonic_ns()
            if descriptor == timer:
                os.read(timer, 8)
                if not stopping:
                    one = _begin(family, address, port)
                    pending[one.fileno()] = (one, now_ns)
                    order.append((now_ns, one.fileno()))
                    poll.register(one, select.EPOLLOUT)
            elif descriptor == 0:
                stopping = True
                poll.unregister(0)
            elif descriptor in pending:
                error = pending[descriptor][0].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                finish(descriptor, -error if error else now_ns - pending[descriptor][1])
        now_ns = time.monotonic_ns()
        while order and order[0][0] < now_ns - GIVE_UP_NS:
            began_ns, descriptor = order.popleft()
            if descriptor in pending and pending[descriptor][1] == began_ns:
                finish(descriptor, -1)
        if records and now_ns - written_ns > WRITE_EVERY_NS:
            _write(records)
            written_ns = now_ns
    _write(records)


def _begin(family: int, address: str, port: int) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)  # no port stays in TIME_WAIT
    one.connect_ex((address, port))  # an error shows when epoll reports it
    return one


def _timer(interval_ns: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    timer: int = libc.timerfd_create(_CLOCK_MONOTONIC, os.O_CLOEXEC)
    times = struct.pack("qqqq", *divmod(interval_ns, 1_000_000_000), *divmod(interval_ns, 1_000_000_000))
    if timer < 0 or libc.timerfd_settime(timer, 0, times, None):
        raise OSError(ctypes.get_errno(), "timerfd")
    return timer


def _write(records: bytearray) -> None:
    data = bytes(records)
    records.clear()
    while data:
        data = data[os.write(1, data) :]


def accept(port: int) -> None:
    """Until killed."""
    with socket.create_server(("::", port), family=socket.AF_INET6, backlog=4096, dualstack_ipv6=True) as listener:
        os.write(1, b"ready\n")
        while True:
            with contextlib.suppress(ConnectionError):
                listener.accept()[0].close()


if __name__ == "__main__":
    if sys.argv[1] == "connect":
        connect(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]) * 1000)
    else:
        accept(int(sys.argv[2]))
