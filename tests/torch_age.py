"""What tests need to know of the torch that they run with: an old one lacks some names."""

from collections.abc import Iterable

import pytest

from ddp_helpers.evidence.records import Finding
from ddp_helpers.torch_private import NotInThisTorch, PrivateName, torch_version


def has(name: PrivateName) -> bool:
    try:
        name.get()
    except NotInThisTorch:
        return False
    return True


def needs(name: PrivateName) -> pytest.MarkDecorator:
    """Skip where this torch lacks a private name: what it serves is left out there, with a note."""
    return pytest.mark.skipif(not has(name), reason=f"no {name.path}: {name.without}")


def needs_torch(major: int, minor: int, why: str) -> pytest.MarkDecorator:
    """Skip with a torch that is older."""
    return pytest.mark.skipif(
        torch_version() < (major, minor), reason=f"needs torch {major}.{minor}: {why}"
    )


def without_greeting(output: str) -> str:
    """What a rank printed itself; gloo in torch 2.8 has a line of its own at each start."""
    return "".join(
        line for line in output.splitlines(keepends=True) if not line.startswith("[Gloo] Rank")
    )


def of_the_run(findings: Iterable[Finding]) -> list[Finding]:
    """The findings that tell of the watched run, not of a torch that lacks a name."""
    return [finding for finding in findings if finding.kind != "not-in-this-torch"]
