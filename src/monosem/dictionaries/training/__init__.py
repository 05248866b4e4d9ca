"""Training TopK and BatchTopK dictionaries: `train(config, stream, folder=...)`."""

from ...jobs import Interrupted
from .config import TrainConfig
from .trainer import Stream, train

__all__ = ["Interrupted", "Stream", "TrainConfig", "train"]
