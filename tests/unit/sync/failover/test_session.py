"""Which heartbeats are new, and which incarnation of the peer is followed."""

from __future__ import annotations

from sync.failover.session import SessionGuard


def test_a_session_takes_each_message_once_and_follows_the_present_incarnation() -> None:
    guard = SessionGuard()
    assert guard.accept(5, 1, 0) and not guard.accept(5, 1, 0) and guard.accept(5, 7, 10) and not guard.accept(5, 6, 20)
    assert not guard.accept(6, 1, 0)  # a new incarnation that has not heard us yet looks like an old one
    assert guard.accept(6, 2, 11)
    assert not guard.accept(5, 900, 10)  # a late message of the earlier incarnation
    assert guard.accept(6, 3, 11)
    guard.forget()
    assert guard.accept(8, 1, 0) and not guard.accept(8, 1, 0)
