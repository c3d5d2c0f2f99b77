"""A server with a store, numbers and a route of its own, another that asks for keys, and a browser to look at them."""

import importlib.util
import json
import shutil
import socket
from html.parser import HTMLParser
from pathlib import Path

import pytest
from selenium.webdriver.support.ui import WebDriverWait

FLAGS = "--headless --no-sandbox --disable-gpu --disable-background-networking --hide-scrollbars"


@pytest.fixture(scope="session")
def made_store():
    """The module that makes a store."""
    spec = importlib.util.spec_from_file_location("made_store", Path(__file__).parent / "made_store.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def followed_store(made_store, tmp_path_factory):
    """What a server is told, so that it serves all of such a store."""
    from mlserve.serve.settings import Follow, NamedRoute, StoreChoice

    root = tmp_path_factory.mktemp("followed") / "store"
    made_store.make_store(root)
    return {
        "store": StoreChoice(str(root), (Follow("*", "all"),)),
        "routes": (NamedRoute("/spam/detect", "spam", "production"),),
    }


@pytest.fixture(scope="module")
def store_server(serving_settings, tiny_onnx, followed_store):
    """Everybody may do everything; `management` is the port for management."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with serving_settings(tiny_onnx, management_port=port, **followed_store) as server:
        server.management = port
        yield server


@pytest.fixture(scope="module")
def keyed_server(serving_settings, tiny_onnx, followed_store, tmp_path_factory):
    """Asks for keys; `secrets` has one of each kind."""
    from mlserve.serve.keys import add_key, new_key

    path = tmp_path_factory.mktemp("keys") / "keys.json"
    kinds = {"metadata": ["metadata"], "infer": ["infer"], "both": ["metadata", "infer", "metrics"]}
    made = {name: new_key(name, scopes) for name, scopes in kinds.items()}
    for key in made.values():
        add_key(path, key.key)
    with serving_settings(tiny_onnx, keys_file=str(path), **followed_store) as server:
        server.secrets = {name: key.secret for name, key in made.items()}
        yield server


class _Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.codes, self._open = [], None

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "code" and "data-way" in attributes:
            self._open = (attributes["data-way"], [])

    def handle_data(self, data):
        if self._open:
            self._open[1].append(data)

    def handle_endtag(self, tag):
        if tag == "code" and self._open:
            self.codes.append((self._open[0], "".join(self._open[1])))
            self._open = None


@pytest.fixture(scope="session")
def commands_of():
    """`commands_of(html, "shell")`: the examples of a page, as a person would copy them."""

    def read(html, language):
        reader = _Reader()
        reader.feed(html)
        return [code for way, code in reader.codes if way == language]

    return read


@pytest.fixture(scope="session")
def run_shell(tmp_path_factory):
    """`run_shell(command)`: `(exit status, statuses of every curl in it, output)`, as bash runs it."""
    import os
    import subprocess

    home = tmp_path_factory.mktemp("curl")
    (home / ".curlrc").write_text('fail\nwrite-out = "%{stderr}%{http_code}\\n"\nmax-time = 20\n')

    def run(command, **environment):
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "CURL_HOME": str(home), **environment},
        )
        return done.returncode, done.stderr.split(), done.stdout

    return run


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium that keeps a log of its console and of what it asks the network for."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    missing = [name for name, path in programs.items() if path is None]
    assert not missing, f"this test needs {', '.join(missing)}: sh tests/install_tools.sh"
    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"]
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(programs["chromedriver"]))
    yield driver
    driver.quit()


class OpenPage:
    """A page of a server as a browser shows it."""

    def __init__(self, driver, url, *, scheme="light", width=1280, scripts=True):
        self.driver = driver
        driver.get("about:blank")
        driver.get_log("browser")
        driver.get_log("performance")
        command = driver.execute_cdp_cmd
        command("Emulation.setScriptExecutionDisabled", {"value": not scripts})
        command(
            "Emulation.setEmulatedMedia",
            {"media": "", "features": [{"name": "prefers-color-scheme", "value": scheme}]},
        )
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        command("Emulation.setDeviceMetricsOverride", metrics)
        driver.get(url)
        # On a busy machine the driver may answer before the page's last line, its script, has been read.
        WebDriverWait(driver, 30).until(lambda _: self.run("return document.readyState") == "complete")

    def run(self, script):
        """What `script` returns in the page."""
        return self.driver.execute_script(script)

    def faults(self):
        """Whatever the console shows: errors, warnings, refusals of the page's own policy."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def fetched(self):
        """The addresses asked for, but the page itself."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        here = self.driver.current_url.partition("#")[0]
        return [url for url in urls if not url.startswith(("about:", "data:")) and url.partition("#")[0] != here]


@pytest.fixture(scope="session")
def open_page(browser):
    """`open_page(url)` shows a page."""
    return lambda url, **how: OpenPage(browser, url, **how)
