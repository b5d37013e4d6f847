"""The failure lab: every fault happens for real and is named, every mend runs in silence."""

import ast
import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch_age import has
from warm_python import WarmPython

from ddp_helpers import faults
from ddp_helpers.faults._terminal import OURS, Ended, find_marked, terminal
from ddp_helpers.torch_private import SAVED_DATA, torch_version

pytestmark = pytest.mark.usefixtures("no_process_left")
FILES = sorted(path.stem for path in faults.FOLDER.glob("*.py") if path.stem[0] != "_")
RECORDS = {name: faults.load(name).FAULT for name in FILES}
ONLY_WITHOUT = {  # faults of a machine that lacks something
    "no_nccl": torch.distributed.is_nccl_available(),
    "no_cuda": torch.backends.cuda.is_built(),
}


def skip_without_fsdp(name):
    text = (faults.FOLDER / f"{name}.py").read_text()
    if "import fully_shard" in text and torch_version() < (2, 7):
        pytest.skip("before torch 2.7, fully_shard does not work on a CPU")


def skip_where_it_works(name):
    if ONLY_WITHOUT.get(name):
        pytest.skip("this PyTorch build has what the fault lacks")
    skip_without_fsdp(name)
    if name == "mean_of_means" and not has(SAVED_DATA):
        pytest.skip("this torch does not show the tensors that a loss keeps")


@pytest.mark.parametrize("name", FILES)
def test_the_fault_is_named(name):
    skip_where_it_works(name)
    started = time.monotonic()
    seen = faults.run(name)
    kinds = [kind for kind in seen.kinds if kind != "not-in-this-torch"]
    assert RECORDS[name].kind in kinds[:2], seen
    assert seen.report
    if RECORDS[name].in_terminal:  # torch alone is what ran
        assert RECORDS[name].says in seen.output
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("name", FILES)
def test_the_mend_runs_and_nothing_is_reported(name):
    skip_without_fsdp(name)
    seen = faults.run(name, fixed=True)
    # an old torch may lack a name: that is told, and is no report of the run
    assert set(seen.kinds) <= {"not-in-this-torch"}, seen
    assert bool(seen.report) == bool(seen.kinds), seen


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("uneven_batches", "rank-ended-early"),
        ("one_extra_collective", "rank-ended-early"),
        ("crossed_collectives", "different-collective"),
        ("validation_on_rank_0", "different-collective"),
        ("different_shapes", "collective-mismatch"),
        ("different_dtypes", "collective-mismatch"),
        ("different_models", "different-models"),
        ("unused_parameters", "unused-parameters"),
    ],
)
def test_a_loud_fault_is_named_without_the_sanitizer_too(name, kind):
    assert RECORDS[name].sanitize
    assert faults.run(name, sanitize=False).kinds[0] == kind


@pytest.fixture
def warm_terminal(tmp_path, monkeypatch):
    """Let `torch_says` run its line of Python where torch is loaded already."""

    def run(command: list[str], limit: float = 30.0) -> Ended:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        ours = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONUNBUFFERED": "1"}
        printed = tmp_path / f"printed-{time.monotonic_ns()}"
        process = WarmPython(command[1:], cwd=tmp_path, env=kept | ours, stdout=printed)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(limit)
            code = process.returncode
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its ranks, too
        return Ended(printed.read_text(errors="replace"), code)

    monkeypatch.setattr(faults._lab, "terminal", run)


LOUD = [name for name in FILES if RECORDS[name].says != "nothing"]


@pytest.mark.parametrize("name", [name for name in LOUD if not RECORDS[name].in_terminal])
@pytest.mark.usefixtures("warm_terminal")
def test_torch_says_what_the_record_says(name):
    skip_where_it_works(name)
    # where several ranks fail it is chance whose error mp.spawn prints: now and then a later one's
    assert any(RECORDS[name].says in faults.torch_says(name) for _ in range(3))


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_small_and_complete(name):
    text = (faults.FOLDER / f"{name}.py").read_text()
    assert len(text.splitlines()) <= 80
    assert "# FAULT" in text
    assert "# MENDED" in text
    functions = [node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    assert {"faulty", "fixed"} <= set(functions)
    fault = RECORDS[name]
    assert len(faults.load(name).__doc__.split()) >= 20
    assert fault.group in faults.GROUPS
    for sentence in (fault.cause, fault.mend):
        assert sentence.endswith(".")
        assert len(sentence) <= 120
    assert fault.title
    assert fault.kind == fault.kind.lower().replace(" ", "-")


def test_the_lab_covers_all_groups():
    assert sorted(faults.names()) == FILES
    assert len(FILES) >= 34
    by_group = {group: faults.names(group) for group in faults.GROUPS}
    assert all(len(found) >= 3 for found in by_group.values()), by_group
    titles = [fault.title for fault in RECORDS.values()]
    assert len(set(titles)) == len(titles)


def test_the_table_has_a_row_for_each_fault():
    table = faults.table()
    assert len(table.splitlines()) == len(FILES) + 2
    assert all(len(row.replace("\\|", "").split("|")) == 7 for row in table.splitlines())
    assert table._repr_markdown_() == table
    assert len(faults.table("slow").splitlines()) == len(faults.names("slow")) + 2


def test_an_unknown_fault_is_refused():
    for name in ("nothing", "", "__init__", "_terminal", "../cli"):
        with pytest.raises(ValueError, match="names"):
            faults.load(name)


def test_importing_the_lab_is_light():
    code = "import sys, ddp_helpers.faults; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_silent_fault_is_silent_and_wrong():
    """What the learner is told about the numbers is what the ranks return."""
    wrong, right = unwatched("padded_evaluation"), unwatched("padded_evaluation", fixed=True)
    assert (wrong, right) == ([0.2, 0.2], [0.111, 0.111])
    first, second = unwatched("changed_after_wrap")
    assert first != second
    first, second = unwatched("changed_after_wrap", fixed=True)
    assert first == second
    first, second = unwatched("summand_taken_for_the_sum")
    assert first != second
    first, second = unwatched("summand_taken_for_the_sum", fixed=True)
    assert first == second


def test_a_silent_fault_of_fsdp_is_silent_and_wrong():
    assert unwatched("optimizer_before_fully_shard") == [0.0, 0.0]
    assert unwatched("optimizer_before_fully_shard", fixed=True)[0] != 0
    wrong, right = unwatched("clips_its_own_share"), unwatched("clips_its_own_share", fixed=True)
    # two rows of one gradient, a rank each: clipping must leave their ratio as it was
    assert abs(wrong[0][0] / wrong[0][1] - right[0][0] / right[0][1]) > 0.5


def unwatched(name, fixed=False):
    skip_without_fsdp(name)
    seen = faults.run(name, fixed=fixed, sanitize=False)
    assert seen.report == ""
    return seen.result.values


def test_a_command_is_ended_with_all_that_it_started():
    command = "setsid sleep 61.375 & nohup sleep 62.375 & cat; exec sleep 63.375"
    started = time.monotonic()
    ended = terminal(["bash", "-c", command], stdin="typed\n", limit=0.5)
    assert time.monotonic() - started < 10
    assert ended.exit_code is None
    assert ended.output.startswith("typed\n")
    sleeping = subprocess.run(
        ["pgrep", "-f", "sleep 6[123].375"], capture_output=True, text=True, check=False
    )
    assert sleeping.stdout == ""
    assert find_marked("no such mark") == []
