from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.agents import AgentPreset, Recognition, load_presets
from router.agents import KeywordRecogniser, resolve_agent

RECOGNISER = KeywordRecogniser(load_presets())


@pytest.mark.parametrize(
    ("agent", "text"),
    [
        ("legal", "Is this non-compete enforceable?"),
        ("legal", "The Licensee shall not assign this Agreement without the prior written consent of the Licensor."),
        ("legal", "Draft an NDA with a limitation of liability."),
        ("security", "A heap buffer overflow in the parser allows remote attackers to execute arbitrary code."),
        ("security", "Classify this finding: SQL injection in /login via the user parameter."),
        ("security", "XSS in comment field"),
        ("support", "Where is my order? It has not arrived."),
        ("support", "I was charged twice, can I get a refund?"),
        ("support", "How do I reset my password?"),
        ("qa", "Write test cases for the checkout, and steps to reproduce the flaky test."),
        ("analyst", "Write a SQL query for month over month churn rate by segment."),
        ("deploy", "The Kubernetes pods fail their readiness probe after the rolling update."),
        ("spec", "Write user stories with acceptance criteria for the export feature."),
        ("marketing", "Ad copy and a tagline for our product launch."),
    ],
)
def test_each_agents_tasks_are_recognised(agent, text):
    recognised, confidence = RECOGNISER.recognise(text)
    assert recognised == agent
    assert 0.5 <= confidence < 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hi",
        "What is the capital of France?",
        "Write a poem about the sea.",
        "Which planet has the most moons?\nA. Mars\nB. Saturn\nC. Venus\nD. Earth\nAnswer:",
        "Translate 'good morning' into Japanese.",
        "How long does light take to reach the Earth?",
        "The statue was a gift from France. It stands in a harbour, and many people visit it.",
        "{}[]();<>",
        "مرحبا كيف حالك",
    ],
)
def test_what_belongs_to_no_agent_is_out_of_scope(text):
    recognised, confidence = RECOGNISER.recognise(text)
    assert recognised is None
    assert confidence < 0.5


def test_case_hyphens_and_a_plural_do_not_matter():
    for text in ("SQL-INJECTIONS", "sql injection", "Sql  Injection"):
        assert RECOGNISER.recognise(text)[0] == "security"


def test_one_strong_term_is_not_enough_in_a_long_text():
    assert RECOGNISER.recognise("phishing " + "lorem " * 10)[0] == "security"
    assert RECOGNISER.recognise("phishing " + "lorem " * 200)[0] is None
    assert RECOGNISER.recognise("phishing " * 200)[0] is None


def test_a_tie_is_out_of_scope():
    shared = Recognition(strong=("widget",))
    presets = {name: AgentPreset(name=name, description="d", recognise=shared) for name in ("one", "two")}
    assert KeywordRecogniser(presets).recognise("a widget") == (None, 0.0)


def test_without_presets_everything_is_out_of_scope():
    assert KeywordRecogniser({}).recognise("sql injection") == (None, 0.0)


@given(text=st.text())
def test_any_text_is_answered_the_same_way_twice(text):
    agent, confidence = RECOGNISER.recognise(text)
    assert 0 <= confidence < 1
    assert RECOGNISER.recognise(text) == (agent, confidence)


@pytest.mark.parametrize(
    ("name", "known", "found"),
    [
        ("legal", {"legal", "legal-agent"}, "legal"),
        ("legal-agent", {"legal", "legal-agent"}, "legal-agent"),
        ("legal", {"legal-agent"}, "legal-agent"),
        ("legal-agent", {"legal"}, "legal"),
        ("legal", {"legal-agent-agent"}, None),
        ("-agent", {"x"}, None),
        ("", {"-agents"}, None),
    ],
)
def test_an_agents_name_goes_with_and_without_its_suffix(name, known, found):
    assert resolve_agent(name, known) == found
