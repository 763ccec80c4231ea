"""Opens a connection to an echo at a steady pace and keeps all of them, with checked payload: a process of its own, with
real-time priority, so that nothing else delays it.

    fresh_process.py ADDRESS PORT INTERVAL_US CONFIRM_MS

Opens until stdin ends, and prints the number of complete connections, a line each time it grew. Then each has CONFIRM_MS to
complete two more round trips; what happened to each is one line of JSON on stdout: [when its handshake was complete, in ns of
CLOCK_MONOTONIC; why it is broken, or ""; wrong bytes]. Connections that were never complete are left out. Standard library
only, because it starts quickly then.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import os
import select
import socket
import struct
import sys
import time

PAUSE_NS = 50_000_000
"""Between an echo that is complete and the next message."""
REPORT_EVERY_NS = 10_000_000
MESSAGE = struct.Struct("=QQ")
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Connection:
    """born_ns: when its handshake was complete, 0: it is not yet."""

    def __init__(self, number: int, address: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)  # no port stays in TIME_WAIT
        self.number, self.born_ns, self.broken = number, 0, ""
        self.greeted = False
        self.received, self.wanted = b"", b""
        self.rounds, self.wrong = 0, 0
        self.socket.connect_ex((address, port))  # an error shows when epoll reports it

    def send(self) -> None:
        self.wanted = MESSAGE.pack(self.number, self.rounds)
        self.received = b""
        try:
            self.socket.send(self.wanted)
        except OSError as error:
            self.broken = error.strerror or str(error)

    def read(self) -> bool:
        """Whether an echo, or the greeting, is complete."""
        try:
            data = self.socket.recv(4096)
        except BlockingIOError:
            return False
        except OSError as error:
            self.broken = error.strerror or str(error)
            return False
        if not data:
            self.broken = "closed by the other side"
            return False
        self.received += data
        if not self.greeted:
            _, found, self.received = self.received.partition(b"\n")
            self.greeted = bool(found)
            return self.greeted
        if len(self.received) < len(self.wanted):
            return False
        self.wrong += sum(a != b for a, b in zip(self.received, self.wanted, strict=False))
        self.rounds += 1
        return True


def main(address: str, port: int, interval_ns: int, confirm_ns: int) -> None:
    with contextlib.suppress(OSError):  # without real time its own delays would look like the pair's
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    poll = select.epoll()
    poll.register(0, select.EPOLLIN | select.EPOLLHUP)
    connections: dict[int, Connection] = {}
    everything: list[Connection] = []
    due: list[tuple[int, int, Connection]] = []  # when to send the next message
    next_ns = reported_ns = time.monotonic_ns()
    reported = 0
    goals: dict[Connection, int] = {}
    ends_ns = 1 << 62
    while True:
        now_ns = time.monotonic_ns()
        if ends_ns == 1 << 62 and now_ns >= next_ns:
            one = Connection(len(everything), address, port)
            everything.append(one)
            connections[one.socket.fileno()] = one
            poll.register(one.socket, select.EPOLLOUT)
            next_ns = max(next_ns + interval_ns, now_ns)
        while due and due[0][0] <= now_ns:
            heapq.heappop(due)[2].send()
        born = sum(1 for each in everything if each.born_ns) if now_ns - reported_ns > REPORT_EVERY_NS else reported
        if born != reported and ends_ns == 1 << 62:
            os.write(1, b"%d\n" % born)
            reported, reported_ns = born, now_ns
        if goals or ends_ns != 1 << 62:
            goals = {each: goal for each, goal in goals.items() if not each.broken and each.rounds < goal}
            if not goals or now_ns >= ends_ns:
                break
        wake_ns = min(next_ns if ends_ns == 1 << 62 else ends_ns, due[0][0] if due else 1 << 62)
        for descriptor, _ in poll.poll(max(0, wake_ns - now_ns) / 1e9):
            if descriptor == 0:
                poll.unregister(0)
                ends_ns = time.monotonic_ns() + confirm_ns
                goals = {each: each.rounds + 2 for each in everything if each.born_ns and not each.broken}
                continue
            one = connections[descriptor]
            if not one.born_ns:
                if one.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    poll.unregister(descriptor)
                    continue
                one.born_ns = time.monotonic_ns()
                poll.modify(descriptor, select.EPOLLIN)
            elif one.read():
                heapq.heappush(due, (time.monotonic_ns() + (PAUSE_NS if one.rounds else 0), one.number, one))
            if one.broken:
                poll.unregister(descriptor)
    for each in goals:
        each.broken = "no answer"
    complete = [(each.born_ns, each.broken, each.wrong) for each in everything if each.born_ns]
    sys.stdout.write("".join(json.dumps(each) + "\n" for each in complete))
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) * 1000, int(sys.argv[4]) * 1_000_000)
