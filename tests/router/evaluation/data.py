"""Where the public data lies, which is no part of the project: in the folder that `LORADOCK_TEST_DATA` names."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(os.environ.get("LORADOCK_TEST_DATA") or "public-data-is-elsewhere")
ROUTES = FOLDER / "routing_mmlu.csv.gz"
