from dataclasses import replace

from serving.engine.worker.layout import ALIGNMENT, Field, Layout
from tests.serving.engine.worker.bank import LAYOUT


def test_parts_follow_each_other_aligned_and_hold_the_rank_alone() -> None:
    parts, size = LAYOUT.parts([0, 1], 2)
    assert [(part.field, part.offset, part.shape) for part in parts] == [(0, 0, (1, 2, 6)), (1, ALIGNMENT, (1, 5, 2))]
    assert [part.size for part in parts] == [2 * 6 * 4, 5 * 2 * 4]
    assert size == 2 * ALIGNMENT


def test_a_rank_beyond_the_slot_fills_the_slot() -> None:
    parts, _ = LAYOUT.parts([0], 99)
    assert parts[0].shape == LAYOUT.fields[0].shape


def test_the_key_tells_apart_what_is_filled_differently() -> None:
    wider = Layout(
        tuple(
            replace(field, shape=tuple(64 if dim == field.rank_dim else size for dim, size in enumerate(field.shape)))
            for field in LAYOUT.fields
        ),
        LAYOUT.salt,
    )
    assert wider.key != LAYOUT.key
    assert Layout(LAYOUT.fields, "another").key != LAYOUT.key
    assert Layout(LAYOUT.fields[:2], LAYOUT.salt).key != LAYOUT.key
    half = tuple(replace(field, dtype="bfloat16", itemsize=2) for field in LAYOUT.fields)
    assert Layout(half, LAYOUT.salt).key != LAYOUT.key


def test_a_field_without_a_rank_is_whole() -> None:
    field = Field("embedding", (10, 4), "float32", 4, None)
    assert field.filled(1) == (10, 4)
