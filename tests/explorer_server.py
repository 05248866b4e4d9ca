"""The explorer as a user runs it: a process of its own, requests to it, and a real browser."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
FLAGS = (
    *("headless=new", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking"),
    *("disable-component-update", "disable-sync", "disable-dev-shm-usage", "window-size=1280,900"),
)


@dataclass
class Served:
    """A running explorer."""

    process: subprocess.Popen[str]
    address: str

    @property
    def base(self) -> str:
        return self.address.partition("/?")[0]

    @property
    def host(self) -> str:
        return self.base.removeprefix("http://")

    @property
    def token(self) -> str:
        return self.address.partition("token=")[2]

    def ask(self, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """(status, answer) of a request with the token; JSON is parsed. Of the headers, "" leaves one out."""
        own = {"Authorization": f"Bearer {self.token}", **(headers or {})}
        held = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        asked = urllib.request.Request(self.base + path, held, {name: value for name, value in own.items() if value})
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                status, text = answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read().decode()
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text

    def job(self, **ask: Any) -> dict[str, Any]:
        """Run a job to its end; its last event."""
        status, job = self.ask("/api/jobs", ask)
        assert status == 200, job
        return self.events(job["id"])[-1]

    def events(self, id: str) -> list[dict[str, Any]]:
        _, text = self.ask(f"/api/jobs/{id}/events")
        return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]


def serving(folder: Path, *arguments: str, **environment: str) -> Served:
    """Start `monosem explore` in a folder, with more in its environment, and wait for its address."""
    words = [sys.executable, "-m", "monosem", "explore", *arguments, "--no-browser", "--port", "0"]
    words += ["--notes", str(folder / "notes.json"), "--quiet"]
    log = open(folder / "server.log", "a")  # noqa: SIM115
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", **environment}
    process = subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True, env=env)
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert address.startswith("http://127.0.0.1:"), (folder / "server.log").read_text()
    served = Served(process, address)
    end = time.monotonic() + 60
    while True:
        try:
            served.ask("/api/jobs")
            return served
        except urllib.error.URLError:
            assert time.monotonic() < end
            time.sleep(0.05)


def browsing(profile: Path) -> Iterator[Any]:
    """A headless Chromium that notes every request and message of the console."""
    if not (shutil.which(CHROMIUM) and shutil.which(DRIVER)):
        pytest.skip(f"needs {CHROMIUM} and {DRIVER} (apt-get install chromium chromium-driver)")
    selenium = pytest.importorskip("selenium.webdriver")
    options = selenium.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = selenium.Chrome(options=options, service=selenium.ChromeService(DRIVER))
    yield browser
    browser.quit()
