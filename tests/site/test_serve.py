"""`make serve`: the site's own server."""

import gzip
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from conftest import ROOT

SERVE = [sys.executable, str(ROOT / ".site" / "serve.py")]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "index.html").write_text("<p>the first page</p>" * 50)
    (tmp_path / "memory.gz").write_bytes(b"as it is")
    return tmp_path


@pytest.mark.usefixtures("no_process_left")
def test_texts_are_packed_and_other_files_as_they_are(folder):
    command = [*SERVE, "--port", "0", "--site", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = server.stdout.readline().split()[0]
            asked = urllib.request.Request(address, headers={"Accept-Encoding": "gzip"})
            with urllib.request.urlopen(asked, timeout=20) as answer:
                packed = answer.read()
                assert answer.headers["Content-Type"].startswith("text/html")
            assert gzip.decompress(packed) == (folder / "index.html").read_bytes()
            with urllib.request.urlopen(address, timeout=20) as answer:
                assert answer.read() == (folder / "index.html").read_bytes()
            with urllib.request.urlopen(f"{address}memory.gz", timeout=20) as answer:
                assert answer.read() == b"as it is"
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"{address}nothing.html", timeout=20)
        finally:
            server.terminate()


def test_a_port_in_use_and_a_site_that_is_not_there_are_told(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [*SERVE, "--port", port, "--site", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"port {port}" in done.stderr
    assert "make serve PORT=8001" in done.stderr
    command = [*SERVE, "--site", str(folder / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "run make site first" in done.stderr
