"""What the nearest cases say of a task: by likeness, never of itself, and nothing of what is like none of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from router.features import extract
from router.learned import OutcomeEstimator, RouterModel, RouterModelInvalid, RouteRow, fit_outcomes
from router.learned.blend import NeighbourBlend
from router.learned.neighbours import MOST_CASES, NAMES, NEAREST, Neighbours
from router.task import Task
from tests.router.learned.tasks import FILLER, route_rows

GAIN, LEVEL, NEAREST_CASE = NAMES.index("gain_of_30"), NAMES.index("level_of_30"), NAMES.index("nearest")
SPREAD = NAMES.index("disagreement")


def clusters(number: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """Unit vectors about two directions that are at right angles; those about the first gain 1, the others 0."""
    rng = np.random.default_rng(seed)
    side = np.arange(number) % 2
    places = np.eye(8)[side] + rng.normal(0, 0.05, (number, 8))
    places /= np.linalg.norm(places, axis=1, keepdims=True)
    return places, np.stack([1.0 - side, np.full(number, 0.5)], axis=1)


def gains(estimator: OutcomeEstimator, rows: Sequence[RouteRow]) -> np.ndarray:  # type: ignore[type-arg]
    tasks = [Task.from_messages(row.prompt) for row in rows]
    return np.array([estimator.outcomes(extract(task), task.text).gain for task in tasks])


def near(number: int = 400) -> Neighbours:
    return Neighbours.fit(*clusters(number), np.ones(number))


def test_the_nearest_cases_tell_the_gain() -> None:
    first, second = near().features(np.eye(8)[0]), near().features(np.eye(8)[1])
    assert first[GAIN] > 0.95
    assert second[GAIN] < 0.05
    assert first[LEVEL] == pytest.approx(0.5)
    assert first[NEAREST_CASE] > 0.95


def test_what_is_like_no_case_falls_back_to_the_mean() -> None:
    for stranger in (np.zeros(8), -np.eye(8)[0] - np.eye(8)[1]):
        said = near().features(stranger / max(np.linalg.norm(stranger), 1.0))
        assert said == pytest.approx([0.5] * (2 * len(NEAREST)) + [0.0, 0.0, 0.0], abs=0.02)


def test_cases_that_disagree_are_told() -> None:
    places, targets = clusters(400)
    targets[:, 0] = np.arange(400) // 2 % 2
    said = Neighbours.fit(places, targets, np.ones(400)).features(np.eye(8)[0])
    assert said[SPREAD] == pytest.approx(0.5, abs=0.1)
    assert near().features(np.eye(8)[0])[SPREAD] == pytest.approx(0.5, abs=0.01), "all are half a point off the mean"


def test_heavier_cases_say_more() -> None:
    places, targets = clusters(400)
    targets[:, 0] = np.arange(400) // 2 % 2
    said = Neighbours.fit(places, targets, 1 + 8 * targets[:, 0]).features(np.eye(8)[0])
    assert said[GAIN] > 0.8


def test_one_task_is_looked_up_as_many_are() -> None:
    many = near().features_of_rows(clusters(700, seed=1)[0])
    for place in (0, 1, 699):
        assert np.allclose(many[place], near().features(clusters(700, seed=1)[0][place]), atol=1e-5)


@pytest.mark.parametrize("number", [1, 5, 30, 31, 300, 301])
def test_few_cases_are_enough(number: int) -> None:
    said = near(number).features(np.eye(8)[0])
    assert said.shape == (len(NAMES),)
    assert np.isfinite(said).all()


def test_a_row_is_not_its_own_neighbour() -> None:
    """Each row is alone with its direction: whoever knew its own outcome would tell it."""
    gains = np.arange(60) % 2
    targets = np.stack([gains, np.full(60, 0.5)], axis=1)
    alone = Neighbours.fit(np.eye(60), targets, np.ones(60))
    own = alone.features_of_own(np.eye(60), np.arange(60))
    assert own[:, GAIN].std() == pytest.approx(0.0, abs=1e-6)
    assert own[:, NEAREST_CASE].max() == 0.0
    assert np.corrcoef(alone.features_of_rows(np.eye(60))[:, GAIN], gains)[0, 1] > 0.99


def test_neither_is_a_row_of_its_prompt() -> None:
    places = clusters(400)[0]
    own = near().features_of_own(places, np.arange(400) % 2)
    assert own[:, NEAREST_CASE].max() < 0.5, "all that is like it has its prompt"
    assert near().features_of_own(places, np.arange(400))[:, NEAREST_CASE].min() > 0.9


def test_the_last_cases_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.learned.neighbours.MOST_CASES", 50)
    places, targets = clusters(400)
    kept = Neighbours.fit(places, targets, np.ones(400))
    assert kept.part().arrays["case_places"].shape == (50, 8)
    assert np.array_equal(kept.part().arrays["case_targets"], targets[-50:])
    own = kept.features_of_own(places, np.arange(400) % 200)
    assert own.shape == (400, len(NAMES))


# -- in the estimator --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted() -> NeighbourBlend:
    estimator = fit_outcomes(route_rows(200), estimator="neighbours")
    assert isinstance(estimator, NeighbourBlend)
    return estimator


def test_a_version_holds_places_and_outcomes_and_no_text(fitted: NeighbourBlend) -> None:
    part = fitted.part()
    assert part.arrays["case_places"].shape == (200, 20)
    assert {each.dtype.kind for each in part.arrays.values()} <= {"f", "i"}
    assert set(part.settings) == {"vocabulary"}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("case_places", np.zeros((200, 3), np.float16), "another shape"),
        ("case_targets", np.zeros((199, 2), np.float32), "another shape"),
        ("case_targets", np.full((200, 2), np.nan, np.float32), "is no number"),
        ("case_places", np.full((200, 20), 6e4, np.float16), "no unit vectors"),
        ("case_targets", np.full((200, 2), 3e38, np.float32), "no unit vectors"),
        ("case_weights", np.full(200, 3e38, np.float32), "no unit vectors"),
        ("case_weights", np.zeros(200, np.float32), "count nothing"),
        ("case_weights", np.full(200, -1, np.float32), "count nothing"),
    ],
)
def test_cases_that_are_none_are_refused(
    fitted: NeighbourBlend,
    name: str,
    value: np.ndarray,
    message: str,  # type: ignore[type-arg]
) -> None:
    part = fitted.part()
    part.arrays[name] = value  # type: ignore[index]
    with pytest.raises(RouterModelInvalid, match=message):
        NeighbourBlend.from_part(part)


def test_a_prompt_repeated_with_another_outcome_is_no_evidence_of_itself() -> None:
    """A fit whose rows saw those of their prompt would be sure of noise: 0.11 to 0.14 instead of 0.04 to 0.05."""
    rng = np.random.default_rng(0)
    noise = [RouteRow(row.prompt, *map(float, rng.random(2) < 0.7)) for row in route_rows(150) for _ in range(3)]
    assert gains(fit_outcomes(noise, estimator="neighbours"), route_rows(200, seed=1)).std() < 0.08


def test_cases_of_a_tasks_own_group_are_its_neighbours() -> None:
    """What groups are worth, held out together for the calibration, is told to those that come back."""

    def rows(seed: int) -> list[RouteRow]:
        rng = np.random.default_rng(seed)
        made = []
        for number in range(400):
            group = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel")[number % 8]
            words = rng.permutation([group, group, group, *rng.choice(FILLER, 6)])
            made.append(RouteRow(f"{' '.join(words)} case {number} of {seed}", number % 2, 1.0, group))
        return made

    said = gains(fit_outcomes(rows(0), estimator="neighbours"), rows(1))
    assert said[::2].mean() - said[1::2].mean() > 0.4


def test_a_version_is_looked_up_in_a_fraction_of_a_millisecond() -> None:
    rng = np.random.default_rng(0)
    places = rng.normal(size=(MOST_CASES, 50))
    places /= np.linalg.norm(places, axis=1, keepdims=True)
    cases = Neighbours.fit(places, rng.random((MOST_CASES, 2)), np.ones(MOST_CASES))
    spent = []
    with threadpool_limits(1):  # threads that wait for each other count as time spent here
        for place in places[:50]:
            began = time.thread_time_ns()
            cases.features(place)
            spent.append(time.thread_time_ns() - began)
    assert np.median(spent) / 1e6 < 1.0  # 0.2 to 0.3; machines of the tests are slow


def test_a_saved_version_says_the_same(fitted: NeighbourBlend, tmp_path: Path) -> None:
    made = RouterModel.of(fitted)
    made.save(tmp_path)
    loaded = RouterModel.load(tmp_path)
    assert loaded.version == made.version
    assert isinstance(loaded.outcomes, NeighbourBlend)
    for text in (*(row.prompt for row in route_rows(20, seed=1)), "", "zzz", "\ud800 odd"):
        task = Task.from_messages(text)
        one, other = (each.outcomes(extract(task), task.text) for each in (fitted, loaded.outcomes))
        assert np.allclose(one, other, atol=1e-6)
