"""C: the target latent set to zero, beside as large a change along random directions, random latents set to zero, and
the reconstruct-only arm."""

from typing import Any

from ...statistics import rank_p
from ..arms import PARTS, Arm, along_others, controls, measure
from ..context import Context

ALIKE = 0.5  # share of the target's activity from which a random latent counts as one that is as active


def make(context: Context, earlier: dict[str, dict[str, Any]]) -> dict[str, Any]:
    target, found = earlier["target"]["latent"], earlier["candidates"]
    randoms, matching = controls(context, target, [row["latent"] for row in found["candidates"]])
    together = several(target, found, context.config.together)
    arms = [
        Arm("target", f"latent {target} to 0", target, 0.0, 0.0),
        Arm(
            "several",
            f"latents {', '.join(map(str, together))} to 0",
            dose=0.0,
            latents=tuple((i, 0.0) for i in together),
        ),
        Arm("reconstruction", "reconstruct only"),
        Arm("nothing", "no edit, run again", continued=()),
        *(Arm("random", f"latent {latent} to 0", latent, 0.0, 0.0, continued=()) for latent in randoms),
    ]
    measured = measure(context, [arm for arm in arms if arm.kind != "several" or len(together) > 1], "C ablation")
    strongest = {part: context.strongest(getattr(context.config, part))[:, target].tolist() for part in PARTS}
    active = [row for row, value in enumerate(strongest["test"]) if value != 0]
    drawn, along = along_others(context, target, active, [row["latent"] for row in found["candidates"]])
    return {
        "target": target,
        "randoms": randoms,
        "matching": matching,
        "arms": measured,
        "active": strongest,  # the target's activation of the largest magnitude on each opening
        "where_active": where_active(measured, active, matching, along),
        "directions": drawn,  # latents whose decoder rows `along_kls` of where_active are of
        "p": {part: against_randoms(measured, part) for part in PARTS},
    }


def several(target: int, candidates: dict[str, Any], n: int) -> list[int]:
    """The target and the next best candidates by the rule of section B, `n` latents in all."""
    return [target, *(latent for latent in candidates["order"] if latent != target)][:n]


def where_active(
    arms: list[dict[str, Any]], active: list[int], matching: dict[str, Any], along: list[float]
) -> dict[str, Any]:
    """The arms on the test prompts on which the target is active alone: what p and the conclusion are about.

    p_along is the rank of the target's KL among changes that are as large along random directions (`along`, their KLs).
    p is its rank among the random latents that are at least half as active as the target on the same tokens: that a
    large change does more than a small one says nothing.
    """
    kls = [sum(arm["kls"]["test"][row] for row in active) / max(len(active), 1) for arm in arms]
    changed = [sum(arm["changes"]["test"][row] for row in active) for arm in arms]
    randoms = [number for number, arm in enumerate(arms) if arm["kind"] == "random"]
    random_kls = [kls[number] for number in randoms]
    alike = [kl for kl, one in zip(random_kls, matching["randoms"]) if one >= ALIKE * matching["target"]]
    return {
        "n": len(active),
        "kl": kls[0],
        "changed": changed[0],
        "random_kls": random_kls,
        "random_changed": [changed[number] for number in randoms],
        "along_kls": along,
        "p_along": rank_p(kls[0], along),
        "alike": len(alike),
        "p": rank_p(kls[0], alike),
    }


def against_randoms(arms: list[dict[str, Any]], part: str, key: str = "kl") -> float:
    """Rank p of the target's number among the random latents' that have it (one-sided: as large or larger)."""
    target = next(arm for arm in arms if arm["kind"] == "target")
    null = [arm[part].get(key) for arm in arms if arm["kind"] == "random"]
    return rank_p(target[part][key], [value for value in null if value is not None])


def findings(result: dict[str, Any]) -> list[str]:
    arm, spliced = (next(a for a in result["arms"] if a["kind"] == kind) for kind in ("target", "reconstruction"))
    where, matching = result["where_active"], result["matching"]
    n = arm["test"]["n"]
    return [
        f"{arm['label']}: the next token changes on {_of(arm['test'])} test and {_of(arm['control'])} control prompts",
        f"(reconstruct-only changes {_of(spliced['test'])} and {_of(spliced['control'])})",
        f"it was active on {where['n']} of {n} test prompts; there KL {where['kl']:.3f} nats, p = "
        f"{where['p_along']:.2f} against as large a change along {len(where['along_kls'])} random directions, "
        f"p = {where['p']:.2f} against the {where['alike']} of {len(result['randoms'])} random latents that are at "
        f"least half as active on the same tokens ({matching['active']} are active at all)",
    ]


def _of(summary: dict[str, Any]) -> str:
    return f"{summary['changed']}/{summary['n']}"
