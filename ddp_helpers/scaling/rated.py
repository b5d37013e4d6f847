"""Links as their makers rate them, and what is assumed of a machine that nobody measured.

NVLink has as many GB/s in each direction as half of what a data sheet says: 160, 300, 600, 900 and
1800 GB/s for its generations 1 to 5 (P100, V100, A100, H100 and H200, B200). InfiniBand and
Ethernet are rated in each direction. Of either an all-reduce is taken to reach 80 %; how well that
holds, `others.py` shows on published tables.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ddp_helpers.scaling.records import Link, Machine

REACHED = 0.8  # of a rated bandwidth
NOISE, MODEL_ERROR, OVERLAP_ERROR = 0.01, 0.1, 1.0  # of a machine that nobody measured
NOISE_SOURCE = (
    "stragglers: a rank's compute time scatters by 1 % (in the README of torch's DDP benchmark "
    "steps at the 95th percentile are 0 to 2 % longer than the median, once 5 %)"
)


def rated(name: str, latency: float, bandwidth: float) -> Link:
    """A link of so many bytes a second in each direction, by its maker."""
    return Link(name, latency, REACHED * bandwidth, 0.5, 0.3, source="rated")


LINKS = {
    "nvlink1": rated("NVLink 1", 1e-5, 80e9),
    "nvlink2": rated("NVLink 2", 1e-5, 150e9),
    "nvlink3": rated("NVLink 3", 1e-5, 300e9),
    "nvlink4": rated("NVLink 4", 1e-5, 450e9),
    "nvlink5": rated("NVLink 5", 1e-5, 900e9),
    "pcie3": rated("PCIe 3.0 x16", 2e-5, 16e9),
    "pcie4": rated("PCIe 4.0 x16", 2e-5, 32e9),
    "pcie5": rated("PCIe 5.0 x16", 2e-5, 64e9),
    "infiniband": rated("InfiniBand HDR, 200 Gbit/s", 2e-5, 25e9),
    "infiniband-ndr": rated("InfiniBand NDR, 400 Gbit/s", 2e-5, 50e9),
    "ethernet100": rated("Ethernet, 100 Gbit/s", 4e-5, 12.5e9),
    "ethernet25": rated("Ethernet, 25 Gbit/s", 5e-5, 3.125e9),
    "ethernet10": rated("Ethernet, 10 Gbit/s", 6e-5, 1.25e9),
    "ethernet1": rated("Ethernet, 1 Gbit/s", 1e-4, 0.125e9),
}
LINKS |= {"nvlink": LINKS["nvlink4"], "pcie": LINKS["pcie4"]}
CARD_EACH = ("infiniband", "infiniband-ndr")
"""Servers with these have a card for each GPU, as NVIDIA's DGX A100 and H100 have: 8 of them."""


def with_cards(link: Link, cards: int) -> Link:
    """A server's network of several equal cards: NCCL uses all of them at once."""
    if cards == 1:
        return link
    name = f"{cards} x {link.name}"
    return dataclasses.replace(link, name=name, bandwidth=cards * link.bandwidth)


def described(
    name: str, link: Link, network: Link | None = None, ranks_per_node: int | None = None
) -> Machine:
    """A machine of rated links, with what is assumed where nobody measured."""
    return Machine(
        name,
        link,
        network,
        ranks_per_node=ranks_per_node,
        noise=NOISE,
        model_error=MODEL_ERROR,
        overlap_error=OVERLAP_ERROR,
    )


@dataclass(frozen=True)
class Sends:
    """What a library sends, and when."""

    words: str
    cap_mb: float | None = None
    dtype: str = "float32"
    overlap: bool = True
    cycle: float = 0.0
    """Seconds that a step waits for the library to look for finished gradients."""


LIBRARIES = {
    "ddp": Sends("DDP's default buckets of 25 MiB, 32 bits"),
    "apex": Sends("apex: buckets of 10 million values, 32 bits (AMP level O1)", 38.1),
    "horovod": Sends("Horovod: fusions of 128 MiB, 32 bits, a cycle of 1 ms", 128, cycle=1e-3),
}
