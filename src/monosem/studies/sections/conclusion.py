"""F: what the numbers support, and what they do not. Every sentence is a rule applied to the other sections.

Rules (fixed before any study was run):

- detects: held-out AUROC has its whole 95 % interval above 0.5 and permutation p < 0.05; "well" from 0.8 on.
- matters (defence): the latent has a higher mean KL on test prompts than the random latents (rank p <= 0.05) *and* at
  least one next token changes.
- spares (side effects): at most one control prompt in ten changes its next token, at a mean KL below 0.05 nats.
- steers (attack): at the primary dose the concept score of the test continuations rises, its 95 % interval above 0, by
  more than under every random latent that was continued, in the same units of its own maximum.
- keeps coherent: the perplexity of the continuations under the unedited model rises at most threefold.
"""

from typing import Any

from ..context import Context

ALPHA = 0.05
GOOD_AUROC = 0.8
SPARED_RATE, SPARED_KL = 0.1, 0.05
COHERENT = 3.0

Claim = dict[str, Any]  # question, verdict ("yes", "no"), text
Results = dict[str, dict[str, Any]]


def make(context: Context, earlier: Results) -> dict[str, Any]:
    claims = conclude(earlier)
    return {"claims": claims, "limits": limits(context, earlier), "headline": headline(earlier, claims)}


def conclude(results: Results) -> list[Claim]:
    """One claim a rule, from sections B, C and D."""
    return [_detects(results), _matters(results), _spares(results), _steers(results), _coherent(results)]


def headline(results: Results, claims: list[Claim]) -> str:
    target = results["candidates"]["target"]
    said = {claim["rule"]: claim["verdict"] == "yes" for claim in claims}
    parts = [
        "detects the concept on unseen prompts" if said["detects"] else "is not shown to detect the concept",
        "moves continuations towards it when amplified"
        if said["steers"]
        else "is not shown to move continuations towards it",
        "changes predictions more than a random latent when switched off"
        if said["matters"]
        else "is not shown to be missed more than a random latent when switched off",
    ]
    return f"Latent {target} {parts[0]}, {parts[1]}, and {parts[2]}."


def limits(context: Context, results: Results) -> list[str]:
    """What a reader must bear in mind."""
    config = context.config
    n, active = len(config.test), sum(value > 0 for value in results["defence"]["active"]["test"])
    reader = results["attack"]["reader_auroc"]
    return [
        f"One latent of one dictionary of one model, {n} test and {len(config.control)} control prompts, one seed.",
        f"The latent was active on {active} of {n} test prompts; where it is silent, zeroing it changes nothing.",
        f"With {config.random_latents} random latents the smallest p that this comparison can give is "
        f"{1 / (config.random_latents + 1):.2f}.",
        "The concept score is a linear reading of the same model's activations (AUROC on held-out prompts "
        f"{reader:.2f}), not a human judgement; read the continuations.",
        "A concept may be spread over many latents: that one of them does little when switched off does not show that "
        "the model does not use the concept.",
    ]


def _detects(results: Results) -> Claim:
    held = results["candidates"]["held_out"]
    yes = held["auroc_low"] > 0.5 and held["p"] < ALPHA
    numbers = f"AUROC {held['auroc']:.2f} [{held['auroc_low']:.2f}, {held['auroc_high']:.2f}], p = {held['p']:.4f}"
    how = "well " if yes and held["auroc"] >= GOOD_AUROC else ""
    text = (
        f"The target latent tells the held-out positive prompts {how}from the negative ones ({numbers})."
        if yes
        else f"On held-out prompts there is no clear sign that the target latent tells the two sides apart ({numbers})."
    )
    return _claim("detects", "Does the latent detect the concept?", yes, text)


def _matters(results: Results) -> Claim:
    arm, p = _target(results["defence"]), results["defence"]["p"]["test"]
    test = arm["test"]
    yes = p <= ALPHA and test["changed"] > 0
    numbers = f"{_rate(test)}, KL {test['kl']:.3f} nats; p = {p:.2f} against random latents of similar density"
    if yes:
        text = (
            f"Setting the latent to zero changes predictions on test prompts, more than random latents do ({numbers})."
        )
    else:
        text = f"That switching the latent off matters more than switching off a random one is not shown ({numbers})."
    spliced = next((arm for arm in results["defence"]["arms"] if arm["kind"] == "reconstruction"), None)
    if spliced is not None:
        text += (
            f" For scale, when the activation is replaced by the dictionary's reconstruction and no latent is touched, "
            f"{_rate(spliced['test'])}, KL {spliced['test']['kl']:.3f}."
        )
    return _claim("matters", "Does switching it off matter?", yes, text)


def _spares(results: Results) -> Claim:
    control = _target(results["defence"])["control"]
    yes = control["changed_rate"] <= SPARED_RATE and control["kl"] < SPARED_KL
    what = "leaves control prompts nearly untouched" if yes else "also changes control prompts"
    text = f"Switching it off {what} ({_rate(control)}, KL {control['kl']:.3f} nats)."
    return _claim("spares", "Are unrelated prompts spared?", yes, text)


def _steers(results: Results) -> Claim:
    attack = results["attack"]
    arm = _target(attack, attack["primary_dose"])
    test, control = arm["test"], arm["control"]
    rivals = [
        other["test"]["concept_shift"]
        for other in attack["arms"]
        if other["kind"] == "random" and other["continued"] and other["dose"] == attack["primary_dose"]
    ]
    strongest = max((shift for shift in rivals if shift is not None), default=0.0)
    if test["concept_shift"] is None:
        return _claim(
            "steers", "Does amplifying it steer?", False, "The amplified model wrote nothing that could be read."
        )
    yes = test["concept_low"] > 0 and test["concept_shift"] > strongest
    numbers = (
        f"concept score {test['concept_shift']:+.2f} [{test['concept_low']:+.2f}, {test['concept_high']:+.2f}], "
        f"at most {strongest:+.2f} under {len(rivals)} random latents; next token: {_rate(test)}"
    )
    what = "moves" if yes else "does not clearly move"
    text = (
        f"Amplifying the latent to {attack['primary_dose']:g} x its maximum {what} the continuations of test prompts "
        f"towards the concept ({numbers}). On control prompts the shift is "
        f"{control['concept_shift'] or 0:+.2f}, next token: {_rate(control)}."
    )
    return _claim("steers", "Does amplifying it steer?", yes, text)


def _coherent(results: Results) -> Claim:
    attack = results["attack"]
    test = _target(attack, attack["primary_dose"])["test"]
    if test["edited_perplexity"] is None or test["baseline_perplexity"] is None:
        return _claim("coherent", "Does the text stay coherent?", False, "There was no continuation to judge.")
    ratio = test["edited_perplexity"] / test["baseline_perplexity"]
    yes = ratio <= COHERENT
    text = (
        f"At that dose the continuations have perplexity {test['edited_perplexity']:.1f} under the unedited model, "
        f"against {test['baseline_perplexity']:.1f} without the edit ({ratio:.1f} x): "
        + ("they stay about as coherent." if yes else "the text pays for the steering.")
    )
    return _claim("coherent", "Does the text stay coherent?", yes, text)


def findings(result: dict[str, Any]) -> list[str]:
    return [result["headline"], *(f"[{claim['verdict']}] {claim['text']}" for claim in result["claims"])]


def _claim(rule: str, question: str, yes: bool, text: str) -> Claim:
    return {"rule": rule, "question": question, "verdict": "yes" if yes else "no", "text": text}


def _target(section: dict[str, Any], dose: float | None = 0.0) -> dict[str, Any]:
    return next(arm for arm in section["arms"] if arm["kind"] == "target" and arm["dose"] == dose)


def _rate(summary: dict[str, Any]) -> str:
    return (
        f"{summary['changed']} of {summary['n']} next tokens change "
        f"[{summary['changed_low']:.0%}, {summary['changed_high']:.0%}]"
    )
