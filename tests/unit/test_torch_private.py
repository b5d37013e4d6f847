"""The names of torch that may go: each is there today, and only one module says them."""

import re
from pathlib import Path

import pytest

from ddp_helpers import torch_private
from ddp_helpers.torch_private import (
    TESTED_FROM,
    TESTED_TO,
    NotInThisTorch,
    PrivateName,
    torch_version,
)

# as far as the tested versions tell
SINCE = {torch_private.SAVED_DATA: (2, 11), torch_private.FLIGHT_RECORD: (2, 8)}
PACKAGE = Path(torch_private.__file__).parent


def names():
    found = []
    for value in vars(torch_private).values():
        found += value if isinstance(value, tuple) else [value]
    return [value for value in found if isinstance(value, PrivateName)]


@pytest.mark.parametrize("name", names(), ids=lambda name: name.path)
def test_torch_has_each_name(name):
    if torch_version() < SINCE.get(name, TESTED_FROM):
        with pytest.raises(NotInThisTorch, match=rf"torch 2\.\d.* has no .*{name.path}"):
            name.get()
    else:
        assert name.get() is not None


@pytest.mark.parametrize("module", ["torch.utils.data.dataloader", "torch.no_such_module"])
def test_a_name_that_is_missing(module):
    name = PrivateName(module, "_Gone._reset", "loaders are not followed")
    with pytest.raises(NotInThisTorch, match=rf"has no {module}\._Gone\._reset: loaders are not"):
        name.get()
    with pytest.raises(NotInThisTorch):
        name.put(1)


def test_put_lets_torch_use_ours(monkeypatch):
    monkeypatch.setattr("torch.distributed.distributed_c10d.default_pg_timeout", 1)
    torch_private.DEFAULT_TIMEOUT.put(2)
    assert torch_private.DEFAULT_TIMEOUT.get() == 2


def test_no_other_module_names_a_private_name():
    private = {name.path.split(".")[0] for name in names()} - {"SavedTensor", "TorchDispatchMode"}
    said = re.compile(
        rf"\b({'|'.join(private)})\b|torch\._[a-zA-Z]|\bdistributed_c10d\._(?!_all__)"
    )
    for path in PACKAGE.rglob("*.py"):
        # a template uses torch alone; what forks ranks must import torch._dynamo before
        if (
            path.name in ("torch_private.py", "preload.py", "light_ranks.py")
            or path.parent.name == "templates"
        ):
            continue
        code = re.sub(r"#.*|\"\"\"(.|\n)*?\"\"\"", "", path.read_text())
        assert not said.search(code), (path.name, said.search(code))


def test_versions():
    assert torch_version("2.13.0+cpu") == (2, 13)
    assert torch_version("2.16.0a0+git1234") == (2, 16)
    assert TESTED_FROM <= torch_version() <= TESTED_TO


def test_the_oldest_version_is_the_one_that_the_package_asks_for():
    text = (PACKAGE.parent / "pyproject.toml").read_text()
    assert '"torch>={}.{}",'.format(*TESTED_FROM) in text
