"""`monosem lens`: what each layer would say, read in several ways, and a lens that is learnt."""

from ..application import group
from .languages import languages
from .layers import logit, tuned
from .patchscope import patchscope
from .profiles import entropy, gap
from .train import train
from .trajectory import trajectory

app = group(
    "What each layer would predict.",
    {
        "logit": logit,
        "tuned": tuned,
        "entropy": entropy,
        "gap": gap,
        "languages": languages,
        "trajectory": trajectory,
        "patchscope": patchscope,
        "train": train,
    },
)
