import pytest

from ddp_helpers.sanitizer.talk import channel as channel_module
from ddp_helpers.sanitizer.talk import exchange as exchange_module
from ddp_helpers.sanitizer.talk import ledger as ledger_module
from ddp_helpers.sanitizer.talk import sequence as sequence_module


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Nothing that a test waits for takes longer than some milliseconds."""
    monkeypatch.setattr(channel_module, "LOOK_AROUND", 0.002)
    monkeypatch.setattr(exchange_module, "PATIENCE_AT_END", 0.02)
    monkeypatch.setattr(ledger_module, "PATIENCE_AT_END", 0.02)
    monkeypatch.setattr(ledger_module, "PATIENCE", 0.02)
    monkeypatch.setattr(sequence_module, "ASYNC_PATIENCE", 0.0)
    monkeypatch.setattr(sequence_module, "SLOW", 0.01)
