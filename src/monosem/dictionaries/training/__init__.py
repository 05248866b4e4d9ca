"""Training TopK and BatchTopK dictionaries: `train(config)` is the whole job, `train_on(stream, config)` its loop."""

from ...jobs import Interrupted
from .config import TrainConfig
from .job import train
from .trainer import Stream, train_on

__all__ = ["Interrupted", "Stream", "TrainConfig", "train", "train_on"]
