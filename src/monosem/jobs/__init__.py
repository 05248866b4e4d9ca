"""What long jobs share: claimed folders, configs, fingerprints, checkpoints, interrupts, journals."""

from .checkpoints import Checkpoints
from .claim import claim, claimed, differences
from .config import JobConfig
from .fingerprint import fingerprint, known_again, marks, module_fingerprint
from .interrupts import Interrupted, Interrupts
from .journal import Health, Journal
from .memory import keep_freed_memory
from .parts import read_part, write_part

__all__ = [
    "Checkpoints",
    "Health",
    "Interrupted",
    "Interrupts",
    "JobConfig",
    "Journal",
    "claim",
    "claimed",
    "differences",
    "fingerprint",
    "keep_freed_memory",
    "known_again",
    "marks",
    "module_fingerprint",
    "read_part",
    "write_part",
]
