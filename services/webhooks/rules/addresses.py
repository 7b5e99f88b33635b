"""Whose address a request comes from, when proxies stand in between."""

import ipaddress
from collections.abc import Sequence

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# More proxies stand in no row; what is further left was written by whoever wanted it there.
_HOPS_MAX = 32
_LONGEST = 64


def networks(text: str) -> tuple[Network, ...]:
    """Comma-separated addresses and networks; ValueError says what is wrong with one of them."""
    found = []
    for number, word in enumerate((word.strip() for word in text.split(",") if word.strip()), start=1):
        try:
            network = ipaddress.ip_network(word, strict=False)
        except ValueError:
            raise ValueError(
                f"entry {number} is neither an address nor a network such as 10.0.0.0/8"
            ) from None
        if network.prefixlen == 0:
            raise ValueError(f"entry {number} trusts everybody; name the proxies' own networks")
        found.append(network)
    return tuple(found)


def parse(text: str) -> Address | None:
    """An address with or without port, brackets and zone; IPv4 mapped into IPv6 is IPv4."""
    text = text.strip()
    if not text or len(text) > _LONGEST:
        return None
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def sender(peer: str | None, forwarded: Sequence[bytes], trusted: Sequence[Network]) -> Address | None:
    """The connection's peer; if that is a trusted proxy, the last one in X-Forwarded-For who is not.

    `forwarded` is every such header in order. Each proxy adds on the right whom it heard, so everything to the left of
    the first untrusted address is hearsay. Where a trusted proxy heard no address, it is the last one known.
    """
    known = parse(peer or "")
    if known is None or not _is_trusted(known, trusted):
        return known
    hops = b",".join(forwarded).decode("latin-1").rsplit(",", _HOPS_MAX)[-_HOPS_MAX:]
    for hop in reversed(hops):
        if not hop.strip():
            continue
        before = parse(hop)
        if before is None:
            return known
        known = before
        if not _is_trusted(known, trusted):
            return known
    return known


def bucket(address: Address | None) -> str:
    """What counts as one sender: an IPv4 address, or the /64 that one IPv6 customer is given."""
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return "unknown" if address is None else str(address)


def _is_trusted(address: Address, trusted: Sequence[Network]) -> bool:
    return any(address.version == network.version and address in network for network in trusted)
