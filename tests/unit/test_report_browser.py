"""The report of a real run, looked at in a real browser: a phone and a desk, light and dark."""

import json
import os

import pytest

from tests.browser import CHROMIUM, page
from tests.command_line import SHORT, only_run, trainer
from tests.run_folder import HOSTILE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None and "CI" not in os.environ, reason="no chromium: apt-get install -y chromium"),
]

SIZES = [(360, 740), (1280, 900)]
# What a browser has made of the page; widths in CSS pixels.
LOOK = """(() => {
  const box = element => element.getBoundingClientRect();
  const svgs = [...document.querySelectorAll('svg')];
  const texts = [...document.querySelectorAll('svg text')];
  const lines = [...document.querySelectorAll('polyline.line')];
  return {
    overflow: document.documentElement.scrollWidth - innerWidth,
    state: document.querySelector('.state').innerText,
    background: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(document.body).color,
    charts: svgs.map(svg => ({name: svg.getAttribute('aria-label').split('.')[0], width: box(svg).width,
      height: box(svg).height, shown: svg.checkVisibility(), lines: svg.querySelectorAll('polyline').length})),
    text_pixels: Math.min(...texts.map(text => 14 * box(text.ownerSVGElement).width / 360)),
    outside: texts.filter(text => box(text).left < box(text.ownerSVGElement).left - 1
      || box(text).right > box(text.ownerSVGElement).right + 1).map(text => text.textContent),
    line_heights: lines.map(line => box(line).height),
    scripts: document.scripts.length,
  };
})()"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of a short run that the command line made."""
    home = tmp_path_factory.mktemp("home")
    done = trainer(*SHORT, "gateway=off", "train.evaluate_every_steps=2", home=home)
    assert done.returncode == 0, done.stdout + done.stderr
    return only_run(home) / "report.html"


@pytest.fixture(scope="module")
def browser():
    with page() as one:
        yield one


def open_clean(browser, path):
    """Open a page that must ask for nothing but itself and complain of nothing."""
    browser.requests.clear()
    browser.complaints.clear()
    browser.open(path.as_uri())
    assert browser.requests == [path.as_uri()]
    assert browser.complaints == []


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_report_is_readable(report, browser, width, height, tmp_path):
    browser.size(width, height)
    open_clean(browser, report)
    seen = browser.value(LOOK)
    assert seen["overflow"] <= 0
    assert seen["state"] == "completed" and seen["scripts"] == 0
    names = [chart["name"] for chart in seen["charts"]]
    assert names == ["Training loss", "Held-out loss", "Learning rate", "Gradient norm", "Speed"]
    for chart in seen["charts"]:
        assert chart["shown"] and chart["lines"] == 1
        assert 250 <= chart["width"] <= width and chart["height"] >= 160
    assert seen["text_pixels"] >= 11
    assert seen["outside"] == []
    assert min(seen["line_heights"][:2]) > 20  # the losses have moved
    assert browser.screenshot(tmp_path / "report.png").stat().st_size > 10_000


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_opened_details_do_not_overflow_either(report, browser, width, height):
    browser.size(width, height)
    open_clean(browser, report)
    assert browser.value("document.querySelectorAll('details').forEach(one => one.open = true)") is None
    assert browser.value("document.documentElement.scrollWidth - innerWidth") <= 0
    assert browser.value("[...document.querySelectorAll('.scroll')].every(one => one.clientWidth <= innerWidth)")


def test_the_page_follows_the_colour_scheme(report, browser):
    browser.size(360, 740, dark=True)
    open_clean(browser, report)
    dark = browser.value(LOOK)
    browser.size(360, 740)
    light = browser.value(LOOK)
    assert (light["background"], dark["background"]) == ("rgb(255, 255, 255)", "rgb(20, 23, 27)")
    assert light["ink"] != dark["ink"]


def test_hostile_text_does_nothing_in_a_browser(report, browser, monkeypatch):
    folder = report.parent
    monkeypatch.setenv("TRAINER_HOME", str(folder.parent))
    kept = (folder / "samples.json").read_text()
    long = {
        "asked": HOSTILE,
        "expected": "W" * 3_000,
        "given": f"{HOSTILE}<style>*{{display:none}}</style>",
        "exact": False,
    }
    (folder / "samples.json").write_text(json.dumps({"before": [long], "after": [long]}))
    assert trainer("show", str(folder), "--report", home=folder.parent).returncode == 0
    browser.size(360, 740)
    open_clean(browser, report)
    assert browser.value("document.documentElement.scrollWidth - innerWidth") <= 0
    assert browser.value("document.scripts.length + document.images.length") == 0
    assert browser.value("document.querySelectorAll('style').length") == 1
    assert "<script>alert(1)</script>" in browser.value("document.querySelector('.sample').innerText")
    (folder / "samples.json").write_text(kept)


def test_the_browser_would_have_seen_a_request_and_a_script(browser, tmp_path):
    """The instruments work: a page that does what ours must not is caught."""
    (tmp_path / "x.png").write_bytes(b"no image")
    bad = tmp_path / "bad.html"
    bad.write_text("<img src=x.png><script>console.log('hello')</script><div style='width:3000px'>wide</div>")
    browser.size(360, 740)
    browser.requests.clear()
    browser.complaints.clear()
    browser.open(bad.as_uri())
    assert (tmp_path / "x.png").as_uri() in browser.requests
    assert any("hello" in one for one in browser.complaints)
    assert browser.value("document.documentElement.scrollWidth") > 360
