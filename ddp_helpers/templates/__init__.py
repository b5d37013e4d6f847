"""Templates to copy: torch and the standard library only."""

from __future__ import annotations

import re
from pathlib import Path

_KINDS = (".py", ".sh", ".sbatch", ".yaml")

TAKE_IF = {
    "starter": "you have a model to train: on one GPU or many, for minutes or for weeks",
    "starter_fsdp": "the model, its gradients and its optimizer do not fit on one GPU",
    "starter_lm": "it is a language model that learns from text",
    "slurm": "Slurm starts your runs",
    "torchrun_multinode": "you start torchrun on several machines by yourself",
    "k8s_pytorchjob": "Kubernetes starts them, with Kubeflow's training operator",
    "ray_train": "Ray starts them",
    "single_process": "you want to read the lesson's first step: no ranks at all",
    "data_parallel": "the next step: nn.DataParallel, and why it was left behind",
    "ddp_one_rank": "the next step: DistributedDataParallel, with a single rank",
    "ddp_spawn": "the next step: several ranks, which the script starts by mp.spawn",
    "ddp_torchrun": "the next step: torchrun starts the ranks",
    "ddp_resume": "the last step: a run that goes on after it was ended",
}
"""Each template, with what it is for: those for work first, then the lesson's in their order."""


def template_files() -> dict[str, Path]:
    """The templates by name: Python, shell, and the manifest for Kubernetes."""
    files = sorted(Path(__file__).parent.iterdir())
    return {path.stem: path for path in files if path.suffix in _KINDS and path.stem != "__init__"}


def without_marks(text: str) -> str:
    """A template of the lesson without its `# NEW` marks, which are about another file."""
    told = r"`# NEW` marks\s+what differs from(?: the step before,)?\s+\w+\.py(?::[^.]*)?\.\s+"
    lines = re.sub(told, "", text).splitlines(keepends=True)
    return "".join(without_mark(line) for line in lines if line.strip() != "# NEW")


def without_mark(line: str) -> str:
    """One line of it; a word why, after the mark, stays."""
    return re.sub(r"\s*# NEW$", "", re.sub(r"# NEW\s+(?=\S)", "# ", line), flags=re.MULTILINE)
