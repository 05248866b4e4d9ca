"""`monosem lens`: what each layer would say, read in several ways, and a lens that is learnt."""

from ..application import group
from .layers import logit, read, tuned
from .patchscope import patchscope
from .profiles import entropy, gap, languages, trajectory
from .train import train

COMMANDS = (logit, tuned, read, entropy, gap, languages, trajectory, patchscope, train)
app = group("What each layer would predict.", {command.__name__: command for command in COMMANDS})
