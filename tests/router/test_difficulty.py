from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router import Features, Task
from router.difficulty import RuleDifficulty
from router.features import extract

RULES = RuleDifficulty()
COUNT = st.integers(0, 10**7)
FEATURES = st.builds(
    Features,
    **dict.fromkeys(Features._fields, COUNT) | dict.fromkeys(("long_words", "foreign"), st.floats(0, 1)),
)


def score(text: str, **parts) -> float:
    return RULES.estimate(extract(Task.from_messages(text, **parts)), text)


@given(features=FEATURES)
def test_difficulty_is_within_zero_and_one(features):
    assert 0 <= RULES.estimate(features, "") <= 1


@given(features=FEATURES, name=st.sampled_from(Features._fields), more=st.integers(1, 1000))
def test_no_feature_makes_a_task_easier(features, name, more):
    harder = features._replace(**{name: getattr(features, name) + more})
    assert RULES.estimate(harder, "") >= RULES.estimate(features, "")


def test_every_weight_belongs_to_a_feature():
    assert set(RuleDifficulty.WEIGHTS) <= set(Features._fields)
    assert all(weight > 0 and half > 0 for weight, half in RuleDifficulty.WEIGHTS.values())


def test_tasks_are_ranked_as_people_would():
    ranked = [
        "hi",
        "Why is the sky blue?",
        "Compare TCP with UDP and explain why games must avoid one of them.",
        "Design a rate limiter: compare two algorithms, analyse how each fails, and implement the better in Python. "
        "It must handle at least 100,000 requests/s and return JSON. Explain each step.",
    ]
    scores = [score(text) for text in ranked]
    assert scores == sorted(scores)
    assert scores[0] < 0.15
    assert scores[-1] > 0.4


def test_tools_and_code_make_a_task_harder():
    plain = "Fix this function for me."
    assert score(plain, has_tools=True) > score(plain)
    assert score(plain + "\n```python\ndef f(x):\n    return {1: x};\n```") > score(plain)


def test_features_count_what_they_say():
    features = extract(
        Task.from_messages(
            "1. Why must 3.5 + 2 = x?\n2. Explain it in JSON.\n- ünïcödé\n```\nint a;\n```", has_tools=True
        )
    )
    assert features.tools == 1
    assert features.items == 3
    assert features.questions == 1
    assert features.constraints == 2
    assert features.reasoning == 2
    assert features.maths == 2
    assert features.code == 17
    assert features.numbers == 5
    assert 0 < features.foreign < 0.1


def test_other_languages_are_seen():
    german = extract(Task.from_messages("Erkläre, warum das genau so sein muss."))
    assert (german.reasoning, german.constraints) == (2, 2)
    assert extract(Task.from_messages("为什么\uff1f")).questions == 1
    assert extract(Task.from_messages("为什么\uff1f")).foreign == 1.0


@given(text=st.text())
def test_features_of_any_text_are_non_negative(text):
    assert all(value >= 0 for value in extract(Task.from_messages(text)))
