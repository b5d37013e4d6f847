"""The group must hold as many ranks as the launcher started."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ddp_helpers.evidence.records import Finding
from ddp_helpers.sanitizer.talk.session import Session


class StartChecker:
    """Compares the size of the first process group with what the launcher said."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.rank, self.started, self.told_by = told_world(os.environ)
        self._looked = False

    def look(self) -> None:
        """A process group has started."""
        first, self._looked = not self._looked, True
        size = self.session.world_size
        if not first or size >= self.started:
            return
        alone = " and trains alone" if size == 1 else ""
        self.session.found(
            Finding(
                "smaller-world",
                f"rank {self.rank} is in a process group of {size}{alone}, but the launcher "
                f"started {self.started} ranks ({self.told_by})",
                "leave rank and world_size to the environment: dist.init_process_group(backend), "
                "and do not overwrite WORLD_SIZE",
                (self.rank,),
                self.session.step,
                self.session.here(),
            )
        )


def told_world(environment: Mapping[str, str]) -> tuple[int, int, str]:
    """Rank, number of ranks and the variable that says it; (0, 0, "") without a launcher."""
    number = lambda name: int(environment.get(name, "")) if _is_number(environment, name) else 0
    if "RANK" in environment and max(number("WORLD_SIZE"), number("LOCAL_WORLD_SIZE")):
        sizes = {name: number(name) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
        name = max(sizes, key=lambda name: sizes[name])
        return number("RANK"), sizes[name], f"{name}={sizes[name]}"
    # a batch script, too, has SLURM_NTASKS and SLURM_PROCID=0, and may well start one process
    in_step = "SLURM_STEP_ID" in environment or number("SLURM_PROCID") > 0
    if in_step and number("SLURM_NTASKS"):
        tasks = number("SLURM_STEP_NUM_TASKS") or number("SLURM_NTASKS")
        return number("SLURM_PROCID"), tasks, f"SLURM_NTASKS={tasks}"
    return 0, 0, ""


def _is_number(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").isdigit()
