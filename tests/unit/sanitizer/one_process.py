"""Several ranks' sessions in one process: their channels are real, only the store is a dict."""

import pytest

from ddp_helpers.sanitizer.talk import channel as channel_module
from ddp_helpers.sanitizer.talk import exchange as exchange_module
from ddp_helpers.sanitizer.talk import ledger as ledger_module
from ddp_helpers.sanitizer.talk import sequence as sequence_module
from ddp_helpers.sanitizer.talk.channel import Channel
from ddp_helpers.sanitizer.talk.codec import decode, encode
from ddp_helpers.sanitizer.talk.session import Session


@pytest.fixture
def impatient(monkeypatch):
    """Nothing that a test waits for takes longer than some milliseconds."""
    monkeypatch.setattr(channel_module, "LOOK_AROUND", 0.002)
    monkeypatch.setattr(exchange_module, "PATIENCE_AT_END", 0.02)
    monkeypatch.setattr(ledger_module, "PATIENCE_AT_END", 0.02)
    monkeypatch.setattr(ledger_module, "PATIENCE", 0.02)
    monkeypatch.setattr(sequence_module, "ASYNC_PATIENCE", 0.0)
    monkeypatch.setattr(sequence_module, "SLOW", 0.01)


class DictStore:
    """What a channel needs of torch.distributed's Store."""

    def __init__(self):
        self.values = {}
        self.broken = False

    def _look(self):
        if self.broken:
            raise RuntimeError("Connection reset by peer")

    def set(self, name, value):
        self._look()
        self.values[name] = value.encode()

    def compare_set(self, name, expected, value):
        self._look()
        if self.values.get(name, b"").decode() == expected:
            self.values[name] = value.encode()
        return self.values[name]

    def delete_key(self, name):
        self._look()
        self.values.pop(name, None)

    def check(self, names):
        self._look()
        return all(name in self.values for name in names)

    def multi_get(self, names):
        self._look()
        return [self.values[name] for name in names]


def sessions(count, options=None):
    """One session for each rank, in a group that has started."""
    store, made = DictStore(), []
    for rank in range(count):
        session = Session(options)
        session.rank, session.world_size, session.timeout = rank, count, 5.0
        session.channel = Channel(store, rank, count)
        made.append(session)
    return made


def left(session):
    """The names of all records that are there, with the rank of each."""
    return sorted(session.line._store.values)


class Mirror(DictStore):
    """A world of two ranks, of which only one is here: the other one leaves the same records.

    Args:
        rank: the one that is here.
    """

    def __init__(self, rank):
        super().__init__()
        self.rank = rank
        self.changes = {}
        """By topic: the kind of its records, and what makes the other rank's of them."""
        self.history = []
        """The names of all records that were ever left, and their texts."""

    def change(self, topic, kind, change):
        """Let the other rank's records of a topic be different; None for one it did not leave."""
        self.changes[topic] = (kind, change)

    def set(self, name, value):
        super().set(name, value)
        self.history.append((name, value))

    def _find(self, name):
        base, _, rank = name.rpartition("/")
        if int(rank) == self.rank or base == "waits":
            return self.values.get(name)
        value = self.values.get(f"{base}/{self.rank}")
        kind, change = self.changes.get(_topic(name), (None, None))
        if value is None or change is None:
            return value
        changed = change(decode(value, kind))
        return None if changed is None else encode(changed).encode()

    def check(self, names):
        return all(self._find(name) is not None for name in names)

    def multi_get(self, names):
        return [self._find(name) for name in names]

    def records(self, topic, kind):
        """All records of a topic that were left, in their order."""
        return [decode(text, kind) for name, text in self.history if _topic(name) == topic]


def _topic(name):
    """`step` of `step/GROUP/NUMBER/ERA/STEP/RANK`, `step/end` of the one at the end."""
    parts = name.split("/")
    return "step/end" if parts[0] == "step" and parts[-2] == "end" else parts[0]
