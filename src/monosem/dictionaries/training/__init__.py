"""Training dictionaries: `train(config)` is the whole job, `train_on(stream, config)` its loop; `train_several` and
`train_several_on` make several from one pass of the model. `KINDS` is the table of what can be trained."""

from ...jobs import Interrupted
from .config import SeveralConfig, TrainConfig
from .job import train, train_several
from .kinds import KINDS
from .trainer import Stream, train_on, train_several_on

__all__ = [
    "KINDS",
    "Interrupted",
    "SeveralConfig",
    "Stream",
    "TrainConfig",
    "train",
    "train_on",
    "train_several",
    "train_several_on",
]
