"""The explorer: a latent's page over HTTP, its first paint in Chromium, and a table of 100,000 latents.

The wide dictionary has made-up weights of width 64 and no index. Needs /usr/bin/chromium and /usr/bin/chromedriver.
"""

import json
import os
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from selenium import webdriver

from common import arguments, interleaved, machine, row
from monosem.dictionaries import Dictionary, DictionaryParts, DictionaryTensors

SHIPPED, WIDE, D = "smollm2/resid_post.15", 100_000, 64
FLAGS = ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1280,900")
# until two frames after the change, when its rows are in the page
TIMED = """const done = arguments[arguments.length - 1], start = performance.now();
%s
requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - start)));"""
SCROLL = TIMED % "document.querySelector('.grid').scrollTop = 36 * arguments[0];"
FILTER = """const done = arguments[arguments.length - 1], start = performance.now(), wanted = arguments[1];
const box = document.querySelector('input.mono'); box.value = arguments[0];
box.dispatchEvent(new Event('input', {bubbles: true})); box.dispatchEvent(new Event('change', {bubbles: true}));
const before = arguments[2];
const look = () => location.search.includes(encodeURIComponent(wanted))
  && document.querySelector('.count').innerText !== before
  ? done(performance.now() - start) : requestAnimationFrame(look); look();"""
PAINT = "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0"


def made(folder: Path, width: int) -> None:
    rows = torch.nn.functional.normalize(torch.randn(width, D, generator=torch.Generator().manual_seed(0)), dim=1)
    weights = DictionaryTensors(rows.T.clone(), torch.zeros(width), rows, torch.zeros(D))
    Dictionary(DictionaryParts(weights, "topk", k=4, site="resid_post.1", model_name="made-up", name="wide")).save(
        folder
    )


def seen(browser: Any, script: str, *values: Any) -> Any:
    """Wait until a script says yes."""
    end = time.monotonic() + 120
    while not (found := browser.execute_script(script, *values)):
        assert time.monotonic() < end, browser.execute_script("return document.body.innerText")[:500]
        time.sleep(0.01)
    return found


def in_browser(address: str, rounds: int, width: int) -> dict[str, list[float]]:
    """Milliseconds of every round."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in FLAGS:
        options.add_argument(f"--{flag}")
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
    browser.set_script_timeout(120)
    base, draw = address.partition("/?")[0], random.Random(0)
    found: dict[str, list[float]] = {"first paint": [], "scroll": [], "filter": []}
    try:
        browser.get(address)
        for _ in range(rounds):
            browser.get(f"{base}/latent?d={SHIPPED}&i={draw.randrange(2000)}")
            found["first paint"].append(seen(browser, PAINT))
        browser.get(f"{base}/dictionary?d=wide")
        seen(browser, "return document.querySelector('.grid tbody tr:not(.gap)') !== null")
        for _ in range(rounds):
            found["scroll"].append(browser.execute_async_script(SCROLL, draw.randrange(width)))
        for i in range(rounds):
            wanted, before = (
                f"cosine>0 latent>{i + 1}",
                browser.execute_script("return document.querySelector('.count').innerText"),
            )
            found["filter"].append(browser.execute_async_script(FILTER, wanted, f"{i + 1}", before))
    finally:
        browser.quit()
    return found


def latent_pages(address: str) -> Callable[[], None]:
    base, _, token = address.partition("/?token=")
    draw = random.Random(0)

    def one() -> None:
        ask = f"{base}/api/latent?d={SHIPPED}&i={draw.randrange(2000)}"
        with urllib.request.urlopen(
            urllib.request.Request(ask, headers={"Authorization": f"Bearer {token}"})
        ) as answer:
            assert json.loads(answer.read())

    return one


def answered(ask: Callable[[], None]) -> None:
    """The address is printed before the server answers."""
    end = time.monotonic() + 300
    while True:
        try:
            return ask()
        except OSError:
            assert time.monotonic() < end, "the server does not answer"
            time.sleep(0.05)


def main() -> None:
    options = arguments(__doc__)
    width = 1000 if options.tiny else WIDE
    found: dict[str, Any] = {
        "machine": machine(options.threads, ["torch", "starlette", "uvicorn", "monosem"]),
        "rows": [],
    }
    with TemporaryDirectory() as name:
        folder = Path(name)
        made(folder / "wide", width)
        words = [sys.executable, "-m", "monosem", "explore", "wide", SHIPPED, "--no-browser", "--port", "0", "--quiet"]
        words += ["--notes", str(folder / "notes.json")]
        env = {**os.environ, "PYTHONUNBUFFERED": "1"}
        server = subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, text=True, env=env)
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            one = latent_pages(address)
            answered(one)
            http = interleaved({"page": one}, 5 * options.rounds)["page"]
            times = {"a latent's page over HTTP": http}
            drawn = in_browser(address, options.rounds, width)
        finally:
            server.terminate()
            server.wait(30)
    names = {"first paint": "first paint of a latent's page", "scroll": f"a jump in a table of {width:,} rows"}
    names["filter"] = f"a filter over {width:,} rows"
    times |= {names[key]: [ms / 1000 for ms in values] for key, values in drawn.items()}
    found["rows"] = [row(name, 1, times, name) for name in times]
    options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
