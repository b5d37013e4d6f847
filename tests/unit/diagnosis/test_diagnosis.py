"""From evidence to causes: each rule on a real text, and silent on what merely looks alike."""

import io
import re
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddp_helpers import cli
from ddp_helpers.diagnosis import diagnose, diagnose_text, is_consequence
from ddp_helpers.diagnosis.log_causes import read_chains
from ddp_helpers.diagnosis.log_files import read_text
from ddp_helpers.diagnosis.log_text import find_errors
from ddp_helpers.diagnosis.rule_files import consequences, known_errors, known_lines
from ddp_helpers.diagnosis.rules import recognise
from ddp_helpers.evidence.records import Frame, LastCall, RankError, RankResult
from ddp_helpers.evidence.waits import waiting_in
from ddp_helpers.troubleshooting.examples import read_examples

KINDS = {rule.kind for rule in known_errors()}
GLOO = "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/"
PEER = f"RuntimeError: {GLOO}pair.cc:553] Connection closed by peer [127.0.0.1]:45275. This is "

SIGNALS = {rule.kind for rule in known_lines() if rule.signal}
# (kind, the text as it stands in a log); one or more for each rule
REAL = [(example.kind, example.text) for example in read_examples()]
TRACE = 'Traceback (most recent call last):\n  File "train.py", line 3, in <module>\n    main()\n'


def errors_of(text):
    """The errors of a log with all that is known of them."""
    return [error for chain in read_chains(read_text(text)) for error in chain.errors]


def kinds(text, exit_code=None):
    return [diagnosis.kind for diagnosis in diagnose_text(text, exit_code)]


@pytest.mark.parametrize(("kind", "text"), REAL, ids=[kind for kind, _ in REAL])
@pytest.mark.parametrize("mark", ["", "[rank1]: ", "[default0]:", "1: ", "[rank 1] ", "\x1b[31m"])
def test_a_real_text_is_named_under_any_launcher(kind, text, mark):
    log = "starting\n" + TRACE + text + "\n"
    marked = "".join(f"{mark}{line}\n" for line in log.splitlines())
    assert kinds(marked)[0] == kind
    assert kinds(marked, exit_code=1)[0] == kind


def test_every_kind_has_a_real_text_and_so_has_every_rule():
    known = KINDS | {rule.kind for rule in consequences()} | {rule.kind for rule in known_lines()}
    assert known == {kind for kind, _ in REAL}
    errors = [error for _, text in REAL for error in errors_of(text)]
    for rules in (known_errors(), consequences()):
        used = {id(rule) for error in errors for rule in rules if rule.match(error)}
        assert [rule.message for rule in rules if id(rule) not in used] == []
    lines = "\n".join(text for _, text in REAL)
    assert all(rule.match(lines) for rule in known_lines())


@pytest.mark.parametrize(
    "text",
    [
        "ValueError: bad label 'EADDRINUSE'",
        "ValueError: column 'Connection closed by peer' not found",
        "KeyError: 'RANKING'",
        "KeyError: 'rank'",
        "KeyError: 'config', not 'RANK'",
        "AssertionError: expected 2/3 clients joined",
        "RuntimeError: rank 3 is not in the table",
        "ImportError: cannot import name 'nccl'",
        "AttributeError: Can't get attribute 'Net' on <module '__main__' from 'old_script.py'>",
        "FileNotFoundError: [Errno 2] No such file or directory: '/dev/shm/data'",
        "requests.exceptions.ConnectionError: ('Connection aborted.', Connection reset by peer)",
        "BrokenPipeError: [Errno 32] Broken pipe",
        "TimeoutError: Timed out waiting 5 s for the database",
        "RuntimeError: shape '[4]' is invalid for input of size 5",
        "RuntimeError: Error(s) in loading state_dict for Net:\n\tsize mismatch for module: 3",
        "train.py: error: unrecognized arguments: --local-ranking=3",
        "EOFError: EOF when reading a line",
        "RuntimeError: an illegal memory access was simulated",
        "RuntimeError: CUDA error: unspecified launch failure",  # a kernel's fault, or the GPU's
        "ImportError: /env/ext.so: undefined symbol: my_function",
        "RuntimeError: world_size must be 8",
        "OSError: We couldn't connect to 'https://example.com'",
        "RuntimeError: Failed to find the compiler of mine",
        "2025-02-11 11:20:31 WARNING train: failed: CUDA out of memory. Tried to allocate 2 MiB",
        "skipped the batch: CUDA out of memory. Tried to allocate 2 MiB",
        "walltime 3605 exceeded nothing",
        "RuntimeError: CUDA error: an illegal instruction was encountered",
        "RuntimeError: CUDA error: misaligned address",
        "RuntimeError: this build of mine has no libuv support",
        "pickle.UnpicklingError: weights of another kind",
        "ValueError: loaded 3 images, expected 4",
        "RuntimeError: Error(s) in loading my_dict for Net: _orig_mod.",
        "ValueError: no kernel image in column 3",
        "ValueError: column 'uncorrectable ECC error' not found",
        "host:1:9 [0] NCCL WARN NET/IB : Got completion from peer 10.0.0.1 with error 5",
        "host:1:9 [0] NCCL WARN Call to ibv_query_port failed with 19",
        "host:1:9 [0] NCCL WARN Message received",
        "ValueError: CUDA has been initialized with the wrong seed",
        "MisconfigurationException: no strategy was given",
        "RuntimeError: My thread exited unexpectedly",
        "ValueError: Expected more than 1 value for the key 'lr'",
        "AttributeError: 'MyParallel' object has no attribute 'encode'",
        "ValueError: Invalid rank of matrix 2, rank should be 3",
        "ImportError: libmine.so.1: cannot open shared object file: No such file or directory",
        "UnpicklingError: pickle of another protocol",
        "EOFError: Ran out of ideas",
        "subprocess.CalledProcessError: Command 'ls' returned non-zero exit status 2.",
        "ray.exceptions.OutOfMemoryError: object store is full",
        "TimeoutError: the client socket has timed out",
        "RuntimeError: too many threads were asked for",
        "OSError: [Errno 39] Directory not empty: 'build'",
        "KeyError: 'SLURM'",
    ],
)
def test_what_merely_looks_alike_is_not_named(text):
    assert kinds(TRACE + text + "\n", exit_code=1) == ["not-recognised"]


@pytest.mark.parametrize(
    "text",
    [
        "epoch 1: loss 0.3\nNote: EADDRINUSE means that the port is taken\n",
        "  # RuntimeError: Distributed package doesn't have NCCL built in\n",
        "[rank0]: retried after 'Connection closed by peer'\n",
        "the exitcode : 0 of yesterday's job is explained\n",
        "UserWarning: killed by a low priority\n",
        "DEBUG found Watchdog settings: timeout 600\n",
        "",
    ],
)
def test_a_log_without_errors_says_nothing(text):
    assert kinds(text) == []


@pytest.mark.parametrize("text", [text for _, text in REAL])
def test_after_exit_code_0_nothing_is_wrong(text):
    assert kinds(text, exit_code=0) == []


@given(st.text(max_size=500), st.none() | st.integers(1, 255))
def test_any_text_is_read_and_nothing_is_guessed(text, exit_code):
    found = diagnose_text(text, exit_code)
    if exit_code is not None:
        assert found
    if not any(word in text for word in ("Error", "Exception", "rror:", "terminate", "WARN")):
        assert {d.kind for d in found} <= SIGNALS | {"not-recognised"}
    assert len({d.kind for d in found}) == len(found)


WORDS = st.text(st.characters(categories=["Ll", "Lu", "Nd", "Zs"]), min_size=1, max_size=40).filter(
    lambda words: not re.search("Error|Exception|Interrupt|Exit|BdbQuit", words)
)


@given(before=st.lists(WORDS, max_size=5), case=st.sampled_from(REAL), after=st.lists(WORDS))
def test_ordinary_lines_around_an_error_change_nothing(before, case, after):
    kind, text = case
    log = "\n".join([*(f"log {line}" for line in before), TRACE + text, "", *after])
    assert kinds(log)[0] == kind


def test_the_cause_is_named_and_not_its_consequence():
    cause = "[rank1]: ValueError: bad label 11\n"
    consequence = f"[rank0]: {PEER}typically caused\n"
    for log in (cause + consequence, consequence + cause):
        found = diagnose_text(log)
        assert [d.kind for d in found] == ["not-recognised"]
        assert "ValueError: bad label 11" in found[0].cause
    known = "[rank1]: RuntimeError: Distributed package doesn't have NCCL built in\n"
    assert kinds(consequence + known) == ["no-nccl"]


def test_interleaved_ranks_keep_their_own_lines():
    log = (
        "[rank0]: RuntimeError: Error(s) in loading state_dict for Net:\n"
        "[rank1]: ValueError: second\n"
        '[rank0]: \tMissing key(s) in state_dict: "weight". \n'
        '[rank0]: \tUnexpected key(s) in state_dict: "module.weight". \n'
    )
    errors = find_errors(log)
    assert errors[1] == "ValueError: second"
    assert "module.weight" in errors[0]
    assert kinds(log) == ["module-prefix", "not-recognised"]


WATCHDOG = (
    "[rank{rank}]:[E1101 12:00:00 ProcessGroupNCCL.cpp:685] [Rank {rank}] Watchdog caught "
    "collective operation timeout: WorkNCCL(SeqNum={number}, OpType={call}, NumelIn=1, NumelOut=1, "
    "Timeout(ms)=600000) ran for 600048 milliseconds before timing out.\n"
    "[rank{rank}]:[E1101 12:00:00 ProcessGroupNCCL.cpp:1834] [PG ID 0 PG GUID 0 Rank {rank}] "
    "Exception (either an error or timeout) detected by watchdog at work: {number}, last enqueued "
    "NCCL work: {number}, last completed NCCL work: 2.\n"
)


def watchdog(rank, number, call):
    return WATCHDOG.format(rank=rank, number=number, call=call)


def test_the_watchdog_of_nccl_names_who_waited_where():
    crossed = diagnose_text(watchdog(0, 3, "ALLREDUCE") + watchdog(1, 3, "BROADCAST"))
    assert crossed[0].kind == "different-collective"
    assert "rank 1 in BROADCAST number 3" in crossed[0].cause
    behind = diagnose_text(watchdog(0, 4, "ALLREDUCE") + watchdog(1, 3, "ALLREDUCE"))
    assert behind[0].kind == "different-collective"
    alone = diagnose_text(watchdog(0, 3, "ALLREDUCE"))
    assert alone[0].kind == "rank-did-not-come"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (-9, "killed"),
        (137, "killed"),
        (-11, "crashed"),
        (139, "crashed"),
        (135, "shm-full"),
        (3, "not-recognised"),
        (1, "not-recognised"),
    ],
)
def test_an_exit_code_alone(code, kind):
    assert kinds("epoch 1\n", exit_code=code) == [kind]
    shown = diagnose_text("epoch 1\n", exit_code=code)[0].cause
    assert kind != "not-recognised" or ("epoch 1" in shown and str(code) in shown)


def test_the_command_reads_a_file_or_what_is_piped_in(tmp_path, capsys, monkeypatch):
    log = tmp_path / "train.log"
    log.write_text("[rank0]: AssertionError: Torch not compiled with CUDA enabled\n")
    assert cli.main(["diagnose", str(log)]) == 0
    assert capsys.readouterr().out.startswith("why: CUDA was asked for")
    monkeypatch.setattr("sys.stdin", io.StringIO("ValueError: bad label 11\n"))
    assert cli.main(["diagnose", "-"]) == 1
    assert "bad label 11" in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.StringIO("epoch 1\n"))
    assert cli.main(["diagnose", "-"]) == 0
    assert capsys.readouterr().out == "no error found in this log\n"
    assert cli.main(["diagnose", "-", "--exit-code", "137"]) == 0
    assert "killed" in capsys.readouterr().out
    assert cli.main(["diagnose", "nothing.log"]) == 2


# ---- ranks of a launch

USER = Frame("train.py", 7, "train", "...")


def raised(rank, text, at=1.0):
    kind, _, message = text.partition(": ")
    return RankResult(rank, exit_code=1, error=RankError(kind, message, text, (USER,), at))


def standing(rank, *frames, calls=0):
    last_call = LastCall(calls, "all_reduce", USER) if calls else None
    return RankResult(rank, exit_code=None, stack=(USER, *frames), last_call=last_call)


def inside(function, file="torch/distributed/distributed_c10d.py"):
    return Frame(f"/site/{file}", 1, function, "", False)


def rank_kinds(*ranks, hang=False):
    return [diagnosis.kind for diagnosis in diagnose(ranks, hang=hang)]


@pytest.mark.parametrize(
    ("kind", "text"),
    [case for case in REAL if case[0] in KINDS and "terminate" not in case[1]],
)
def test_the_same_rules_hold_for_an_exception_of_a_rank(kind, text):
    if " File " in text:
        return  # who raised it is told by its lines: test_raised.py
    for error in find_errors(text):  # a line such as srun's is no exception
        assert rank_kinds(raised(0, error))[0] == kind


@given(st.sampled_from([rule for rule in known_errors() if rule.kind != "peer-failed"]))
def test_no_cause_is_taken_for_a_consequence(rule):
    texts = [text for kind, text in REAL if kind == rule.kind]
    assert not any(recognise(error, consequences()) for t in texts for error in errors_of(t)[:1])


def test_the_first_error_in_time_is_named_first():
    late = raised(0, "ValueError: trying to initialize the default process group twice!", at=2.0)
    early = raised(1, "AssertionError: Torch not compiled with CUDA enabled", at=1.0)
    assert rank_kinds(late, early) == ["no-cuda", "started-twice"]


def test_what_a_rank_printed_counts_only_if_it_died_of_it():
    handled = "OSError: [Errno 98] Address already in use\n"
    healthy = RankResult(0, exit_code=0, output=handled)
    killed = RankResult(1, exit_code=-signal.SIGKILL, output=handled)
    assert rank_kinds(healthy, killed) == ["killed"]
    mismatch = next(text for _, text in REAL if text.startswith("terminate"))
    aborted = RankResult(1, exit_code=-signal.SIGABRT, output=mismatch)
    assert rank_kinds(healthy, aborted) == ["collective-mismatch"]
    other = "terminate called after throwing an instance of 'mine::Bad'\n  what(): bad\n"
    assert rank_kinds(RankResult(0, exit_code=-signal.SIGABRT, output=other)) == []


@pytest.mark.parametrize(
    ("kind", "ranks"),
    [
        ("rank-ended-early", [RankResult(0, exit_code=0), standing(1, inside("all_reduce"))]),
        ("rank-did-not-come", [standing(0), standing(1, inside("barrier"))]),
        ("different-collective", [standing(0, inside("barrier")), standing(1, inside("reduce"))]),
        ("rank-missing", [standing(r, inside("init_process_group")) for r in (0, 1)]),
        ("all-wait", [standing(0, inside("recv")), standing(1, inside("recv"))]),
        ("child-stuck", [standing(0, inside("poll", "multiprocessing/popen_fork.py"))]),
        ("child-stuck", [standing(0, inside("_get_data", "torch/utils/data/dataloader.py"))]),
        ("takes-longer", [standing(0), standing(1)]),
        ("takes-longer", [standing(0, calls=2), standing(1, calls=2)]),
        ("calls-differ", [standing(0, calls=2), standing(1, calls=1)]),
        ("calls-differ", [standing(0, calls=1), standing(1)]),
        ("never-began", [RankResult(0, exit_code=None)]),
    ],
)
def test_where_the_ranks_stood_tells_why_they_hang(kind, ranks):
    assert rank_kinds(*ranks, hang=True) == [kind]


def test_a_rank_that_left_its_group_after_all_did_not_wait_for_itself():
    finished = RankResult(1, exit_code=0, stack=(USER, inside("cleanup_distributed")))
    found = diagnose([standing(0, inside("all_reduce")), finished], hang=True)
    assert "rank 1 finished while rank 0 still waited" in found[0].cause


def test_the_same_wait_on_all_ranks_is_not_explained():
    assert rank_kinds(*[standing(r, inside("all_reduce")) for r in (0, 1)], hang=True) == []


def test_a_rank_that_lost_patience_points_at_the_busy_one():
    lost = raised(1, f"RuntimeError: {GLOO}x.cc:78] Timed out waiting 500ms for recv operation")
    assert rank_kinds(standing(0), lost) == ["rank-did-not-come"]
    assert rank_kinds(standing(0, inside("barrier")), lost) == []
    assert is_consequence(lost.error)
    assert not is_consequence(raised(0, "ValueError: Timed out waiting 5ms").error)


def test_ddp_waits_in_its_forward_and_at_the_wrap():
    file = "torch/nn/parallel/distributed.py"
    assert waiting_in((USER, inside("_pre_forward", file))) == "the forward of DDP"
    assert waiting_in((USER, inside("__init__", file))) == "DistributedDataParallel(...)"
    assert waiting_in((USER, inside("forward", file))) is None
    # where process_group() meets the others, before torch's own init_process_group
    ours = "/x/ddp_helpers/group/devices.py"
    assert waiting_in((USER, inside("agree", ours))) == "init_process_group"
    assert waiting_in((USER, inside("visible_gpus", ours))) is None
    torchs = "/x/torch/distributed/rendezvous.py"
    assert waiting_in((USER, inside("_create_c10d_store", torchs))) == "init_process_group"
