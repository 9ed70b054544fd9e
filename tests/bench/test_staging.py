from pathlib import Path

from bench.staging import measure


def test_every_way_of_staging_is_timed_beside_a_running_thread(tmp_path: Path) -> None:
    figures = measure("tiny", 4, 2, tmp_path)
    assert figures["tensors"] == 2 * 7 * 2
    for way in ("alone", "from_host_memory", "from_page_cache", "while_preparing"):
        assert 0 <= figures[way]["longest_wait_ms"] <= figures[way]["longest_wait_max_ms"]
    assert figures["from_host_memory"]["staged_ms"] > 0
