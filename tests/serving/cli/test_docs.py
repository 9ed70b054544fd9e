from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_the_pages_about_commands_and_settings_are_current() -> None:
    done = subprocess.run(
        (sys.executable, "-m", "tools.cli_docs", "--check"), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
