#!/usr/bin/env python3
"""Opens the operators' page of a running proxy in a headless Chromium and tries it: check.py --url URL --browser PROGRAM.

The proxy has 60 tenants, tenant00 with a client that waits for a backend; tests/it/page.rs sees to that. With --shots
FOLDER it keeps pictures; with --look it only takes them, whatever the tenants.
"""

import argparse
import pathlib
import sys

from browser import Browser

# Text against what lies behind it, in both schemes: WCAG 2.1 AA wants 4.5.
CONTRAST = """(() => {
  const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const part = c => { c /= 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
  const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  const behind = element => {
    for (let it = element; it; it = it.parentElement) {
      const colour = parse(getComputedStyle(it).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const bad = [];
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.getClientRects().length || ['SCRIPT', 'STYLE'].includes(element.tagName)) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(behind(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) bad.push(element.tagName + ' ' + element.className + ' ' + element.textContent.trim().slice(0, 30) + ': ' + ratio.toFixed(2));
  }
  return bad;
})()"""

# What a screen reader goes by.
NAMELESS = """[...document.querySelectorAll('button, input, select, [tabindex]')]
  .filter(it => it.getClientRects().length)
  .filter(it => !(it.textContent.trim() || it.labels?.length || it.getAttribute('aria-label') || it.getAttribute('aria-labelledby')))
  .map(it => it.outerHTML.slice(0, 80))"""

FIRST = "document.querySelector('#tenants tr th button')?.textContent"
COUNT = "document.querySelectorAll('#tenants tr').length"


def check(condition, what):
    if not condition:
        raise AssertionError(what)


def live(browser):
    browser.wait("document.getElementById('status').textContent === 'live'", "the page is not live")


def pictures(browser, url, folder):
    for name, width, dark in (("light-wide", 1360, False), ("dark-wide", 1360, True),
                              ("light-narrow", 390, False), ("dark-narrow", 390, True)):
        browser.open("about:blank", width, dark)
        browser.open(url, width, dark)
        live(browser)
        browser.wait(f"{COUNT} > 0", "no tenants")
        browser.shoot(folder / f"{name}.png")
        browser.run("document.querySelector('#tenants button').click()")
        browser.wait("document.querySelectorAll('#detail-body h3').length > 3", "no details")
        browser.shoot(folder / f"{name}-detail.png")


def looks(browser, url):
    """Contrast, names, and nothing that sticks out, in every scheme and width."""
    for width in (1360, 390):
        for dark in (False, True):
            browser.open("about:blank", width, dark)
            browser.open(url, width, dark)
            live(browser)
            browser.run("document.querySelector('#tenants button').click()")
            browser.wait("document.querySelectorAll('#detail-body h3').length > 3", "no details")
            where = f"{width} pixels, {'dark' if dark else 'light'}"
            low = browser.run(CONTRAST)
            check(not low, f"too little contrast at {where}: {low}")
            nameless = browser.run(NAMELESS)
            check(not nameless, f"no name for: {nameless}")
            wide = browser.run("document.documentElement.scrollWidth")
            check(wide <= width, f"the page is {wide} pixels wide at {where}")


def works(browser, url):
    browser.open(url, 1360, False)
    live(browser)
    browser.wait(f"{FIRST} === 'tenant00'", "the tenant that queues is not the first")
    check(browser.run(COUNT) == 50, "not the first fifty")
    check("the first 50 of 60" in browser.run("document.getElementById('shown').textContent"), "does not say of how many")
    sorted_by = "[...document.querySelectorAll('[aria-sort]')].map(it => it.textContent + ' ' + it.ariaSort).join()"
    check(browser.run(sorted_by) == "Score descending", browser.run(sorted_by))
    row = browser.run("document.querySelector('#tenants tr').innerText")
    check("queue" in row and "1 of 1" in row, f"the row does not say why: {row}")

    browser.run("[...document.querySelectorAll('#columns button')].find(it => it.textContent === 'Tenant').click()")
    browser.wait(f"{FIRST} === 'tenant00' && document.querySelectorAll('#tenants tr')[1].innerText.startsWith('tenant01')",
                 "not sorted by name")
    check(browser.run(sorted_by) == "Tenant ascending", browser.run(sorted_by))
    browser.run("[...document.querySelectorAll('#columns button')].find(it => it.textContent === 'Tenant').click()")
    browser.wait(f"{FIRST} === 'tenant59'", "not sorted the other way")

    # By keyboard: / goes to the search, Tab on, Enter opens, Escape closes, and the focus stays with its row.
    browser.run("document.activeElement.blur()")
    browser.key("/", "Slash", "/")
    check(browser.run("document.activeElement.id") == "search", "/ does not go to the search")
    browser.ask("Input.insertText", text="tenant4")
    browser.wait(f"{COUNT} === 10 && {FIRST} === 'tenant49'", "the search does not find")
    browser.run("document.querySelector('#tenants button').focus()")
    browser.run("new Promise(done => setTimeout(done, 2500))")
    check(browser.run("document.activeElement.textContent") == "tenant49", "a poll takes the focus away")
    browser.key("Enter", "Enter", "\r")
    browser.wait("document.getElementById('detail').open && document.querySelectorAll('#detail-body h3').length > 3",
                 "Enter does not open the details")
    check(browser.run("document.getElementById('detail-title').textContent") == "tenant49", "another tenant's details")
    browser.key("Escape", "Escape")
    browser.wait("!document.getElementById('detail').open", "Escape does not close the details")

    browser.run("document.getElementById('pause').click()")
    browser.wait("document.getElementById('status').textContent === 'paused'", "it does not pause")
    check(browser.run("document.getElementById('pause').getAttribute('aria-pressed')") == "true", "aria-pressed")
    complaints = browser.complaints()
    check(not complaints, f"the console says: {complaints}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--browser", required=True)
    parser.add_argument("--shots", type=pathlib.Path)
    parser.add_argument("--look", action="store_true")
    options = parser.parse_args()
    browser = Browser(options.browser)
    try:
        if options.shots:
            options.shots.mkdir(parents=True, exist_ok=True)
            pictures(browser, options.url, options.shots)
        if not options.look:
            works(browser, options.url)
            looks(browser, options.url)
    finally:
        browser.close()
    print("the page works")


if __name__ == "__main__":
    sys.exit(main())
