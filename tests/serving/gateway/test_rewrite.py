import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import EngineUnavailable
from serving.gateway.rewrite import ModelRewriter, StreamRewriter, Usage, read_usage

ENGINE = "support-agent@0123456789ab"


def event(text: str) -> bytes:
    delta = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": ENGINE, "choices": [delta]}
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


USAGE = (
    b'data: {"id":"chatcmpl-1","model":"support-agent@0123456789ab","choices":[],'
    b'"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}\n\n'
)
DONE = b"data: [DONE]\n\n"
STREAM = event("one ") + event('say "model":"support-agent@0123456789ab" ') + event("drei\u00fc") + USAGE + DONE


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@given(st.lists(st.integers(min_value=0), max_size=20))
def test_however_the_network_cuts_it_the_stream_comes_out_the_same(cuts: list[int]) -> None:
    rewriter = StreamRewriter("support-agent", "base", drop_usage=True)
    out = b"".join(rewriter.feed(piece) for piece in pieces(STREAM, cuts)) + rewriter.finish()
    chunks = [json.loads(line[6:]) for line in out.decode().split("\n\n") if line and "[DONE]" not in line]
    assert [chunk["model"] for chunk in chunks] == ["support-agent"] * 3
    assert chunks[1]["choices"][0]["delta"]["content"] == 'say "model":"support-agent@0123456789ab" '
    assert out.endswith(DONE)
    assert rewriter.usage == Usage(7, 3)
    assert rewriter.done


def test_usage_reaches_those_who_asked() -> None:
    rewriter = StreamRewriter("support-agent", "base", drop_usage=False)
    assert b'"total_tokens":10' in rewriter.feed(STREAM)
    assert rewriter.usage == Usage(7, 3)


def test_usage_beside_choices_is_never_dropped() -> None:
    rewriter = StreamRewriter("a", "base", drop_usage=True)
    both = b'data: {"model":"m","choices":[{"index":0}],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n'
    assert b'"choices"' in rewriter.feed(both)
    assert rewriter.usage == Usage(1, 2)


def test_an_event_without_an_end_is_not_gathered_for_ever() -> None:
    rewriter = StreamRewriter("a", "m", drop_usage=True)
    with pytest.raises(EngineUnavailable, match="without ending an event"):
        for _ in range(20):
            rewriter.feed(b"x" * (1 << 20))


def test_whole_events_are_not_held_back() -> None:
    rewriter = StreamRewriter("a", "base", drop_usage=True)
    assert rewriter.feed(event("now"))
    assert rewriter.feed(event("now")[:-1]) == b""
    assert rewriter.feed(b"\n")


def test_events_of_the_responses_api_are_followed() -> None:
    rewriter = StreamRewriter("a", "base", drop_usage=True)
    done = (
        b'event: response.completed\ndata: {"type":"response.completed","response":{"model":"base",'
        b'"usage":{"input_tokens":4,"output_tokens":2}}}\n\n'
    )
    out = rewriter.feed(done)
    assert b'"model":"a"' in out
    assert rewriter.usage == Usage(4, 2)


def test_a_public_name_is_escaped_as_json() -> None:
    out = ModelRewriter('odd"name', "base").rewrite(b'{"id":1,"model": "base","choices":[]}')
    assert json.loads(out)["model"] == 'odd"name'


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        (b'{"usage":{"prompt_tokens":3,"completion_tokens":4}}', Usage(3, 4)),
        (b'{"usage":{"input_tokens":3,"output_tokens":4}}', Usage(3, 4)),
        (b'{"usage":null}', None),
        (b"{}", None),
        (b"[1]", None),
        (b"not json", None),
    ],
)
def test_usage_of_whole_answers(body: bytes, usage: Usage | None) -> None:
    assert read_usage(body) == usage


@pytest.mark.parametrize("odd", [b'{"prompt_tokens":null}', b'"many"', b'{"completion_tokens":1.5}'])
def test_a_usage_that_cannot_be_read_passes_and_does_not_break_the_stream(odd: bytes) -> None:
    rewriter = StreamRewriter("a", "base", drop_usage=True)
    assert rewriter.feed(b'data: {"model":"base","choices":[],"usage":' + odd + b"}\n\n")
    assert rewriter.usage is None


@pytest.mark.parametrize("end", [b"data: [DONE]", b"data: [DONE]\n", b"data:[DONE]\n\n", b"data: [DONE]\r\n\r\n"])
def test_the_last_event_is_known_however_the_upstream_writes_it(end: bytes) -> None:
    rewriter = StreamRewriter("a", "base", drop_usage=True)
    assert rewriter.feed(event("x") + end) + rewriter.finish() == event("x").replace(ENGINE.encode(), b"a") + end
    assert rewriter.done


def test_a_text_about_the_last_event_is_not_it() -> None:
    rewriter = StreamRewriter("a", "base", drop_usage=True)
    rewriter.feed(event("data: [DONE]"))
    assert not rewriter.done
