"""Checkpoints: one file written so that it is whole or not there, and a folder of the last few."""

from ddp_helpers.checkpoints.file import CheckpointError, load_checkpoint, save_checkpoint, unwrap
from ddp_helpers.checkpoints.folder import CheckpointFolder

__all__ = ["CheckpointError", "CheckpointFolder", "load_checkpoint", "save_checkpoint", "unwrap"]
