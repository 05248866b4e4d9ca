"""The report in a real browser: sections, plots, no console errors, nothing fetched, narrow screens."""

import json
import shutil

import pytest
from test_study import go, model, sae  # noqa: F401  (fixtures)

from monosem.studies.sections import SECTIONS

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
PLOTS = ["search", "held_out", "ablation", "dose_kl", "dose_changed", "dose_concept", "dose_perplexity"]


@pytest.fixture(scope="module")
def page(model, sae, tmp_path_factory):  # noqa: F811
    if not (shutil.which(CHROMIUM) and shutil.which(DRIVER)):
        pytest.skip(f"needs {CHROMIUM} and {DRIVER} (apt-get install chromium chromium-driver)")
    selenium = pytest.importorskip("selenium.webdriver")
    folder = tmp_path_factory.mktemp("page")
    result = go(model, sae, folder)
    options = selenium.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking"):
        options.add_argument(f"--{flag}")
    for flag in ("disable-component-update", "disable-sync", "disable-dev-shm-usage", f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    options.add_argument("--window-size=1200,900")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = selenium.Chrome(options=options, service=selenium.ChromeService(DRIVER))
    browser.get("about:blank")
    browser.get_log("performance")  # forget what the browser's own start page loaded
    browser.get(result.html.as_uri())
    yield browser
    browser.quit()


def test_sections_plots_and_silence(page):
    for section in {section.letter: section for section in reversed(SECTIONS)}.values():  # B has two parts
        heading = page.find_element("css selector", f"#{section.letter} h2")
        assert heading.text == f"{section.letter}. {section.title}"
    for name in PLOTS:
        marks = page.find_elements("css selector", f"#plot-{name} svg .point, #plot-{name} svg .points path")
        assert marks, f"plot {name} shows no points"
    errors = [entry for entry in page.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert not errors
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert len([url for url in asked if url.startswith("file:")]) == 1


def test_nothing_sticks_out_on_a_phone(page):
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    )
    wide = page.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert wide[0] <= wide[1]


def test_line_breaks_of_texts_are_kept(page):
    for kind in ("prompt", "text"):
        cells = page.find_elements("css selector", f"td.{kind}")
        assert cells
        assert all(cell.value_of_css_property("white-space").startswith("pre-wrap") for cell in cells[:5])


def test_what_a_latent_fires_on_comes_before_what_it_promotes(page):
    for table in page.find_elements("css selector", "#A table, #B table"):
        heads = [cell.get_attribute("textContent") for cell in table.find_elements("css selector", "th")]
        if "promotes" in heads:
            assert heads.index("fires on") < heads.index("promotes")
    for listed in page.find_elements("css selector", "#B dl"):
        terms = [term.get_attribute("textContent") for term in listed.find_elements("css selector", "dt")]
        assert terms == ["fires on", "active on", "promotes", "suppresses"]


def test_axes_are_named(page):
    for name in PLOTS:
        titles = page.find_elements("css selector", f"#plot-{name} .xtitle")
        assert titles
        assert titles[0].text.strip()
