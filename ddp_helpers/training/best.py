"""Which epoch was the best one, by a rule such as "min loss" or "max accuracy"."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ddp_helpers.training.records import EpochRecord

_SIGNS = {"min": 1, "max": -1}


def check_rule(rule: str) -> None:
    """Raise ValueError unless `rule` is "min NAME" or "max NAME"."""
    words = rule.split() if isinstance(rule, str) else []
    if len(words) != 2 or words[0] not in _SIGNS:
        raise ValueError(
            f'best={rule!r}: expected "min loss", "max accuracy", or min or max of the name of a '
            "metric"
        )


def is_best(records: Sequence[EpochRecord], rule: str) -> bool:
    """Whether the last epoch is better than all before it; a nan never is.

    Raises:
        ValueError: the last one has no value of that name.
    """
    last = _value(records[-1], rule)
    if last is None:
        raise ValueError(
            f'best="{rule}", but an epoch has {", ".join(_known(records[-1]))}: name one of these'
        )
    before = [value for record in records[:-1] if (value := _value(record, rule)) is not None]
    return not math.isnan(last) and not any(value <= last for value in before)


def _value(record: EpochRecord, rule: str) -> float | None:
    """The smaller, the better; None where the record has no value of that name."""
    sign, name = rule.split()
    value = _known(record).get(name)
    return None if value is None else _SIGNS[sign] * value


def _known(record: EpochRecord) -> dict[str, float]:
    values = {"loss": record.test_loss, "accuracy": record.test_accuracy, **record.metrics}
    return {name: value for name, value in values.items() if value is not None}
