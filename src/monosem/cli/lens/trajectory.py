"""`monosem lens trajectory`: two prompts side by side, layer by layer."""

from ...errors import BadInput
from ..options import Machine, Written
from .options import Lens, Position, Reading, Value


def trajectory(
    reading: Reading,
    machine: Machine,
    written: Written,
    position: Position = None,
    value: Value = None,
    lens: Lens = None,
) -> None:
    """Compare two prompts of as many tokens, layer by layer.

    How far apart the two are at one token: KL and Jensen-Shannon divergence of what they predict, cosine of the states.

    Example: monosem lens trajectory smollm2 "The capital of France is" "The capital of Italy is" --out a.html
    """
    from ... import lenses

    if len(reading.prompts) != 2:
        raise BadInput(f"a trajectory compares two prompts; {len(reading.prompts)} were given")
    plot = written.check_colour(value)
    model, texts, options = reading.load(machine, written)
    result = lenses.trajectory(model, *texts, lens=lens, **options)
    written.save(result, **plot)
    cells = result.table
    if not written.json:
        place, places = -1 if position is None else position, sorted(cells.position.unique())
        if not -len(places) <= place < len(places):
            raise BadInput(f"--position {place}: the prompts have {len(places)} tokens")
        columns = ["site", "token", "other_token", "first", "second", "kl", "js", "cosine"]
        cells = cells[cells.position == places[place]][columns]
    written.show(cells, "the two prompts at one token")
    written.say_where()
