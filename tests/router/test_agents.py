from __future__ import annotations

import csv
import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.agents import AgentPreset, Recognition, load_presets
from configs.embedded import GENERAL_SET, holdout
from router.agents import KeywordRecogniser, RecogniserBeside, resolve_agent

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
        "Can you help me with my homework?",
        "How do I install numpy?",
        "How do I bake bread without yeast?",
        "Write a function that takes a parameter and returns its square.",
        "Write a bash script that counts files in a directory.",
        "Which HTML tag runs JavaScript in the browser?",
        "How do I run a shell command from Python?",
        "Write a Python program that reads user input and prints it in upper case.",
        "How do I deserialize JSON in C#?",
        "What does memcpy do?",
        "The population of the town declined in 1990. Why?",
        "Do you support vegetarian diets?",
        "The hero opened the box and found a broken sword. Continue the story.",
        "My program crashes with a stack trace, what does this error message mean?",
        "How many bytes does an array of ten integers take?",
        "What is the difference between stack and heap memory?",
        "A bank pays 5 percent interest a year on 1000 dollars. What is the balance after two years?",
        "The price of a jacket is 80 dollars and there is a discount of 25 percent. What is the new price?",
        "What is the order of a group in algebra?",
        "What was the Treaty of Versailles?",
        "What is the law of large numbers?",
        "Which party won the election in 1932?",
        "Two parties share a profit of 100 dollars in the ratio 3 to 2. How much does each get?",
        "What is a refund?",
        "Explain what a vulnerability is.",
        "What is a clause?",
    ],
)
def test_what_belongs_to_no_agent_is_out_of_scope(text):
    recognised, confidence = RECOGNISER.recognise(text)
    assert recognised is None
    assert confidence < 0.5


@pytest.mark.parametrize(("agent", "least"), [("legal", 0.95), ("security", 0.82), ("support", 0.94)])
def test_the_demo_agents_held_out_tasks_are_recognised(agent, least):
    with holdout(agent).open(encoding="utf-8", newline="") as file:
        found = Counter(RECOGNISER.recognise(row["text"])[0] for row in csv.DictReader(file))
    wrong = found.total() - found[agent] - found[None]
    assert found[agent] / found.total() >= least
    assert wrong / found.total() < 0.01


def test_the_general_set_is_out_of_scope():
    questions = [json.loads(line)["question"] for line in GENERAL_SET.read_text(encoding="utf-8").splitlines()]
    recognised = [question for question in questions if RECOGNISER.recognise(question)[0]]
    assert len(recognised) <= 0.02 * len(questions), recognised


def test_code_is_recognised_by_its_words():
    for text in (
        "os.system('ping ' + name)",
        "obj = pickle.loads(data)",
        "hashlib.md5(password)",
        "strcpy(name, input);",
        "../../etc/passwd is returned",
    ):
        assert RECOGNISER.recognise(text)[0] == "security", text


def test_a_term_inside_a_longer_one_of_its_agent_does_not_count_again():
    preset = AgentPreset(name="one", description="d", recognise=Recognition(weak=("red", "red wine", "wine", "glass")))
    recognise = KeywordRecogniser({"one": preset}).recognise
    assert recognise("red wine")[0] is None
    assert recognise("red glass")[0] == "one"
    assert recognise("red wine or wine")[0] == "one"


def test_a_term_inside_a_longer_one_of_another_agent_counts():
    presets = {
        "one": AgentPreset(name="one", description="d", recognise=Recognition(strong=("red wine",))),
        "two": AgentPreset(name="two", description="d", recognise=Recognition(strong=("wine",))),
    }
    assert KeywordRecogniser(presets).recognise("red wine") == (None, 0.0)


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


class Learned:
    """Knows one agent, by one word."""

    agents = ("legal-agent",)

    def recognise(self, text: str) -> tuple[str | None, float]:
        return ("legal-agent", 0.9) if "zebra" in text else (None, 0.2)


def test_keywords_stand_in_for_agents_that_a_learned_recogniser_has_never_seen() -> None:
    both = RecogniserBeside(Learned(), RECOGNISER)
    assert both.recognise("a zebra") == ("legal-agent", 0.9)
    assert both.recognise("Is CVE-2024-1 a vulnerability with a known exploit?")[0] == "security"
    assert both.recognise("Does the indemnification clause survive termination of this Agreement?") == (None, 0.2)
    assert "legal" not in both.agents
    assert {"legal-agent", "security"} <= set(both.agents)
