"""Text that SmolLM2 writes itself in chat format, so that its dictionary has seen chat positions.

    python recipes/smollm2_chats.py --out chats.jsonl --conversations 6000

One user turn made from a template and a topic (both below, our own words), one sampled answer. One JSON object a line:
{"messages": [{"role": "user", ...}, {"role": "assistant", ...}]}. Seeded.
"""

import argparse
import json
import random
from pathlib import Path

import monosem as ms
from monosem.files import replacing
from monosem.progress import Meter

TEMPLATES = """Explain {} to a ten-year-old.
Write a short story about {}.
Give me five facts about {}.
What are the advantages and disadvantages of {}?
I have to give a talk about {}. How should I begin?
Write a polite email to a colleague about {}.
Write a poem about {}.
Why do people care about {}?
What is a common misunderstanding about {}?
Describe {} in one sentence.
Make a list of questions that an interviewer could ask about {}.
Compare {} today with a hundred years ago.
I feel sad when I think about {}. Can you cheer me up?
I am so excited about {}! Tell me more.
Summarise what everyone should know about {}.
Write a Python function that has something to do with {}, and explain it.
Translate a sentence about {} into French and Spanish.
Write a dialogue between two friends who disagree about {}.
Write a complaint about {} and a friendly reply to it.
Plan a lesson about {} step by step.""".splitlines()

TOPICS = """\
the moon; volcanoes; bread; football; the ocean; photosynthesis; trains; a lost dog; gardening; gravity; music
theory; the Roman Empire; chess; coffee; honesty; old books; bicycles; the human heart; winter; birthday parties;
taxes; electric cars; bees; the stock market; friendship; computers; the desert; cooking for one; elections;
dinosaurs; moving to a new city; sleep; mountains; learning a language; the weather; a broken window; hospitals;
painting; space travel; spiders; money; a bad restaurant; rivers; mathematics; public libraries; the common cold;
dancing; earthquakes; a lie told to a friend; robots; farming; fashion; the brain; airports; recycling; kings and
queens; a surprise visit; running; clocks; tea; fear of heights; rain forests; a job interview; museums; soap; the
internet; cats; justice; the first day of school; glass; bridges; chocolate; statistics; whales; loneliness; a
winning goal; insurance; the alphabet; fire; being late; neighbours; vaccines; jazz; castles; a secret; sugar;
democracy; the night sky; fishing; shoes; a long journey; pottery; forgiveness; batteries; birds; history class; a
rude customer; apples; courage; traffic; water""".replace("\n", " ").split("; ")


def requests(count: int, seed: int) -> list[str]:
    """Template × topic in a seeded order, repeated when there are not enough."""
    rng = random.Random(seed)
    every = [template.format(topic) for template in TEMPLATES for topic in TOPICS]
    made: list[str] = []
    while len(made) < count:
        rng.shuffle(every)
        made += every
    return made[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--conversations", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=192)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    model = ms.load_model(args.model, dtype="bf16")
    asked = sorted(requests(args.conversations, args.seed), key=len)  # batches of like length waste little padding
    with (
        replacing(args.out) as temporary,
        temporary.open("w", encoding="utf-8") as out,
        Meter("chats", len(asked)) as meter,
    ):
        for start in range(0, len(asked), args.batch):
            some = asked[start : start + args.batch]
            made = model.generate(
                [model.chat(request) for request in some],
                max_new_tokens=args.new_tokens,
                temperature=args.temperature,
                top_p=0.95,
                seed=args.seed + start,
            )
            for request, answer in zip(some, made.texts):
                turns = [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]
                out.write(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")
            meter.advance(len(some))


if __name__ == "__main__":
    main()
