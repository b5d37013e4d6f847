"""From what a run left to a cause and a way out."""

from ddp_helpers.diagnosis.causes import diagnose, is_consequence
from ddp_helpers.diagnosis.flight_records import dump_flight_record
from ddp_helpers.diagnosis.log_causes import diagnose_text
from ddp_helpers.diagnosis.rules import Diagnosis

__all__ = ["Diagnosis", "diagnose", "diagnose_text", "dump_flight_record", "is_consequence"]
