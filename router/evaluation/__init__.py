"""What the router's estimators are worth, on rows that they have not learned from.

Lifecycle: `read_routes` reads a table, `splits` decides what is held out, `compare` fits every contender on the rest
and scores the held-out rows with the code that serves requests; `summary` is what the command prints, `write_report`
adds pictures and the cost-quality curve. `judge_recogniser` does the same for agents.
"""

from router.evaluation.agents import AgentFigures, judge_recogniser
from router.evaluation.comparison import Comparison, Figures, compare
from router.evaluation.contenders import contenders
from router.evaluation.files import OUT_OF_SCOPE, UnreadableTable, read_agents, read_routes
from router.evaluation.folds import Split, draw, splits
from router.evaluation.report import summary, write_report

__all__ = [
    "OUT_OF_SCOPE",
    "AgentFigures",
    "Comparison",
    "Figures",
    "Split",
    "UnreadableTable",
    "compare",
    "contenders",
    "draw",
    "judge_recogniser",
    "read_agents",
    "read_routes",
    "splits",
    "summary",
    "write_report",
]
