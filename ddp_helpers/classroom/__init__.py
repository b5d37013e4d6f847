"""For instructors: can this machine seat a class, and how far has everybody come?"""

from ddp_helpers.classroom.room import check, report

__all__ = ["check", "report"]
