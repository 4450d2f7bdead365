"""Headless Chromium over its own DevTools protocol: a page, its errors and requests, mouse, keys and prints."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
SECONDS = 60  # for any answer


def chromium():
    """The path of the browser."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    return found


@contextmanager
def browser():
    """A socket of a browser with its own empty profile; nothing of it stays."""
    from websockets.sync.client import connect

    options = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio"]
    options += [
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
    ]
    if os.geteuid() == 0:  # Chromium's sandbox refuses root
        options.append("--no-sandbox")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [chromium(), *options, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"],
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            said = []
            for line in process.stderr:
                said.append(line)
                if "DevTools listening on " in line:
                    break
            else:
                raise RuntimeError("Chromium did not start:\n" + "".join(said[-20:]))
            with connect(line.split()[-1], max_size=None, proxy=None) as socket:
                yield socket
        finally:
            process.terminate()
            process.wait(SECONDS)
            process.stderr.close()


class Page:
    """A tab of a browser."""

    def __init__(self, socket, width=1200, height=900):
        self._socket, self._number, self._session = socket, 0, None
        self.requests, self.errors, self.dialogs = [], [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.resize(width, height)

    def call(self, method, **parameters):
        """The answer to a command; what happens meanwhile is noted."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv(SECONDS))
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def _note(self, event):
        name, content = event.get("method"), event.get("params", {})
        if name == "Network.requestWillBeSent":
            self.requests.append(content["request"]["url"])
        elif name == "Runtime.exceptionThrown":
            self.errors.append(content["exceptionDetails"])
        elif name == "Log.entryAdded" and content["entry"]["level"] == "error":
            self.errors.append(content["entry"]["text"])
        elif name == "Page.javascriptDialogOpening":
            self.dialogs.append(content["message"])

    def resize(self, width, height=900):
        """In CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def open(self, file):
        """A file from the disk; returns when it is loaded."""
        self.call("Page.navigate", url=file.resolve().as_uri())
        self.evaluate(
            "new Promise(go => document.readyState === 'complete' ? go() : addEventListener('load', () => go()))"
        )

    def evaluate(self, expression):
        """The value of a JavaScript expression, awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def place(self, selector):
        """The middle of an element, scrolled into view."""
        return self.evaluate(
            f"(e => {{ e.scrollIntoView({{block: 'center', inline: 'center'}}); const r = e.getBoundingClientRect();"
            f" return [r.x + r.width / 2, r.y + r.height / 2]; }})(document.querySelector({json.dumps(selector)}))"
        )

    def hover(self, selector):
        """Move the mouse over an element."""
        x, y = self.place(selector)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, selector):
        """With the left button."""
        x, y = self.place(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key, code):
        """A key."""
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text
            )

    def screenshot(self, file):
        """Of what is visible."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def print_text(self, folder):
        """The text of the printed page."""
        if shutil.which("pdftotext") is None:
            pytest.skip("needs pdftotext: apt-get install poppler-utils")
        pdf = folder / "print.pdf"
        data = self.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)["data"]
        pdf.write_bytes(base64.b64decode(data))
        command = ["pdftotext", "-layout", str(pdf), "-"]
        return subprocess.run(command, capture_output=True, check=True, timeout=SECONDS).stdout.decode()
