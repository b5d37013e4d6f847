"""Tracebacks in the forms in which they come: in boxes, in groups, cut off, or without meaning."""

# ruff: noqa: E501 - lines of logs are as long as they are

import pytest

from ddp_helpers.diagnosis import diagnose_text


def kinds(log):
    return [found.kind for found in diagnose_text(log)]


FRAMES = """\
│ /home/u/train.py:7 in <module>                                               │
│                                                                              │
│   5 │   │   collate(loader)                                                  │
│ ❱ 7 main()                                                                   │
│                                                                              │
"""
LIBRARY = """\
│ /env/lib/python3.11/site-packages/torch/nn/modules/module.py:1553 in         │
│ _wrapped_call_impl                                                           │
│                                                                              │
│ ❱ 1553 │   │   │   return forward_call(*args, **kwargs)                       │
│                                                                              │
"""
INNERMOST = """\
│ /home/u/data.py:2 in collate                                                 │
│                                                                              │
│ ❱ 2 │   return batch["image"]                                                │
│   3                                                                          │
"""
BOX = f"""\
╭───────────────────── Traceback (most recent call last) ──────────────────────╮
{FRAMES}{LIBRARY}{INNERMOST}\
╰──────────────────────────────────────────────────────────────────────────────╯
KeyError: 'image'
"""
INSIDE = '  at /home/u/data.py, line 2, in collate: return batch["image"]'


def each(mark, log):
    return "".join(f"{mark}{line}\n" for line in log.splitlines())


@pytest.mark.parametrize(
    ("log", "where"),
    [
        (BOX, "line 17"),
        (each("[rank1]: ", BOX), "rank 1, line 17"),
        ("[11/30/26 18:45:10] ERROR    failed      t.py:11\n" + each(" " * 29, BOX), "line 18"),
        (BOX.replace("─────", "─" * 30), "line 17"),  # a wide terminal
    ],
)
def test_a_traceback_in_a_box_tells_its_place(log, where):
    (found,) = diagnose_text(log)
    assert found.cause == "not recognised; first error: KeyError: 'image'"
    assert found.seen == (f"{where}: KeyError: 'image'", INSIDE)


def test_a_box_of_many_frames_is_read_to_its_end():
    log = BOX.replace(LIBRARY, LIBRARY * 40)
    assert diagnose_text(log)[0].seen[1] == INSIDE


def test_a_known_error_under_a_box_is_known():
    log = BOX.replace("KeyError: 'image'", "OSError: [Errno 24] Too many open files")
    assert kinds(log) == ["too-many-files"]


TRACE = 'Traceback (most recent call last):\n  File "/x/train.py", line 3, in main\n'
WARNED = TRACE + "    warnings.warn(\nUserWarning: step() before step()\n"


def test_a_warning_that_was_raised_is_the_error():
    assert "UserWarning: step() before step()" in diagnose_text(WARNED)[0].cause
    raised = WARNED.replace("warnings.warn(", "raise error")
    assert "UserWarning: step() before step()" in diagnose_text(raised)[0].cause


def test_a_warning_that_was_printed_is_none():
    log = TRACE + "    run()\nUserWarning: of another process\nValueError: bad\n"
    (found,) = diagnose_text(log)
    assert found.cause.endswith("ValueError: bad")
    assert kinds("/x/a.py:3: UserWarning: slow\n  warnings.warn(\nUserWarning: slow\n") == []


DEL = """\
Exception ignored in: <function _MultiProcessingDataLoaderIter.__del__ at 0x7f2e8c3a8d30>
Traceback (most recent call last):
  File "/env/lib/python3.10/site-packages/torch/utils/data/dataloader.py", line 1478, in __del__
    self._shutdown_workers()
AssertionError: can only test a child process
"""
LOGGING = """\
--- Logging error ---
Traceback (most recent call last):
  File "/env/lib/python3.10/logging/__init__.py", line 368, in getMessage
    msg = msg % self.args
TypeError: not all arguments converted during string formatting
Call stack:
  File "/app/train.py", line 9, in main
    log.info("loss", loss)
Message: 'loss'
Arguments: (0.3,)
"""
HOOK = (
    "Error in sys.excepthook:\n"
    + TRACE
    + "    send(e)\nmine.Unheard: of\n\nOriginal exception was:\n"
)
FEEDER = (
    "Exception in thread QueueFeederThread:\n"
    + TRACE.replace("/x/train.py", "/env/lib/python3.10/multiprocessing/queues.py")
    + "    close()\nOSError: [Errno 9] Bad file descriptor\n"
)
PIPE = "Exception ignored in: <_io.TextIOWrapper name='<stdout>'>\nBrokenPipeError: [Errno 32] Broken pipe\n"


@pytest.mark.parametrize("log", [DEL, LOGGING, HOOK, FEEDER, PIPE])
def test_what_python_could_only_print_is_no_cause(log):
    assert diagnose_text(f"epoch 1\n{log}epoch 2\ndone\n") == []
    own = TRACE + "    run()\nKeyError: 'lr'\n"
    for whole in (log + own, own + log):
        (found,) = diagnose_text(whole)
        assert found.cause.endswith("first error: KeyError: 'lr'")
    other = each("[rank1]: ", own)
    assert "KeyError" in diagnose_text(each("[rank0]: ", log) + other)[0].cause


def test_an_ignored_exception_of_any_name_hides_none_after_it():
    log = DEL.replace("AssertionError: can only", "mine.Unheard: can only")
    (found,) = diagnose_text(log + TRACE + "    run()\nKeyError: 'lr'\n")
    assert found.cause.endswith("first error: KeyError: 'lr'")


def test_of_a_group_the_first_member_is_told_first():
    member = '    | Traceback (most recent call last):\n    |   File "/x/a.py", line {n}, in f\n    |     g()\n    | {error}\n'
    log = (
        "  + Exception Group Traceback (most recent call last):\n"
        '  |   File "/x/train.py", line 3, in main\n  |     async with TaskGroup() as g:\n'
        "  | ExceptionGroup: unhandled errors in a TaskGroup (2 sub-exceptions)\n"
        "  +-+---------------- 1 ----------------\n"
        + member.format(n=5, error="ValueError: shard 0")
        + "    +---------------- 2 ----------------\n"
        + member.format(n=7, error="KeyError: 'shard 1'")
        + "    +------------------------------------\n"
    )
    (found,) = diagnose_text(log)
    assert found.cause.endswith("first error: ValueError: shard 0")
    assert found.seen == ("line 9: ValueError: shard 0", "  at /x/a.py, line 5, in f: g()")


def test_a_traceback_that_was_cut_off_tells_where_it_stood():
    log = "[rank1]: step 3\n" + each("[rank1]: ", TRACE + "    loss = criterion(mod")
    (found,) = diagnose_text(log)
    assert found.cause.endswith("a traceback without its end, at /x/train.py, line 3, in main")
    assert found.seen == (
        "rank 1, line 2: Traceback (most recent call last):",
        "  at /x/train.py, line 3, in main: loss = criterion(mod",
    )


def test_what_two_ranks_wrote_into_one_line_is_read_once():
    log = TRACE + "    run()\nIndexErrorIndexError: : Target 10 is out.Target 10 is out.\n"
    assert diagnose_text(log)[0].seen[0] == "line 4: IndexError: Target 10 is out."
    two = TRACE + "    run()\nIndexErrorIndexError: : Target 10.Target 11.\n"
    assert "IndexError" in diagnose_text(two)[0].cause


def test_the_error_of_a_compiler_comes_with_what_it_raised():
    log = TRACE + "    f(x)\ntorch._dynamo.exc.BackendCompilerFailed: backend='inductor' raised:\n"
    log += "AssertionError: what it said\n"
    assert diagnose_text(log)[0].seen[1] == "  AssertionError: what it said"


def test_an_error_inside_a_library_shows_the_readers_line():
    inner = (
        'Traceback (most recent call last):\n  File "/env/lib/python3.11/site-packages/urllib3/'
        'connection.py", line 198, in _new_conn\n    sock = connect()\n'
        "ConnectionRefusedError: [Errno 111] Connection refused\n"
    )
    log = (
        inner
        + "\nThe above exception was the direct cause of the following exception:\n\n"
        + TRACE
        + "    mlflow.start_run()\nmlflow.exceptions.MlflowException: no answer\n"
    )
    (found,) = diagnose_text(log)
    assert found.seen[-1] == "  at /x/train.py, line 3, in main: mlflow.start_run()"


def test_an_error_that_was_raised_again_in_other_words_tells_them():
    cause = "\nThe above exception was the direct cause of the following exception:\n\n"
    log = (
        TRACE
        + "    run()\nValueError: got 121\n"
        + cause
        + TRACE
        + "    run()\nValueError: pad it\n"
    )
    assert diagnose_text(log)[0].seen[1] == "  which led to ValueError: pad it"
    same = log.replace("pad it", "got 121")
    assert not any("which led to" in line for line in diagnose_text(same)[0].seen)
