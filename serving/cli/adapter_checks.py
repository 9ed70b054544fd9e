"""`loradock adapters test`: does an adapter answer, through the running endpoint."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from serving.cli.bench import who_answered
from serving.cli.client import Server, segment, server_of
from serving.cli.completions import Answer, chat_body, stream_chat
from serving.cli.errors import CliError
from serving.cli.options import AsJson, Url
from serving.cli.output import Output

FIXED_PROMPT = "Which of your labels fits this text: the customer asks for a refund of a double charge?"

Name = Annotated[str, typer.Argument(metavar="NAME", help="Adapter: NAME or NAME@VERSION.")]


def add_commands(group: typer.Typer) -> None:
    """Add `test` to the group."""
    group.command("test")(test)


def test(
    ctx: typer.Context,
    name: Name,
    *,
    prompt: Annotated[str, typer.Option("--prompt", metavar="TEXT", help="What to ask.")] = FIXED_PROMPT,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer.")] = 32,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Load an adapter and ask it and its base the same. Exit code 1 when the adapter does not answer."""
    out = Output(as_json)
    with server_of(ctx, url) as server:
        with out.working(f"loading {name}"):
            adapter = server.post(f"/v1/adapters/{segment(name)}/load", patient=True)
        exact = f"{adapter['name']}@{adapter['version']}"
        answers = {model: _ask(server, model, prompt, max_tokens) for model in (exact, adapter["base"])}
    by_adapter = answers[exact]
    answered = isinstance(by_adapter, Answer) and who_answered(by_adapter) == exact and bool(by_adapter.text.strip())
    report = {
        "adapter": exact,
        "ok": answered,
        "prompt": prompt,
        "load_ms": adapter["waited_ms"],
        "answers": {
            model: answer.to_dict() if isinstance(answer, Answer) else answer.envelope()
            for model, answer in answers.items()
        },
    }
    out.json(report)
    out.table(("asked", "answered by", "state", ">ms", "answer"), [_answer_row(*pair) for pair in answers.items()])
    out.line(f"{exact} answers" if answered else f"{exact} does not answer", "green" if answered else "red")
    if not answered:
        raise typer.Exit(1)


def _ask(server: Server, model: str, prompt: str, max_tokens: int) -> Answer | CliError:
    body = chat_body(model, [{"role": "user", "content": prompt}], stream=True, max_tokens=max_tokens, temperature=0)
    try:
        return stream_chat(server, body, {}, lambda _piece: None)
    except CliError as error:
        return error


def _answer_row(model: str, answer: Answer | CliError) -> tuple[Any, ...]:
    if isinstance(answer, CliError):
        return model, None, "failed", None, answer.message
    state = answer.routed.get("adapter-state")
    return model, who_answered(answer), state, f"{1e3 * answer.seconds:.0f}", answer.text.strip()
