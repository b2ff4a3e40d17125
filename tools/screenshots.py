"""Screenshots of every tab of a running server, light and dark, wide and narrow: make screenshots.

It asks one question in the chat, so that there is something to see, and changes nothing else. Needs Chromium.
"""

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

TABS = ("Chat", "Compare", "Review", "Voices", "Monitor")
SIZES = {"wide": (1600, 1000), "narrow": (380, 820)}
QUESTION = "My parcel should have been here on Tuesday. Where is it?"
ANSWERED = "#transcript [role=button]:has-text('tokens')"
SECONDS = 60_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the server (default: %(default)s)")
    parser.add_argument("--to", type=Path, default=Path("build/screenshots"), help="folder (default: %(default)s)")
    options = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        print("No chromium on the PATH: apt-get install chromium", file=sys.stderr)
        return 2
    options.to.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for scheme in ("light", "dark"):
            for size in SIZES:
                for file in taken(browser, options.url, options.to, scheme, size):
                    print(file)
        browser.close()
    return 0


def taken(browser: Browser, url: str, folder: Path, scheme: str, size: str) -> list[Path]:
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height})
    page.goto(f"{url}/ui/?__theme={scheme}")
    expect(page.get_by_label("Voice", exact=True).locator("visible=true")).not_to_have_value("", timeout=SECONDS)
    page.get_by_placeholder("Ask as a customer would").fill(QUESTION)
    page.keyboard.press("Enter")
    page.locator(ANSWERED).first.wait_for(timeout=SECONDS)
    files = []
    for name in TABS:
        show(page, name)
        files.append(folder / f"{name.lower()}-{scheme}-{size}.png")
        page.screenshot(path=files[-1], full_page=size == "narrow")
    page.close()
    return files


def show(page: Page, name: str) -> None:
    """Open a tab, where the screen is narrow through the menu of those that do not fit."""
    tab = page.get_by_role("tab", name=name, exact=True)
    if tab.is_visible():
        tab.click()
    else:
        page.locator("#tabs .overflow-menu > button").click()
        page.locator("#tabs .overflow-dropdown").get_by_text(name, exact=True).click()
    page.wait_for_timeout(2000)  # what the tab loads and draws


if __name__ == "__main__":
    sys.exit(main())
