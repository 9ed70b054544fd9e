"""What the load generator asks: tasks of about 300 characters as a team's agents get them, seeded."""

from __future__ import annotations

import random
from collections.abc import Iterator

TASK_CHARACTERS = 300

_PARTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "support": (
        (
            "A customer on the {plan} plan writes that the invoice of {month} was charged twice to the same card",
            "The customer cannot sign in since {month}: the reset mail for the {plan} account never arrives",
            "After the update in {month} the export of the {plan} workspace stops at {n} rows without a message",
        ),
        (
            "They have already cleared the cache, tried another browser and asked a colleague to repeat the steps.",
            "They ask for a refund of {n} dollars and want to know when it will show on their statement.",
            "Decide which queue this ticket belongs to and how urgent it is, and draft a short, friendly reply.",
        ),
    ),
    "legal": (
        (
            "Clause {n}.2 says that the supplier is liable only up to the fees paid in the {n} months before the claim",
            "The draft agreement of {month} lets either party terminate for convenience with {n} days of notice",
            "The processor may engage sub-processors after informing the controller {n} days in advance",
        ),
        (
            "The governing law is that of the buyer's seat, and no carve-out for gross negligence is written down.",
            "Our playbook for the {plan} tier asks for a mutual cap and for a right to object in writing.",
            "Classify the clause, name the risk for us as the customer, and propose one sentence that mends it.",
        ),
    ),
    "security": (
        (
            "The scanner reports that the login form of the {plan} portal builds its SQL query from the user name",
            "A pull request of {month} adds an endpoint that fetches any URL a user gives and returns the body",
            "Build {n} ships a dependency with a known deserialisation flaw that is reachable from the upload page",
        ),
        (
            "The endpoint is behind the single sign-on but every contractor has an account, about {n} people in all.",
            "There is no sign of exploitation in the access log of the last {n} days, which is all we keep.",
            "Classify the finding, estimate its severity with a reason, and say what to change first.",
        ),
    ),
    "general": (
        (
            "Explain to a new colleague why the tides come about fifty minutes later each day in {month}",
            "Plan a walk of {n} kilometres through an old town that a family on a {plan} budget would enjoy",
            "Summarise how a bill becomes a law, in {n} short sentences that a child could follow",
        ),
        (
            "Use plain words, one idea in each sentence, and no list longer than three points.",
            "Assume that the reader has no more than ten minutes and has never thought about the question before.",
            "Close with one question that shows whether the reader has understood the main point.",
        ),
    ),
}
AGENTS = tuple(topic for topic in _PARTS if topic != "general")


def tasks(seed: int) -> Iterator[tuple[str | None, str]]:
    """Endless `(agent, task)` pairs: topics in turn, the agent None for general questions.

    A task has about `TASK_CHARACTERS` characters and begins with a reference number, so that no two are equal.
    """
    random_ = random.Random(seed)
    topics = tuple(_PARTS)
    number = 0
    while True:
        topic = topics[number % len(topics)]
        openings, rest = _PARTS[topic]
        number += 1
        text = f"Reference {number:08d}. {random_.choice(openings)}. {' '.join(random_.sample(rest, 3))}"
        filled = text.format(
            plan=random_.choice(("starter", "team", "business", "enterprise")),
            month=random_.choice(("January", "March", "June", "September", "November")),
            n=random_.randrange(3, 90),
        )
        yield (None if topic == "general" else topic), _fit(filled)


def _fit(text: str) -> str:
    """`text` cut at the sentence or word that ends nearest under `TASK_CHARACTERS` + 20."""
    limit = TASK_CHARACTERS + 20
    return text if len(text) <= limit else text[:limit].rsplit(" ", 1)[0]
