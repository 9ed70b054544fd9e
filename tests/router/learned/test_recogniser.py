from __future__ import annotations

import pytest

from router.learned import TooFewRows, fit_recogniser
from router.learned.recogniser import FamiliarityRecogniser
from tests.router.learned.tasks import agent_texts, strangers


def test_agents_are_told_apart_and_strangers_refused() -> None:
    recogniser = fit_recogniser(*agent_texts(400))
    texts, agents = agent_texts(200, seed=1)
    said = [recogniser.recognise(text) for text in texts]
    assert sum(agent == own for (agent, _), own in zip(said, agents, strict=True)) >= 190
    assert sum(agent is None for agent, _ in said) <= 10
    assert sum(recogniser.recognise(text)[0] is None for text in strangers(100)) >= 95


def test_the_confidence_is_a_half_at_the_threshold_and_grows_with_familiarity() -> None:
    recogniser = fit_recogniser(*agent_texts(400))
    agent, sure = recogniser.recognise("tell me about the clause liability and party agreement termination please")
    assert agent == "legal"
    assert sure > 0.8
    for text in strangers(20):
        agent, confidence = recogniser.recognise(text)
        assert (agent is None) == (confidence < 0.5)


@pytest.mark.parametrize("text", ["", "  ", "?!", "\ud800", "x" * 5000])
def test_odd_texts_are_out_of_scope(text: str) -> None:
    agent, confidence = fit_recogniser(*agent_texts(100)).recognise(text)
    assert agent is None
    assert 0 <= confidence < 0.5


def test_an_agent_with_few_tasks_is_still_recognised() -> None:
    texts, agents = agent_texts(300)
    kept = [place for place, agent in enumerate(agents) if agent == "support" or place < 60]
    recogniser = FamiliarityRecogniser.fit([texts[place] for place in kept], [agents[place] for place in kept])
    fresh = [text for text, agent in zip(*agent_texts(200, seed=1), strict=True) if agent == "legal"]
    assert sum(recogniser.recognise(text)[0] == "legal" for text in fresh) >= 75


def test_a_recogniser_keeps_the_commonest_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.learned.recogniser.MOST_WORDS", 20)
    monkeypatch.setattr("router.learned.recogniser.MOST_PAIRS", 5)
    part = FamiliarityRecogniser.fit(*agent_texts(200)).part()
    assert (len(part.settings["words"]), len(part.settings["pairs"])) == (20, 5)


def test_tasks_without_a_word_do_not_stop_the_fit() -> None:
    texts, agents = agent_texts(100)
    fit_recogniser(["?"] * 100, agents)
    assert fit_recogniser([*texts, ""], [*agents, "legal"]).recognise("")[0] is None


def test_too_little_to_learn_from() -> None:
    with pytest.raises(TooFewRows, match="10 texts"):
        fit_recogniser(*agent_texts(10))
    with pytest.raises(TooFewRows, match="of one agent"):
        fit_recogniser(["refund my card"] * 60, ["support"] * 60)
