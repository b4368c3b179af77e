"""The rules of URLs of images: which hosts, ports and addresses a call may make the server connect to."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

PORTS = {"http": 80, "https": 443}
MAX_URL_CHARACTERS = 8192
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
# IPv6 addresses that hold an IPv4 address, to which a translator on the way connects.
_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")


class UrlRefused(Exception):
    """The URL is not allowed. There is no text, because the reason would tell of the network behind the server."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a URL leads. `host` is as the URL has it, in lower case; `path` has the query too."""

    scheme: str
    host: str
    path: str

    @property
    def port(self) -> int:
        return PORTS[self.scheme]

    @property
    def url(self) -> str:
        """The URL without a fragment."""
        return f"{self.scheme}://{f'[{self.host}]' if ':' in self.host else self.host}{self.path}"


def target_of(url: str, domains: Sequence[str]) -> Target:
    """Read a URL. Raises UrlRefused for one that no rule allows.

    `domains` are names of hosts, `*.b.org` for all names below b.org, or `*` for all hosts.
    """
    is_clean = (
        len(url) <= MAX_URL_CHARACTERS and url.isascii() and url.isprintable() and not set(url) & set(' \\"<>^`{|}')
    )
    if not is_clean:
        raise UrlRefused
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme.lower(), (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        raise UrlRefused from None
    if scheme not in PORTS or not host or "%" in host or "@" in parts.netloc:
        raise UrlRefused
    if port not in (None, PORTS[scheme]) or not any(_matches(host, domain) for domain in domains):
        raise UrlRefused
    return Target(scheme, host, (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))


def redirect_of(target: Target, location: str, domains: Sequence[str]) -> Target:
    """Return where a redirect leads. Raises UrlRefused also for one that leaves https."""
    following = target_of(urljoin(target.url, location), domains)
    if target.scheme == "https" and following.scheme != "https":
        raise UrlRefused
    return following


def check_addresses(addresses: Sequence[str]) -> str:
    """Return the address to connect to. Raises UrlRefused unless every address of the host is one of the internet."""
    if not addresses:
        raise UrlRefused
    for address in addresses:
        try:
            found = ipaddress.ip_address(address)
        except ValueError:  # with a scope, which only local addresses have
            raise UrlRefused from None
        if not all(_is_public(one) for one in (found, *_addresses_within(found))):
            raise UrlRefused
    return addresses[0]


def _matches(host: str, domain: str) -> bool:
    domain = domain.lower()
    if domain == "*":
        return True
    return host.endswith(domain[1:]) if domain.startswith("*.") else host == domain


def _is_public(address: Address) -> bool:
    is_reserved = address.is_reserved and address not in _TRANSLATED
    return address.is_global and not (address.is_multicast or is_reserved or address.is_unspecified)


def _addresses_within(address: Address) -> list[Address]:
    """Return the IPv4 addresses to which a packet for an IPv6 address may go in the end."""
    if not isinstance(address, ipaddress.IPv6Address):
        return []
    found: list[Address] = [one for one in (address.ipv4_mapped, address.sixtofour) if one is not None]
    if address.teredo is not None:
        found += address.teredo
    if address in _TRANSLATED:
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return found
