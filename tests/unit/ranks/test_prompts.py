"""Who has the keyboard, and what a rank and its launcher say to each other about it."""

import os
import pickle
import socket
import threading
from types import SimpleNamespace

import pytest

from ddp_helpers.ranks import prompts, stay, wire
from ddp_helpers.ranks.launched import Events
from ddp_helpers.ranks.messages import Answer, Asked, Command, Wish
from ddp_helpers.ranks.prompts import Prompts
from ddp_helpers.ranks.view import Silenceable

OPEN, LINE, CLOSE, QUIT = (Asked(wish, "here") for wish in Wish)


class Typed:
    """A keyboard on which a test types."""

    def __init__(self):
        self.asked, self.lines, self.cancelled = [], [], 0

    def ask(self, prompt):
        self.asked.append(prompt)

    def poll(self):
        return self.lines.pop(0) if self.lines else None

    def cancel(self):
        self.cancelled += 1


class Rank:
    def __init__(self, number):
        self.rank, self.ended, self.text = number, False, []
        self.link, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.theirs.setblocking(False)

    def take_prompt(self):
        return "(Pdb) "

    def heard(self):
        """The answer that has come, or None."""
        try:
            return self.theirs.recv(100)
        except BlockingIOError:
            return None

    def close(self):
        self.link.close()
        self.theirs.close()


@pytest.fixture
def desk(monkeypatch):
    keyboard = Typed()
    monkeypatch.setattr(prompts, "find_keyboard", lambda events: keyboard)
    ranks = [Rank(number) for number in range(2)]
    yield SimpleNamespace(prompts=Prompts(None, Silenceable(None)), keyboard=keyboard, ranks=ranks)
    for rank in ranks:
        rank.close()


def test_one_rank_has_the_keyboard_and_the_next_one_waits(desk, capsys):
    first, second = desk.ranks
    assert not desk.prompts.are_open
    desk.prompts.take(second, OPEN)
    desk.prompts.take(first, OPEN)
    assert (second.heard(), first.heard()) == (b"+", None)
    assert "rank 1 has stopped at here; the others wait" in capsys.readouterr().out
    desk.prompts.take(second, LINE)
    assert desk.keyboard.asked == ["[rank 1] (Pdb) "]
    desk.prompts.tick()
    assert second.heard() is None  # nothing was typed yet
    desk.keyboard.lines = [(Answer.HERE, "p x")]
    desk.prompts.tick()
    assert second.heard() == b"+p x"
    assert second.text == ["(Pdb) p x\n"]
    desk.prompts.take(second, CLOSE)
    assert first.heard() == b"+"
    assert desk.prompts.are_open
    desk.prompts.take(first, CLOSE)
    assert not desk.prompts.are_open
    assert desk.prompts.closed_at > 0
    assert "stopped" not in capsys.readouterr().out  # the help came once


def test_input_has_the_keyboard_for_one_line(desk):
    first, second = desk.ranks
    desk.prompts.take(first, LINE)
    desk.prompts.take(second, OPEN)
    desk.keyboard.lines = [(Answer.END, "")]
    desk.prompts.tick()
    assert (first.heard(), second.heard()) == (b"-", b"+")


def test_what_others_print_comes_after_the_line(desk, capsys):
    first, second = desk.ranks
    shown = []
    desk.prompts._view.shown = SimpleNamespace(output=lambda rank, lines: shown.append(rank))
    desk.prompts.take(first, OPEN)
    desk.prompts.output(first, ["-> x = 1"])
    assert "[rank 0] -> x = 1\n" in capsys.readouterr().out
    desk.prompts.take(first, LINE)
    desk.prompts.output(second, ["hello"])
    assert shown == []
    desk.keyboard.lines = [(Answer.HERE, "c")]
    desk.prompts.tick()
    assert shown == [1]


def test_a_rank_that_dies_loses_it(desk):
    first, second = desk.ranks
    for rank in desk.ranks:
        desk.prompts.take(rank, OPEN)
    desk.prompts.take(first, LINE)
    first.ended = True
    desk.prompts.tick()
    assert desk.keyboard.cancelled == 1
    assert second.heard() == b"+"
    second.ended = True
    desk.prompts.tick()
    assert not desk.prompts.are_open


def test_quit_names_its_rank(desk):
    desk.prompts.take(desk.ranks[1], OPEN)
    desk.prompts.take(desk.ranks[1], QUIT)
    assert desk.prompts.quit_by == 1


def test_without_a_keyboard_the_answer_comes_at_once(desk, monkeypatch):
    monkeypatch.setattr(prompts, "find_keyboard", lambda events: None)
    desk.prompts.take(desk.ranks[0], OPEN)
    assert desk.ranks[0].heard() == b"!"
    assert not desk.prompts.are_open


def test_what_is_no_terminal_is_no_keyboard():
    assert prompts.find_keyboard(None) is None  # pytest's own input


@pytest.mark.parametrize("wish", list(Wish))
def test_a_wish_arrives(desk, wish):
    rank = desk.ranks[0]
    wire.answer(rank.link, Answer.HERE, "gr\xfc\xdfe")
    answer = wire.ask(rank.theirs, Asked(wish, "é" * 1000))
    asked = wire.read_message(rank.link.recv(wire.LONGEST_MESSAGE))
    assert asked == Asked(wish, "é" * wire.LONGEST_PLACE)
    waits = wish in (Wish.OPEN, Wish.LINE)
    assert answer == (Answer.HERE, "gr\xfc\xdfe" if waits else "")


def test_a_launcher_that_hangs_up(desk):
    rank = desk.ranks[0]
    threading.Timer(0.05, rank.link.shutdown, (socket.SHUT_RDWR,)).start()
    with pytest.raises(ConnectionError):
        wire.ask(rank.theirs, LINE)


def test_the_kernels_input_is_read_in_a_thread(monkeypatch):
    asked = []
    monkeypatch.setattr("builtins.input", lambda prompt: asked.append(prompt) or "n")
    events = Events()
    keyboard = prompts.KernelKeyboard(events)
    keyboard.ask("(Pdb) ")
    events.pump(5)  # it wakes whoever waits
    assert keyboard.poll() == (Answer.HERE, "n")
    assert asked == ["(Pdb) "]
    events.close()


@pytest.mark.parametrize(
    ("error", "answer"), [(EOFError, Answer.END), (NotImplementedError, Answer.NO_KEYBOARD)]
)
def test_a_kernel_that_cannot_ask(monkeypatch, error, answer):
    def refuse(prompt):
        raise error

    monkeypatch.setattr("builtins.input", refuse)
    events = Events()
    keyboard = prompts.KernelKeyboard(events)
    keyboard.ask("(Pdb) ")
    events.pump(5)
    assert keyboard.poll() == (answer, "")
    events.close()


def test_a_kernels_input_is_called_off(monkeypatch):
    left = threading.Event()

    def wait(prompt):
        try:
            while True:
                threading.Event().wait(0.01)
        finally:
            left.set()

    monkeypatch.setattr("builtins.input", wait)
    events = Events()
    keyboard = prompts.KernelKeyboard(events)
    keyboard.ask("(Pdb) ")
    keyboard.cancel()
    assert left.is_set()
    events.close()


# ---- commands of a session


def test_a_command_arrives_and_the_end_does():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        file = os.memfd_create("test")
        command = Command(code="x = 1", filename="<cell>", names={"<cell>": "cell In[1]"})
        wire.write_whole(file, pickle.dumps(command))
        wire.send_command(ours, file)
        os.close(file)
        wire.send_end(ours)
        assert wire.receive_command(theirs) == command
        assert wire.receive_command(theirs) is None
        ours.close()
        with pytest.raises(ConnectionError):
            wire.receive_command(theirs)


def test_a_cell_shows_its_last_value(capsys):
    stay._run_cell("a = 2\na + 3", "<cell>")
    assert capsys.readouterr().out == "5\n"
    stay._run_cell("a\nNone", "<cell>")
    stay._run_cell("b = a", "<cell>")
    assert capsys.readouterr().out == ""
    assert (stay.namespace["b"], stay.namespace["_"]) == (2, 5)
    for name in ("a", "b", "_"):
        del stay.namespace[name]
