"""The live page in a real browser: a newer report is shown where the reader was."""

import http.client
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest

from mlserve.report.render.live import live_page

PAGE = """<!doctype html><html><head><title>{0}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'"></head>
<body><h1>{0}</h1><details><summary>more</summary>text</details><input type="search" id="filter">
<div style="height: 5000px"></div></body></html>"""


def page(name):
    return PAGE.format(name).encode()


def test_who_waits_is_told_of_each_newer_page_and_of_the_end():
    with live_page(page("one")) as live:
        assert live.address.startswith("http://127.0.0.1:")
        with urlopen(f"{live.address}changes") as changes:
            assert changes.readline() == b"data: 1\n"
            live.show(page("two"))
            assert [changes.readline(), changes.readline()] == [b"\n", b"data: 2\n"]
            assert urlopen(f"{live.address}report").read() == page("two")
            live.close()
            assert changes.read() == b"\n"
    with pytest.raises(OSError, match="refused"):
        urlopen(live.address)


@pytest.mark.parametrize(
    ("path", "host", "status"),
    [("/", "", 200), ("/", "evil.example", 403), ("/report", "evil.example", 403), ("/../etc/passwd", "", 404)],
)
def test_only_the_report_is_given_out_and_only_at_its_own_address(path, host, status):
    with live_page(page("one")) as live:
        place = urlsplit(live.address).netloc
        connection = http.client.HTTPConnection(place, timeout=10)
        connection.request("GET", path, headers={"Host": host or place})
        answer = connection.getresponse()
        assert answer.status == status
        answer.read()
        connection.close()


@pytest.fixture
def browser():
    """Headless Chromium that keeps a log of its console."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    missing = [name for name, path in programs.items() if path is None]
    assert not missing, f"this test needs {', '.join(missing)}: sh tests/install_tools.sh"
    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"]
    for flag in ("--headless", "--no-sandbox", "--disable-gpu"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(programs["chromedriver"]))
    yield driver
    driver.quit()


def shown(browser, name):
    """Waits until the report called `name` is on the screen."""
    script = "return document.title === arguments[0] && document.querySelectorAll('iframe').length === 1"
    for _ in range(400):
        if browser.execute_script(script, name):
            return
        time.sleep(0.05)
    raise AssertionError(f"{name} was not shown; there is {browser.title}")


def test_a_newer_report_is_shown_at_the_same_place_in_the_same_theme_with_the_same_parts_open(browser):
    inside = "const page = document.querySelector('iframe').contentWindow, root = page.document.documentElement;"
    with live_page(page("one")) as live:
        browser.get(live.address)
        shown(browser, "one")
        browser.execute_script(
            f"""{inside} root.dataset.theme = "dark"; root.querySelector("details").open = true;
            root.querySelector("input").value = "int8"; page.scrollTo(0, 1234);"""
        )
        state = """return [page.scrollY, root.dataset.theme, root.querySelector("details").open,
            root.querySelector("input").value, root.textContent]"""
        *before, _ = browser.execute_script(inside + state)
        live.show(page("two"))
        shown(browser, "two")
        *after, text = browser.execute_script(inside + state)
        assert after == before == [1234, "dark", True, "int8"]
        assert "two" in text
        assert browser.get_log("browser") == []
        live.close()
        for _ in range(200):
            if "ended" in browser.execute_script("return document.getElementById('state').textContent"):
                break
            time.sleep(0.05)
        else:
            raise AssertionError("the page does not say that the report has ended")


def test_watch_ends_with_the_last_page_where_the_search_that_it_follows_has_ended(search_folder, tmp_path):
    shutil.copytree(search_folder, tmp_path / "tune")
    record = tmp_path / "tune" / "tune.json"
    whole = record.read_text()
    record.write_text(json.dumps(json.loads(whole) | {"verdict": None, "settled": None}))
    command = [sys.executable, "-m", "mlserve", "report", "tune", "--watch", "--formats", "html"]
    watching = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    killer = threading.Timer(60, watching.kill)
    killer.start()
    try:
        address = re.search(r"live at (\S+)", watching.stderr.readline())[1]
        with urlopen(f"{address}changes") as changes:
            assert changes.readline() == b"data: 1\n"
            assert b"the pick" not in urlopen(f"{address}report").read()
            record.write_text(whole)
            assert next(line for line in changes if line.startswith(b"data")) == b"data: 2\n"
            assert b"the pick" in urlopen(f"{address}report").read()
        output, errors = watching.communicate(timeout=20)
        assert (watching.returncode, output) == (0, "")
        assert "tune is over; the last page is report/report.html" in errors
    finally:
        killer.cancel()
        watching.kill()
        watching.communicate()
