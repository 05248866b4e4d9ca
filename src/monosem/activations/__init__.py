"""Activations of a model over a corpus: harvested once or streamed, shuffled, without the tokens that mislead."""

from .buffer import ShuffleBuffer
from .harvesting import ActivationBatch, Harvest, harvest
from .medians import median_norms
from .schedule import Schedule
from .second import Second
from .shards import ActivationShards, ShardStream
from .skipping import FittedAt, Skipper, SkipRule, left_out_words, skip_rule
from .stream import ActivationStream
from .windows import TokenStream

__all__ = [
    "ActivationBatch",
    "ActivationShards",
    "ActivationStream",
    "FittedAt",
    "Harvest",
    "Schedule",
    "Second",
    "ShardStream",
    "ShuffleBuffer",
    "SkipRule",
    "Skipper",
    "TokenStream",
    "harvest",
    "left_out_words",
    "median_norms",
    "skip_rule",
]
