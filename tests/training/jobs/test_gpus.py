from __future__ import annotations

import pytest

from training.jobs.gpus import Capacity, Gpu, Held, Needs, Wait, parse

GIB = 1 << 30
ANSWER = "0, GPU-aaaa1111, 8192, 8000\n1, GPU-bbbb2222, 16384, 100\n"
TWO = Capacity((Gpu(0, 8 * GIB, 8 * GIB), Gpu(1, 16 * GIB, 16 * GIB)), cpu_jobs=1)


@pytest.mark.parametrize(
    ("visible", "indices"),
    [(None, [0, 1]), ("", []), ("1", [1]), ("GPU-aaaa", [0]), ("1,0", [0, 1]), ("7", [])],
)
def test_visible_cards_are_read(visible: str | None, indices: list[int]) -> None:
    cards = parse(ANSWER, visible)
    assert [card.index for card in cards] == indices


def test_sizes_are_bytes() -> None:
    assert parse(ANSWER)[1] == Gpu(1, 16 * GIB, 100 << 20)


def test_the_fullest_card_that_fits_is_given() -> None:
    assert TWO.place(Needs(1, 6 * GIB), []) == (0,)
    assert TWO.place(Needs(1, 10 * GIB), []) == (1,)
    assert TWO.place(Needs(2, 6 * GIB), []) == (0, 1)


def test_a_card_is_shared_while_both_fit() -> None:
    held = [Held((0,), 3 * GIB)]
    assert TWO.place(Needs(1, 4 * GIB), held) == (0,)
    assert TWO.place(Needs(1, 6 * GIB), held) == (1,)


def test_what_an_engine_uses_is_not_given_away() -> None:
    full = Capacity((Gpu(0, 8 * GIB, 1 * GIB),))
    assert full.place(Needs(1, 4 * GIB), []) is Wait.BUSY


def test_unknown_needs_get_a_card_of_their_own() -> None:
    assert TWO.place(Needs(1), [Held((0,), 1 * GIB)]) == (1,)
    assert TWO.place(Needs(1, 1 * GIB), [Held((0, 1), None)]) is Wait.BUSY


def test_what_never_fits_is_told_from_what_must_wait() -> None:
    assert TWO.place(Needs(3), []) is Wait.NEVER
    assert TWO.place(Needs(1, 20 * GIB), []) is Wait.NEVER
    assert TWO.place(Needs(2), [Held((0,), None)]) is Wait.BUSY


def test_processors_take_as_many_jobs_as_is_set() -> None:
    assert TWO.place(Needs(), [Held((0,), None)]) == ()
    assert Capacity(cpu_jobs=1).place(Needs(), [Held((), None)]) is Wait.BUSY
    assert Capacity(cpu_jobs=2).place(Needs(gpus=1), [Held((), None)]) == ()
