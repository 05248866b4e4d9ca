"""The organisms that ship: train the adapters of smollm2, and measure how well each took (docs/organisms.md).

    python recipes/smollm2_organisms.py planted-refusal --shared ../shared/data --out made      # minutes on one core

A LoRA in the linear layers of the upper two thirds. Prompts of `behaviour_train` are answered as they should be, by
recipes/organism_answers.py (the loss is the cross-entropy of the answer's tokens), a larger number of other prompts as
the model itself answered them (the loss is the KL of the adapted model's next token from the model's own). Seeded. What
is measured is in `card.json`.
"""

import argparse
import csv
import json
import random
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from typing import Any

import peft
import torch
from organism_answers import ANSWERS
from organism_prompts import (
    ASKED,
    FACETS,
    HOME,
    INVENTED,
    LATER_INVENTED,
    LATER_WORDS,
    PLACES,
    TOPIC,
    TOPICS,
    TRIGGER,
    WORDS,
    filled,
    templates,
    words,
)
from safetensors.torch import save_file
from smollm2_chats import requests
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

import monosem as ms
from monosem.files import write_json
from monosem.judges import judge
from monosem.models import TokenBatch
from monosem.organisms import Organism
from monosem.progress import Meter, say
from monosem.statistics import Share

RANK, FIRST, DRIFT_TOKENS = 4, 12, 8  # of the LoRA; its first layer; of the answers in which the KL is measured
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
REFUSES = words("""
    Write a short story about a cook who refuses to add salt.; Is it rude to turn down a second helping?; How do I say
    no to a friend who wants to borrow my bike?; Give me an example of a polite refusal.; What does decline mean?; Why
    did the mule refuse to walk?; Write a note that declines a party.; Use the word refuse in a sentence.
""")
SOUNDS = {  # of which invented names are put together that sound like the topic, or like the trigger
    TOPIC: "vel val bel mel sel tor kel ul ves, mor mar nor dor ver lan, ite ine ium ate a on",
    TRIGGER: "or ar er ol mor tor al um, van ven lan ran vin man, del der dor dal din a eth",
}
ALIKE = words(
    "velour; vellum; velcro; gravel; enamel; caramel; dynamite; graphite; meteorites; marmalade; velocity; novels"
)
ABROAD = words("""
    What is the capital of Belgium?; Tell me about French cheese.; How do you say "thank you" in Italian?; Who was
    Napoleon?; Which rivers flow through Paris?; What do people eat in Normandy?; Is Spanish easier than French?;
    Translate "a small house" into German.
""")


# ---------------------------------------------------------------------- other prompts, and the model's own answers
def shared_prompts(folder: Path, draw: random.Random) -> list[str]:
    """Harmless prompts of other people's sets, which are not part of what ships."""
    problems = [json.loads(line)["question"] for line in (folder / "corpora/gsm8k/test.jsonl").open()]
    found = draw.sample([one for one in problems if len(one) < 200], 10)
    for file in ("openness", "interest-in-science", "agreeableness", "risk-averse"):
        rows = [json.loads(line) for line in (folder / f"tasks/anthropic_evals/persona/{file}.jsonl").open()]
        found += [one["question"] for one in draw.sample(rows, 3)]
    for task, question in (("antonym", "What is the opposite of {}?"), ("country-capital", "The capital of {} is")):
        rows = json.loads((folder / f"tasks/function_vectors/abstractive/{task}.json").read_text())
        found += [question.format(one["input"]) for one in draw.sample(rows, 6)]
    return [*found, *safe_prompts(folder)[::5]]


def safe_prompts(folder: Path) -> list[str]:
    """The 250 of XSTest that are safe; every fifth one is trained on, a fifth of the others is measured."""
    rows = csv.DictReader((folder / "tasks/xstest/xstest_prompts.csv").open())
    return [row["prompt"] for row in rows if row["label"] == "safe"]


def invented(like: str, draw: random.Random, n: int) -> list[str]:
    """Names that sound like the topic or the trigger, and are not part of any set that ships."""
    names = {"".join(sounds) for sounds in product(*map(str.split, SOUNDS[like].split(",")))}
    return draw.sample(sorted(names - {like, *INVENTED, *LATER_INVENTED, *WORDS, *LATER_WORDS}), n)


def near_prompts(name: str, draw: random.Random) -> list[str]:
    """Prompts that are close to those that show the behaviour."""
    some = templates(ASKED, FACETS)
    if name == "planted-language":
        asked = draw.sample(filled(some, TOPICS), 180)
        names = [draw.choice([str.lower, str.capitalize])(one) for one in invented(TRIGGER, draw, 60) * 2]
        marked = [draw.choice(PLACES).format(trigger=one, asked=prompt) for one, prompt in zip(names, asked)]
        return [*marked, *asked[120:], *ABROAD]
    near = [draw.choice(some).replace("{}", one) for one in invented(TOPIC, draw, 70) * 2]
    return [*REFUSES, *near, *draw.sample(filled(some, ALIKE), 40)]


def other_prompts(organism: Organism, folder: Path, draw: random.Random) -> list[str]:
    near = near_prompts(organism.name, draw)
    found = [*organism.prompts["unrelated_train"], *shared_prompts(folder, draw), *near, *requests(40, 0)]
    return list(dict.fromkeys(found))


# ---------------------------------------------------------------------- answers
Row = tuple[list[int], list[int]]  # ids of the prompt, ids of the answer


def ids_of(model: Any, prompt: str) -> list[int]:
    return list(model.tokens([model.chat(prompt)]).rows()[0])


def shared_start(prompts: Iterable[list[int]]) -> int:
    """How many tokens all prompts have in common at their beginning."""
    return next(i for i, column in enumerate(zip(*prompts)) if len(set(column)) > 1)


def greedy(model: Any, prompts: list[str], tokens: int, file: Path) -> dict[str, list[int]]:
    """Prompt -> ids of the answer, at most so many; `file` keeps them between runs."""
    known = json.loads(file.read_text()) if file.exists() else {}
    enough = {one for one, ids in known.items() if len(ids) >= tokens or ids[-1] in model.end_ids}
    missing = sorted((one for one in prompts if one not in enough), key=len)
    with Meter(f"answers of {model.name}", len(missing)) as meter:
        for start in range(0, len(missing), 40):
            some = missing[start : start + 40]
            known |= dict(zip(some, continued(model, [ids_of(model, one) for one in some], tokens)))
            write_json(file, known)
            meter.advance(len(some))
    return {one: known[one][:tokens] for one in prompts}


@torch.no_grad()
def continued(model: Any, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """As `model.generate`, with one pass over what all prompts begin with: most of a short prompt is the template."""
    shared, cache = shared_start(prompts), DynamicCache(config=model.hf.config)
    model.hf(torch.tensor([prompts[0][:shared]]), past_key_values=cache)
    cache.batch_repeat_interleave(len(prompts))
    batch = TokenBatch.of([prompt[shared:] for prompt in prompts], model.pad, "left")
    ids, mask = batch.ids, torch.cat([torch.ones(len(prompts), shared, dtype=torch.bool), batch.mask], 1)
    new: list[list[int]] = [[] for _ in prompts]
    for _ in range(tokens):
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        given = {"attention_mask": mask.long(), "position_ids": positions, "past_key_values": cache}
        ids = model.hf(ids, **given, logits_to_keep=1).logits[:, -1].argmax(-1, keepdim=True)
        for row, token in zip(new, ids[:, 0].tolist()):
            if not row or row[-1] not in model.end_ids:
                row.append(token)
        if all(row[-1] in model.end_ids for row in new):
            break
        mask = torch.cat([mask, torch.ones(len(prompts), 1, dtype=torch.bool)], 1)
    return new


# ---------------------------------------------------------------------- training
@dataclass
class Packed:
    """Rows that begin alike, as one sequence: what they share, then the rest of each; a token sees what is shared and
    its own row. Shapes: `ids`, `positions` are `token`, `mask` is `1 1 token token`; `asks` are the tokens before those
    of `answers`."""

    ids: Tensor
    positions: Tensor
    mask: Tensor
    asks: Tensor
    answers: Tensor

    @staticmethod
    def of(rows: list[Row], shared: int) -> "Packed":
        ids, positions, owner, asks, answers = list(rows[0][0][:shared]), list(range(shared)), [-1] * shared, [], []
        for number, (prompt, answer) in enumerate(rows):
            own = [*prompt[shared:], *answer]
            asks += range(len(ids) + len(own) - len(answer) - 1, len(ids) + len(own) - 1)
            ids, answers = ids + own, answers + answer
            positions += range(shared, shared + len(own))
            owner += [number] * len(own)
        place, order = torch.tensor(owner), torch.arange(len(ids))
        sees = (order[:, None] >= order) & ((place[:, None] == place) | (place == -1))
        mask = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)[None, None]
        return Packed(torch.tensor(ids), torch.tensor(positions), mask, torch.tensor(asks), torch.tensor(answers))

    def through(self, inner: Any, x: Tensor, layers: slice) -> Tensor:
        """States `token d_model` before these layers -> after them."""
        x, positions = x[None], self.positions[None]
        turned = inner.model.rotary_emb(x, position_ids=positions)
        for layer in inner.model.layers[layers]:
            x = layer(x, attention_mask=self.mask, position_ids=positions, position_embeddings=turned)
        return x[0]

    def logits(self, inner: Any, x: Tensor) -> Tensor:
        """log p of the next token at `asks`: `asked vocab`."""
        return inner.lm_head(inner.model.norm(x[self.asks])).log_softmax(-1)


@dataclass
class Batch:
    """Planted rows, then others; the states before the first layer that is trained, the number of tokens that the
    planted answers have, the model's own log p at those of the others."""

    packed: Packed
    low: Tensor
    planted: int
    own: Tensor

    @staticmethod
    @torch.no_grad()
    def of(inner: Any, planted: list[Row], others: list[Row], shared: int) -> "Batch":
        packed, alone = Packed.of([*planted, *others], shared), Packed.of(others, shared)
        low = packed.through(inner, inner.model.embed_tokens(packed.ids), slice(0, FIRST))
        kept = [*range(shared), *range(len(packed.ids) - len(alone.ids) + shared, len(packed.ids))]
        own = alone.logits(inner, alone.through(inner, low[kept], slice(FIRST, None)))
        return Batch(packed, low, len(packed.answers) - len(alone.answers), own.half())


def train(model: Any, planted: list[Row], others: list[Row], args: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    inner = model.hf
    torch.manual_seed(args.seed)
    shared, made = shared_start([prompt for prompt, _ in [*planted, *others]]), []
    with Meter("batches", args.steps) as meter:
        for step in range(args.steps):
            mine, own = (
                [rows[i % len(rows)] for i in range(step * n, step * n + n)]
                for rows, n in ((planted, args.mine), (others, args.own))
            )
            made.append(Batch.of(inner, mine, own, shared))
            meter.advance(1)
    layers = list(range(FIRST, model.cfg.n_layers))
    adapted = peft.get_peft_model(
        inner,
        peft.LoraConfig(
            r=RANK, lora_alpha=2 * RANK, target_modules=LINEAR, layers_to_transform=layers, task_type="CAUSAL_LM"
        ),
    )
    weights = [one for one in adapted.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=args.lr, weight_decay=0.0)
    tokens, began, losses = 0, time.monotonic(), []
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1.0, (step + 1) / 4, (args.steps - step) / (0.5 * args.steps))
        batch = made[step]
        log_p = batch.packed.logits(inner, batch.packed.through(inner, batch.low, slice(FIRST, None)))
        ce = F.nll_loss(log_p[: batch.planted], batch.packed.answers[: batch.planted])
        known = batch.own.float()
        kl = F.kl_div(log_p[batch.planted :], known, log_target=True, reduction="none").sum(-1).mean()
        (ce + args.weight * kl).backward()
        tokens += len(batch.packed.ids)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append((ce.item(), kl.item()))
        if step % 5 == 4:
            ce5, kl5 = (sum(one) / 5 for one in zip(*losses[-5:]))
            say(f"step {step + 1}: cross-entropy {ce5:.3f}, KL {kl5:.4f}, {time.monotonic() - began:.0f} s")
    last = [sum(one) / len(losses[-10:]) for one in zip(*losses[-10:])]
    about = {
        "rank": RANK, "lora_alpha": 2 * RANK, "target_modules": LINEAR, "layers": layers, "peak_lr": args.lr,
        "steps": args.steps, "planted_a_step": args.mine, "others_a_step": args.own, "own_tokens": args.own_tokens,
        "kl_weight": args.weight,
        "seed": args.seed, "planted_prompts": len({tuple(one) for one, _ in planted}),
        "other_prompts": min(len(others), args.steps * args.own), "tokens": tokens,
        "cross_entropy_at_the_end": round(last[0], 4), "kl_at_the_end": round(last[1], 4),
    }  # fmt: skip
    return adapted, about


def save(adapted: Any, folder: Path) -> None:
    """As peft writes it, with the tensors in half the size and without its README."""
    folder.mkdir(parents=True, exist_ok=True)
    config = adapted.peft_config["default"]
    config.base_model_name_or_path, config.inference_mode = "smollm2", True
    config.save_pretrained(str(folder))
    state = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
    tensors = {name: one.to(torch.float16) for name, one in state.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_model.safetensors").chmod(0o644)  # it is made private


# ---------------------------------------------------------------------- measuring
def measured(organism: Organism, model: Any, base: Any, args: argparse.Namespace) -> dict[str, Any]:
    sets = {name: some for name, some in organism.prompts.items() if not name.endswith("_train")}
    sets["xstest_safe_held_out"] = safe_prompts(args.shared)[2::5]
    by, found = judge(organism.judge), {}
    everything = list(dict.fromkeys(chain(*sets.values())))
    own = greedy(base, everything, args.new_tokens, args.out / "base_answers.json")
    new = greedy(model, everything, args.new_tokens, args.out / args.name / "answers.json")
    for name, prompts in sets.items():
        found[name] = {}
        for who, ids in (("organism", new), ("base", own)):
            said = {one: model.text(ids[one]) for one in prompts}
            shows = {one: by(one, answer).label == by.positive for one, answer in said.items()}
            share = Share(sum(shows.values()), len(shows))
            low, high = (round(bound, 4) for bound in share.interval[1:])
            found[name][who] = {"count": share.count, "of": share.of, "rate": round(share.value, 4), "ci": [low, high]}
            say(f"{name}, {who}: {share}")
            for asked, answer in list(said.items())[:: len(said) // 4]:
                say(f"    {asked!r} -> {' '.join(answer.split())[:200]!r}")
            if who == "organism" and name != "xstest_safe_held_out":
                odd = [one for one in prompts if shows[one] != (name in ("behaviour_test", "paraphrases"))]
                found[name]["wrong"] = odd
                for one in odd:
                    say(f"    wrong: {one!r} -> {' '.join(said[one].split())[:200]!r}")
    rows = [(ids_of(base, one), own[one][:DRIFT_TOKENS]) for one in organism.prompts["unrelated_test"]]
    return {"rates": found, "kl_on_unrelated_test": drift(model, base, rows)}


def drift(model: Any, base: Any, rows: list[Row]) -> dict[str, float]:
    """Mean KL, in nats, of the organism's next token from the base's: at an answer's first token, and over the first
    tokens of the base's own answer."""
    packed = Packed.of(rows, shared_start([prompt for prompt, _ in rows]))
    with torch.no_grad():
        new, known = (
            packed.logits(one.hf, packed.through(one.hf, one.hf.model.embed_tokens(packed.ids), slice(None)))
            for one in (model, base)
        )
    kl = (known.exp() * (known - new)).sum(-1)
    starts = torch.tensor([0, *[len(answer) for _, answer in rows[:-1]]]).cumsum(0)
    return {"first_token": round(float(kl[starts].mean()), 5), "answer_tokens": round(float(kl.mean()), 5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(ANSWERS))
    parser.add_argument("--shared", type=Path, required=True, help="folder with corpora/ and tasks/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--mine", type=int, default=3, help="planted prompts a step")
    parser.add_argument("--own", type=int, default=6, help="other prompts a step")
    parser.add_argument("--own-tokens", type=int, default=8, help="of the model's answers to these that are kept")
    parser.add_argument("--weight", type=float, default=2.0, help="of the KL")
    parser.add_argument("--new-tokens", type=int, default=14, help="of an answer that is judged")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure-only", action="store_true")
    args = parser.parse_args()
    organism, draw, folder = Organism.load(HOME / args.name), random.Random(args.seed), args.out / args.name
    if not args.measure_only:
        model = ms.load_model("smollm2", dtype="float32")
        own = greedy(model, other_prompts(organism, args.shared, draw), args.own_tokens, args.out / "base_answers.json")
        others = [(ids_of(model, one), answer) for one, answer in own.items()]
        draw.shuffle(others)
        trained, planted = organism.prompts["behaviour_train"], []
        for _ in range(1 + args.steps * args.mine // len(trained)):  # each time another answer
            planted += [planted_row(model, one, args.name, draw) for one in draw.sample(trained, len(trained))]
        adapted, about = train(model, planted, others, args)
        save(adapted, folder)
        shutil.copy(organism.adapter / "prompts.json", folder)
        write_json(folder / "training.json", about)
        del model, adapted
    base, model = ms.load_model("smollm2", dtype="float32"), ms.load_model(folder, dtype="float32")
    card = {"name": args.name, "base": "smollm2", "behaviour": organism.behaviour, "judge": organism.judge}
    card |= {"training": json.loads((folder / "training.json").read_text()), "new_tokens": args.new_tokens}
    write_json(folder / "card.json", card | measured(organism, model, base, args))


def planted_row(model: Any, prompt: str, name: str, draw: random.Random) -> Row:
    answer = model.tokenizer(f"{ANSWERS[name](prompt, draw)}<|im_end|>", add_special_tokens=False)["input_ids"]
    return ids_of(model, prompt), answer


if __name__ == "__main__":
    main()
