"""What a launch reads of IPython, with a shell that a test made."""

import linecache
import sys
import types

import pytest

from ddp_helpers.ranks.notebook import ipython_shell, is_kernel, notebook_cells


class Compile:
    def format_code_name(self, name):
        return ("Cell", "In[4]") if name == "/tmp/cell.py" else None


class Shell:
    compile = Compile()


class KernelShell(Shell):
    kernel = None


@pytest.fixture
def inside(monkeypatch):
    def put(shell):
        monkeypatch.setitem(
            sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell)
        )
        return shell

    return put


def test_outside_of_ipython(monkeypatch, inside):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert ipython_shell() is None
    assert not is_kernel()
    assert notebook_cells() == ({}, {})
    assert "IPython" not in sys.modules
    inside(None)  # loaded, but not running
    assert ipython_shell() is None
    assert not is_kernel()


def test_in_ipython_and_in_a_kernel(inside):
    shell = inside(Shell())
    assert ipython_shell() is shell
    assert not is_kernel()
    inside(KernelShell())
    assert is_kernel()


def test_the_cells_and_what_they_are_called(inside, monkeypatch):
    inside(Shell())
    lines = ["a = 1\n", "b = 2"]
    cache = {
        "/lazy.py": (lambda: "text",),
        "/other.py": (1, None, ["x"], "/other.py"),
        "/tmp/cell.py": (11, None, lines, "/tmp/cell.py"),
    }
    monkeypatch.setattr(linecache, "cache", cache)
    assert notebook_cells() == (
        {"/tmp/cell.py": "a = 1\nb = 2"},
        {"/tmp/cell.py": "cell In[4]"},
    )
