"""Indexes that are made in the browser: the text that is sent, the job, where the index goes, and the way back."""

import os
import random
import resource
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from test_explorer_pages import click, complaints, until
from test_explorer_server import raw

from explorer_server import Served, serving
from monosem.dictionaries import one_site
from monosem.explorer import corpora
from monosem.explorer.corpora import MOST_TEXT, PASSAGE, Corpora, IndexOf, passages
from monosem.explorer.library import Library
from monosem.explorer.queue import Cancelled, Job
from monosem.latents import Index, check_index
from monosem.models import load_model
from tiny_latents import WORDS, of_first_schema

HOSTILE = "<img src=x onerror=alert(1)>"  # the name of a dictionary
SAVE = 3_000  # tokens between saves, in a test


def written(path: Path, lines: int) -> Path:
    draw = random.Random(1)
    path.write_text("\n".join(" ".join(draw.choices(WORDS, k=12)) for _ in range(lines)))
    return path


@pytest.fixture(scope="module")
def place(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`old` with an index of the first schema, `bare` without one, of other weights; two texts."""
    folder = tmp_path_factory.mktemp("making")
    shutil.copytree(home / "sae", folder / "old")
    (folder / "old" / "explanations.json").unlink()
    of_first_schema(folder / "old" / "index.sqlite")
    shutil.copytree(home / "narrow", folder / "bare")
    shutil.copytree(home / "meta", folder / HOSTILE)
    written(folder / "mine.txt", 400)
    written(folder / "named.txt", 1_500)
    return folder


@pytest.fixture(scope="module")
def own(place: Path) -> Iterator[Served]:
    served = serving(place, "old", "bare", HOSTILE, "--text", "named.txt", MONOSEM_CACHE=str(place / "cache"))
    yield served
    served.process.terminate()
    served.process.wait(30)


def sent(own: Served, text: bytes, name: str = "mine.txt", **headers: str):
    return own.ask(f"/api/texts?name={name}", text, {"Content-Type": "text/plain", **headers})


def eventually(said) -> None:
    end = time.monotonic() + 60
    while not said():
        assert time.monotonic() < end
        time.sleep(0.01)


def about(own: Served, name: str):
    return next(one for one in own.ask("/api/home")[1]["dictionaries"] if one["name"] == name)


# ---------------------------------------------------------------------- what may be sent
@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.txt", b"", "a.txt holds no text"),
        ("a.txt", b" \n\t", "a.txt holds no text"),
        ("a.txt", b"\x7fELF\x02\x00\x00", "a.txt is not text"),
        ("a.txt", b"caf\xe9 au lait", "a.txt is not UTF-8 text"),
        ("a.jsonl", b"[1", "not valid JSON"),
        ("..%2F..%2Fa%3Cimg%3E.jsonl", b'{"x": 1}', ".._a_img_.jsonl, line 1"),
        ("a.exe", b"text", "a .txt or .jsonl file"),
        ("", b"text", "a .txt or .jsonl file"),
        (quote("名" * 96) + ".txt", b"text", "name is too long"),
    ],
)
def test_a_bad_text_is_one_line_and_leaves_nothing(own, place, name, text, words):
    kept = {*(place / "cache").rglob("*")}
    status, answer = sent(own, text, name)
    assert status == 400
    assert words in answer["error"]
    assert "\n" not in answer["error"]
    assert str(place) not in answer["error"]
    assert {path for path in (place / "cache").rglob("*") if path.name not in ("indexes", "sent")} <= kept


def test_a_text_is_refused_from_elsewhere_or_when_it_is_too_large(own):
    assert sent(own, b"text", Authorization="")[0] == 403
    assert sent(own, b"text", Origin="http://evil.example")[0] == 403
    head = f"POST /api/texts?name=a.txt HTTP/1.1\r\nHost: {own.host}\r\nAuthorization: Bearer {own.token}\r\n"
    assert raw(own, f"{head}Content-Length: {MOST_TEXT + 1}\r\n\r\n".encode()).startswith(b"HTTP/1.1 413")
    assert sent(own, b"a cat " * 500_000)[0] == 200  # 3 MB, which other requests may not have
    other = head.replace("/api/texts?name=a.txt", "/api/notes")
    assert raw(own, f"{other}Content-Length: 3000000\r\n\r\n".encode()).startswith(b"HTTP/1.1 413")


def test_a_full_disk_is_one_line(own, place):
    limits = resource.prlimit(own.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(own.process.pid, resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        status, answer = sent(own, b"a cat " * 20_000)
    finally:
        resource.prlimit(own.process.pid, resource.RLIMIT_FSIZE, limits)
    assert status == 400
    assert "cannot write" in answer["error"]
    assert "free some space" in answer["error"]


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        ({"named": 1}, "--text"),
        ({"sent": "0" * 24}, "choose the file again"),
        ({"sent": "../../etc/passwd"}, "sent: "),
        ({}, "an index is of one text"),
        ({"named": 0, "tokens": 0}, "tokens: "),
        ({"named": 0, "path": "/etc/passwd"}, "path: "),
    ],
)
def test_what_cannot_be_indexed_is_said(own, ask, words):
    status, answer = own.ask("/api/jobs", {"kind": "index", "dictionary": "bare", **ask})
    assert status == 400
    assert words in answer["error"]


def test_a_text_that_is_too_short_fails_in_words_of_the_page(own):
    key = sent(own, b"a cat")[1]["sent"]
    end = own.job(kind="index", dictionary="bare", sent=key)
    assert end["type"] == "failed"
    assert "too few" in end["words"]
    assert "more text" in end["words"]


# ---------------------------------------------------------------------- the job
def test_long_documents_are_cut_and_nothing_is_lost():
    from monosem.data import Document

    text = "\n".join("word " * 30 for _ in range(100)) + "x" * 10_000
    found = list(passages([Document("book", text), Document("short", "a cat")]))
    assert "".join(one.text for one in found[:-1]) == text
    assert found[-1] == Document("short", "a cat")
    assert all(len(one.text) <= 2 * PASSAGE for one in found)
    assert all(one.text.endswith("\n") for one in found[:5])
    assert len({one.id for one in found}) == len(found)


def test_what_was_sent_or_begun_long_ago_is_removed(tmp_path):
    folders = tmp_path / "sent", tmp_path / "begun"
    for folder in folders:
        for age in ("old", "new"):
            (folder / age).mkdir(parents=True)
            (folder / f"{age}.sqlite").write_text("rows")
            then = time.time() - (corpora.KEPT_SECONDS + 60) * (age == "old")
            for path in (folder / age, folder / f"{age}.sqlite"):
                os.utime(path, (then, then))
    corpora.forget([*folders, tmp_path / "none"])
    assert {path.name for folder in folders for path in folder.iterdir()} == {"new", "new.sqlite"}


def test_a_cancel_is_heard_while_a_text_is_read(home, monkeypatch, tmp_path):
    from monosem.data import Document

    job, read = Job("1", "index", "index: a", lambda job: None), []

    def endless(*_, **__):
        for number in range(100_000):
            read.append(number)
            if number == 5:
                job.stop.set()
            yield Document(f"{number}", "a cat")

    monkeypatch.setattr(corpora, "corpus", endless)
    model = load_model(str(home / "tiny"), quiet=True)
    shelf = SimpleNamespace(made=tmp_path, model=lambda book, job: model)
    with pytest.raises(Cancelled):
        Corpora(shelf).work(SimpleNamespace(name="a"), tmp_path / "a.txt", 1_000)(job)
    assert len(read) == 6


def test_a_cancelled_index_goes_on_and_is_used_at_the_next_start(home, place, tmp_path, monkeypatch):
    folder = tmp_path / "sae"
    shutil.copytree(place / "bare", folder)
    text = written(tmp_path / "text.txt", 700)
    monkeypatch.setattr(corpora, "SAVE_TOKENS", SAVE)

    def run(library: Library, job: Job):
        texts = Corpora(library, [text])
        return texts.work(library.book(str(folder)), texts.text(ask), ask.tokens)(job)

    def done(words: str) -> int:
        return int(words.partition("/")[0].replace(",", "")) if "ETA" in words else 0

    ask, library = IndexOf(dictionary=str(folder), named=0), Library([str(folder)], made=tmp_path / "made")
    stopped, again = (Job(name, "index", "", lambda job: None) for name in "12")
    monkeypatch.setattr(stopped, "tell", lambda kind, words: done(words) > SAVE and stopped.stop.set())
    with pytest.raises(Cancelled):
        run(library, stopped)
    made = run(library, again)
    assert made["path"] == str(folder / "index.sqlite")  # the user's own folder
    counted = [done(event["words"]) for event in again.events if "ETA" in event["words"]]
    assert SAVE <= counted[0] < 2 * SAVE
    assert not [*(tmp_path / "made" / "begun").iterdir()]
    index = Index(folder / "index.sqlite", one_site(folder))
    assert check_index(index, model=load_model(str(home / "tiny"), quiet=True)).ok
    assert Library([str(folder)], made=tmp_path / "made").book(str(folder)).usable.meta["tokens"] == made["tokens"]


def test_an_index_that_is_replaced_or_damaged_while_it_is_served_is_seen(place, tmp_path):
    folder = tmp_path / "sae"
    shutil.copytree(place / "old", folder)
    book = Library([str(folder)], made=tmp_path / "made").book(str(folder))
    assert book.about()["tokens"]
    kept = (folder / "index.sqlite").read_bytes()
    (folder / "index.sqlite").write_bytes(b"not a database at all")
    assert "damaged" in book.about()["index_error"]
    assert not book.columns()["indexed"]
    assert "examples" in book.latent(3)["missing"]
    (folder / "index.sqlite").write_bytes(kept)
    assert book.columns()["indexed"]
    shutil.rmtree(folder)  # what was read stays
    assert (book.about()["index"], book.about()["index_error"]) == (None, None)
    assert book.latent(3)["geometry"]


def test_a_text_of_which_the_end_never_comes_leaves_nothing(own, place):
    host, port = own.host.split(":")
    head = f"POST /api/texts?name=cut.txt HTTP/1.1\r\nHost: {own.host}\r\nAuthorization: Bearer {own.token}\r\n"
    with socket.create_connection((host, int(port))) as client:
        client.sendall(f"{head}Content-Length: 1000000\r\n\r\na cat".encode())
        sent_to = place / "cache" / "indexes" / "sent"
        eventually(lambda: [*sent_to.glob("*/cut.txt")])
    eventually(lambda: not [*sent_to.glob("*/cut.txt")])
    assert own.ask("/api/jobs")[0] == 200
    assert "Traceback" not in (place / "server.log").read_text()


# ---------------------------------------------------------------------- in the browser
@pytest.fixture
def page(browser, own):
    browser.get(own.address)

    def opened(path: str, wanted: str):
        browser.get(own.base + path)
        until(browser, f"return document.querySelector({wanted!r}) !== null")
        return browser

    yield opened
    browser.get("about:blank")
    browser.get_log("performance")  # requests to this server


def test_an_old_index_says_what_it_lacks_and_the_panel_goes_when_a_new_one_is_made(page, own, place):
    browser = page("/latent?d=old&i=3", ".p-older form")
    older = browser.find_element("css selector", ".p-older").text
    assert "examples of each tenth" in older
    choose = "const from = document.querySelector('.p-older select'); from.value = ''"
    browser.execute_script(f"{choose}; from.dispatchEvent(new Event('change'))")
    until(browser, "return document.querySelector('.p-older input[type=file]') !== null")
    browser.find_element("css selector", ".p-older input[type=file]").send_keys(str(place / "mine.txt"))
    was = about(own, "old")["tokens"]
    for tokens in (str(was), str(was - 1)):
        assert "fewer tokens" not in browser.find_element("css selector", ".p-older").text
        typed = "const box = document.querySelector('.p-older input[type=number]'); box.value = arguments[0]"
        browser.execute_script(f"{typed}; box.dispatchEvent(new Event('input', {{bubbles: true}}))", tokens)
    until(browser, "return document.querySelector('.p-older').innerText.includes('fewer tokens')")
    browser.execute_script(f"{typed}; box.dispatchEvent(new Event('input', {{bubbles: true}}))", "100000")
    click(browser, "Make an index")
    until(browser, "return !document.querySelector('.p-older')")
    tabs = until(
        browser, "return [...document.querySelectorAll('.p-examples .tabs button')].map(one => one.textContent)"
    )
    assert "Tenths" in tabs
    assert "Almost" in tabs
    assert (about(own, "old")["index"], about(own, "old")["corpus"]) == ("made", "mine.txt")
    browser = page("/dictionary?d=old", ".lead button.link")
    assert "made here, of mine.txt" in browser.find_element("css selector", ".lead").text
    click(browser, "back to the one that came with it")
    until(browser, "return document.querySelector('main .lead')?.innerText.includes('use the one made here')")
    assert "deciles" in own.ask("/api/latent?d=old&i=3")[1]["missing"]
    click(browser, "use the one made here")
    assert [own.ask("/api/index", {"dictionary": "old", "use": "made"})[0] for _ in range(2)] == [200, 200]
    until(browser, "return document.querySelector('main .lead')?.innerText.includes('back to')")
    assert "deciles" not in own.ask("/api/latent?d=old&i=3")[1]["missing"]
    assert complaints(browser) == []


def test_the_name_of_a_dictionary_is_text(page):
    browser = page("/", ".card")
    assert HOSTILE in browser.find_element("css selector", "main").text
    browser = page(f"/dictionary?d={quote(HOSTILE)}", ".p-making form")
    assert browser.find_element("css selector", "main h1").text == HOSTILE
    assert not browser.find_elements("css selector", "main img")
    browser = page(f"/nothing?d={quote(HOSTILE)}x", "main [role=alert]")
    assert browser.get_log("browser")  # the address that is none


def test_a_page_that_is_loaded_again_follows_its_job(page, own, place):
    browser = page("/dictionary?d=bare", ".p-making form")
    click(browser, "Make an index")
    until(browser, "return document.querySelector('.top').innerText.includes('making an index')")
    browser.refresh()
    until(browser, "return document.querySelector('main .facts')?.innerText.includes('never fired')")
    assert (place / "bare" / "index.sqlite").exists()
    assert about(own, "bare")["index"] == "beside"
    assert not browser.find_elements("css selector", ".p-making")
