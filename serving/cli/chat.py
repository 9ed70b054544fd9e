"""`loradock chat`: talk to the endpoint, and see which adapter answers."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.text import Text

from serving.cli.client import Server, header, server_of
from serving.cli.completions import Answer, chat_body, stream_chat
from serving.cli.errors import ApiError, Misuse
from serving.cli.options import Agent, AsJson, Url
from serving.cli.output import FAINT, Output, safe

HELP = "/reset forgets the conversation, /exit or Ctrl-D ends it"


def chat(
    ctx: typer.Context,
    message: Annotated[str | None, typer.Argument(metavar="[MESSAGE]", help="Ask this, and end.")] = None,
    *,
    model: Annotated[
        str, typer.Option("--model", metavar="MODEL", help="auto, an agent, an adapter, or a base.")
    ] = "auto",
    agent: Agent = None,
    session: Annotated[str | None, typer.Option("--session", metavar="ID", help="Session to go on with.")] = None,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="System prompt.")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="Longest answer.")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", min=0, max=2, help="0 is greedy.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Chat with the endpoint, or ask MESSAGE once.

    Without MESSAGE, text piped to standard input is asked once. Below each answer stands which adapter gave it, why,
    and how fast; in a pipe, standard output gets only the answer.
    """
    out = Output(as_json)
    if message is None and not sys.stdin.isatty():
        message = sys.stdin.read()
    if message is not None and not message.strip():
        raise Misuse("there is nothing to ask: MESSAGE is empty")
    if message is None and as_json:
        raise Misuse("--json needs MESSAGE, or text on standard input")
    sampling = {"max_tokens": max_tokens, "temperature": temperature}
    with server_of(ctx, url) as server:
        talk = Conversation(server, out, model=model, agent=agent, session=session, system=system, sampling=sampling)
        if message is None:
            talk.go_on()
        else:
            out.json(talk.ask(message).to_dict() | {"session": talk.session})


class Conversation:
    """Messages so far, in one session."""

    def __init__(
        self,
        server: Server,
        out: Output,
        *,
        model: str,
        agent: str | None,
        session: str | None,
        system: str | None,
        sampling: dict[str, float | None],
    ) -> None:
        import uuid

        self.session = header("--session", session) if session else uuid.uuid4().hex
        self._server = server
        self._out = out
        self._model = model
        self._sampling = sampling
        self._headers = {"x-session-id": self.session}
        if agent:
            self._headers["x-agent"] = header("--agent", agent)
        self._opening = [{"role": "system", "content": system}] if system else []
        self._messages = list(self._opening)

    def ask(self, message: str) -> Answer:
        """Send `message`, print the answer as it comes, and remember both."""
        messages = [*self._messages, {"role": "user", "content": message}]
        body = chat_body(self._model, messages, stream=True, **self._sampling)
        answer = stream_chat(self._server, body, self._headers, self._print)
        self._out.console.print()
        self._out.aside.print(Text(safe(describe(answer)), style=FAINT))
        self._messages = [*messages, {"role": "assistant", "content": answer.text}]
        return answer

    def go_on(self) -> None:
        """Ask for messages until the person ends it. An error of the server ends one answer, not the conversation."""
        import readline  # noqa: F401 - gives `input` its line editing

        self._out.line(f"{self._server.url}, model {self._model}; {HELP}", FAINT)
        while True:
            try:
                message = self._out.console.input("[bold cyan]>[/] ").strip()
            except EOFError:
                self._out.console.print()
                return
            if message in {"/exit", "/quit"}:
                return
            if message == "/reset":
                self._messages = list(self._opening)
            elif message.startswith("/"):
                self._out.line(HELP, FAINT)
            elif message:
                try:
                    self.ask(message)
                except ApiError as error:
                    self._out.line(error.message, "red")

    def _print(self, piece: str) -> None:
        self._out.console.print(Text(safe(piece)), end="", soft_wrap=True)
        self._out.console.file.flush()


def describe(answer: Answer) -> str:
    """Who answered, why and how fast, on one line."""
    routed = answer.routed
    adapter, agent = routed.get("adapter", "none"), routed.get("agent", "none")
    parts = [
        adapter if adapter != "none" else routed.get("model", "unknown"),
        routed.get("reason", ""),
        routed.get("adapter-state", "") if adapter != "none" else "",
        f"agent {agent}" if agent not in {"none", adapter.partition("@")[0]} else "",
        f"difficulty {routed['difficulty']}" if "difficulty" in routed else "",
        f"first token {1e3 * answer.ttft_s:.0f} ms" if answer.ttft_s is not None else "",
        f"{answer.tokens} tokens" if answer.tokens else "",
        f"{answer.tokens_per_s:.0f} tokens/s" if answer.tokens_per_s else "",
        "cut at the length limit" if answer.finish_reason == "length" else "",
    ]
    return " · ".join(part for part in parts if part)
