"""The running server, as commands reach it."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import typer

from configs.settings import API_KEY_VARIABLE, Settings, base_url
from serving.cli.errors import ApiError, CliError, Misuse, NoServer
from serving.cli.options import settings_of

if TYPE_CHECKING:
    import httpx

CONNECT_S = 5.0
SLACK_S = 10.0
"""how much longer than the server the client waits, so that the server's own error arrives"""


class Server:
    """One server. Errors: NoServer, ApiError, CliError for what is no loradock."""

    def __init__(self, url: str, key: str | None, timeout_s: float) -> None:
        self.url = url
        self._key = key
        self._timeout_s = timeout_s
        self._client: httpx.Client | None = None

    def get(self, path: str, *, accept: tuple[int, ...] = (), **query: Any) -> Any:
        """The JSON that `path` answers; statuses in `accept` are answers too."""
        return self._request("GET", path, accept=accept, params=query)

    def post(self, path: str, body: Any = None, headers: dict[str, str] | None = None, *, patient: bool = False) -> Any:
        """The JSON answer to `body`; `patient` waits however long it takes."""
        return self._request("POST", path, json=body, headers=headers, patient=patient)

    def delete(self, path: str) -> Any:
        """The JSON answer."""
        return self._request("DELETE", path)

    def text(self, path: str) -> str:
        """The text that `path` answers."""
        with self._told():
            response = self._http().get(path)
        _raise_for_error(response.status_code, response.content, self.url)
        return response.text

    @contextmanager
    def stream(self, path: str, body: Any, headers: dict[str, str]) -> Iterator[httpx.Response]:
        """A response whose body arrives within the context."""
        with self._told(), self._http().stream("POST", path, json=body, headers=headers) as response:
            if response.status_code >= 400:
                _raise_for_error(response.status_code, response.read(), self.url)
            yield response

    def asynchronous(self, connections: int) -> httpx.AsyncClient:
        """A client for many requests at once, with the same address and key."""
        import httpx

        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        return httpx.AsyncClient(**self._arguments(), limits=limits)

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()

    def _http(self) -> httpx.Client:
        import httpx

        if self._client is None:
            self._client = httpx.Client(**self._arguments())
        return self._client

    def _arguments(self) -> dict[str, Any]:
        import httpx

        return {
            "base_url": self.url,
            "timeout": httpx.Timeout(self._timeout_s, connect=CONNECT_S),
            "headers": {"authorization": f"Bearer {self._key}"} if self._key else {},
            # A proxy of the environment cannot reach this machine's own addresses.
            "trust_env": not _is_loopback(urlsplit(self.url).hostname or ""),
        }

    def _request(
        self, method: str, path: str, *, accept: tuple[int, ...] = (), patient: bool = False, **arguments: Any
    ) -> Any:
        if patient:
            arguments["timeout"] = None
        with self._told():
            response = self._http().request(method, path, **arguments)
        if response.status_code not in accept:
            _raise_for_error(response.status_code, response.content, self.url)
        try:
            return response.json()
        except ValueError:
            raise CliError(f"what answers at {self.url} is not loradock: {path} is no JSON") from None

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Errors of the transport as lines for a person."""
        import httpx

        try:
            yield
        except httpx.HTTPError as error:
            raise transport_error(error, self.url) from None


@contextmanager
def server_of(ctx: typer.Context, url: str | None) -> Iterator[Server]:
    """The server at `url`, or where the settings say; its connections are closed at the end."""
    settings = settings_of(ctx).settings
    server = Server(
        address_of(settings, url), os.environ.get(API_KEY_VARIABLE) or None, settings.request_timeout_s + SLACK_S
    )
    try:
        yield server
    finally:
        server.close()


def segment(name: str) -> str:
    """`name` as one segment of a path."""
    if name in {"", ".", ".."}:
        raise Misuse(f"'{name}' is not a name")
    return quote(name, safe="@")


def header(option: str, value: str) -> str:
    """`value` if it can be sent as a header. Raises Misuse."""
    if not value.isascii() or not value.isprintable() or not value.strip():
        raise Misuse(f"{option}: '{value}' must be plain ASCII text")
    return value


def transport_error(error: Exception, url: str) -> CliError:
    """What went wrong between here and the server."""
    import httpx

    if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
        return NoServer(f"no server answers at {url}: start one with 'loradock serve', or name another with --url")
    if isinstance(error, httpx.TimeoutException):
        return CliError(f"the server at {url} did not answer in time")
    return CliError(f"the connection to {url} broke: {error or type(error).__name__}")


def _raise_for_error(status: int, content: bytes, url: str) -> None:
    import json

    if status < 400:
        return
    try:
        error = json.loads(content)["error"]
        raise ApiError(error if isinstance(error, dict) else {"message": str(error)}, status)
    except (ValueError, KeyError, TypeError):
        raise CliError(f"what answers at {url} is not loradock: it answered {status}") from None


def address_of(settings: Settings, url: str | None) -> str:
    """The server at `url`, or where the settings say. Raises Misuse."""
    if url is not None:
        try:
            return base_url(url)
        except ValueError as error:
            raise Misuse(f"--url: {url!r} {error}") from None
    if settings.port == 0:
        raise Misuse("port 0 means whichever is free: name the server with --url")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(settings.host, settings.host)  # noqa: S104
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
