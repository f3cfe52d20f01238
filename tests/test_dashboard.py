"""The dashboard of `benchmarks/results`: what is published, and whether a browser draws it."""

import json
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("asv")

ROOT = Path(__file__).parents[1]
BENCHMARK = "losses.ShapesWithGrad.time_with_grad"
COMMITS = 10  # at least, of each backend

# Chromium without the sandbox, which root must not use, and without its own business on the network.
CHROMIUM = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--window-size=1600,1000",
)  # fmt: skip


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The folder of the published pages; without a network they need npm, and its registry."""
    folder = tmp_path_factory.mktemp("dashboard") / "html"
    command = [sys.executable, "-m", "benchmarks.publish", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


def test_both_backends_have_a_curve(pages):
    parameters = json.loads((pages / "index.json").read_text())["benchmarks"][BENCHMARK]["params"]
    (path,) = (pages / "graphs").glob(f"arch*/**/machine-xeon-1-core/**/{BENCHMARK}.json")
    points = [values for _, values in json.loads(path.read_text())]
    shapes = len(parameters[2])
    for backend in map(repr, ("cython", "numba")):
        index = (parameters[0].index("'cross_entropy'") * 2 + parameters[1].index(backend)) * shapes
        drawn = [values for values in points if any(values[index : index + shapes])]
        assert len(drawn) >= COMMITS


@pytest.fixture
def browser(pages):
    webdriver = pytest.importorskip("selenium.webdriver")
    driver = shutil.which("chromedriver")
    if not driver or not shutil.which("chromium"):
        pytest.skip("Chromium or its driver is not installed")
    if not (pages / "lib").exists():
        pytest.skip("the pages' libraries could not be installed by npm")
    options = webdriver.ChromeOptions()
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in CHROMIUM:
        options.add_argument(argument)
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture
def address(pages):
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=pages)) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


# Numbers of the canvas that are the curves': neither transparent nor grey, as the grid is.
COLOURED = """
const canvas = document.querySelector("#main-graph canvas.flot-base");
if (!canvas) return 0;
const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
let coloured = 0;
for (let i = 0; i < pixels.length; i += 4)
    coloured += pixels[i + 3] > 0 && Math.max(...pixels.slice(i, i + 3)) - Math.min(...pixels.slice(i, i + 3)) > 50;
return coloured;
"""


def test_a_browser_draws_the_curves(browser, address):
    from selenium.webdriver.support.wait import WebDriverWait

    def find(selector):
        return browser.find_elements("css selector", selector)

    wait = WebDriverWait(browser, 60)
    browser.get(address)
    (link,) = wait.until(lambda _: find(f"#summarygrid-display a[href='#{BENCHMARK}']"))
    browser.execute_script("arguments[0].scrollIntoView(); arguments[0].click()", link)
    wait.until(lambda _: browser.execute_script(COLOURED) > 500)
    browser.get(f"{address}#{BENCHMARK}?p-function='cross_entropy'&p-shape='ImageNet'")
    wait.until(lambda _: len(find("#main-graph .legendLabel")) == 2)
    labels = [label.text.partition(";")[0] for label in find("#main-graph .legendLabel")]
    assert labels == ["backend-cython", "backend-numba"]
    browser.get(f"{address}#regressions")
    wait.until(lambda _: find("#regressions-display table"))
    assert [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
