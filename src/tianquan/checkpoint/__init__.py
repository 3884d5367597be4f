"""Checkpoints: finding, checking and reading model folders. All foreign file and tensor names live here."""

from tianquan.checkpoint.hub import find_folder
from tianquan.checkpoint.loader import Checkpoint, open_checkpoint

__all__ = ["Checkpoint", "find_folder", "open_checkpoint"]
