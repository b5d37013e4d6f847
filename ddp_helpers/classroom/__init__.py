"""For instructors: copies to hand out, seats to count, a board, and answers to collect."""

from ddp_helpers.classroom.collection import collect
from ddp_helpers.classroom.copies import hand_out, reset
from ddp_helpers.classroom.room import check

__all__ = ["check", "collect", "hand_out", "reset"]
