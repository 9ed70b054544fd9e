"""The gate's report as one page: figures, plots as inline SVG, examples. It needs no other file and no script."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from training.gate import pictures
from training.gate.evaluate import Evaluation, Judged
from training.gate.pictures import BAD, GOOD
from training.gate.report import BASE, CANDIDATE, CHAMPION, ROLES, GateReport
from training.gate.verdict import Guard, points

EXAMPLES = 12
LABELS = 20
SHOWN_CHARS = 400
STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2328; background: #fff; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
.verdict { border-left: 5px solid; padding: .6rem 1rem; margin: 1rem 0; background: #f6f8fa; }
.passed { border-color: #1a7f4b; } .refused { border-color: #c0392b; } .undecided { border-color: #9aa3ad; }
.faint { color: #59636e; font-size: .9rem; }
table { border-collapse: collapse; width: 100%; } th, td { padding: .35rem .6rem; text-align: left;
  border-bottom: 1px solid #d8dee4; vertical-align: top; } th { font-weight: 600; } td.n, th.n { text-align: right;
  font-variant-numeric: tabular-nums; }
td.text { max-width: 24rem; overflow-wrap: break-word; white-space: pre-wrap; }
svg { max-width: 100%; height: auto; } code { font-size: .9em; overflow-wrap: anywhere; }
"""


def render(report: GateReport) -> str:
    """The page as HTML."""
    parts = [_head(report)]
    if report.evaluations:
        parts += [_scores(report), _bootstrap(report), _guards(report), _labels(report), _examples(report)]
    title = f"Gate: {escape(report.models[CANDIDATE])}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head>\n<body>{''.join(parts)}</body></html>\n"
    )


def _head(report: GateReport) -> str:
    kind = "passed" if report.passed else "refused" if report.outcome.judged else "undecided"
    title = {"passed": "Passed", "refused": "Refused", "undecided": "Not judged"}[kind]
    reasons = "".join(f"<div>{escape(reason)}</div>" for reason in report.outcome.reasons)
    names = ", ".join(f"{role} <code>{escape(model)}</code>" for role, model in report.models.items())
    about = f"{report.at:%Y-%m-%d %H:%M} UTC, {report.seconds:.0f} s, dataset <code>{escape(report.dataset)}</code>"
    return (
        f'<h1>Gate report</h1><div class="faint">{names}<br>{about}</div>'
        f'<div class="verdict {kind}"><strong>{title}</strong>{reasons}</div>'
    )


def _scores(report: GateReport) -> str:
    columns: tuple[tuple[str, str, str], ...] = (
        ("task score", "task", ".1%"),
        ("exact match", "exact_match", ".1%"),
        ("F1", "f1", ".3f"),
        ("macro F1", "macro_f1", ".3f"),
        ("perplexity", "perplexity", ",.2f"),
        ("valid format", "format_ok", ".1%"),
        ("refused rows", "errors", "d"),
    )
    rows = [
        [role, *(_figure(getattr(report.evaluations[role].scores, name), how) for _, name, how in columns)]
        for role in ROLES
        if role in report.evaluations
    ]
    table = _table(["", *(title for title, _, _ in columns)], rows, numbers=range(1, len(columns) + 1))
    count = len(report.rows)
    drawn = pictures.svg(pictures.draw_scores, report.evaluations, 6.4, 2.2)
    return f"<h2>Scores on {count} held-out rows</h2>{table}{drawn}"


def _bootstrap(report: GateReport) -> str:
    bootstrap = report.outcome.bootstrap
    if bootstrap is None:
        return ""
    reference = CHAMPION if CHAMPION in report.evaluations else BASE
    said = (
        f"Mean difference in task score to the {reference}: <strong>{points(bootstrap.mean)}</strong>; "
        f"the one-sided lower bound of {points(bootstrap.lower)} has to be above zero."
    )
    return (
        f"<h2>Gain over the {reference}</h2><p>{said}</p>{pictures.svg(pictures.draw_bootstrap, bootstrap, 6.4, 2.4)}"
    )


def _guards(report: GateReport) -> str:
    def row(guard: Guard) -> list[str]:
        shown = [f"{guard.reference:.1%}", f"{guard.candidate:.1%}", points(guard.delta), points(-guard.allowed_loss)]
        return [escape(guard.name), guard.measure, str(guard.rows), *shown, _mark(guard.ok)]

    rows = [row(guard) for guard in report.outcome.guards]
    table = _table(
        ["set", "measure", "rows", "before", "candidate", "change", "allowed", ""], rows, numbers=range(2, 7)
    )
    template = ""
    if report.template is not None:
        alike = "render alike" if report.template.identical else f"differ: {escape(str(report.template.difference))}"
        template = (
            f"<p>Served and trained templates {alike} ({report.template.samples} rows, "
            f"<code>{report.template.sha256[:12]}</code>) {_mark(report.template.identical)}</p>"
        )
    return f"<h2>What must not be lost</h2>{table}{template}" if rows or template else ""


def _labels(report: GateReport) -> str:
    if report.evaluations[CANDIDATE].scores.macro_f1 is None:
        return ""
    reference = report.evaluations.get(CHAMPION, report.evaluations[BASE])
    changes = _label_changes(report, report.evaluations[CANDIDATE], reference)
    shown = sorted(changes, key=lambda each: -abs(each[1]))[:LABELS]
    shown.sort(key=lambda each: each[1])
    title = f"Right answers by label, against {escape(reference.model)}"
    note = (
        f'<p class="faint">The {LABELS} labels that changed most, of {len(changes)}.</p>'
        if len(changes) > LABELS
        else ""
    )
    return f"<h2>{title}</h2>{note}{pictures.svg(pictures.draw_labels, shown, 6.4, 0.6 + 0.24 * len(shown))}"


def _label_changes(report: GateReport, candidate: Evaluation, reference: Evaluation) -> list[tuple[str, int, int]]:
    """Label, right answers gained, rows."""
    gained: Counter[str] = Counter()
    rows = Counter(row.target for row in report.rows)
    for row, one, other in zip(report.rows, candidate.judged, reference.judged, strict=True):
        gained[row.target] += int(one.exact) - int(other.exact)
    return [(label, gained[label], count) for label, count in rows.items()]


def _examples(report: GateReport) -> str:
    reference = report.evaluations.get(CHAMPION, report.evaluations[BASE])
    pairs = list(zip(report.rows, report.evaluations[CANDIDATE].judged, reference.judged, strict=True))
    won = sorted((each for each in pairs if each[1].score > each[2].score), key=_by_gain, reverse=True)
    lost = sorted((each for each in pairs if each[1].score < each[2].score), key=_by_gain)
    head = ["question", "right answer", "candidate", "before"]

    def shown(rows: Sequence[tuple[Any, Judged, Judged]]) -> str:
        cells = [
            [_cut(row.question), _cut(row.target), _said(one), _said(other)] for row, one, other in rows[:EXAMPLES]
        ]
        return _table(head, cells, texts=range(4)) if cells else "<p>None.</p>"

    return (
        f"<h2>Won: {len(won)} of {len(pairs)} rows</h2>{shown(won[:EXAMPLES])}"
        f"<h2>Lost: {len(lost)} of {len(pairs)} rows</h2>{shown(lost[:EXAMPLES])}"
    )


def _by_gain(pair: tuple[Any, Judged, Judged]) -> float:
    return pair[1].score - pair[2].score


def _said(judged: Judged) -> str:
    return _cut(judged.said or judged.error or "(nothing)")


def _cut(text: str) -> str:
    return escape(text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…")


def _figure(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)


def _mark(ok: bool) -> str:
    return f'<strong style="color:{GOOD if ok else BAD}">{"✓" if ok else "✗"}</strong>'


def _table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Iterable[int] = (), texts: Iterable[int] = ()
) -> str:
    kinds = {**dict.fromkeys(numbers, ' class="n"'), **dict.fromkeys(texts, ' class="text"')}
    top = "".join(
        f"<th{kinds.get(index, '') if index not in texts else ''}>{cell}</th>" for index, cell in enumerate(head)
    )
    body = "".join(
        "<tr>" + "".join(f"<td{kinds.get(index, '')}>{cell}</td>" for index, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
