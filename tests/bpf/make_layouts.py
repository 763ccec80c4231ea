"""Writes tests/fakes/layouts.json, the layouts of the fake plane's maps: `python -m tests.bpf.make_layouts` as root."""

from __future__ import annotations

import secrets
import tempfile
from pathlib import Path

from bpf.loading import loader
from bpf.maps.layout import Layouts
from tests.fakes import layouts


def compiled() -> Layouts:
    """What the compiler reports now for the maps of the fake plane; leaves no pin. Raises PlaneError."""
    pins = Path("/sys/fs/bpf") / f"xlb-test-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory() as directory:
        try:
            loaded = loader.ensure(loader.Build(pins, Path(directory), layouts.MAX_FLOWS, layouts.FEATURES))
        finally:
            loader.remove_pins(pins)
    return layouts.select(loaded.layouts)


if __name__ == "__main__":
    layouts.FILE.write_text(layouts.to_text(compiled()))
