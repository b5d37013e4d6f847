"""The silent errors that TrainCheck's authors published: what is found here, and by what."""

import tomllib
from pathlib import Path

import pytest
from torch_age import of_the_run

from ddp_helpers import LaunchError, launch, verify
from ddp_helpers.sanitizer.kinds import KINDS

pytestmark = pytest.mark.usefixtures("no_process_left")

FOLDER = Path(__file__).parent / "published_errors"
TABLE = tomllib.loads((FOLDER / "table.toml").read_text(encoding="utf-8"))
RIGHT = {"sanitizer": "", "verify": "", "outcome": "equal"}
SHOWN = {name: row for name, row in TABLE.items() if "outcome" in row}


def target(name):
    """The function that makes this error."""
    for file in FOLDER.glob("*.py"):
        if f"\ndef {name}():\n" in file.read_text(encoding="utf-8"):
            return f"{file}:{name}"
    raise LookupError(name)


def kinds_found(name):
    try:
        result = launch(target(name), 2, sanitize=True, echo=False, timeout=60)
    except LaunchError as error:
        result = error.result
        if not result.findings:
            raise  # it ends because of a finding, or not at all
    return [finding.kind for finding in of_the_run(result.findings)]


def test_it_is_the_whole_list():
    assert len(TABLE) == 26
    for name, row in TABLE.items():
        found = row.get("sanitizer") or (row.get("verify") and not row.get("miss"))
        assert found or row["why"], f"{name} is missed, and nobody says why"


@pytest.mark.parametrize("name", [*SHOWN, "right"])
def test_what_the_sanitizer_finds(name):
    expected = SHOWN.get(name, RIGHT)["sanitizer"]
    assert kinds_found(name) == ([expected] if expected in KINDS else [])


# verify has no time to lose on ranks that wait for each other: that is told in the tests of hangs
@pytest.mark.parametrize("name", [*sorted(SHOWN.keys() - {"deepspeed_6714"}), "right"])
def test_what_verify_says(name):
    row = SHOWN.get(name, RIGHT)
    verdict = verify(target(name), 2, timeout=60)
    assert (verdict.outcome, verdict.cause or "") == (row["outcome"], row["verify"]), verdict
