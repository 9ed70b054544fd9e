from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serving.cli.figures import accuracy, macro_f1, percentile

labels = st.sampled_from(["a", "b", "c"])
pairs = st.lists(st.tuples(labels, st.one_of(labels, st.just("junk"))), min_size=1, max_size=30)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40), st.sampled_from([0, 50, 90, 99, 100]))
def test_percentiles_are_numpys(values: list[float], percent: float) -> None:
    found = percentile(values, percent)
    assert found is not None
    assert math.isclose(found, float(np.percentile(values, percent)), rel_tol=1e-9, abs_tol=1e-9)


def test_no_values_have_no_percentile() -> None:
    assert percentile([], 50) is None


@given(pairs)
def test_macro_f1_is_the_mean_over_true_labels(rows: list[tuple[str, str]]) -> None:
    truth, said = [a for a, _ in rows], [b for _, b in rows]
    scores = []
    for label in set(truth):
        hits = sum(a == b == label for a, b in rows)
        precision = hits / max(1, said.count(label))
        recall = hits / truth.count(label)
        scores.append(2 * precision * recall / (precision + recall) if hits else 0.0)
    assert math.isclose(macro_f1(truth, said), sum(scores) / len(scores))
    assert accuracy(truth, said) == sum(a == b for a, b in rows) / len(rows)


def test_an_answer_that_never_came_is_wrong() -> None:
    assert accuracy(["a", "a"], ["a", None]) == 0.5
    assert macro_f1(["a", "a"], ["a", None]) == 2 / 3
