"""Server-sent events: the events do not depend on how the stream is divided."""

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from overnight.wire_formats.sse import (
    DONE,
    KEEP_ALIVE,
    EventTooLarge,
    SseParser,
    encode_event,
)


def parse(raw, cuts=()):
    parser = SseParser()
    edges = [0, *sorted(cut for cut in cuts if cut < len(raw)), len(raw)]
    events = [event for a, b in pairwise(edges) for event in parser.feed(raw[a:b])]
    return events + parser.flush()


STREAMS = {
    "one": (b"data: a\n\n", [b"a"]),
    "two": (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
    "no space": (b"data:a\n\n", [b"a"]),
    "only one space goes": (b"data:  a \n\n", [b" a "]),
    "several lines": (b"data: a\ndata:\ndata: b\n\n", [b"a\n\nb"]),
    "crlf": (b"data: a\r\ndata: b\r\n\r\ndata: c\r\n\r\n", [b"a\nb", b"c"]),
    "cr": (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
    "mixed line ends": (b"data: a\r\n\ndata: b\n\r\ndata: c\r\n\r", [b"a", b"b", b"c"]),
    "lf cr lf": (b"data: a\n\r\ndata: b\r\r\n", [b"a", b"b"]),
    "comments": (b": hi\n\ndata: a\n: there\ndata: b\n\n:\n\n", [b"a\nb"]),
    "other fields": (b"event: delta\nid: 7\nretry: 10\nunknown: x\ndata: a\n\n", [b"a"]),
    "no data, no event": (b"event: ping\n\n\n\ndata: a\n\n", [b"a"]),
    "empty data": (b"data\n\ndata:\n\ndata: \n\n", [b"", b"", b""]),
    "not a data field": (b"database: x\n\ndata : x\n\n data: x\n\ndat", []),
    "byte order mark": (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
    "mark only at the start": (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [b"a"]),
    "half a mark": (b"\xef\xbbdata: a\n\n", []),
    "unfinished": (b"data: a\n\ndata: b", [b"a", b"b"]),
    "unfinished line": (b"data: a\n\ndata: b\n", [b"a", b"b"]),
    "done": (b"data: {}\n\n" + DONE, [b"{}", b"[DONE]"]),
    "nothing": (b"", []),
    "text": ("data: žluťoučký 🐴\n\n".encode(), ["žluťoučký 🐴".encode()]),
}


@pytest.mark.parametrize(("raw", "events"), STREAMS.values(), ids=STREAMS)
def test_streams_parse_equally_for_any_division(raw, events):
    assert parse(raw) == events
    assert parse(raw, range(1, len(raw))) == events
    for cut in range(len(raw)):
        assert parse(raw, [cut]) == events


PIECES = [
    b"data",
    b"data:",
    b"data: ",
    b": ",
    b"event: x",
    b"\r",
    b"\n",
    b"\r\n",
    b"\n\n",
    b" ",
    b"a",
    b"\xef\xbb\xbf",
    b"\x00",
]


@given(st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join), st.lists(st.integers(0, 120), max_size=30))
@example(b"data: a\r\n\r\n", [8, 9, 10])
def test_division_does_not_change_events(raw, cuts):
    assert parse(raw, cuts) == parse(raw)


@given(st.lists(st.binary(max_size=60)), st.sampled_from([None, "message_delta"]), st.lists(st.integers(0, 400)))
def test_encoded_events_round_trip(payloads, name, cuts):
    raw = KEEP_ALIVE.join(encode_event(payload, name) for payload in payloads)
    assert parse(raw, cuts) == [payload.replace(b"\r\n", b"\n").replace(b"\r", b"\n") for payload in payloads]


def test_events_are_returned_as_soon_as_complete():
    parser = SseParser()
    assert parser.feed(b"data: a\n") == []
    assert parser.feed(b"\n") == [b"a"]
    assert parser.feed(b"data: b\r\n\r") == [b"b"]  # the LF that may follow is not waited for
    assert parser.feed(b"\ndata: c\n\n") == [b"c"]


@pytest.mark.parametrize(
    "chunks",
    [
        [b"data: " + b"x" * 200],
        [b"x" * 40] * 5,
        [b"data: 0123456789\n"] * 12,
        [b"data\n"] * 101,
        [b"data: " + b"x" * 101 + b"\n\n"],
    ],
    ids=["one chunk", "line without end", "event without end", "empty lines without end", "whole event"],
)
def test_buffered_bytes_are_bounded(chunks):
    parser = SseParser(max_event_bytes=100)
    with pytest.raises(EventTooLarge, match="100 bytes"):
        [parser.feed(chunk) for chunk in chunks]


def test_a_long_stream_of_small_events_is_not_too_large():
    parser = SseParser(max_event_bytes=100)
    raw = b"data: 01234567890123456789\r\n\r\n: keep-alive\n\n: more\n"
    events = [event for _ in range(500) for chunk in (raw[:20], raw[20:]) for event in parser.feed(chunk)]
    assert events == [b"01234567890123456789"] * 500


def test_endless_comments_in_pieces_are_not_an_event():
    parser = SseParser(max_event_bytes=100)
    assert [event for _ in range(500) for chunk in (b": 012345", b"6789\n") for event in parser.feed(chunk)] == []


def test_an_event_name_of_two_lines_is_refused():
    assert encode_event(b"{}", "ping") == b"event: ping\ndata: {}\n\n"
    for name in ("a\nb", "a\r", "a\r\ndata: x"):
        with pytest.raises(ValueError, match="one line"):
            encode_event(b"{}", name)
