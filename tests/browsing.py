"""A headless Chromium for tests of pages, and what judges a page in it: axe-core, html-validate, the page itself."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BROWSER, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")  # Debian's chromium and chromium-driver
CHECKS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cloudjob" / "page-checks"
PACKAGES = ("axe-core@4", "html-validate@9")


@contextmanager
def chromium(folder: Path) -> Iterator:
    """A driver whose browser downloads into `folder`, and goes whatever happens."""
    webdriver = pytest.importorskip("selenium.webdriver")
    if not (BROWSER.exists() and DRIVER.exists()):
        pytest.skip(f"no {BROWSER} and {DRIVER}: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    switches = "headless=new no-sandbox disable-gpu no-first-run disable-background-networking disable-component-update"
    switches += f" disable-sync disable-quic window-size=1400,900 user-data-dir={folder / 'profile'}"
    for switch in switches.split():
        options.add_argument(f"--{switch}")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


def look(driver, page: Path, *, width: int, dark: bool = False, medium: str = "screen") -> None:
    """Opens the page as wide as this, light or dark, on a screen or for print."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": medium, "features": [scheme]})
    driver.get(page.as_uri())


def asked(driver) -> list[str]:
    """The addresses that the page fetched from, but those of its own folder's disk and its own bytes."""
    fetched = driver.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    return [address for address in fetched if not address.startswith(("file:", "data:", "blob:"))]


def beyond(driver) -> int:
    """How many pixels the page is wider than the window."""
    return driver.execute_script("const all = document.documentElement; return all.scrollWidth - all.clientWidth")


def axe(driver) -> list[str]:
    """What axe-core finds wrong with the page as it stands."""
    driver.execute_script((_checks() / "axe-core" / "axe.min.js").read_text(encoding="utf-8"))
    found = driver.execute_async_script("const done = arguments[0]; axe.run().then((all) => done(all.violations))")
    return [f"{each['id']}: {node['html'][:200]}" for each in found for node in each["nodes"]]


def html_validate(page: Path) -> list[str]:
    """What html-validate finds wrong with the file."""
    command = [_checks() / ".bin" / "html-validate", "--formatter", "json", page]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=page.parent, check=False)
    return [f"{each['line']}: {each['message']}" for file in json.loads(done.stdout) for each in file["messages"]]


def _checks() -> Path:
    """Where the two are installed; in a folder outside the repository, once."""
    if shutil.which("npm") is None:
        pytest.skip("axe-core and html-validate: no npm")
    modules = CHECKS / "node_modules"
    if not all((modules / each.partition("@")[0]).exists() for each in PACKAGES):
        CHECKS.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error", *PACKAGES]
        done = subprocess.run(command, cwd=CHECKS, capture_output=True, text=True, timeout=180, check=False)
        if done.returncode:
            pytest.skip(f"axe-core and html-validate: {done.stderr.strip()[:200]}")
    return modules
