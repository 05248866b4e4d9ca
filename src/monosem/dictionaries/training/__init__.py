"""Training TopK and BatchTopK dictionaries: `train(config, stream, folder=...)`."""

from .config import TrainConfig
from .interrupts import Interrupted
from .trainer import Stream, train

__all__ = ["Interrupted", "Stream", "TrainConfig", "train"]
