"""Going on where a body broke off, for any content, any breaks and any server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from cafsfs.client import download as downloading
from cafsfs.client.download import Download
from cafsfs.client.servers import Deadlines
from cafsfs.client.web import Answer, Span, Version, WebServer, length_refused, retry_after
from cafsfs.errors import ConnectionBroken

WORTH = 10  # bytes, in place of a mebibyte


class Broken(httpx.AsyncByteStream):
    """Pieces of a body, and then its end or none."""

    def __init__(self, pieces: list[bytes], *, whole: bool) -> None:
        self._pieces = pieces
        self._whole = whole

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Steps(iter(self._pieces), whole=self._whole)


class _Steps:
    def __init__(self, pieces: Iterator[bytes], *, whole: bool) -> None:
        self._pieces = pieces
        self._whole = whole

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        for piece in self._pieces:
            return piece
        if self._whole:
            raise StopAsyncIteration
        raise httpx.ReadError("it broke")


class Flaky:
    """A server of some versions of one file, whose connections end after so many bytes each.

    ``honest``: it minds If-Range. Else it answers with whatever range was asked for, of whatever
    version there is. ``labels``: it tells which version that is.
    """

    def __init__(
        self,
        versions: list[bytes],
        lasts: list[int],
        step: int,
        *,
        honest: bool = True,
        labels: bool = True,
    ) -> None:
        self._versions = versions
        self._lasts = iter(lasts)
        self._step = step
        self._honest = honest
        self._labels = labels
        self._asked = 0
        self.ranges: list[tuple[int, int]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        number = min(self._asked, len(self._versions) - 1)
        self._asked += 1
        content = self._versions[number]
        tag = f'"{self._versions.index(content)}"' if self._labels else '"0"'
        start, status = 0, 200
        headers = {"ETag": tag}
        wanted = request.headers.get("range")
        if wanted and (not self._honest or request.headers["if-range"] == tag):
            start, status = int(wanted.removeprefix("bytes=").removesuffix("-")), 206
            if start >= len(content):
                # With a stream: a Response without one has read its body already, which none has
                # that came over a connection.
                return httpx.Response(416, stream=Broken([], whole=True))
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        last = next(self._lasts, len(content))
        body = content[start : start + last]
        self.ranges.append((start, start + len(body)))
        headers["Content-Length"] = str(len(content) - start)
        pieces = [body[at : at + self._step] for at in range(0, len(body), self._step)]
        stream = Broken(pieces, whole=start + last >= len(content))
        return httpx.Response(status, headers=headers, stream=stream)


def downloaded(server: Flaky) -> tuple[bytes, list[str]]:
    """What comes, and the lies that were noticed; raises as Download."""
    lies: list[str] = []

    async def main() -> bytes:
        web = WebServer(
            "web",
            connections=4,
            deadlines=Deadlines(),
            transport=httpx.MockTransport(server),
        )

        async def ask(headers: object) -> Answer:
            assert isinstance(headers, dict)
            return await web.ask("GET", "http://web/", headers=headers, within=5)

        download = Download(await ask({}), ask, Deadlines(), on_lie=lies.append)
        come = b""
        try:
            while piece := await download.read():
                come += piece
        finally:
            await download.close()
            await web.aclose()
        return come

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(downloading, "_WORTH", WORTH)
        return trio.run(main, clock=MockClock(autojump_threshold=0)), lies


contents = st.binary(min_size=1, max_size=200)
lasts = st.lists(st.integers(0, 100), max_size=8)
steps = st.integers(1, 50)


@given(contents, lasts, steps)
@settings(max_examples=100, deadline=None)
def test_what_comes_is_the_content_or_an_error(content: bytes, ends: list[int], step: int) -> None:
    server = Flaky([content], ends, step)
    try:
        come, lies = downloaded(server)
    except ConnectionBroken:
        first = server.ranges[0][1]
        # Too early to be worth it, or three times in a row without much progress.
        assert first < WORTH or len(server.ranges) > 3
        return
    assert come == content
    assert lies == []
    # Each byte came once, but for the 16 at each seam.
    for (_, end), (start, _) in zip(server.ranges, server.ranges[1:], strict=False):
        assert start <= end
    for before in range(1, len(server.ranges)):
        seam = max(end for _, end in server.ranges[:before])
        assert server.ranges[before][0] == max(0, seam - 16)


@given(st.lists(contents, min_size=2, max_size=3, unique=True), lasts, steps, st.booleans())
@example(versions=[bytes(18), b"-"], ends=[17], step=1, honest=False)
@settings(max_examples=100, deadline=None)
def test_versions_that_are_told_are_never_spliced(
    versions: list[bytes], ends: list[int], step: int, honest: bool
) -> None:
    try:
        come, lies = downloaded(Flaky(versions, ends, step, honest=honest))
    except ConnectionBroken:
        return
    assert come == versions[0]
    assert lies == []


@given(contents, contents, st.integers(WORTH, 200), steps)
@example(first=bytes(18), second=b"-", last=17, step=1)  # the rest begins behind the second's end
@settings(max_examples=100, deadline=None)
def test_a_splice_that_nothing_tells_joins_at_least_where_it_was_made(
    first: bytes, second: bytes, last: int, step: int
) -> None:
    """Of a server that says the same ETag for everything; then the hash tells."""
    server = Flaky([first, second], [last], step, honest=False, labels=False)
    try:
        come, lies = downloaded(server)
    except ConnectionBroken:
        return
    assert lies == []
    assert len(come) == len(first)
    if come != first:
        assert len(first) == len(second)
        seam = min(last, len(first))
        assert come == first[:seam] + second[seam:]
        assert first[max(0, seam - 16) : seam] == second[max(0, seam - 16) : seam]


# --- what heads say


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("bytes 0-15/100", Span(0, 16, 100)),
        (" bytes 0-0/1 ", Span(0, 1, 1)),
        ("bytes 5-9/*", Span(5, 10, None)),
        ("bytes 5-4/100", None),
        ("bytes 0-100/100", None),
        ("bytes */100", None),
        ("bytes 0-/100", None),
        ("items 0-15/100", None),
        ("bytes 0-15/100, bytes 0-15/100", None),
        ("bytes 0-٣/100", None),
        ("", None),
    ],
)
def test_what_a_range_is_of(text: str, span: Span | None) -> None:
    assert Span.of({"content-range": text}) == span


@given(st.integers(0, 10**12), st.integers(1, 10**12), st.integers(0, 10**12))
def test_a_range_is_read_as_it_was_written(start: int, length: int, rest: int) -> None:
    end = start + length
    text = f"bytes {start}-{end - 1}/{end + rest}"
    assert Span.of({"content-range": text}) == Span(start, end, end + rest)


@given(st.text() | st.text("bytes 0123456789-/*"))
def test_no_text_of_a_head_is_an_error(text: str) -> None:
    span = Span.of({"content-range": text})
    assert span is None or 0 <= span.start < span.end
    assert (length_refused({"content-range": text}) or 0) >= 0
    assert retry_after({"retry-after": text}) >= 0
    Version.of({"etag": text, "last-modified": text, "date": text})


@pytest.mark.parametrize(
    ("headers", "version"),
    [
        ({"etag": '"a"'}, Version('"a"')),
        ({"etag": 'W/"a"'}, None),
        ({"etag": "a"}, None),
        ({"etag": '""'}, None),
        (
            {
                "last-modified": "Sat, 01 Jan 2000 00:00:00 GMT",
                "date": "Sat, 01 Jan 2000 00:00:01 GMT",
            },
            Version("Sat, 01 Jan 2000 00:00:00 GMT"),
        ),
        (
            {
                "last-modified": "Sat, 01 Jan 2000 00:00:00 GMT",
                "date": "Sat, 01 Jan 2000 00:00:00 GMT",
            },
            None,
        ),
        ({"last-modified": "Sat, 01 Jan 2000 00:00:00 GMT"}, None),
        ({}, None),
    ],
)
def test_what_tells_one_version_from_another(
    headers: dict[str, str], version: Version | None
) -> None:
    assert Version.of(headers) == version
