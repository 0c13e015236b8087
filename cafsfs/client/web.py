"""Ask a web server, and say in our errors what comes of it.

httpx does the HTTP (connections, proxies, TLS, parsing); here are the deadlines, the redirects, and
the care that none of its generators is left suspended: Trio would find them unfinalised.
"""

from __future__ import annotations

import re
import ssl
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TypeVar

import httpx
import trio

from cafsfs.client.servers import Deadlines
from cafsfs.errors import (
    ConnectionBroken,
    ConnectTimedOut,
    RemoteProtocolError,
    ServerRefused,
    TimedOut,
    Unavailable,
    Unreachable,
    UsageError,
)
from cafsfs.transport import Pace

_E = TypeVar("_E", bound=BaseException)

_REDIRECTS = 5  # of one request; a mirror in front of a CDN needs one or two
_KEPT = 30.0  # seconds that an idle connection is kept
_LONGEST_REST = 60.0  # seconds; a server that asks for more is asked again all the same
_SHORT_REST = 1.0  # seconds that are waited for on the spot

_BUSY = {429, 503}
_PASSING = {408, 425, 429}  # 4xx that may be otherwise the next time

_REACH = "is the mirror's URL right? does a firewall, or a proxy of the environment, refuse it?"
_PROXIES = "HTTP_PROXY, HTTPS_PROXY and ALL_PROXY name http or https URLs, not socks5"
_TRUST = "have its authority in the system's trust store, or in the file that SSL_CERT_FILE names"


class RequestRefused(ServerRefused):
    """The server says that it will not: ``status`` is 4xx, or 501."""

    def __init__(self, message: str, *, status: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class Answer:
    """The answer to one request: what its head says, and a body to be read. To be closed."""

    def __init__(self, response: httpx.Response, name: str) -> None:
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self._response = response
        self._name = name
        self._pieces = aiter(response.aiter_raw())

    @property
    def length(self) -> int | None:
        """Bytes of the body; None where only its end tells."""
        told = self.headers.get("content-length", "")
        if "transfer-encoding" in self.headers or not _NUMBER.fullmatch(told):
            return None
        return int(told)

    async def read(self, pace: Pace) -> bytes:
        """The next piece of the body, b"" at its end; raises TimedOut, ConnectionBroken."""
        began = trio.current_time()
        piece = b""
        try:
            with _our_errors(self._name), trio.fail_after(pace.patience):
                while not piece:
                    piece = await anext(self._pieces)
        except StopAsyncIteration:
            return b""
        except trio.TooSlowError:
            raise TimedOut(f"{self._name} sent {pace}") from None
        finally:
            pace.waited(trio.current_time() - began)
        pace.moved(len(piece))
        return piece

    async def close(self) -> None:
        """Let go of the connection: it is kept if all of the body has come.

        In a cancelled scope the generators read what is in memory, and end where they would wait.
        """
        with trio.CancelScope() as scope:
            scope.cancel()
            with suppress(StopAsyncIteration, httpx.HTTPError):  # nobody wants to know any more
                while True:
                    await anext(self._pieces)
        await self._response.aclose()


class WebServer:
    """A web server as it is asked for what is below one URL.

    ``name`` is what errors show. ``credentials``, a user and a password, go to no other host. A
    server that answers Retry-After is left alone for that time, a minute at most: requests fail
    at once meanwhile. ``transport`` replaces the network.

    Certificates are verified against the system's trust store (or that of SSL_CERT_FILE), and
    proxies are those of the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY). Raises
    UsageError for a proxy that is none.
    """

    def __init__(
        self,
        name: str,
        *,
        connections: int,
        deadlines: Deadlines,
        credentials: tuple[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.name = name
        self._deadlines = deadlines
        self._rest_until = 0.0
        # What is compressed on its way has another length, and is of no use to be resumed.
        headers = {"User-Agent": "cafsfs", "Accept": "*/*", "Accept-Encoding": "identity"}
        if credentials is not None:
            # As a header and not by httpx, which would send them wherever a redirect leads.
            basic = b64encode(":".join(credentials).encode()).decode()
            headers["Authorization"] = f"Basic {basic}"
        try:
            self._client = httpx.AsyncClient(
                headers=headers,
                # None is kept: they would add up, and one that is not ASCII fails all requests.
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
                verify=True if transport else ssl.create_default_context(),
                transport=transport,
                timeout=httpx.Timeout(None, connect=deadlines.connect),  # all others are ours
                limits=httpx.Limits(
                    max_connections=connections,
                    max_keepalive_connections=connections,
                    keepalive_expiry=_KEPT,
                ),
            )
        except (ValueError, ImportError, httpx.InvalidURL) as error:
            # Not with what it says: the URL of a proxy may hold a password.
            raise UsageError(
                "the environment names a proxy that cannot be used", hint=_PROXIES
            ) from error

    async def aclose(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def ask(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, within: float
    ) -> Answer:
        """The head of the answer, when it is there; the caller closes it.

        ``within`` so many seconds, after those that connecting may take. Raises Unavailable where
        the server is not there, or says that it has a moment of weakness (5xx, 429), RequestRefused
        where it says that it will not (4xx), ServerRefused for an answer in an encoding,
        RemoteProtocolError for what is no answer. 404, 410 and 416 are answers.
        """
        for last in (False, True):
            await self._rest()
            answer = await self._ask(method, url, headers or {}, within)
            if answer.status not in _BUSY:
                break
            pause = retry_after(answer.headers)
            self._rest_until = trio.current_time() + min(pause, _LONGEST_REST)
            if last or not 0 < pause <= _SHORT_REST:
                break
            await answer.close()
        try:
            self._judge(answer)
        except BaseException:
            await answer.close()
            raise
        return answer

    async def _rest(self) -> None:
        left = self._rest_until - trio.current_time()
        if left > _SHORT_REST:
            raise Unavailable(f"{self.name} asks to be left alone for another {left:.0f} s")
        await trio.sleep(max(0.0, left))

    async def _ask(
        self, method: str, url: str, headers: Mapping[str, str], within: float
    ) -> Answer:
        try:
            with _our_errors(self.name), trio.fail_after(self._deadlines.connect + within):
                return await self._follow(self._client.build_request(method, url, headers=headers))
        except trio.TooSlowError:
            raise TimedOut(f"no answer from {self.name} within {within:g} s") from None

    async def _follow(self, request: httpx.Request) -> Answer:
        """The answer at the end of all redirects."""
        for _ in range(1 + _REDIRECTS):
            response = await self._client.send(request, stream=True)
            answer = Answer(response, self.name)
            following = response.next_request
            if following is None:
                return answer
            await answer.close()
            if request.url.scheme == "https" and following.url.scheme != "https":
                raise ServerRefused(
                    f"{self.name} redirects from https to {following.url.scheme}",
                    hint="what is asked for by https is not had without: name where it leads to",
                )
            request = following
        raise RemoteProtocolError(f"{self.name} redirects more than {_REDIRECTS} times")

    def _judge(self, answer: Answer) -> None:
        status = answer.status
        if status in {404, 410, 416}:
            return
        if status in {200, 206}:
            self._check_encoding(answer)
            return
        said = f"{self.name} answers {status}"
        if phrase := answer.headers.get("retry-after"):
            said += f", to be asked again after {phrase[:40]}"
        if status in _PASSING or (status >= 500 and status != 501):
            raise Unavailable(said)
        if status in {401, 403, 407}:
            raise RequestRefused(
                said,
                status=status,
                hint="may everybody read there? a user and password go into the URL"
                " (https://user:password@host/…); S3 says 403 for what is absent, too,"
                " to who may not list the bucket",
            )
        if status >= 400:
            raise RequestRefused(said, status=status)
        raise RemoteProtocolError(said)

    def _check_encoding(self, answer: Answer) -> None:
        encoding = answer.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in {"", "identity"}:
            raise ServerRefused(
                f"{self.name} sends blobs in Content-Encoding `{encoding[:40]}`, unasked",
                hint="switch that off for them: `gzip off` in nginx, `SetEnv no-gzip` in Apache",
            )


@contextmanager
def _our_errors(name: str) -> Iterator[None]:
    """Translate what httpx raises."""
    try:
        yield
    except httpx.ConnectTimeout as error:
        raise ConnectTimedOut(f"no connection to {name} in time", hint=_REACH) from error
    except (httpx.ConnectError, httpx.ProxyError) as error:
        distrusted = _find(error, ssl.SSLCertVerificationError) is not None
        raise Unreachable(
            f"cannot connect to {name}: {_reason(error)}", hint=_TRUST if distrusted else _REACH
        ) from error
    except httpx.TimeoutException as error:
        raise TimedOut(f"{name} was too slow") from error
    except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
        # The latter for a body that ends too soon, too; httpx does not tell them apart.
        raise ConnectionBroken(f"connection to {name} broke: {_reason(error)}") from error
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        # The last for what a server says and is said again: hosts of redirects, ETags.
        raise RemoteProtocolError(f"{name}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """What is behind an error, in one line."""
    if (distrust := _find(error, ssl.SSLCertVerificationError)) is not None:
        return f"its certificate is not trusted: {distrust.verify_message}"
    if (broken := _find(error, OSError)) is not None and broken.strerror:
        return broken.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _find(error: BaseException | None, kind: type[_E]) -> _E | None:
    """The first of its causes that is of a kind."""
    while error is not None and not isinstance(error, kind):
        if isinstance(error, BaseExceptionGroup):
            return next((found for e in error.exceptions if (found := _find(e, kind))), None)
        error = error.__cause__ or error.__context__
    return error


# --- what heads say

_NUMBER = re.compile(r"[0-9]{1,18}")
_SPAN = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")
_NO_SPAN = re.compile(r"bytes \*/([0-9]{1,18})")


@dataclass(frozen=True, slots=True)
class Span:
    """The bytes from ``start`` up to ``end`` of ``total``, which is None where nobody tells."""

    start: int
    end: int
    total: int | None

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Span | None:
        """What a 206 says that it brings; None where that is nothing, or no sense."""
        found = _SPAN.fullmatch(headers.get("content-range", "").strip())
        if found is None:
            return None
        start, end = int(found[1]), int(found[2]) + 1
        total = None if found[3] == "*" else int(found[3])
        if end <= start or (total is not None and total < end):
            return None
        return cls(start, end, total)


def length_refused(headers: Mapping[str, str]) -> int | None:
    """The length of what a 416 had no such range of; None where it does not tell."""
    found = _NO_SPAN.fullmatch(headers.get("content-range", "").strip())
    return None if found is None else int(found[1])


@dataclass(frozen=True, slots=True)
class Version:
    """What tells one state of a resource from another, for sure (RFC 9110, 8.8 and 13.1.5).

    ``text`` is an ETag that is not weak, or a time of modification that lies a second or more
    before the answer: within one second there may be two states.
    """

    text: str

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Version | None:
        """The state that an answer is of; None if it does not tell for sure."""
        tag = headers.get("etag", "")
        if tag.startswith('"') and len(tag) > 2:
            return cls(tag)
        modified = headers.get("last-modified", "")
        changed, sent = _moment(modified), _moment(headers.get("date", ""))
        if changed is None or sent is None or (sent - changed).total_seconds() < 1:
            return None
        return cls(modified)


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds after which a server wants to be asked again; 0 where it does not say."""
    told = headers.get("retry-after", "").strip()
    if _NUMBER.fullmatch(told):
        return float(told)
    moment = _moment(told)
    return 0.0 if moment is None else max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _moment(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, IndexError, OverflowError):
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
