"""Text in eleven languages and Python code, for the dictionaries that monosem ships for smollm2.

    python recipes/smollm2_languages.py --out work/languages         # on Debian 12: it calls apt-get and dpkg-deb

One file a language (`fr.jsonl`): LibreOffice's help, manual pages and fortunes of Debian's packages; `python.jsonl`:
this Python's standard library. {"id", "text"} a line. A twentieth, by a hash of the text, goes into `held_out/`.
"""

import argparse
import gzip
import hashlib
import html
import json
import re
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from monosem.files import replacing

# language -> its name in LibreOffice's help, in manual pages, in fortunes ("": none)
LANGUAGES = {
    "fr": ("fr", "fr", ""),
    "de": ("de", "de", "de"),
    "es": ("es", "es", "es"),
    "it": ("it", "it", "it"),
    "pt": ("pt-BR", "pt_BR", "br"),
    "nl": ("nl", "nl", ""),
    "sv": ("sv", "sv", ""),
    "pl": ("pl", "pl", "pl"),
    "ru": ("ru", "ru", "ru"),
    "zh": ("zh-CN", "zh_CN", "zh"),
    "ja": ("ja", "ja", ""),
}
LICENCES = {
    "languages": "LibreOffice help, MPL 2.0; Debian's translated manual pages, mostly GPL; Debian's fortunes",
    "python": "Python's standard library, PSF licence",
}
HELD_OUT = 20  # one document in so many
SHORTEST, LONGEST = 200, 20_000  # characters of a document
# what LibreOffice's help shows on a Mac only
HIDDEN = re.compile(r'<span hidden="true" id="MAC[^>]*>(?:<span[^>]*>[^<]*</span>|[^<])*</span>')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--characters", type=int, default=1_500_000, help="of each language, at most")
    args = parser.parse_args()
    (args.out / "held_out").mkdir(parents=True, exist_ok=True)
    root = unpacked(args.out / "packages")
    for language in LANGUAGES:
        save(language, documents(root, language), args.out, args.characters)
    save("python", code(), args.out, 3 * args.characters)


def unpacked(folder: Path) -> Path:
    """Debian's packages, fetched and unpacked without installing them."""
    root = folder / "root"
    if root.exists():
        return root
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for help_name, manual, fortunes in LANGUAGES.values():
        names += [f"libreoffice-help-{help_name.lower()}", f"manpages-{manual.lower().replace('_', '-')}"]
        names += [f"fortunes-{fortunes}"] * bool(fortunes)
    names = [name.replace("manpages-zh-cn", "manpages-zh") for name in names]
    subprocess.run(["apt-get", "download", *names], cwd=folder, check=True)
    for package in sorted(folder.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", package, root], check=True)
    return root


def documents(root: Path, language: str) -> Iterator[tuple[str, str]]:
    """(id, text) of a language: the three sources in turn, while all last."""
    help_name, manual, fortunes = LANGUAGES[language]
    sources = [
        help_pages(root / "usr/share/libreoffice/help" / help_name / "text"),
        manual_pages(root / "usr/share/man" / manual),
        quotations(root / "usr/share/games/fortunes", language, fortunes),
    ]
    while sources:
        for source in list(sources):
            if (found := next(source, None)) is None:
                sources.remove(source)
            else:
                yield found


def by_hash(paths: Iterator[Path]) -> list[Path]:
    """In an order that has nothing to do with their names."""
    return sorted(paths, key=lambda path: digest(path.name + path.parent.name))


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def help_pages(folder: Path) -> Iterator[tuple[str, str]]:
    for path in by_hash(folder.rglob("*.html")):
        body = path.read_text(encoding="utf-8").split('<div id="DisplayArea"')[-1]
        body = HIDDEN.sub("", body)
        blocks = re.findall(r"<(?:h\d|p)\b[^>]*>(.*?)</(?:h\d|p)>", body, flags=re.DOTALL)
        lines = [" ".join(html.unescape(re.sub(r"<[^>]+>", "", block)).split()) for block in blocks]
        yield f"help/{path.parent.name}/{path.stem}", "\n".join(line for line in lines if line)


def manual_pages(folder: Path) -> Iterator[tuple[str, str]]:
    """The running text of roff sources: macros and escapes are dropped, headings and paragraphs kept."""
    for path in by_hash(folder.rglob("*.gz")):
        raw = gzip.decompress(path.read_bytes()).decode("utf-8", errors="ignore")
        lines = []
        for line in raw.splitlines():
            if re.match(r"[.'](SH|SS|B|I|BR|IR|TP|IP|PP)\b", line):
                line = re.sub(r"^[.'](SH|SS|B|I|BR|IR|TP|IP|PP)\s*", "", line).replace('"', "")
            elif line.startswith((".", "'")):
                continue
            line = re.sub(r"\\f[A-Z]|\\f\([A-Z]{2}|\\[&/,|]|\\s[-+]?\d", "", line)
            lines.append(line.replace("\\-", "-").replace("\\(aq", "'").replace("\\ ", " ").replace("\\[em]", "—"))
        yield f"man/{path.stem}", "\n".join(line for line in lines if line.strip())


def quotations(folder: Path, language: str, name: str) -> Iterator[tuple[str, str]]:
    """Files of quotations, ten to a document."""
    named = {"it": "it/*", "de": "de/*", "es": "es/*", "pl": "pl/*", "ru": "ru/*", "zh": "*", "pt": "*"}
    for path in by_hash(folder.glob(named[language])) if name else []:
        wanted = {"zh": ("chinese", "tang300", "song100"), "pt": ("brasil",)}.get(language, (path.name,))
        if path.is_file() and path.suffix == "" and path.name in wanted:
            text = re.sub(r"\x1b\[[\d;]*m", "", path.read_text(encoding="utf-8", errors="ignore"))
            quotes = re.split(r"\n%+\n", text)
            for start in range(0, len(quotes), 10):
                yield f"fortunes/{path.name}/{start}", "\n\n".join(quotes[start : start + 10])


def code() -> Iterator[tuple[str, str]]:
    library = Path(sysconfig.get_path("stdlib"))
    files = (path for path in library.rglob("*.py") if not {"site-packages", "test", "tests"} & set(path.parts))
    for path in by_hash(files):
        yield f"python/{path.relative_to(library)}", path.read_text(encoding="utf-8", errors="ignore")


def save(name: str, found: Iterator[tuple[str, str]], folder: Path, characters: int) -> None:
    taken, seen = 0, set[str]()
    with (
        replacing(folder / f"{name}.jsonl") as kept,
        replacing(folder / "held_out" / f"{name}.jsonl") as apart,
        kept.open("w", encoding="utf-8") as training,
        apart.open("w", encoding="utf-8") as held_out,
    ):
        for key, text in found:
            if len(text) < SHORTEST or digest(text) in seen:
                continue
            seen.add(digest(text))
            out = held_out if int(digest(text), 16) % HELD_OUT == 0 else training
            out.write(json.dumps({"id": f"{name}/{key}", "text": text[:LONGEST]}, ensure_ascii=False) + "\n")
            taken += min(len(text), LONGEST)
            if taken >= characters:
                break
    print(f"{name}: {len(seen)} documents, {taken / 1e6:.1f} M characters", flush=True)


if __name__ == "__main__":
    main()
