"""The sweep command with faulty defenses to choose from, and with little patience."""

from __future__ import annotations

import os
import sys

import faulty  # noqa: F401  (registers them here; workers do by unpickling its Worker)

from bench import outbox, sweep

if __name__ == "__main__":
    outbox.PATIENCE_SECONDS = float(os.environ.get("FAULTS_PATIENCE", outbox.PATIENCE_SECONDS))
    sys.exit(sweep.main())
