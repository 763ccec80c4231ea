"""Two ends of the advertisements with their cluster link cut, and a third machine that sends in their names."""

from __future__ import annotations

import pytest

from sync.errors import WireError
from sync.vrrp.authentication import Session
from sync.vrrp.endpoint import AWAY_INTERVAL_NS, GRACE_NS, REMIND_NS, Endpoint, Taken

MS = 1_000_000
SECRET = bytes(range(32))
ADDRESSES = {4: ("10.7.0.1", "10.7.0.2"), 6: ("fd07::1", "fd07::2")}
VIRTUAL = ["10.7.0.100", "fd07::100"]
families = pytest.mark.parametrize("family", [4, 6])


class Wire:
    """Two endpoints, a clock, and a record of every packet for each receiver."""

    def __init__(self, family: int = 4) -> None:
        self.family = family
        self.now_ns = 0
        self.one, self.two = self.end(0, 11), self.end(1, 22)
        self.captured: dict[str, list[bytes]] = {each.own: [] for each in (self.one, self.two)}
        self.heard: list[int] = []

    def end(self, index: int, boot: int, secret: bytes = SECRET) -> Endpoint:
        own, peer = ADDRESSES[self.family][index], ADDRESSES[self.family][1 - index]
        return Endpoint(own, peer, 51, 10, False, lambda: VIRTUAL, Session(secret, boot), self.now_ns)

    def give(self, receiver: Endpoint, packet: bytes, sender: str = "") -> Taken:
        taken = receiver.take(packet, sender or receiver.peer, receiver.own, 255, self.now_ns)
        if taken.priority is not None:
            self.heard.append(taken.priority)
        return taken

    def carry(self, receiver: Endpoint, packets: list[tuple[bytes, str]]) -> None:
        """Deliver, and the answers in the other direction, until neither answers."""
        for packet, target in packets:
            assert target == receiver.own
            self.captured[receiver.own].append(packet)
            self.now_ns += 25 * MS
            answers = self.give(receiver, packet).answers
            self.carry(self.two if receiver is self.one else self.one, list(answers))

    def acquaint(self) -> None:
        self.carry(self.two, self.one.greeting(self.now_ns))


@families
def test_greetings_let_two_nodes_hear_each_other_without_the_cluster_link(family: int) -> None:
    wire = Wire(family)
    wire.carry(wire.two, wire.one.advertisement(100))
    assert wire.heard == []
    wire.acquaint()
    assert (wire.one.peer_boot, wire.two.peer_boot) == (22, 11)
    assert sum(map(len, wire.captured.values())) <= 5, "the advertisement and four greetings"
    wire.carry(wire.two, wire.one.advertisement(100))
    wire.carry(wire.one, wire.two.advertisement(0))
    assert wire.heard == [100, 0]
    assert wire.one.greeting(wire.now_ns) == [], "nothing more to say"


@families
def test_a_node_that_restarts_is_believed_again_and_its_earlier_words_are_not(family: int) -> None:
    wire = Wire(family)
    wire.acquaint()
    wire.carry(wire.two, wire.one.advertisement(100))
    old = list(wire.captured[wire.two.own])
    wire.one = wire.end(0, 33)
    wire.acquaint()
    assert wire.two.peer_boot == 33
    wire.heard.clear()
    for packet in old:
        wire.give(wire.two, packet)
    assert wire.heard == [] and wire.two.peer_boot == 33
    wire.carry(wire.two, wire.one.advertisement(101))
    assert wire.heard == [101]


def test_a_receiver_that_restarts_while_its_peer_is_dead_hears_nothing_of_a_replay() -> None:
    wire = Wire()
    wire.acquaint()
    for _ in range(10):
        wire.carry(wire.two, wire.one.advertisement(100))
    old = list(wire.captured[wire.two.own])
    wire.two = wire.end(1, 44)
    wire.heard.clear()
    for packet in old:
        wire.now_ns += 25 * MS
        wire.give(wire.two, packet)
    assert wire.heard == [] and wire.two.peer_boot == 0
    assert wire.two.counts.rejected > 0


@families
def test_what_strangers_send_is_counted_and_reported_once(family: int) -> None:
    wire = Wire(family)
    wire.acquaint()
    wire.now_ns += GRACE_NS
    genuine, stranger = wire.one.advertisement(100)[0][0], wire.end(0, 11, b"stranger")
    stranger.peer_lives(22, 0)
    plain = Endpoint(*ADDRESSES[family], 51, 10, False, lambda: VIRTUAL, None, 0)
    wire.give(wire.two, genuine)
    forged = [genuine, plain.advertisement(255)[0][0], stranger.advertisement(255)[0][0]]
    forged += [stranger.greeting(wire.now_ns + GRACE_NS)[0][0]] if stranger.greeting(wire.now_ns) else []
    alarms = [wire.give(wire.two, each).alarm for each in forged * 20]
    assert wire.heard == [100]
    assert [each for each in alarms if each] == ["replayed"]
    counts = wire.two.counts
    assert (counts.replayed, counts.unsigned, counts.forged) == (20, 20, 20)
    wire.now_ns += REMIND_NS
    assert wire.give(wire.two, forged[1]).alarm == "unsigned", "it continues"


def test_advertisements_for_an_earlier_incarnation_alarm_nobody_for_a_while() -> None:
    wire = Wire()
    wire.acquaint()
    wire.two = wire.end(1, 44)
    wire.one.peer_lives(22, 0)
    assert wire.give(wire.two, wire.one.advertisement(100)[0][0]).alarm == ""
    wire.now_ns += GRACE_NS
    assert wire.give(wire.two, wire.one.advertisement(100)[0][0]).alarm == "forged"


def test_a_replayed_greeting_is_answered_seldom_and_changes_nothing() -> None:
    wire = Wire()
    wire.acquaint()
    first = wire.captured[wire.two.own][0]
    answers = [wire.give(wire.two, first).answers for _ in range(100)]
    assert wire.two.peer_boot == 11
    assert sum(map(len, answers)) <= 1


def test_a_node_does_not_answer_its_own_greeting() -> None:
    wire = Wire()
    greeting = wire.one.greeting(0)[0][0]
    mirrored = Endpoint(*ADDRESSES[4][::-1], 51, 10, False, lambda: VIRTUAL, Session(SECRET, 11), 0)
    assert not wire.give(mirrored, greeting).answers


def test_others_are_foreign_and_nonsense_is_malformed() -> None:
    wire = Wire()
    other = Endpoint(*ADDRESSES[4], 52, 10, False, lambda: VIRTUAL, Session(SECRET, 11), 0)
    wire.give(wire.two, wire.one.advertisement(1)[0][0], "10.7.0.9")
    wire.give(wire.two, other.advertisement(1)[0][0])
    with pytest.raises(WireError):
        wire.give(wire.two, b"nonsense")
    assert (wire.two.counts.foreign, wire.two.counts.malformed, wire.two.counts.rejected) == (2, 1, 0)


def test_a_peer_of_version_0_1_0_gets_a_copy_without_a_trailer_and_is_shown_only() -> None:
    session = Session(SECRET, 11)
    new = Endpoint(*ADDRESSES[4], 51, 10, False, lambda: VIRTUAL, session, 0)
    old = Endpoint(*ADDRESSES[4][::-1], 51, 10, False, lambda: VIRTUAL, None, 0)
    new.peer_lives(22, 0)
    assert len(new.advertisement(100)) == 1
    session.peer_is_old = True
    _, plain = new.advertisement(100)
    assert old.take(plain[0], new.own, old.own, 255, 0).priority == 100
    assert not new.shows(0, 100)
    assert new.take(old.advertisement(100)[0][0], old.own, new.own, 255, GRACE_NS) == Taken(), "no priority and no alarm"
    assert (new.counts.unsigned, new.counts.received) == (1, 0)
    assert new.shows(GRACE_NS + 99, 100) and not new.shows(GRACE_NS + 100, 100)
    new.peer_lives(33, GRACE_NS)  # it was upgraded
    assert len(new.advertisement(100)) == 1 and not new.shows(GRACE_NS, 100)


@families
def test_the_peer_is_found_at_another_address_by_what_it_signs(family: int) -> None:
    wire = Wire(family)
    wire.acquaint()
    wire.carry(wire.two, wire.one.advertisement(100))
    old, at_home = wire.captured[wire.one.own][-1], wire.two.own
    elsewhere = "10.7.0.12" if family == 4 else "fd07::12"
    wire.two.move(elsewhere, wire.now_ns)
    wire.now_ns += 25 * MS
    ((greeting, target),) = wire.two.greeting(wire.now_ns)
    assert target == wire.one.own
    wire.one.take(greeting, elsewhere, wire.one.own, 255, wire.now_ns)
    assert wire.one.peer == elsewhere
    wire.one.take(old, at_home, wire.one.own, 255, wire.now_ns)
    assert wire.one.peer == elsewhere, "a greeting from before that is replayed leads nowhere"
    ((advert, target),) = wire.one.advertisement(7)
    assert target == elsewhere
    assert wire.two.take(advert, wire.one.own, elsewhere, 255, wire.now_ns).priority == 7
    assert wire.two.greeting(wire.now_ns) == []
    assert wire.two.greeting(wire.now_ns + AWAY_INTERVAL_NS), "every second, while it is not where the pair was made with"
    wire.two.move(at_home, wire.now_ns + AWAY_INTERVAL_NS)
    wire.one.take(wire.two.advertisement(8)[0][0], at_home, wire.one.own, 255, wire.now_ns)
    assert wire.one.peer == at_home
