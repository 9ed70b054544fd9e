"""The file of a router model: what goes in comes out, and whatever is no model is refused in one line."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from router.learned import RouterModel, RouterModelInvalid, TierOutcomes, fit_outcomes, fit_recogniser
from router.learned.store import ARRAYS, DOCUMENT
from tests.router.learned.tasks import agent_texts, route_rows, strangers


@pytest.fixture(scope="module")
def model() -> RouterModel:
    return RouterModel.of(fit_outcomes(route_rows(120), estimator="blend"), fit_recogniser(*agent_texts(120)))


@pytest.fixture
def folder(model: RouterModel, tmp_path: Path) -> Path:
    model.save(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("estimator", ["tfidf", "blend", "neighbours"])
def test_a_loaded_model_says_the_same(estimator: str, tmp_path: Path) -> None:
    rows = route_rows(120)
    made = RouterModel.of(fit_outcomes(rows, estimator=estimator), fit_recogniser(*agent_texts(120)))
    made.save(tmp_path)
    loaded = RouterModel.load(tmp_path)
    assert made.version == loaded.version
    assert len(made.version) == 12
    for text in (*(row.prompt for row in rows[:20]), *strangers(20), "", "zzz", "\ud800 odd"):
        assert made.outcomes is not None
        assert loaded.outcomes is not None
        assert loaded.recogniser is not None
        assert made.recogniser is not None
        one, other = (each.outcomes.outcomes(None, text) for each in (made, loaded))  # type: ignore[union-attr, arg-type]
        assert np.allclose(one, other, atol=1e-5)
        assert made.recogniser.recognise(text) == pytest.approx(loaded.recogniser.recognise(text))


def test_equal_content_has_one_version_and_other_content_another(model: RouterModel, folder: Path) -> None:
    model.save(folder.parent / "again")
    assert (folder / DOCUMENT).read_bytes() == (folder.parent / "again" / DOCUMENT).read_bytes()
    assert RouterModel.of(model.outcomes).version != model.version


def test_a_model_may_hold_one_part_alone(model: RouterModel, tmp_path: Path) -> None:
    RouterModel.of(recogniser=model.recogniser).save(tmp_path)
    loaded = RouterModel.load(tmp_path)
    assert loaded.outcomes is None
    assert loaded.recogniser is not None


def test_the_weak_tier_fails_at_hard_tasks(model: RouterModel) -> None:
    assert model.outcomes is not None
    easy, hard = "the kitten and the garden", "prove the lemma and derive that"
    said: list[TierOutcomes] = [model.outcomes.outcomes(None, text) for text in (easy, hard)]  # type: ignore[arg-type]
    assert said[0].weak > said[1].weak + 0.3


def test_a_model_of_before_there_were_neighbours_is_still_read(model: RouterModel, folder: Path) -> None:
    _edit(lambda document: document.update(schema="loradock-router/1"))(folder)
    loaded = RouterModel.load(folder)
    assert model.outcomes is not None
    assert loaded.outcomes is not None
    said = [each.outcomes(None, "prove the lemma") for each in (model.outcomes, loaded.outcomes)]  # type: ignore[arg-type]
    assert np.allclose(*said, atol=1e-5)
    assert loaded.version != model.version, "its name is still that of the file"


def _edit(change: Callable[[dict], None]) -> Callable[[Path], None]:  # type: ignore[type-arg]
    def apply(folder: Path) -> None:
        document = json.loads((folder / DOCUMENT).read_text())
        change(document)
        (folder / DOCUMENT).write_text(json.dumps(document))

    return apply


def _rewrite(change: Callable[[dict[str, np.ndarray]], None]) -> Callable[[Path], None]:  # type: ignore[type-arg]
    """Change arrays and fit the digest to them, as somebody would who means harm."""

    def apply(folder: Path) -> None:
        import hashlib

        arrays = safetensors.numpy.load((folder / ARRAYS).read_bytes())
        change(arrays)
        packed = safetensors.numpy.save(arrays)
        (folder / ARRAYS).write_bytes(packed)
        _edit(lambda document: document.update(arrays_sha256=hashlib.sha256(packed).hexdigest()))(folder)

    return apply


def _tamper(folder: Path) -> None:
    raw = bytearray((folder / ARRAYS).read_bytes())
    raw[-1] ^= 1
    (folder / ARRAYS).write_bytes(raw)


def _pickle(folder: Path) -> None:
    (folder / ARRAYS).write_bytes(pickle.dumps({"weights": [1.0]}))
    _edit(lambda document: document.update(arrays_sha256=""))(folder)


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("a pickle was run",))


def _evil(folder: Path) -> None:
    import hashlib

    raw = pickle.dumps(_Evil())
    (folder / ARRAYS).write_bytes(raw)
    _edit(lambda document: document.update(arrays_sha256=hashlib.sha256(raw).hexdigest()))(folder)


def _loop(arrays: dict[str, np.ndarray]) -> None:  # type: ignore[type-arg]
    children = arrays["outcomes/children"].copy()
    inside = np.flatnonzero(children[::2] != np.arange(len(children) // 2))
    children[2 * inside[-1]] = 0
    arrays["outcomes/children"] = children


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_tamper, "is not the one that"),
        (_pickle, "is not the one that"),
        (_evil, "is no safetensors file"),
        (lambda folder: (folder / ARRAYS).unlink(), "No such file"),
        (lambda folder: (folder / DOCUMENT).write_bytes(b"\xff{"), "is no JSON"),
        (lambda folder: (folder / DOCUMENT).write_text("[]"), "has the schema None"),
        (_edit(lambda document: document.update(schema="loradock-router/3")), "this version reads"),
        (_edit(lambda document: document.pop("parts")), "lacks its parts"),
        (_edit(lambda document: document["parts"].update(outcomes=7)), "without kind or settings"),
        (_edit(lambda document: document["parts"]["outcomes"].update(kind="os.system")), "unknown kind"),
        (_edit(lambda document: document["parts"].update(other=document["parts"]["outcomes"])), "unknown part 'other'"),
        (_edit(lambda document: document["parts"]["outcomes"]["settings"]["vocabulary"].pop()), "another shape"),
        (
            _edit(lambda document: document["parts"]["outcomes"]["settings"]["vocabulary"].pop(0)),
            "unknown words|another",
        ),
        (_edit(lambda document: document["parts"]["outcomes"]["settings"]["vocabulary"].reverse()), "out of order"),
        (_edit(lambda document: document["parts"]["recogniser"]["settings"].update(agents=["one"])), "fewer than two"),
        (
            _edit(lambda document: document["parts"]["recogniser"]["settings"].update(width=float("inf"))),
            "no finite width",
        ),
        (_rewrite(lambda arrays: arrays.update({"recogniser/pair": arrays["recogniser/pair"] - 1})), "that are none"),
        (
            _rewrite(lambda arrays: arrays.update({"recogniser/belief": arrays["recogniser/belief"] + 1})),
            "that are none",
        ),
        (_rewrite(lambda arrays: arrays.pop("outcomes/line")), "lacks the array 'line'"),
        (_rewrite(lambda arrays: arrays.update({"outcomes/line": np.full((2, 2), np.nan)})), "is no number"),
        (_rewrite(_loop), "lead nowhere"),
    ],
)
def test_what_is_no_model_is_refused(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(RouterModelInvalid, match=message) as error:
        RouterModel.load(folder)
    assert "\n" not in str(error.value)


def test_what_cannot_be_saved_makes_no_version() -> None:
    class Foreign:
        def outcomes(self, features: object, text: str) -> TierOutcomes:
            return TierOutcomes(0.5, 0.5)

    with pytest.raises(TypeError, match="Foreign cannot be saved"):
        RouterModel.of(Foreign())
