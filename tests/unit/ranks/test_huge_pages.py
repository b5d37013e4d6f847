"""Memory that becomes huge pages, where the system can do that."""

import mmap
import re
import subprocess
import sys

import pytest

from ddp_helpers.ranks import huge_pages

# fills 8 MiB in pages of 4 KiB, then asks; in a process of its own, because it asks for all of it
ASK = """
import mmap
from ddp_helpers.ranks import huge_pages

def huge():
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("AnonHugePages:"))

memory = mmap.mmap(-1, 4 * huge_pages.HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
memory[:] = b"x" * len(memory)
memory.madvise(mmap.MADV_HUGEPAGE)
before = huge()
made = huge_pages.collapse()
print(before, made, huge(), memory[:] == b"x" * len(memory))
"""


def test_memory_becomes_huge_pages_and_keeps_what_it_holds():
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True)
    before, made, after, same = done.stdout.split()
    assert same == "True"
    if int(made) == 0:
        pytest.skip("this system makes none")
    assert int(made) >= 3
    assert int(after) - int(before) >= 3 * huge_pages.HUGE // 1024


def test_only_whole_ones_in_memory_without_a_file():
    memory = mmap.mmap(-1, 4 * huge_pages.HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    found = list(huge_pages._whole_pages())
    assert found
    assert all(start % huge_pages.HUGE == 0 for start in found)
    with open("/proc/self/maps") as file:
        lines = file.read()
    for start in found:
        (line,) = [
            line
            for line in lines.splitlines()
            if int(line.split("-")[0], 16) <= start < int(line.split("-")[1].split()[0], 16)
        ]
        assert re.match(r"\S+ rw\S* \S+ \S+ 0", line), line
        assert start + huge_pages.HUGE <= int(line.split("-")[1].split()[0], 16)
    memory.close()


def test_a_system_that_knows_no_huge_pages_is_no_error(monkeypatch):
    monkeypatch.setattr(huge_pages, "MADV_COLLAPSE", 9999)
    assert huge_pages.collapse() == 0
