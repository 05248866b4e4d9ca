"""Activations of a model over a corpus: harvested once or streamed, shuffled, without the tokens that mislead."""

from .buffer import ShuffleBuffer
from .harvesting import ActivationBatch, Harvest, harvest
from .medians import median_norms
from .schedule import Schedule
from .shards import ActivationShards, ShardStream
from .skipping import Skipper, SkipRule, left_out_words, skip_rule
from .stream import ActivationStream

__all__ = [
    "ActivationBatch",
    "ActivationShards",
    "ActivationStream",
    "Harvest",
    "Schedule",
    "ShardStream",
    "ShuffleBuffer",
    "SkipRule",
    "Skipper",
    "harvest",
    "left_out_words",
    "median_norms",
    "skip_rule",
]
