"""Seeds derive from named parts, so that no result depends on the order in which cells run."""

from __future__ import annotations

import hashlib
import json


def derive_seed(*parts: object) -> int:
    """A seed in [0, 2**63) that is a pure function of ``parts`` (JSON-able values)."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
