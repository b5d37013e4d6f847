"""Facts read from made-up files and tables, and from the machine the tests run on."""

import socket
from collections import namedtuple

import pytest

from ddp_helpers.environment import facts as machine
from ddp_helpers.environment.nvidia import gpu_links


@pytest.mark.parametrize(
    ("matrix", "links"),
    [
        ("\tGPU0\tGPU1\nGPU0\t X \tNV18\t0-1\nGPU1\tNV18\t X \t0-1\n", "NVLink"),
        ("GPU0\tGPU1\tCPU Affinity\nGPU0\tX\tPHB\t0-1\nGPU1\tPHB\tX\t0-1\n", "PCIe"),
        ("\t\x1b[4mGPU0\tGPU1\n\x1b[0mGPU0\t X \tPIX\nGPU1\tPIX\t X \n", "PCIe switch"),
        ("\tGPU0\tCPU Affinity\nGPU0\t X \t0-7\n", ""),
        ("no topology here", ""),
        ("", ""),
    ],
)
def test_links(matrix, links):
    assert gpu_links(matrix) == links


def test_real_interfaces_have_loopback_first():
    assert "IPv4" in machine.interfaces()["lo"]
    assert next(iter(machine.interfaces())) == "lo"


def test_interfaces_that_are_down_or_only_link_local_do_not_count(monkeypatch):
    import psutil

    Address, Stats = namedtuple("Address", "family address"), namedtuple("Stats", "isup")
    ipv4, ipv6 = socket.AF_INET, socket.AF_INET6
    addresses = {
        "eth1": [Address(ipv6, "fe80::1%eth1"), Address(ipv6, "2001:db8::1"), Address(17, "0:0")],
        "veth": [Address(ipv6, "fe80::2%veth")],
        "docker0": [Address(ipv4, "172.17.0.1")],
        "lo": [Address(ipv4, "127.0.0.1"), Address(ipv6, "::1")],
    }
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: addresses)
    up = {name: Stats(name != "docker0") for name in addresses}
    monkeypatch.setattr(psutil, "net_if_stats", lambda: up)
    assert list(machine.interfaces().items()) == [("lo", "IPv4 IPv6"), ("eth1", "IPv6")]
