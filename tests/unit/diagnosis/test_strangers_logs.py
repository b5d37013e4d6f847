"""Each log gets the same cause in all the forms in which it comes, and keeps its rank."""

import bz2
import gzip
import json
import lzma

import pytest
from strangers_logs import FORMS, LOGS, MARKED

from ddp_helpers.diagnosis import diagnose_text
from ddp_helpers.diagnosis.log_causes import diagnose_lines
from ddp_helpers.diagnosis.log_files import read_log
from ddp_helpers.diagnosis.log_marks import read

ALL = {**LOGS, **MARKED}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ALL)
def test_the_cause_comes_first_in_each_form(name, form):
    kind, log = ALL[name]
    put, rank = FORMS[form]
    first = diagnose_text(put(log))[0]
    assert first.kind == kind
    told = first.seen[0] if name in LOGS else ""
    if rank and "Root Cause" not in log:
        assert told == "" or told.startswith(f"rank {rank}, line ")


PACKERS = {
    "UTF-16": lambda log: log.encode("utf-16"),
    "UTF-16 without a mark": lambda log: log.encode("utf-16-le"),
    "UTF-16 the other way": lambda log: log.encode("utf-16-be"),
    "UTF-8 with a mark": lambda log: log.encode("utf-8-sig"),
    "gz": lambda log: gzip.compress(log.encode()),
    "xz": lambda log: lzma.compress(log.encode()),
    "bz2": lambda log: bz2.compress(log.encode()),
    "gz of UTF-16": lambda log: gzip.compress(log.encode("utf-16")),
}


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("name", ALL)
def test_the_cause_comes_first_in_each_coding(name, packer, tmp_path):
    kind, log = ALL[name]
    path = tmp_path / "train.log"  # the name does not tell
    path.write_bytes(PACKERS[packer](log))
    assert diagnose_lines(read_log(path))[0].kind == kind


def test_the_rank_is_told_of_who_raised_it():
    kind, log = MARKED["words of a lost peer that are not torch's"]
    first, *others = diagnose_text(log)
    assert first.kind == kind
    assert first.cause.endswith("RuntimeError: reading s3://b/k failed: Connection reset by peer")
    assert first.seen[0].startswith("rank 1, line 10: ")
    assert first.seen[1].strip().startswith("at /home/u/data.py, line 31, in read")
    assert others == []


def test_lines_of_two_processes_of_ray_are_not_mixed():
    log = (
        "(RayTrainWorker pid=12, ip=10.0.0.2) ValueError: bad\n"
        "(RayTrainWorker pid=13, ip=10.0.0.2) KeyError: 'x'\n"
        "(RayTrainWorker pid=12, ip=10.0.0.2) second line of bad\n"
    )
    assert diagnose_text(log)[0].seen[:2] == ("line 1: ValueError: bad", "  second line of bad")


def test_a_line_that_another_rank_wrote_into_is_two():
    log = "step 3[rank1]: ValueError: bad label 11\nloss 0.3 Traceback (most recent call last):\n"
    assert diagnose_text(log)[0].seen[0] == "rank 1, line 1: ValueError: bad label 11"


def test_the_log_of_docker_itself():
    log = '{"log":"ValueError: bad\\n","stream":"stderr","time":"2025-06-24T17:29:06Z"}\n'
    assert diagnose_text(log)[0].seen == ("line 1: ValueError: bad",)
    assert diagnose_text('{"log":"ValueError: bad\n') == []  # cut off


TRACE = 'Traceback (most recent call last):\n  File "/x/train.py", line 3, in main\n    run()\n'


@pytest.mark.parametrize(
    "mark",
    [
        "gpu-worker-1: ",  # pdsh, DeepSpeed
        "E       ",  # pytest
        "[4711] ",  # a paste with its lines counted
        "ERROR 04-15 00:31:11 worker_base.py:574] ",
        "E1129 14:45:56.686000 217 torch/distributed/errors/error_handler.py:141] ",
        "node-1.cluster [stderr] [rank7]: ",
        "Jun 24 17:29:06 node1 train[123]: ",
        "[12345.678901] ",
        "(raylet) ",
        "Tue Jun 24 17:29:06 2025[1,0]<stderr>:",
        "Rank 3: ",
        "[RANK 3] ",
        "> > ",
        "[pod/llm-worker-0/pytorch] ",  # kubectl logs --prefix
        "[pod/llm-worker-0/pytorch] 2025-06-24T17:29:06.1Z [rank2]: ",
        "llm-worker-0 pytorch ",  # stern
        "train_worker.1.k2h3j4@gpu-node-3    | ",  # docker service logs
        "[1,mpirank:1,algo-2]<stderr>:",  # SageMaker
        "logs/node3.log:",  # grep
        "[stderr] ",
        "2025-02-11 11:20:31,719 - ERROR - train - ",
        "[0]<stderr>:",  # horovodrun
    ],
)  # fmt: skip
def test_more_that_stands_in_front_of_lines_is_taken_off(mark):
    log = "".join(f"{mark}{line}\n" for line in f"{TRACE}mine.Unheard: of".splitlines())
    (found,) = diagnose_text(f"epoch 1\n{log}epoch 2\n")
    assert found.cause == "not recognised; first error: Unheard: of"
    assert found.seen[-1].strip() == "at /x/train.py, line 3, in main: run()"


def test_a_mark_that_nobody_knows_keeps_its_processes_apart():
    two = (TRACE + "mine.Unheard: of").splitlines()
    log = "".join(f"<w0> {line}\n<w1> step 3\n" for line in two)
    assert diagnose_text(log)[0].seen == (
        "line 7: Unheard: of",
        "  at /x/train.py, line 3, in main: run()",
    )


def test_digits_in_a_mark_may_go_on():
    log = "".join(f"{3 + n}.{n}s: {line}\n" for n, line in enumerate(f"{TRACE}Bad".splitlines()))
    assert diagnose_text(log)[0].seen[1].strip() == "at /x/train.py, line 3, in main: run()"


def test_a_mark_may_tell_the_rank():
    for mark in ("[1,mpirank:4,algo-2] ", "out/rank4.log:", "[4] "):
        log = "".join(f"{mark}{line}\n" for line in f"{TRACE}mine.Bad".splitlines())
        assert diagnose_text(log)[0].seen[0] == "rank 4, line 4: Bad"


TOLD = TRACE + "ValueError: bad"


@pytest.mark.parametrize(
    "record",
    [
        {"level": "error", "rank": 1, "msg": "training failed", "exc_info": TOLD},
        {"level": "error", "rank": "1", "event": f"training failed\n{TOLD}"},
        {"severity": "ERROR", "jsonPayload": {"message": TOLD}, "rank": 1},
        {"RANK": 1, "error": {"message": "x", "stack_trace": TOLD}},
        {"rank": 1, "text": "x", "exception": (TOLD + "\n").splitlines(keepends=True)},
    ],
)
@pytest.mark.parametrize("mark", ["", "trainer-1  | ", "2025-06-24T17:29:06.1Z stdout F "])
def test_a_traceback_in_a_line_of_json_is_read(record, mark):
    lost = json.dumps({"level": "info", "rank": 0, "msg": "ValueError: 3 rows were dropped"})
    log = f"{mark}{lost}\n{mark}{json.dumps(record)}\n"
    (found,) = diagnose_text(log)
    assert found.seen == (
        "rank 1, line 2: ValueError: bad",
        "  at /x/train.py, line 3, in main: run()",
    )


def test_a_traceback_that_structlog_told_as_a_dict_is_read():
    frame = {"filename": "/x/train.py", "lineno": 3, "name": "main"}
    told = {"exc_type": "ValueError", "exc_value": "bad", "frames": [frame, "odd"]}
    log = json.dumps({"event": "failed", "exception": [told, "", 3]})
    (found,) = diagnose_text(log)
    assert found.seen == ("line 1: ValueError: bad", "  at /x/train.py, line 3, in main: ...")
    bare = json.dumps({"event": "failed", "exception": [{"exc_type": "ValueError"}]})
    assert diagnose_text(bare)[0].cause.endswith("ValueError")


@pytest.mark.parametrize(
    "line",
    [
        '      "py_callstack": "{}",',  # torchrun's @record
        "2025-03-01 ERROR train failed: {}",
        "{{'error': '{}\\n'}}",
    ],
)
def test_a_traceback_with_its_newlines_spelled_out_is_read(line):
    escaped = TOLD.replace("\n", "\\n").replace('"', '\\"')
    (found,) = diagnose_text(f"step 3\n{line.format(escaped)}\n")
    assert found.seen == (
        "line 2: ValueError: bad",
        "  at /x/train.py, line 3, in main: run()",
    )


def test_a_quote_that_ends_a_message_stays():
    log = TOLD.replace("ValueError: bad", "KeyError: 'x'").replace("\n", "\\n")
    assert diagnose_text(f"failed: {log}\n")[0].seen[0] == "line 1: KeyError: 'x'"


def test_pods_are_told_apart_without_a_traceback():
    log = "[pod/w-0/pt] RuntimeError: bad\n[pod/w-1/pt] more\n[pod/w-0/pt] than that\n"
    assert diagnose_text(log)[0].seen == ("line 1: RuntimeError: bad", "  than that")
    assert diagnose_text("[pod/w-0/pt] Killed\n")[0].kind == "killed"


def test_json_that_tells_nothing_is_left_as_it_is():
    for line in ('{"loss": 0.3, "Error": 1}', '{"level": "error"}', '{"a": }', '{"msg": 3}'):
        assert [each.text for each in read([(1, line)])] == [line]


def test_torch_1_wrapped_a_ranks_error_in_a_bare_exception():
    log = (
        'Traceback (most recent call last):\n  File "/x/spawn.py", line 119, in join\n'
        "    raise Exception(msg)\nException:\n\n"
        f"-- Process 1 terminated with the following error:\n{TRACE}ValueError: bad\n"
    )
    (found,) = diagnose_text(log)
    assert found.seen[0] == "rank 1, line 10: ValueError: bad"


def test_what_the_sanitizer_printed_without_raising_it_is_read():
    log = (
        "epoch 2\n{}: the sampler gives the same order in every pass\n"
        "  at /x/train.py, line 11, in train\n    for x in loader:\n"
        "what to do: call sampler.set_epoch(epoch)\n[epoch-not-advanced]\nepoch 3\n"
    )
    (found,) = diagnose_text(log.format("sanitizer"))
    assert (found.kind, found.advice) == ("epoch-not-advanced", "call sampler.set_epoch(epoch)")
    assert found.seen[1:] == ("  at /x/train.py, line 11, in train", "  for x in loader:")
    (noted,) = diagnose_text(log.format("sanitizer, a note"))
    assert noted == found
    with_error = diagnose_text(log.format("sanitizer, a note") + "ValueError: bad\n")
    assert [each.kind for each in with_error] == ["not-recognised"]


def test_what_ended_the_watchdog_is_an_error():
    log = (
        "[rank2]:[E225 13:49:33.912673914 ProcessGroupNCCL.cpp:1595] [PG ID 0 PG GUID 0 Rank 2] "
        "Process group watchdog thread terminated with exception: CUDA error: "
    )
    kinds = [found.kind for found in diagnose_text(f"{log}uncorrectable ECC error encountered\n")]
    assert kinds == ["gpu-hardware"]
    (found,) = diagnose_text(f"{log}something new\n")
    assert "first error: DistBackendError: CUDA error: something new" in found.cause


def test_a_file_of_windows_is_known_as_torchs():
    log = (
        "Traceback (most recent call last):\n"
        '  File "C:\\u\\train.py", line 7, in main\n    dist.barrier()\n'
        '  File "C:\\env\\lib\\site-packages\\torch\\distributed\\x.py", line 7, in barrier\n'
        "    work.wait()\nRuntimeError: writev: Connection reset by peer\n"
    )
    assert [found.kind for found in diagnose_text(log)] == ["peer-gone"]
