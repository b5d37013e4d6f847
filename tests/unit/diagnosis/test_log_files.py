"""Logs of any size and folders of them: what is read, whose it is, and what it costs."""

import gzip
import io
import json
import tracemalloc

import pytest

from ddp_helpers import cli
from ddp_helpers.diagnosis.log_causes import diagnose_lines
from ddp_helpers.diagnosis.log_files import CHUNK, read_folder, read_log, read_stream, read_text
from ddp_helpers.diagnosis.log_sieve import AFTER, BEFORE, MOST_HEAD, MOST_TAIL, sift
from ddp_helpers.troubleshooting.examples import read_examples

NOISE = b"step 12 loss 0.3125 lr 1e-3 grad 0.7\n"


@pytest.mark.parametrize("example", read_examples(), ids=lambda example: example.kind)
def test_the_sieve_keeps_all_that_a_rule_needs(example):
    noise = NOISE.decode() * 200
    (first, *_) = diagnose_lines(read_text(noise + example.text + "\n" + noise))
    assert first.kind == example.kind


def test_of_a_long_log_few_lines_are_kept_with_their_numbers():
    log = NOISE * 5000 + b"ValueError: bad\n" + NOISE * 5000
    kept = sift([log])
    assert kept[BEFORE] == (5001, "ValueError: bad")
    assert [number for number, _ in kept] == list(range(5001 - BEFORE, 5002 + AFTER))


def test_a_line_may_begin_in_one_chunk_and_end_in_another():
    log = b"one\r\ntwo\rValueError: bad\r\n" + NOISE
    whole = sift([log])
    assert whole[2] == (3, "ValueError: bad")
    for size in (1, 2, 3, 7):
        assert sift(log[at : at + size] for at in range(0, len(log), size)) == whole


def test_a_warning_of_each_step_does_not_hide_the_error():
    warnings = b"".join(b"Error %d in a reader, tried again\n" % n for n in range(100_000))
    kept = sift([warnings + b"ValueError: bad\n" + warnings])
    assert (100_001, "ValueError: bad") in kept
    assert len(kept) <= MOST_HEAD + MOST_TAIL


def test_what_is_kept_has_a_limit_even_if_all_is_errors():
    blocks = (
        b"ValueError: %s\n" % bytes([97 + n % 26, 97 + n // 26 % 26]) * 50 for n in range(2000)
    )
    assert len(sift(blocks)) <= MOST_HEAD + MOST_TAIL


def test_memory_does_not_grow_with_the_log(tmp_path):
    path = tmp_path / "train.log"
    with path.open("wb") as file:
        for _ in range(40):
            file.write(NOISE * (CHUNK // len(NOISE)))
        file.write(b"[rank1]: ValueError: bad\n")
    tracemalloc.start()
    (found,) = diagnose_lines(read_log(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "bad" in found.cause
    assert peak < 12 * CHUNK


def test_a_binary_file_is_read_without_harm():
    read_stream(io.BytesIO(bytes(range(256)) * 10_000))
    assert sift([b"\0" * 100_000]) == []


# ---- folders

LOST = (
    "RuntimeError: [/x/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4751\n"
)


def error_json(message, at):
    extra = {
        "py_callstack": f"Traceback (most recent call last):\n{message}\n",
        "timestamp": str(at),
    }
    return json.dumps({"message": {"message": message, "extraInfo": extra}})


def folder(tmp_path, files):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return tmp_path


def first_of(path):
    found = diagnose_lines(read_folder(path))
    return found[0].cause, found[0].seen[0]


def test_torchruns_folder_tells_the_ranks_and_who_was_first(tmp_path):
    root = "job_x7/attempt_0"
    logs = folder(
        tmp_path,
        {
            f"{root}/0/stderr.log": "ValueError: second\n",
            f"{root}/0/stdout.log": "",
            f"{root}/0/error.json": error_json("ValueError: second", 200),
            f"{root}/1/stderr.log": "ValueError: first\n",
            f"{root}/1/error.json": error_json("ValueError: first", 100),
            f"{root}/1/model.pt": b"Error: no log",
        },
    )
    cause, seen = first_of(logs)
    assert cause == "not recognised; first error: ValueError: first"
    assert seen == f"rank 1, {root}/1/stderr.log, line 1: ValueError: first"


def test_a_folder_with_nothing_but_error_json_is_read(tmp_path):
    name = "job/attempt_0/1/error.json"
    logs = folder(tmp_path, {name: error_json("ValueError: bad", 1)})
    assert first_of(logs)[0].endswith("ValueError: bad")
    assert "bad" in diagnose_lines(read_log(logs / name))[0].cause
    assert read_folder(folder(tmp_path / "none", {"error.json": "{"})) == []


@pytest.mark.parametrize(
    "names",
    [
        ("job-7.%t.err", "0", "1"),
        ("log_%t", "00", "01"),
        ("rank_%t.log", "0", "1"),
        ("out/task-%t/err.txt", "0", "1"),
    ],
)
def test_slurms_task_numbers_are_ranks(names, tmp_path):
    form, zero, one = names
    logs = folder(
        tmp_path, {form.replace("%t", zero): LOST, form.replace("%t", one): "ValueError: bad\n"}
    )
    assert first_of(logs)[1].startswith("rank 1, ")


def test_other_numbers_of_files_are_no_ranks(tmp_path):
    logs = folder(tmp_path, {"slurm-41.out": "epoch 1\n", "slurm-42.out": "ValueError: bad\n"})
    assert first_of(logs)[1] == "slurm-42.out, line 1: ValueError: bad"


def test_a_file_that_can_not_be_read_does_not_hide_the_others(tmp_path):
    cut = gzip.compress(b"ValueError: cut\n" * 1000)[:-9]
    logs = folder(tmp_path, {"a.log.gz": cut, "b.log": "ValueError: bad\n", "state.json": "Error"})
    (logs / "c.log").symlink_to("nowhere")
    assert first_of(logs)[1] == "b.log, line 1: ValueError: bad"


def test_a_file_in_a_ranks_folder_is_of_that_rank(tmp_path):
    logs = folder(tmp_path, {"job/attempt_0/3/stderr.log": "ValueError: bad\n"})
    (found,) = diagnose_lines(read_log(logs / "job/attempt_0/3/stderr.log"))
    assert found.seen[0] == "rank 3, line 1: ValueError: bad"


# ---- the command


def test_the_command_takes_folders_several_files_and_what_is_piped_in(
    tmp_path, capsys, monkeypatch
):
    logs = folder(tmp_path, {"a.log": LOST, "b.log.gz": gzip.compress(b"ValueError: bad\n")})
    for words in (
        ["diagnose", str(logs)],
        ["diagnose", str(logs / "a.log"), str(logs / "b.log.gz")],
    ):
        assert cli.main(words) == 1
        out = capsys.readouterr().out
        assert "first error: ValueError: bad [not-recognised]\n  " in out
        assert "b.log.gz, line 1: ValueError: bad\nwhat to do: " in out
    piped = io.TextIOWrapper(io.BytesIO(LOST.encode("utf-16")))
    monkeypatch.setattr("sys.stdin", piped)
    assert cli.main(["diagnose"]) == 0
    assert "[peer-gone]" in capsys.readouterr().out


def test_the_command_says_what_it_can_not_read(tmp_path, capsys, monkeypatch):
    cut = tmp_path / "cut.log.gz"
    cut.write_bytes(gzip.compress(b"ValueError: bad\n" * 1000)[:-9])
    assert cli.main(["diagnose", str(cut)]) == 2
    assert "the packed file is not whole" in capsys.readouterr().err
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stdin", terminal)
    assert cli.main(["diagnose"]) == 2
    assert "expected a file, a folder" in capsys.readouterr().err


def test_the_last_line_of_a_file_is_shown_where_nothing_else_is_known(tmp_path, capsys):
    log = tmp_path / "train.log"
    log.write_text("epoch 1\nepoch 2\n\n")
    assert cli.main(["diagnose", str(log), "--exit-code", "3"]) == 1
    assert "exit code 3, last line: epoch 2" in capsys.readouterr().out
    assert cli.main(["diagnose", str(log), "--exit-code", "0"]) == 0
