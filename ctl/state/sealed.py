"""JSON documents with a digest of their own, so that a flipped bit is found and named.

Decides where the digest is and what it covers: the value of `sha256` is the digest of all other keys and their values.
Documents of 0.1.0 have none and are accepted; 0.1.0 ignores the key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

KEY = "sha256"


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with its digest."""
    return {**document, KEY: _digest(document)}


def is_intact(document: Mapping[str, Any]) -> bool:
    """Whether the digest, if there is one, is the document's."""
    return KEY not in document or document[KEY] == _digest(document)


def _digest(document: Mapping[str, Any]) -> str:
    covered = {key: value for key, value in document.items() if key != KEY}
    return hashlib.sha256(json.dumps(covered, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
