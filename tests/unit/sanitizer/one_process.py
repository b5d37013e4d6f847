"""Several ranks' sessions in one process: their channels are real, only the store is a dict."""

from ddp_helpers.sanitizer.talk.channel import Channel
from ddp_helpers.sanitizer.talk.session import Session


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
