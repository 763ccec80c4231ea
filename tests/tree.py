"""Where the checkout is."""

from __future__ import annotations

from pathlib import Path

TREE = Path(__file__).resolve().parents[1]
