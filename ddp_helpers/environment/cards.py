"""The network cards of this machine, and which of them leads to another one."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence

DISCARD_PORT = 9  # nothing is sent there; connect() of UDP wants some port
UNKNOWN = "an unknown card"


def cards() -> dict[str, list[str]]:
    """The IPv4 addresses of each card, by its name."""
    import psutil

    return {
        name: [entry.address for entry in entries if entry.family == socket.AF_INET]
        for name, entries in psutil.net_if_addrs().items()
    }


def own_address(address: str) -> str:
    """This machine's address on the way there; nothing is sent to find out."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, DISCARD_PORT))
        return probe.getsockname()[0]


def card_of(own: str, cards: Mapping[str, Sequence[str]]) -> str:
    """The name of the card with this address; `cards` holds the addresses of each."""
    return next((name for name, addresses in cards.items() if own in addresses), UNKNOWN)


def variables_for(card: str) -> dict[str, str]:
    """What makes gloo and NCCL take this card; NCCL would take eth1 for the beginning of names."""
    return {"GLOO_SOCKET_IFNAME": card, "NCCL_SOCKET_IFNAME": f"={card}"}
