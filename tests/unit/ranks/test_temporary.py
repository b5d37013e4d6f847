"""Folders for sockets: in TMPDIR, or elsewhere where a socket can't be made there."""

import multiprocessing
import os
import socket
import tempfile
from pathlib import Path

import pytest

from ddp_helpers.ranks import temporary


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A process that has no folder for sockets yet, and whose other places are these two."""
    config = multiprocessing.current_process()._config
    monkeypatch.setitem(config, "tempdir", None)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    places = [tmp_path / "missing", tmp_path / "b"]
    places[1].mkdir()
    monkeypatch.setattr(temporary, "ELSEWHERE", tuple(map(str, places)))
    return places[1]


def test_a_short_folder_of_tmpdir_is_taken(fresh, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert temporary.socket_parent() == str(tmp_path)
    made = temporary.socket_folder()
    assert os.path.dirname(made) == str(tmp_path)
    assert temporary.socket_folder() == made
    assert [path.name for path in tmp_path.iterdir() if path != fresh] == [os.path.basename(made)]


def test_the_name_of_a_socket_decides_to_the_byte(fresh, monkeypatch, tmp_path):
    room = 107 - len("/pymp-12345678/listener-12345678") - len(os.fsencode(tmp_path)) - 1
    for length, taken in ((room, True), (room + 1, False)):
        folder = tmp_path / ("t" * length)
        folder.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        assert temporary.socket_parent() == str(folder if taken else fresh)
        assert not list(folder.iterdir())
    # the ranks' own folders have names that are longer by the rank's number
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("t" * room)))
    assert temporary.socket_parent("pymp-8") == str(fresh)


def test_a_socket_fits_where_tmpdir_is_long(fresh, monkeypatch, tmp_path):
    long = tmp_path / ("\u4e34" * 30)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    made = temporary.socket_folder()
    assert Path(made).parent == fresh
    assert tempfile.tempdir == str(long)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.join(made, "listener-12345678"))


def test_no_place_at_all_is_named(fresh, monkeypatch, tmp_path):
    monkeypatch.setattr(temporary, "ELSEWHERE", (str(tmp_path / "nowhere"),))
    monkeypatch.setenv("TMPDIR", "/a/b")

    def none():
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(OSError, match=r"TMPDIR='/a/b': .*nowhere: `export TMPDIR=`"):
        temporary.socket_parent()
