"""The beds of a session: one for each program, because compiling takes longer than most tests."""

from __future__ import annotations

import contextlib

from tests.bpf.bed import Bed
from tests.bpf.tagged_bed import TaggedBed

TUNNEL_SOURCES = {"v4": "10.2.0.1", "v6": "fd02::1"}


class Beds:
    """Each is made when it is first asked for. stack: closes them."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._made: dict[tuple[str, ...], Bed] = {}

    def __call__(self, *features: str) -> Bed:
        """The bed whose program has these features, empty."""
        if features not in self._made:
            kind = TaggedBed if "vlans" in features else Bed
            self._made[features] = self._stack.enter_context(kind(dict.fromkeys(features, True)))
        bed = self._made[features]
        bed.reset()
        if "ipip" in features:
            bed.plane.set_tunnel_sources(*TUNNEL_SOURCES.values())
        return bed
