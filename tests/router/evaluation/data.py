"""Where the public data lies, which is no part of the project: `LORADOCK_TEST_DATA`, or `shared/data` beside it."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
FOLDER = Path(os.environ.get("LORADOCK_TEST_DATA", ROOT.parent / "shared" / "data"))
ROUTES = FOLDER / "routing_mmlu.csv.gz"
