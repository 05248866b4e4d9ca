"""F: what the numbers support, and what they do not. Every sentence is a rule applied to the other sections.

Rules (fixed before any study was run). A verdict is "yes", "no", or "unclear": too few prompts, or evidence both ways.

- detects: held-out AUROC has its whole 95 % interval above 0.5 and permutation p < 0.05; "well" where the interval
  starts at 0.8. Fewer than 5 held-out pairs are too few.
- surface: see `studies.surface`.
- matters (ablation): on the test prompts on which the latent is active, a higher mean KL than under changes that are as
  large, token by token, along the decoder rows of random latents (rank p <= 0.05), and at least one next token changes.
  "unclear" where no token changes, where these rows are too few for such a p and none has a KL as high, or where random
  latents that are at least half as active on the same tokens are enough for such a p, and their p is above it.
- steers: at the primary dose the concept score of the test continuations rises, its 95 % interval above 0, and by more
  than under random latents at the same multiple of their own maxima (rank p <= 0.05).
- spares (side effects), ablated and amplified alike: at most one control prompt in ten changes its next token, with at
  most one in four within the 95 % interval (else "unclear"), at a mean KL below 0.05 nats.
- coherent: the perplexity of the amplified model's continuations, under the unedited model, is at most threefold, and
  no higher than under the least coherent random latent; "unclear" where only one of these holds.
"""

import statistics
from typing import Any

from ..arms import BASELINES
from ..context import Context
from .target import FEW_PAIRS

ALPHA = 0.05
GOOD_AUROC = 0.8
SPARED_RATE, SPARED_MOST, SPARED_KL = 0.1, 0.25, 0.05
COHERENT = 3.0
AS_LARGE = "more than as large a change along random directions"
DOUBTS = (  # of the ablation: what makes more than that "unclear"
    "these are few",
    "not more than ablating random latents that are about as active",
    "changes no next token",
)

Claim = dict[str, Any]  # rule, question, verdict, text; said: in the headline; weakness: its limit; n: what it rests on
Results = dict[str, dict[str, Any]]
VERDICTS = ("no", "unclear", "yes")

# rule -> how the headline puts a verdict; the rules of the headline's first sentence, in order
SAID = {
    "detects": {
        "yes": "tells the two sides apart on held-out prompts",
        "unclear": "may tell the two sides apart on held-out prompts",
        "no": "is not shown to tell the two sides apart on held-out prompts",
    },
    "steers": {
        "yes": "moves continuations towards the concept when amplified",
        "unclear": "may move continuations towards the concept when amplified",
        "no": "is not shown to move continuations towards the concept",
    },
    "matters": {
        "yes": "changes predictions when ablated, more than as large a change along random directions",
        "unclear": "may matter when ablated",
        "no": "is not shown to matter when ablated more than as large a change along random directions",
    },
}


def make(context: Context, earlier: Results) -> dict[str, Any]:
    claims = conclude(earlier)
    return {"claims": claims, "limits": limits(context, earlier), "headline": headline(earlier, claims)}


def conclude(results: Results) -> list[Claim]:
    """One claim a rule, from sections B, C and D."""
    rules = (_detects, _surface, _matters, _steers, _spares, _coherent)
    return [rule(results) for rule in rules]


def headline(results: Results, claims: list[Claim]) -> str:
    """What holds, with its numbers, and the weakest link: the worst verdict, of equals that from the fewest prompts."""
    made = {claim["rule"]: claim for claim in claims}
    parts = [f"{said[made[rule]['verdict']]} ({made[rule]['numbers']})" for rule, said in SAID.items()]
    weakest = min(claims, key=lambda claim: (VERDICTS.index(claim["verdict"]), claim["n"]))
    return (
        f"Latent {results['target']['latent']} {parts[0]}, {parts[1]}, and {parts[2]}. "
        f"Weakest link: {weakest['weakness']}."
    )


def limits(context: Context, results: Results) -> list[str]:
    """What a reader must bear in mind."""
    config, reader = context.config, results["steering"]["reader"]
    n, active = len(config.test), results["ablation"]["where_active"]["n"]
    matching = results["ablation"]["matching"]
    return [
        f"One latent of one dictionary of one model, {n} test and {len(config.control)} control prompts, one seed.",
        f"The latent was active on {active} of {n} test prompts; where it is silent, ablating it changes nothing.",
        f"{matching['active']} of {len(matching['randoms'])} random latents are active on the tokens in question, at a "
        f"median of {_median(matching['randoms']):.2g} against the target's {matching['target']:.2g} (activation times "
        "decoder length): to take away more changes more. So the p of the ablation is against changes of equal length "
        "along the decoder rows of random latents; most of these are silent there, and nothing of theirs is removed.",
        "The concept score is a linear reading of the same model's activations (AUROC "
        f"{_interval(reader['auroc'], reader['low'], reader['high'])} on {reader['pairs']} held-out pairs), not a "
        "human judgement; read the continuations.",
        "The search knows two sides only: a latent of anything that the positive prompts have and the negative ones "
        "lack would do as well. What the target fires on elsewhere (section B) says how special it is.",
        "A concept may be spread over many latents: that one of them does little when ablated does not show that the "
        "model does not use the concept.",
        "Perplexity is taken under the unedited model, which finds any change of topic or language odd.",
    ]


def _detects(results: Results) -> Claim:
    held = results["target"]["held_out"]
    n = held["pairs"]
    numbers = f"AUROC {_interval(held['auroc'], held['auroc_low'], held['auroc_high'])}, {n} pairs"
    p = p_said(held["p"], held["p_floor"], f"{n} pairs and 2,000 shuffles")
    few = n < FEW_PAIRS
    yes = held["auroc_low"] > 0.5 and held["p"] < ALPHA and not few
    if few:
        text = f"{n} held-out pairs are too few to say whether the target latent tells the two sides apart"
    elif yes:
        how = "well " if held["auroc_low"] >= GOOD_AUROC else ""
        text = f"The target latent tells the held-out positive prompts {how}from the negative ones"
    else:
        text = "On held-out prompts there is no clear sign that the target latent tells the two sides apart"
    return {
        "rule": "detects",
        "question": "Does the latent detect the concept?",
        "verdict": "unclear" if few else "yes" if yes else "no",
        "text": f"{text} ({numbers}; {p}).",
        "numbers": numbers,
        "weakness": f"detection rests on {n} held-out pairs" + ("" if yes else f", with AUROC {numbers[6:]}"),
        "n": n,
    }


def _surface(results: Results) -> Claim:
    found = results["target"]["surface"]
    whole = _interval(*found["whole"].values())
    kept = ", ".join(f"{name} {_interval(*area.values())}" for name, area in found["restricted"].items())
    text = f"{found['said'][:1].upper()}{found['said'][1:]} (AUROC on all {found['pairs']} pairs {whole}, {kept})."
    known = f"the check of the surface looks at {len(found['looked_at'])} features and {found['pairs']} pairs only"
    return {
        "rule": "surface",
        "question": "Is it the concept, and not the surface of the prompts?",
        "verdict": found["verdict"],
        "text": text,
        "numbers": kept,
        "weakness": known if found["verdict"] == "yes" else found["said"],
        "n": found["pairs"],
    }


def _matters(results: Results) -> Claim:
    ablation = results["ablation"]
    where, arm = ablation["where_active"], _target(ablation)
    n, of, total = where["n"], len(where["random_kls"]), arm["test"]["n"]
    if not n:
        numbers = f"it is silent on all {total} test prompts"
        verdict, text = "unclear", f"The latent is silent on all {total} test prompts: there is nothing to ablate."
        weakness = f"{numbers}, so its ablation shows nothing"
    else:
        along, alike = where["along_kls"], where["alike"]
        floor = 1 / (1 + len(along))
        few = floor > ALPHA
        more = where["kl"] > max(along, default=0.0) if few else where["p_along"] <= ALPHA
        rivalled = 1 / (1 + alike) <= ALPHA < where["p"]
        doubt = next((why for why, holds in zip(DOUBTS, (few, rivalled, not where["changed"])) if holds), None)
        verdict = "no" if not more else "unclear" if doubt else "yes"
        p = f"p = {where['p']:.2f}" if alike else "so there is no p"
        numbers = f"{where['changed']} of {n} next tokens, {p_said(where['p_along'], floor)}"
        detail = (
            f"on the {n} of {total} test prompts on which it is active {changes(where['changed'])}, KL "
            f"{where['kl']:.3f} nats; a change as large at each token, along the decoder rows of {len(along)} random "
            f"latents: median {_median(along):.3f}, highest {max(along, default=0.0):.3f}, "
            f"{p_said(where['p_along'], floor, f'{len(along)} directions')}; {of} random latents ablated themselves: "
            f"median {_median(where['random_kls']):.3f}, highest {max(where['random_kls']):.3f}, {alike} of them at "
            f"least half as active there: {p}"
        )
        start = f"That ablating the latent matters {AS_LARGE} is not shown"
        if more:
            start = f"Ablating the latent changes predictions {AS_LARGE}{f', but {doubt}' if doubt else ''}"
        text = f"{start} ({detail})."
        weakness = f"ablation rests on the {n} of {total} test prompts on which it is active, {numbers}"
    return {
        "rule": "matters",
        "question": "Does ablating it matter?",
        "verdict": verdict,
        "text": text + _beside(ablation, ("several", "reconstruction")),
        "numbers": numbers,
        "weakness": weakness,
        "n": n,
    }


def _steers(results: Results) -> Claim:
    section = results["steering"]
    dose, arm = section["primary_dose"], _target(section, section["primary_dose"])
    test, n, p = arm["test"], arm["test"]["n"], section["p_concept"]
    rivals = _rivals(section, "concept_shift")
    verdict, question = "no", "Does amplifying it steer?"
    if test["concept_shift"] is None or p is None:
        text, numbers = "The amplified model wrote nothing that could be read.", "no text to read"
    else:
        rises = test["concept_low"] > 0
        few = 1 / (1 + len(rivals)) > ALPHA
        best = rises and test["concept_shift"] > max(rivals, default=0.0)
        verdict = "yes" if rises and p <= ALPHA else "unclear" if best and few else "no"
        shift = f"{test['concept_shift']:+.2f} [{test['concept_low']:+.2f}, {test['concept_high']:+.2f}]"
        floor = 1 / (1 + len(rivals))
        numbers = f"concept score {shift}, {n} prompts, {p_said(p, floor)}"
        what = {"yes": "moves", "unclear": "may move", "no": "does not clearly move"}[verdict]
        text = (
            f"Amplifying the latent to {dose:g} x its maximum {what} the continuations of test prompts towards the "
            f"concept (concept score {shift}, {n} prompts; {p_said(p, floor, f'{len(rivals)} controls')}: under random "
            f"latents the median is {_median(rivals):+.2f}, the highest {max(rivals, default=0.0):+.2f}). "
            f"Next token: {_rate(test)}.{_beside(section, BASELINES)}"
        )
    weakness = f"steering rests on {n} test prompts ({numbers})"
    if verdict == "no":
        weakness = f"amplifying it does not clearly move continuations towards the concept ({numbers})"
    return {"rule": "steers", "question": question, "verdict": verdict, "text": text} | {
        "numbers": numbers, "weakness": weakness, "n": n
    }  # fmt: skip


def _spares(results: Results) -> Claim:
    section = results["steering"]
    arms = {
        "ablated": _target(results["ablation"])["control"],
        f"amplified to {section['primary_dose']:g} x its maximum": _target(section, section["primary_dose"])["control"],
    }
    verdicts = {name: spared(control) for name, control in arms.items()}
    worst = min(verdicts, key=lambda name: VERDICTS.index(verdicts[name]))
    n = arms[worst]["n"]
    what = {"yes": "nearly untouched", "unclear": "untouched as far as they can show it", "no": "changed"}
    told = [
        f"{name}, control prompts are {what[verdicts[name]]} ({_rate(control)}, KL {control['kl']:.3f} nats)"
        for name, control in arms.items()
    ]
    also = p_said(section["p"]["control"])
    text = f"{told[0][:1].upper()}{told[0][1:]}; {told[1]} (against random latents, amplified alike: {also})."
    changed, kl = arms[worst]["changed"], arms[worst]["kl"]
    return {
        "rule": "spares",
        "question": "Are unrelated prompts spared?",
        "verdict": verdicts[worst],
        "text": text,
        "numbers": f"{changed} of {n} control prompts",
        "weakness": f"{worst}, it changes {changed} of {n} next tokens of unrelated prompts, KL {kl:.2f} nats",
        "n": n,
    }


def spared(control: dict[str, Any]) -> str:
    if control["changed_rate"] > SPARED_RATE or control["kl"] >= SPARED_KL:
        return "no"
    return "yes" if control["changed_high"] <= SPARED_MOST else "unclear"


def _coherent(results: Results) -> Claim:
    section = results["steering"]
    test = _target(section, section["primary_dose"])["test"]
    question, ratio, rivals = "Does the text stay coherent?", test.get("ratio"), _rivals(section, "ratio")
    n, verdict = test["n"], "no"
    if ratio is None:
        text = numbers = "there was no continuation to judge"
    else:
        near, usual = ratio <= COHERENT, ratio <= max(rivals, default=0.0)
        verdict = "yes" if near and usual else "no" if not near and not usual else "unclear"
        numbers = f"perplexity {ratio:.1f} x, {_median(rivals):.1f} x under the median random latent"
        text = (
            f"Amplified, the continuations of {n} test prompts have perplexity {test['edited_perplexity']:.1f} under "
            f"the unedited model, against {test['baseline_perplexity']:.1f} without the edit: {ratio:.1f} x. Under "
            f"{len(rivals)} random latents, amplified alike, it is {_median(rivals):.1f} x in the median, "
            f"{max(rivals, default=0.0):.1f} x at most: "
        )
        text += {
            "yes": "the text stays about as coherent as with any latent.",
            "unclear": "whether the text pays for the steering is not clear.",
            "no": "the text pays for the steering.",
        }[verdict]
    return {"rule": "coherent", "question": question, "verdict": verdict, "text": text} | {
        "numbers": numbers, "weakness": f"coherence of the amplified text ({numbers})", "n": n
    }  # fmt: skip


def findings(result: dict[str, Any]) -> list[str]:
    return [result["headline"], *(f"[{claim['verdict']}] {claim['text']}" for claim in result["claims"])]


def p_said(p: float, floor: float = 0.0, of: str = "") -> str:
    """A p, and whether it could have been lower; `of`: from what it is."""
    text = f"p = {p:.{4 if p < 0.01 else 2}f}"
    if p > floor * 1.001:
        return text
    return f"{text}, the least that {of} can show" if of else f"{text}, its floor"


def changes(n: int) -> str:
    return f"{n} next token changes" if n == 1 else f"{n} next tokens change"


def _beside(section: dict[str, Any], kinds: tuple[str, ...]) -> str:
    """What other arms do, in a sentence."""
    arms = [arm for arm in section["arms"] if arm["kind"] in kinds]
    if kinds == BASELINES:
        told = [
            f"{a['label']}: {a['test']['concept_shift']:+.2f}" for a in arms if a["test"]["concept_shift"] is not None
        ]
        return f" Concept score of the baselines: {'; '.join(told)}." if told else ""
    told = [f"{arm['label']}: {_rate(arm['test'])}, KL {arm['test']['kl']:.3f}" for arm in arms]
    return f" For scale, on all test prompts: {'; '.join(told)}." if told else ""


def _target(section: dict[str, Any], dose: float | None = 0.0) -> dict[str, Any]:
    return next(arm for arm in section["arms"] if arm["kind"] == "target" and arm["dose"] == dose)


def _rivals(section: dict[str, Any], key: str) -> list[float]:
    """A number of the random latents at the primary dose, on test prompts."""
    arms = [arm for arm in section["arms"] if arm["kind"] == "random" and arm["dose"] == section["primary_dose"]]
    return [arm["test"][key] for arm in arms if arm["test"].get(key) is not None]


def _median(values: list[float]) -> float:
    return statistics.median(values) if values else 0.0


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _rate(summary: dict[str, Any]) -> str:
    return (
        f"{summary['changed']} of {summary['n']} next tokens {'changes' if summary['changed'] == 1 else 'change'} "
        f"[{summary['changed_low']:.0%}, {summary['changed_high']:.0%}]"
    )
