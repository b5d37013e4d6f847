"""starter.py on few samples, fast or slow, for tests that start it in unusual places."""

import os
import re
import runpy
import sys
from pathlib import Path

import torch

TEMPLATES = Path(__file__).parents[2] / "ddp_helpers" / "templates"


def of_300_digits(script: Path, seconds_per_step: float = 0.0) -> Path:
    """Write starter.py to `script`, with its data beside it; 5 steps of 64 samples an epoch."""
    tensors = torch.load(TEMPLATES.parents[1] / "data" / "mnist_5k" / "mnist_5k.pt")
    torch.save([tensor[:300].clone() for tensor in tensors], script.parent / "digits.pt")
    data = f"DATA = {str(script.parent / 'digits.pt')!r}"
    text = re.sub(
        r"^DATA = .*$", lambda _: data, (TEMPLATES / "starter.py").read_text(), flags=re.M
    )
    begin = "def loss(model, batch):\n"
    assert begin in text
    wait = f"    import time; time.sleep({seconds_per_step} * model.training)\n"
    script.write_text(text.replace(begin, begin + wait))
    return script


def run_script(words: list[str], folder: str) -> None:
    """On a rank: a script as a program."""
    os.chdir(folder)
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")
