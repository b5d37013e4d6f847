"""A runner for each test, and one for the runs that tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from template_runner import Runner


@pytest.fixture
def runner(tmp_path: Path, no_process_left: None) -> Iterator[Runner]:
    runner = Runner(tmp_path / "runs")
    yield runner
    runner.end()


@pytest.fixture(scope="session")
def session_runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    runner = Runner(tmp_path_factory.mktemp("templates"))
    yield runner
    runner.end()
