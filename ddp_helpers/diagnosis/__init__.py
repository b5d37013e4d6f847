"""From what a run left to a cause and a way out."""

from ddp_helpers.diagnosis.causes import diagnose, diagnose_text, is_consequence
from ddp_helpers.diagnosis.rules import Diagnosis

__all__ = ["Diagnosis", "diagnose", "diagnose_text", "is_consequence"]
