"""What eai-delphi's explainer and scorers said of latents: the folders `explanations` and `scores` beside its cache."""

from pathlib import Path
from typing import Any

from ..errors import BadFile
from ..reading import read_json

OVERLAP = "its scorers drew examples without leaving out the ones that the explanation was written from"


def label_of(results: Path, hook: str, latent: int) -> tuple[dict[str, Any] | None, list[str]]:
    """The explanation of a latent as pages have it (or None), and what of it is unreliable.

    Scores are balanced accuracies of scorers that judge examples one by one (detection, fuzz), over examples with an
    answer.

    Args:
        results: the folder of a run of delphi, with `explanations`, `scores` and `latents` in it.
        hook: the name of the hook point, as of the folder in `latents`.

    Raises:
        BadFile: a damaged file.
    """
    name = f"{hook}_latent{latent}.txt"
    file = results / "explanations" / name
    if not file.is_file():
        return None, []
    label = read_json(file)
    if not isinstance(label, str):
        raise BadFile(f"{file} holds no explanation: it needs a JSON string")
    scores: dict[str, float] = {}
    remarks = []
    for scored in sorted((results / "scores").glob(f"*/{name.replace('/', '--')}")):
        value, remark = _balanced(scored)
        if value is not None:
            scores[scored.parent.name] = value
        if remark:
            remarks.append(f"{scored.parent.name}: {remark}")
    explained = {"label": label, "by": "eai-delphi", "scores": scores, "others": []}
    return explained, [OVERLAP, *remarks] if scores else remarks


def _balanced(file: Path) -> tuple[float | None, str]:
    """(mean of the shares that were right among active and among other examples, what is to be said of it)."""
    rows = read_json(file)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BadFile(f"{file} holds no scores of delphi: it needs a list of objects")
    if not rows or not all(isinstance(row.get("activating"), bool) and "prediction" in row for row in rows):
        return None, "its scores are not of examples judged one by one, and are not read"
    answered = [row for row in rows if isinstance(row["prediction"], bool)]
    shares = []
    for side in (True, False):
        right = [row["prediction"] is side for row in answered if row["activating"] is side]
        if not right:
            return None, f"no answers for {'active' if side else 'other'} examples"
        shares.append(sum(right) / len(right))
    lost = len(rows) - len(answered)
    return sum(shares) / 2, f"{lost} of {len(rows)} examples had no answer, and are left out" if lost else ""
