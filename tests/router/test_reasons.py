from __future__ import annotations

import re

from bench.environment import ROOT
from router import REASONS, Reason
from serving.gateway.target import LOAD_FAILED


def test_every_reason_is_in_the_one_table_of_the_documentation() -> None:
    page = (ROOT / "docs" / "routing-policy.md").read_text(encoding="utf-8")
    table = page.partition("## Reasons")[2].partition("\n## ")[0]
    told = re.findall(r"^\| `([a-z_]+)` \|", table, re.MULTILINE)
    assert sorted(told) == sorted([*Reason, LOAD_FAILED])
    assert set(REASONS) == set(Reason)
