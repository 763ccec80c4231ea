"""A minimal data plane that compiles quickly, for tests of loading, attaching and reading rings."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bpf import libbpf
from bpf.loading import loader
from bpf.maps.layout import Layouts
from bpf.maps.pinned_map import PinnedMap

SOURCE = """#include <uapi/linux/bpf.h>
struct key { u32 number; };
struct value { u64 count; u32 extra; u32 more; };
BPF_TABLE_PINNED("hash", struct key, struct value, things, MAX_FLOWS, PINS "/things");
BPF_TABLE_PINNED("array", u32, struct value, counters, 4, PINS "/counters");
int xlb(struct xdp_md *context)
{
	struct key key = {1};
	struct value *value = things.lookup(&key);

	if (value)
		__sync_fetch_and_add(&value->count, 1);
	return XDP_PASS;
}
"""


@dataclass(slots=True)
class Small:
    """A private bpf_dir and run_dir, and a source that tests change."""

    build: loader.Build

    def write(self, *changes: tuple[str, str]) -> None:
        """Write the source with each (old, new) replaced; fails if an old string is not in it."""
        text = SOURCE
        for old, new in changes:
            assert old in text, f"{old!r} is not in the source"
            text = text.replace(old, new)
        self.build.source.write_text(text)

    def ensure(self, replace_pins: bool = False, **fields: object) -> loader.Loaded:
        return loader.ensure(replace(self.build, **fields), replace_pins)  # type: ignore[arg-type]

    def pinned_map(self, layouts: Layouts, name: str) -> PinnedMap:
        return PinnedMap(self.build.bpf_dir, name, layouts.maps[name])

    def program_id(self) -> int:
        fd = libbpf.obj_get(loader.program_path(self.build.bpf_dir))
        try:
            return libbpf.program_info(fd).id
        finally:
            os.close(fd)

    def snapshot(self) -> Mapping[str, object]:
        """Everything that a refused start must not change: pins by inode, description, layouts, adjacent directories."""
        pins = self.build.bpf_dir
        return {
            "inodes": {path.name: path.lstat().st_ino for path in pins.iterdir()},
            "build": str((pins / loader.BUILD_LINK).readlink()),
            "layout": (self.build.run_dir / "layout.json").read_bytes(),
            "run_dir": sorted(path.name for path in self.build.run_dir.iterdir()),
            "adjacent": sorted(path.name for path in pins.parent.glob(pins.name + "*")),
        }


@contextmanager
def small_plane(directory: Path) -> Iterator[Small]:
    """Nothing is pinned at the start; everything is unpinned at the end."""
    pins = Path("/sys/fs/bpf") / f"xlb-test-{secrets.token_hex(4)}"
    small = Small(loader.Build(pins, directory / "run", 64, {}, directory / "small.c"))
    small.write()
    try:
        yield small
    finally:
        loader.remove_pins(pins)
