"""Who raised an error decides what its words mean; the root comes before what follows from it."""

# ruff: noqa: E501 - lines of logs are as long as they are

import pytest

from ddp_helpers.cli.explain import explain
from ddp_helpers.diagnosis import diagnose, diagnose_text, is_consequence
from ddp_helpers.diagnosis.log_causes import read_chains
from ddp_helpers.diagnosis.log_files import read_text
from ddp_helpers.evidence.records import Frame, RankError, RankResult

SITE = "/env/lib/python3.11/site-packages"
PANDAS = f"{SITE}/pandas/core/indexes/base.py"
SOCKET = "/env/lib/python3.11/socket.py"
STORE = f"{SITE}/torch/distributed/rendezvous.py"
PAIR = "[/__w/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] "


def trace(*places):
    """A traceback of (file, function, source), outermost first."""
    lines = [f'  File "{file}", line 7, in {name}\n    {source}\n' for file, name, source in places]
    return "Traceback (most recent call last):\n" + "".join(lines)


MAIN = ("/home/u/train.py", "main", "run()")
ENVIRON = ("<frozen os>", "__getitem__", "")


def kinds(log, exit_code=None):
    return [found.kind for found in diagnose_text(log, exit_code)]


@pytest.mark.parametrize(
    ("log", "kind"),
    [
        (
            trace(MAIN, (STORE, "_env", "TCPStore()")) + "OSError: Address already in use",
            "port-taken",
        ),
        (
            trace(MAIN, (STORE, "_env", "x()"), (SOCKET, "getaddrinfo", "y()"))
            + "socket.gaierror: [Errno -2] Name or service not known",
            "unknown-host",
        ),
        (
            trace(MAIN, (STORE, "_env", "x()")) + "RuntimeError: Connection reset by peer",
            "peer-gone",
        ),
        (f"RuntimeError: {PAIR}Connection closed by peer [::1]:4", "peer-gone"),
        (trace(MAIN, ENVIRON) + "KeyError: 'RANK'", "environment-not-set"),
        (trace(("t.py", "f", 'os.environ["RANK"]')) + "KeyError: 'RANK'", "environment-not-set"),
        ("[rank1]: StopIteration", "iterator-ended"),
        # what torch 1 said has no file in front, and is nobody else's either
        (
            "RuntimeError: [1] is setting up NCCL communicator and retreiving ncclUniqueId from [0] "  # codespell:ignore retreiving
            "via c10d key-value store by key '0', but store->get('0') got error: Broken pipe",
            "peer-gone",
        ),
        ("RuntimeError: NCCL communicator was aborted on rank 0.", "peer-gone"),
        ("RuntimeError: wait timeout after 300000ms, keys: /a", "peer-did-not-come"),
        (
            "terminate called after throwing an instance of 'gloo::IoException'\n"
            "  what():  Connection closed by peer",
            "peer-gone",
        ),
    ],
)
def test_torchs_own_error_is_named(log, kind):
    assert kinds(log) == [kind]


@pytest.mark.parametrize(
    "log",
    [
        "OSError: [Errno 98] Address already in use",
        trace(MAIN, (f"{SITE}/tornado/netutil.py", "bind_sockets", "sock.bind(address)"))
        + "OSError: [Errno 98] Address already in use",
        trace(
            MAIN,
            (f"{SITE}/urllib3/connection.py", "_new_conn", "x()"),
            (SOCKET, "getaddrinfo", "y"),
        )
        + "socket.gaierror: [Errno -3] Temporary failure in name resolution",
        "requests.exceptions.ConnectionError: HTTPSConnectionPool(host='huggingface.co'): Max retries "
        "exceeded (Caused by NameResolutionError('Temporary failure in name resolution'))",
        "requests.exceptions.ConnectionError: ('Connection aborted.', ConnectionResetError(104, "
        "'Connection reset by peer'))",
        "psycopg2.OperationalError: could not receive data from server: Connection reset by peer",
        "java.io.IOException: Broken pipe\n\tat sun.nio.ch.FileDispatcherImpl.write0(Native Method)",
        trace(MAIN, ("/home/u/data.py", "read", "raise RuntimeError(...)"))
        + "RuntimeError: reading s3://b/k failed: Connection reset by peer",
        trace(MAIN, (f"{SITE}/torch/_tensor.py", "backward", "torch.autograd.backward("))
        + "RuntimeError: one of the variables needed for gradient computation has been modified by an "
        "inplace operation: [torch.FloatTensor [64]] is at version 3; expected version 2 instead.",
        trace(MAIN, (PANDAS, "get_loc", "raise KeyError(key) from err")) + "KeyError: 'RANK'",
        trace(MAIN, (PANDAS, "get_loc", "raise KeyError(key) from err")) + "KeyError: 'WORLD_SIZE'",
        "KeyError: 'RANK'",
        trace(MAIN, ("/env/lib/python3.11/bdb.py", "dispatch_line", "raise BdbQuit"))
        + "bdb.BdbQuit",
        "[2025-01-01 12:00:00 +0000] [1] [ERROR] Worker (pid:34) was sent SIGKILL! Perhaps out of "
        "memory?",
        trace(MAIN) + "StopIteration",
        trace(MAIN) + "_queue.Empty",
        trace(MAIN) + "zmq.error.Again: Resource temporarily unavailable",
        trace(MAIN) + "FileExistsError: [Errno 17] File exists: 'runs'",
        trace(MAIN)
        + 'botocore.exceptions.EndpointConnectionError: Could not connect to "https://x"',
        trace(MAIN) + "Unsupported: call_function of mine",
    ],
)
def test_the_same_words_of_somebody_else_get_no_cause_of_ours(log):
    assert kinds(f"starting\n{log}\n") == ["not-recognised"]
    assert "\n  why: " not in explain(log)[0]


@pytest.mark.parametrize(
    "log",
    [
        "usage: train.py [-h] [--lr LR]\ntrain.py: error: unrecognized arguments: --epoch 3\n",
        "client_loop: send disconnect: Broken pipe\n",
        "[2025-01-01 12:00:00 +0000] [1] [WARNING] Worker with pid 34 was terminated due to signal 9\n",
        "MeanSquaredError: 0.1234\n",
        "INFO ValueError: 3 rows were dropped\n",
    ],
)
def test_a_log_of_something_else_gets_none(log):
    assert kinds(log) == []


def test_what_failed_without_a_word_is_never_called_well():
    for sign in (
        "train.py FAILED",
        "  exitcode  : 1 (pid: 12)",
        "[E1105 10:20:30.123456789 socket.cpp:1] [c10d] something new",
        "[F1105 10:20:30.123456789 socket.cpp:1] something new",
        "caught SIGUSR2",
        "step 7 Killed by somebody",
        "Traceback (most recent call last):",
        "trainer-1 exited with code 3",
        "MPI_ABORT was invoked on rank 1 in communicator MPI_COMM_WORLD",
        "##[error]Process completed with exit code 1.",
        "python: No module named axolotl.cli",
    ):
        (found,) = diagnose_text(f"epoch 1\n{sign}\nepoch 2\n")
        assert found.kind == "not-recognised"
        assert sign.strip() in found.cause


# ---- the root first

LOST = trace(MAIN) + f"RuntimeError: {PAIR}Connection closed by peer [::1]:4"
WATCHDOG = (
    "[E1030 03:19:32.584828663 ProcessGroupNCCL.cpp:616] [Rank 0] Watchdog caught collective "
    "operation timeout: WorkNCCL(SeqNum=3, OpType=ALLREDUCE, NumelIn=1) ran for 600080 milliseconds"
)
LAUNCHER = (
    "Traceback (most recent call last):\n"
    '  File "/env/lib/python3.11/subprocess.py", line 526, in run\n'
    "    raise CalledProcessError(retcode, process.args,\n"
    "subprocess.CalledProcessError: Command '['python', '-m', 'torch.distributed.run', 't.py']' "
    "returned non-zero exit status 1."
)


def of_rank(rank, text):
    return "".join(f"[rank{rank}]: {line}\n" for line in text.splitlines())


OWN = of_rank(1, trace(MAIN) + "ValueError: bad label 11")


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (of_rank(0, LOST) + OWN, ["not-recognised"]),
        (of_rank(0, WATCHDOG) + OWN, ["not-recognised", "rank-did-not-come"]),
        (LAUNCHER + "\n" + OWN, ["not-recognised", "error-is-elsewhere"]),
        ("n1:1:2 [0] NCCL WARN socketProgress: Connection closed by remote peer x\n" + OWN, ["not-recognised"]),
        ("n1:1:2 [0] NCCL WARN something that does no harm\n" + OWN, ["not-recognised"]),
        (of_rank(0, trace(MAIN) + "KeyboardInterrupt") + OWN, ["not-recognised", "interrupted"]),
        ("slurmstepd: error: *** JOB 1 ON n CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***\n" + OWN, ["not-recognised", "time-limit"]),
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of\n" + OWN, ["out-of-memory", "not-recognised"]),
        (of_rank(0, LOST) + LAUNCHER, ["error-is-elsewhere"]),
        (of_rank(0, WATCHDOG) + of_rank(1, LOST), ["rank-did-not-come"]),
    ],
)  # fmt: skip
def test_what_follows_comes_after_or_not_at_all(log, expected):
    assert kinds(log) == expected
    assert expected[0] != "not-recognised" or "bad label 11" in diagnose_text(log)[0].cause


SUMMARY = """\
Failures:
[1]:
  rank      : 0 (local_rank: 0)
  exitcode  : -9 (pid: 10)
Root Cause (first observed failure):
[0]:
  rank      : 1 (local_rank: 1)
  exitcode  : 1 (pid: 11)
"""


def test_of_torchruns_ranks_the_first_counts_and_those_that_it_ended_do_not():
    other = of_rank(0, trace(MAIN) + "KeyError: 'x'")
    assert "bad label 11" in diagnose_text(other + OWN + SUMMARY)[0].cause
    assert kinds(SUMMARY) == ["error-is-elsewhere"]
    assert kinds(OWN + SUMMARY) == ["not-recognised"]
    killed = SUMMARY.replace("exitcode  : 1", "exitcode  : -9")
    assert kinds(killed) == ["killed"]


def test_an_error_that_its_rank_survived_comes_last():
    log = of_rank(1, trace(MAIN) + "KeyError: 'tried'") + OWN
    assert "bad label 11" in diagnose_text(log)[0].cause


# ---- the last words of commands, containers and watchdogs

FAILED = "E0211 torch/distributed/elastic/multiprocessing/api.py:869] failed (exitcode: 2) "


@pytest.mark.parametrize(
    "words",
    [
        "train.py: error: unrecognized arguments: --epoch 3",
        "/env/bin/python: can't open file '/home/u/trian.py': [Errno 2] No such file or directory",  # codespell:ignore trian
        "/env/bin/python3.11: No module named axolotl.cli",
        "bash: torchrun: command not found",
    ],
)
def test_the_last_words_of_a_command_say_more_than_its_launcher(words):
    (found,) = diagnose_text(
        f"{words}\n{words}\n{FAILED}local_rank: 1 (pid: 8) of binary: python\n"
    )
    assert found.cause == f"not recognised; first sign: {words}"


@pytest.mark.parametrize(
    ("log", "kind"),
    [
        ("trainer-1  | step 3\ntrainer-1 exited with code 137\n", "killed"),
        ("trainer-1  | step 3\ntrainer-1 exited with code 143\n", "ended-from-outside"),
        ("[rank: 0] Received SIGTERM: 15\n", "ended-from-outside"),
        ('ExitCode 1\nErrorMessage "RuntimeError: bad shape (3, 4)"\n', "not-recognised"),
    ],
)
def test_what_containers_and_platforms_say_at_the_end_is_read(log, kind):
    assert kinds(log) == [kind]


EXITED = "srun: error: node17: task 2: Exited with exit code 1\nsrun: Terminating StepId=771.0\n"
CANCELLED = "slurmstepd: error: *** STEP 771.0 ON node17 CANCELLED AT 2025-02-03T04:00:12 ***\n"
TERMINATED = "srun: error: node17: tasks 0-1,3: Terminated\n"


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (EXITED + CANCELLED + TERMINATED, ["task-failed"]),
        (CANCELLED + TERMINATED, ["cancelled"]),
        (TERMINATED, ["ended-from-outside"]),
        (trace(MAIN) + "KeyError: 'x'\n" + EXITED + CANCELLED + TERMINATED, ["not-recognised"]),
        (CANCELLED.replace(" ***", " DUE TO TIME LIMIT ***") + TERMINATED, ["time-limit"]),
    ],
)
def test_what_a_scheduler_did_to_the_others_is_not_told(log, expected):
    assert kinds(log) == expected


def test_the_watchdog_says_more_than_those_who_heard_of_it():
    heard = (
        "[rank0]:[E723 01:58:45.541902539 ProcessGroupNCCL.cpp:1743] [PG ID 0 PG GUID 0 Rank 0] "
        "Received a dump signal due to a collective timeout from rank 2 and we will try our best\n"
    )
    own = (
        "[rank2]:[E723 01:58:45.510486595 ProcessGroupNCCL.cpp:632] [Rank 2] Watchdog caught "
        "collective operation timeout: WorkNCCL(SeqNum=45390, OpType=ALLREDUCE, NumelIn=5, "
        "NumelOut=5, Timeout(ms)=600000) ran for 600061 milliseconds before timing out.\n"
    )
    for log in (own + heard, heard + own):
        (found,) = diagnose_text(log)
        assert "rank 2 in ALLREDUCE number 45390" in found.cause


# ---- chains

THEN = "\nThe above exception was the direct cause of the following exception:\n\n"
DURING = "\nDuring handling of the above exception, another exception occurred:\n\n"


def test_of_a_chain_the_first_is_the_cause_and_the_last_is_told():
    log = trace(MAIN) + "KeyError: 'x'\n" + THEN + trace(MAIN) + "DataError: no x\n"
    (found,) = diagnose_text(log)
    assert found.cause == "not recognised; first error: KeyError: 'x'"
    assert found.seen[1] == "  which led to DataError: no x"


def test_what_began_with_a_lost_peer_is_a_consequence_whatever_it_became():
    log = LOST + "\n" + THEN + trace(MAIN) + "TrainingFailed: sorry\n"
    assert kinds(log) == ["peer-gone"]
    own = trace(MAIN) + "ValueError: bad\n" + DURING + LOST
    assert kinds(own) == ["not-recognised"]


def test_a_known_error_anywhere_in_a_chain_names_it():
    log = trace(MAIN) + "KeyError: 'tried'\n" + DURING + trace(MAIN)
    assert kinds(log + "OSError: [Errno 24] Too many open files\n") == ["too-many-files"]


def test_a_loaders_worker_speaks_for_itself():
    log = (
        trace(MAIN, (f"{SITE}/torch/_utils.py", "reraise", "raise exception"))
        + "ValueError: Caught ValueError in DataLoader worker process 3.\n"
        + "Original "
        + trace(("/home/u/data.py", "__getitem__", "int(row)"))
        + "ValueError: bad row 17\n"
    )
    (found,) = diagnose_text(log)
    assert found.cause.endswith("ValueError: bad row 17 (in DataLoader worker process 3)")
    assert "/home/u/data.py" in found.seen[1]
    (chain,) = read_chains(read_text(log))
    assert [str(error) for error in chain.errors] == ["ValueError: bad row 17"]
    cut = log.split("Original")[0]
    assert "Caught ValueError" in diagnose_text(cut)[0].cause


def test_a_group_of_exceptions_tells_its_members():
    log = (
        "  + Exception Group Traceback (most recent call last):\n"
        '  |   File "/home/u/train.py", line 3, in main\n'
        "  |     raise group\n"
        "  | ExceptionGroup: two (2 sub-exceptions)\n"
        "  +-+---------------- 1 ----------------\n"
        "    | ValueError: one\n"
        "    +---------------- 2 ----------------\n"
        "    | OSError: [Errno 24] Too many open files\n"
        "    +------------------------------------\n"
    )
    assert kinds(log) == ["not-recognised", "too-many-files"]
    assert "ValueError: one" in diagnose_text(log)[0].cause


def test_notes_and_keys_are_told_whole_and_short():
    keys = ", ".join(f'"layer{n}.weight"' for n in range(50))
    log = f"RuntimeError: Error(s) in loading state_dict for Net:\n\tMissing key(s) in state_dict: {keys}. \n"
    seen = diagnose_text(log)[0].seen
    assert seen[1].endswith('"layer0.weight", "layer1.weight", "layer2.weight" and 47 more')
    noted = trace(MAIN) + "ValueError: bad\nrow 7 of a.csv\n"
    assert "row 7 of a.csv" in "\n".join(diagnose_text(noted)[0].seen)


NO_GROUP = "ValueError: Default process group has not been initialized, please make sure to call init_process_group.\n"


def test_an_error_while_cleaning_up_is_not_the_cause():
    log = trace(MAIN) + "KeyError: 'label'\n" + DURING + trace(MAIN) + NO_GROUP
    (found,) = diagnose_text(log)
    assert found.cause == "not recognised; first error: KeyError: 'label'"
    assert kinds(trace(MAIN) + NO_GROUP) == ["no-process-group"]
    of_rank_1 = RankError("ValueError", NO_GROUP.partition(": ")[2].strip(), log, ())
    assert diagnose([RankResult(1, error=of_rank_1)]) == []


# ---- errors of a rank of launch()

INSIDE = Frame(STORE, 3, "all_reduce", "work.wait()", False)
USER = Frame("train.py", 7, "main", "read()")


def rank_error(message, *frames, kind="RuntimeError", traceback=""):
    return RankError(kind, message, traceback, frames)


def test_a_ranks_error_is_a_consequence_only_if_torch_raised_it():
    words = "Connection reset by peer"
    assert is_consequence(rank_error(words, USER, INSIDE))
    assert is_consequence(rank_error(f"{PAIR}{words}", USER))
    # the launcher takes the C++ file off the message; the traceback still has it
    printed = trace(MAIN) + f"RuntimeError: {PAIR}writev: {words}\n"
    assert is_consequence(rank_error(f"writev: {words}", USER, traceback=printed))
    assert not is_consequence(rank_error(f"reading s3://b/k failed: {words}", USER))
    plain = trace(MAIN) + f"RuntimeError: reading failed: {words}\n"
    assert not is_consequence(rank_error(f"reading failed: {words}", USER, traceback=plain))
