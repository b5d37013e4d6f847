"""checkpoints/folder.py: the last K are kept, damage is found, the last good one is never lost."""

import hashlib
import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddp_helpers.checkpoints import file as checkpoint
from ddp_helpers.checkpoints.file import CheckpointError
from ddp_helpers.checkpoints.folder import CheckpointFolder, damage


def filled(folder, saves=4, keep=3):
    made = CheckpointFolder(folder / "run", keep=keep)
    for step in range(1, saves + 1):
        made.save(step=step, weight=torch.full((100,), float(step)))
    return made


def steps(folder):
    return [checkpoint.load_checkpoint(path)["step"] for path in folder.paths()]


def test_the_last_are_kept_newest_first(tmp_path):
    folder = filled(tmp_path, saves=5)
    assert steps(folder) == [5, 4, 3]
    path, state = folder.load_newest()
    assert path == folder.paths()[0]
    assert state["step"] == 5
    assert [damage(path) for path in folder.paths()] == [None] * 3
    assert len(list(path.parent.iterdir())) == 3
    assert CheckpointFolder(tmp_path / "none").load_newest() is None


@pytest.mark.parametrize("how", ["truncated", "flipped", "empty", "longer"])
def test_damage_is_found_told_and_passed_over(tmp_path, capsys, how):
    folder = filled(tmp_path)
    newest, older, _ = folder.paths()
    content = newest.read_bytes()
    spoilt = {
        "truncated": content[:-1],
        "flipped": content[:500] + bytes([content[500] ^ 1]) + content[501:],
        "empty": b"",
        "longer": content + b"\0",
    }[how]
    newest.write_bytes(spoilt)
    path, state = folder.load_newest()
    assert path == older
    assert state["step"] == 3
    told = capsys.readouterr().err
    assert newest.name in told
    assert f"going back to {older.name}" in told
    assert ("is empty" if how == "empty" else "is damaged (") in told
    assert folder.load_newest()[0] == older
    assert not capsys.readouterr().err  # told once
    assert newest.with_name(newest.name + ".damaged").exists()


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_any_flipped_bit_is_found(tmp_path, data):
    folder = filled(tmp_path, saves=2)
    newest = folder.paths()[0]
    content = bytearray(newest.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    newest.write_bytes(content)
    assert folder.load_newest()[1]["step"] == 1
    for path in newest.parent.iterdir():
        path.unlink()


@pytest.mark.parametrize("keep", [1, 2])
def test_damaged_ones_take_no_place_of_good_ones(tmp_path, keep):
    folder = filled(tmp_path, saves=3, keep=3)
    for path in folder.paths()[:2]:
        path.write_bytes(b"")
    small = CheckpointFolder(folder.folder, keep=keep)
    assert small.load_newest()[1]["step"] == 1
    small.save(step=4)
    assert steps(small) == [4, 1][:keep]
    assert small.load_newest()[1]["step"] == 4


def test_none_whole_is_an_error_and_stays_one(tmp_path):
    folder = filled(tmp_path)
    for path in folder.paths():
        path.write_bytes(b"x")
    for _ in range(2):
        with pytest.raises(CheckpointError, match="no whole checkpoint in .*name another folder"):
            folder.load_newest()


def test_one_that_can_not_be_read_stays_where_it_is(tmp_path, monkeypatch, capsys):
    folder = filled(tmp_path)
    newest, older, _ = folder.paths()
    digest = hashlib.file_digest

    def stale(file, *rest):
        if file.name == str(newest):
            raise OSError(5, "Input/output error")
        return digest(file, *rest)

    monkeypatch.setattr(hashlib, "file_digest", stale)
    assert folder.load_newest()[0] == older
    assert "can't be read" in capsys.readouterr().err
    assert folder.paths()[0] == newest  # a disk that was away comes back


def test_a_save_that_fails_leaves_all_as_it_was(tmp_path):
    folder = filled(tmp_path)
    before = sorted(folder.folder.iterdir())
    with pytest.raises(CheckpointError, match=r"could not save .*checkpoint-000005\.pt"):
        folder.save(step=lambda: 1)
    assert sorted(folder.folder.iterdir()) == before


def test_other_files_are_neither_read_nor_deleted(tmp_path):
    folder = filled(tmp_path)
    strange = ["notes.txt", "checkpoint-9.pt", "checkpoint-000099.pt", "best.pt"]
    for name in strange:
        (folder.folder / name).write_text("mine")
    folder.save(step=5)
    assert folder.load_newest()[1]["step"] == 5
    assert all((folder.folder / name).read_text() == "mine" for name in strange)


def test_numbers_beyond_six_digits_stay_in_order(tmp_path):
    folder = filled(tmp_path, saves=1)
    path = folder.paths()[0]
    path.rename(path.with_name(path.name.replace("000001", "999999")))
    folder.save(step=2)
    assert folder.load_newest()[1]["step"] == 2


@pytest.mark.parametrize("keep", [0, -1, 2.0, True])
def test_a_wrong_keep_is_named(tmp_path, keep):
    with pytest.raises(ValueError, match=f"keep={keep}: expected a whole number"):
        CheckpointFolder(tmp_path, keep=keep)


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(ValueError, match="is a file: expected a folder"):
        CheckpointFolder(tmp_path / "run")


def test_random_operations_never_lose_the_last_good_one(tmp_path):
    """Saves, damage and loads in any order: what loads is always the newest whole one."""
    for seed in range(8):
        dice, good = random.Random(seed), []
        folder = CheckpointFolder(tmp_path / str(seed), keep=2)
        for step in range(25):
            action = dice.choice(["save", "save", "damage", "load"])
            if action == "save":
                good = [*good, (folder.save(step=step), step)][-2:]
            elif action == "damage" and len(good) > 1:
                good.pop()[0].write_bytes(b"")
                assert folder.load_newest()[1]["step"] == good[-1][1]
            elif action == "load" and good:
                assert folder.load_newest()[1]["step"] == good[-1][1]
