"""`monosem patch`: clean against corrupted prompts, to see which places carry the difference."""

from ..application import group
from .localise import localise
from .paths import paths
from .sweep import compare, estimate, sweep
from .trace import trace

app = group(
    "Which places make an answer: clean against corrupted prompts.",
    {
        "localise": localise,
        "sweep": sweep,
        "estimate": estimate,
        "compare": compare,
        "trace": trace,
        "paths": paths,
    },
)
