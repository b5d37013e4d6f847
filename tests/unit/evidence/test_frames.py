"""Which lines of a stack are the reader's own."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import ddp_helpers
from ddp_helpers.evidence.frames import is_launcher_file, is_user_file, make_frame

PACKAGE = Path(ddp_helpers.__file__).parent


@pytest.mark.parametrize(
    ("file", "is_user"),
    [
        ("/home/me/train.py", True),
        ("cell In[4]", True),
        (f"{sysconfig.get_path('purelib')}/torch/nn/modules/module.py", False),
        (f"{sysconfig.get_path('stdlib')}/threading.py", False),
        ("/env/of/another/lib/python3.12/site-packages/torch/nn/modules/module.py", False),
        ("<frozen runpy>", False),
        (f"{PACKAGE}/ranks/worker.py", False),
        (f"{PACKAGE}_of_mine/train.py", True),
        (f"{PACKAGE}/templates/ddp_spawn.py", True),
        (f"{PACKAGE}/faults/hang.py", True),
        (f"{PACKAGE}/exercises/e01.py", True),
    ],
)
def test_whose_file_it_is(file, is_user):
    assert is_user_file(file) is is_user


def test_a_frame_says_what_it_is():
    frame = make_frame(f"{PACKAGE}/ranks/travel.py", 7, "load", {}, "  x = 1  ")
    assert (frame.source, frame.is_user, frame.is_launcher) == ("x = 1", False, True)
    own = make_frame("/tmp/c.py", 1, "f", {"/tmp/c.py": "cell In[4]"})
    assert (own.filename, own.is_user, own.is_launcher) == ("cell In[4]", True, False)
    assert not is_launcher_file(f"{PACKAGE}/ranks/view.py")


OVER_A_LINK = """
from ddp_helpers.evidence.frames import is_launcher_file, is_user_file
from ddp_helpers.ranks import travel, view
print(travel.__file__, is_launcher_file(travel.__file__), is_user_file(view.__file__))
"""


def test_a_package_that_is_found_over_a_link(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(PACKAGE.parent)
    done = subprocess.run(
        [sys.executable, "-c", OVER_A_LINK],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(link)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [f"{link}/ddp_helpers/ranks/travel.py", "True", "False"]
