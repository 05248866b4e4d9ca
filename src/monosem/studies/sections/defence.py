"""C: the target latent clamped to zero, beside random latents set to zero and the reconstruct-only arm."""

from typing import Any

from ...statistics import rank_p
from ..arms import Arm, controls, measure
from ..context import Context


def make(context: Context, earlier: dict[str, dict[str, Any]]) -> dict[str, Any]:
    target = earlier["candidates"]["target"]
    randoms = controls(context, target, [row["latent"] for row in earlier["candidates"]["candidates"]])
    arms = [Arm("target", f"latent {target} to 0", target, 0.0, 0.0), Arm("reconstruction", "reconstruct only")]
    continued = context.config.random_continuations
    arms += [Arm("random", f"latent {r} to 0", r, 0.0, 0.0, number < continued) for number, r in enumerate(randoms)]
    measured = measure(context, arms, "C defence")
    active = context.strongest(context.openings)[:, target].tolist()
    cut = len(context.config.test)
    return {
        "target": target,
        "randoms": randoms,
        "arms": measured,
        "active": {"test": active[:cut], "control": active[cut:]},  # highest activation of the target on each opening
        "p": {part: against_randoms(measured, part) for part in ("test", "control")},
    }


def against_randoms(arms: list[dict[str, Any]], part: str) -> float:
    """Rank p of the target's mean KL among the random latents' (one-sided)."""
    target = next(arm for arm in arms if arm["kind"] == "target")
    return rank_p(target[part]["kl"], [arm[part]["kl"] for arm in arms if arm["kind"] == "random"])


def findings(result: dict[str, Any]) -> list[str]:
    arm, spliced = result["arms"][0], result["arms"][1]
    active = sum(value > 0 for value in result["active"]["test"])
    return [
        f"{arm['label']}: the next token changes on {_of(arm['test'])} test and {_of(arm['control'])} control prompts",
        f"(the latent was active on {active} test prompts; reconstruct-only changes {_of(spliced['test'])} "
        f"and {_of(spliced['control'])})",
        f"KL {arm['test']['kl']:.3f} nats on test, {arm['control']['kl']:.3f} on control; "
        f"p = {result['p']['test']:.2f} against {len(result['randoms'])} random latents",
    ]


def _of(summary: dict[str, Any]) -> str:
    return f"{summary['changed']}/{summary['n']}"
