"""A mock upstream in a process of its own, as the benchmarks run it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.processes import Child

StartMock = Callable[..., str]


@pytest.fixture
def start_mock(tmp_path: Path) -> Iterator[StartMock]:
    """Start a mock with options, and get its URL."""
    with ExitStack() as stack:

        def start(*options: str) -> str:
            command = [sys.executable, "-m", "bench.mock_upstream", *options]
            return stack.enter_context(Child(command, tmp_path / "mock.log", announces=True)).first_line()

        yield start


@pytest.fixture
def mock(start_mock: StartMock) -> str:
    """URL of a mock with no delays."""
    return start_mock()
