"""Posts answers to callback URLs, over HTTP and HTTPS, to addresses that the policy permits."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpcore

from infless_provider.callback_policy import Address, CallbackPolicy, Target
from infless_provider.upstream import Header
from infless_provider.version import VERSION

TIMEOUT_S = 30.0
"""From the look-up of the name to the answer's head."""
_CONNECT_TIMEOUT_S = 10.0
_ANSWER_READ_BYTES = 4096
"""A short answer is read, so that its connection can serve the next callback; nobody looks at it."""
_RESOLVERS = 8
"""Threads that wait for name servers: their own, so that a dead name server holds up nothing else."""


class Forbidden(Exception):  # noqa: N818 - a sentence names the fault, not the class
    """A name means no address that the policy permits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What became of one POST."""

    status: int
    """Of the target's answer; 0 when there was none."""
    headers: Sequence[Header] = ()
    """Of that answer, names in lower case."""
    fault: str = ""
    """Why there was no answer: a sentence without the URL's path, which may hold a secret."""
    forbidden: bool = False
    """The policy refuses the target; trying again would not help."""


class CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Looks names up and connects to a permitted address: the one that was judged is the one that is connected to.

    A check of the name before the connection would leave a gap, in which the name's owner changes what it means (DNS
    rebinding). TLS still verifies the name, as httpcore hands that to the handshake.
    """

    def __init__(self, policy: CallbackPolicy) -> None:
        self._policy = policy
        self._inner = httpcore.AnyIOBackend()
        self._resolvers = ThreadPoolExecutor(_RESOLVERS, thread_name_prefix="callback-dns")

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first permitted address that takes the connection.

        Raises:
            Forbidden: no address is permitted.
            httpcore.ConnectError: the name means nothing, or no permitted address takes the connection.
        """
        addresses = await self._addresses(host, port)
        permitted = [address for address in addresses if self._policy.permits(host, address)]
        if not permitted:
            raise Forbidden(f"{host} is not a public address: an operator must allow it")
        each_s = (timeout or _CONNECT_TIMEOUT_S) / len(permitted)
        failure: Exception | None = None
        for address in permitted:
            try:
                return await self._inner.connect_tcp(str(address), port, each_s, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise httpcore.ConnectError(f"no address of {host} takes a connection: {failure!r}")

    async def _addresses(self, host: str, port: int) -> list[Address]:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(
                self._resolvers, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            )
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"the name {host} means no address: {error}") from error
        return list(dict.fromkeys(ipaddress.ip_address(str(entry[4][0])) for entry in found))

    def close(self) -> None:
        """Let look-ups that hang end by themselves."""
        self._resolvers.shutdown(wait=False, cancel_futures=True)


class Callbacks:
    """A client for callbacks. Redirects are not followed, proxies of the environment not used, cookies not kept.

    Args:
        policy: where it may connect to.
        connections_max: to all targets together.
        timeout_s: for one POST in all; a target that never answers holds a connection no longer than this.
        tls: whom it trusts; the system's authorities by default.
    """

    def __init__(
        self,
        policy: CallbackPolicy,
        *,
        connections_max: int,
        timeout_s: float = TIMEOUT_S,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._policy = policy
        self._timeout_s = timeout_s
        self._connections_max = connections_max
        self._tls = tls
        self._network = CheckedNetwork(policy)
        self._pool: httpcore.AsyncConnectionPool | None = None

    def check(self, url: str) -> Target:
        """The target of a callback URL.

        Raises:
            InvalidInput: says what is wrong with it.
        """
        return self._policy.check(url)

    async def post(self, target: Target, headers: Sequence[Header], body: bytes) -> Delivery:
        """Send one callback.

        Args:
            target: as `check` gave it.
            headers: end-to-end ones, names in lower case.
            body: whole.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._post(target, headers, body)
        except TimeoutError:
            return Delivery(status=0, fault=f"{target.origin} did not answer within {self._timeout_s:g} s")
        except Forbidden as error:
            return Delivery(status=0, fault=str(error), forbidden=True)
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, ssl.SSLError) as error:
            return Delivery(status=0, fault=f"{target.origin} gave no answer: {error!r}")

    async def _post(self, target: Target, headers: Sequence[Header], body: bytes) -> Delivery:
        url = httpcore.URL(
            scheme=target.scheme.encode(), host=target.host.encode(), port=target.port, target=target.path.encode()
        )
        default = 443 if target.scheme == "https" else 80
        host = target.origin.removesuffix(f":{default}")
        sent = [(b"host", host.encode()), *headers, (b"content-length", str(len(body)).encode())]
        if all(name != b"user-agent" for name, _ in headers):
            sent.append((b"user-agent", f"infless/{VERSION}".encode()))
        request = httpcore.Request(
            "POST", url, headers=sent, content=body, extensions={"timeout": {"connect": _CONNECT_TIMEOUT_S}}
        )
        response = await self._connections().handle_async_request(request)
        try:
            heard = [(name.lower(), value) for name, value in response.headers]
            delivery = Delivery(status=response.status, headers=heard)
            await self._skim(response)
        finally:
            await response.aclose()
        return delivery

    async def _skim(self, response: httpcore.Response) -> None:
        """Read the end of a short answer. The status has been heard: nothing that happens here changes it."""
        read_bytes = 0
        try:
            async with asyncio.timeout(1.0):
                async for piece in response.aiter_stream():
                    read_bytes += len(piece)
                    if read_bytes > _ANSWER_READ_BYTES:
                        break
        except (TimeoutError, httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException):
            return

    def _connections(self) -> httpcore.AsyncConnectionPool:
        """Made for the first callback: reading the system's authorities takes a while, and many never have one."""
        if self._pool is None:
            self._pool = httpcore.AsyncConnectionPool(
                ssl_context=self._tls or ssl.create_default_context(),
                max_connections=self._connections_max,
                keepalive_expiry=5.0,
                network_backend=self._network,
            )
        return self._pool

    async def close(self) -> None:
        """Close what is open."""
        if self._pool is not None:
            await self._pool.aclose()
        self._network.close()
