"""Which callback URLs are allowed: who queues a call must not make the provider knock on doors inside its network."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from infless_core.errors import InvalidInput

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_URL = re.compile(r"[!-~]{1,2048}")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9.])?")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""RFC 6052: the last 32 bits are the IPv4 address that a translator goes to."""
_CLOSED = tuple(
    ipaddress.ip_network(text)
    # Not told apart by every Python's `is_global`: shared address space (RFC 6598), 6to4 relays (RFC 7526), local NAT64
    # prefixes (RFC 8215), site-local (RFC 3879), and IPv4-translated and -compatible addresses.
    for text in ("100.64.0.0/10", "192.88.99.0/24", "64:ff9b:1::/48", "fec0::/10", "::/96", "::ffff:0:0:0/96")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a callback goes."""

    scheme: str
    host: str
    """In lower case, an IPv6 address without its brackets."""
    port: int
    path: str
    """With the query, as it was given."""

    @property
    def origin(self) -> str:
        """`host:port`: what may stand in a log, unlike the path, which may hold a secret."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackPolicy:
    """Public addresses, and what the operator allows beside them."""

    hosts: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()
    everything: bool = False

    @classmethod
    def parse(cls, allowed: tuple[str, ...]) -> CallbackPolicy:
        """From a setting: host names, addresses and CIDR networks; `*` allows everything.

        Raises:
            InvalidInput: names the entry that is none of these.
        """
        hosts, networks = set(), []
        for text in allowed:
            try:
                networks.append(ipaddress.ip_network(text))
            except ValueError as fault:
                if "/" in text or ":" in text or not (text == "*" or _HOST.fullmatch(text)) or _literal(text):
                    raise InvalidInput(
                        f"{text!r} in the allowed callback targets is no host name, address or network such as"
                        f" 'callbacks.internal' or '10.1.0.0/16' ({fault})"
                    ) from None
                hosts.add(_normal(text))
        return cls(hosts=frozenset(hosts - {"*"}), networks=tuple(networks), everything="*" in hosts)

    def permits(self, host: str, address: Address) -> bool:
        """Whether a connection to `address`, which `host` means at this moment, may be made."""
        if self.everything or _normal(host) in self.hosts:
            return True
        plain = _unmapped(address)
        if any(plain in network or address in network for network in self.networks):
            return True
        return all(_public(one) for one in _meant(plain))

    def check(self, url: str) -> Target:
        """The target of a callback URL; an address in it is judged here, a name when it is connected to.

        Raises:
            InvalidInput: says what is wrong with the URL, and what is allowed.
        """
        target = parse_url(url)
        address = _literal(target.host)
        if address is not None and not self.permits(target.host, address):
            raise InvalidInput(
                f"X-Callback-Url names the address {address}, which is not a public one: use a public address, or ask"
                f" the operator to allow it"
            )
        return target


def parse_url(url: str) -> Target:
    """The parts of a callback URL.

    Raises:
        InvalidInput: says what is wrong with it.
    """
    if not _URL.fullmatch(url):
        raise InvalidInput("X-Callback-Url must be 1 to 2048 printable ASCII characters without spaces")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as fault:
        raise InvalidInput(f"X-Callback-Url is not a URL: {fault}") from None
    if parts.scheme not in ("http", "https"):
        raise InvalidInput(f"X-Callback-Url has the scheme {parts.scheme!r}; it must begin with http:// or https://")
    if "@" in parts.netloc:
        raise InvalidInput("X-Callback-Url must not carry a user or a password")
    if "\\" in parts.netloc or not (_HOST.fullmatch(host) or _literal(host)):
        raise InvalidInput("X-Callback-Url names no valid host, such as in https://example.com/result")
    if port == 0:
        raise InvalidInput("X-Callback-Url names port 0; ports are 1 to 65535")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(
        scheme=parts.scheme, host=host, port=port or (443 if parts.scheme == "https" else 80), path=path
    )  # fmt: skip


def _normal(host: str) -> str:
    return host.lower().rstrip(".")


def _literal(host: str) -> Address | None:
    """The address that a host is without a look-up, also in the C library's old forms (`127.1`, `0x7f000001`)."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except OSError:
        return None


def _unmapped(address: Address) -> Address:
    """`::ffff:a.b.c.d` is another spelling of `a.b.c.d`."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _meant(address: Address) -> Iterator[Address]:
    """The address, and the IPv4 ones in it that a relay or translator would go to."""
    yield address
    if isinstance(address, ipaddress.IPv6Address):
        if address.sixtofour is not None:
            yield address.sixtofour
        if address.teredo is not None:
            yield from address.teredo
        if address in _NAT64:
            yield ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)


def _public(address: Address) -> bool:
    if address.is_multicast or address.is_unspecified or any(address in network for network in _CLOSED):
        return False
    # NAT64's own prefix is public where its IPv4 address is, which is judged beside it.
    return address.is_global or address in _NAT64
