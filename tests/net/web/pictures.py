"""Where the pictures of the page land, and the page that shows them."""

from __future__ import annotations

import html
import os
from pathlib import Path

from tests.tree import TREE

PICTURES = Path(os.environ.get("XLB_SCREENSHOTS") or TREE / "build" / "screenshots")

_STYLE = (
    "body{font:15px sans-serif;display:flex;flex-wrap:wrap;gap:1rem}figure{margin:0}"
    "img{max-width:26rem;max-height:34rem;border:1px solid #888}"
)


def write_index() -> None:
    """Make PICTURES/index.html anew."""
    names = [html.escape(path.name) for path in sorted(PICTURES.glob("*.png"))]
    shown = "\n".join(
        f'<figure><figcaption>{name}</figcaption><a href="{name}"><img src="{name}" alt="" loading="lazy"></a></figure>'
        for name in names
    )
    head = f'<!DOCTYPE html><meta charset="utf-8"><title>xlb</title><style>{_STYLE}</style>'
    (PICTURES / "index.html").write_text(f"{head}\n{shown}\n")
