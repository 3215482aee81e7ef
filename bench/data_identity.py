"""What a data set is, besides its name: two of one name need not hold the same images."""

from __future__ import annotations

import hashlib

from adapters.protocols import ImageTensors
from bench.scoring import fingerprint


def data_identity(data: ImageTensors) -> str:
    """16 hexadecimal digits: of every label, about a thousand images of each part, and the size of the pool.

    It enters no id: a cell says what is asked for. It stands in the record, so that the figures of two copies of a data
    set (decoded otherwise, or cut) are not averaged.
    """
    parts = (fingerprint(data.train), fingerprint(data.test), str(data.pool_size))
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]
