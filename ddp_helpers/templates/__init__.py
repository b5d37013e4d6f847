"""Templates to copy: torch and the standard library only."""

from pathlib import Path

_KINDS = (".py", ".sh", ".sbatch", ".yaml")


def template_files() -> dict[str, Path]:
    """The templates by name: Python, shell, and a manifest for Kubernetes."""
    files = sorted(Path(__file__).parent.iterdir())
    return {path.stem: path for path in files if path.suffix in _KINDS and path.stem != "__init__"}
