"""Opens reports of the program in a real browser (Chromium without a window) from file://.

    report_browser.py BINARY FOLDER

Makes reports of the demo into FOLDER, then looks at each on a phone and on a desktop, in light and in dark, with and
without scripts, and prints it. Fails on an error or a warning of the console, on any request but for the page itself,
on a section without size, on a page that is wider than the window, on texts of a chart that overlap, and on colours
that do not follow the theme. Screenshots and PDFs stay in FOLDER. Chromium is that of the system; where there is none
and it cannot be installed, all of this is SKIPPED, which is said.

Only Python's own library is used: the browser is spoken to over a pair of pipes (--remote-debugging-pipe).
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NAMES = ["chromium", "chromium-browser", "google-chrome", "chrome"]
# Of every report: what must be there.
SECTIONS = {
    "quantize": ["summary", "network", "outputs", "distributions", "picture", "float", "settings"],
    "auto": ["summary", "front", "sensitivity", "network", "distributions", "picture", "float"],
    "analyze": ["summary", "sensitivity", "network"],
    "assign": ["summary", "front", "sensitivity"],
    "check": ["summary", "network", "outputs"],
}
VIEWS = {"phone": (390, 844, 2, True), "desktop": (1280, 900, 1, False)}
# Boxes of visible elements, of texts in charts, and the colour of the ground.
PROBE = """(() => {
  const size = e => { const r = e.getBoundingClientRect(); return [r.width, r.height]; };
  const texts = [];
  for (const svg of document.querySelectorAll('svg.chart')) {
    if (!svg.getClientRects().length) continue;
    const boxes = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
    boxes.forEach(([a, r], i) => boxes.slice(i + 1).forEach(([b, s]) => {
      const x = Math.min(r.right, s.right) - Math.max(r.left, s.left);
      const y = Math.min(r.bottom, s.bottom) - Math.max(r.top, s.top);
      if (x > 1 && y > 2) texts.push(a + ' / ' + b);
    }));
  }
  const charts = [...document.querySelectorAll('svg')].filter(s => s.getClientRects().length);
  return JSON.stringify({
    sections: Object.fromEntries([...document.querySelectorAll('section')].map(s => [s.id, size(s)])),
    charts: charts.map(size),
    overlaps: texts,
    wide: document.documentElement.scrollWidth - innerWidth,
    ground: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(document.body).color,
    tools: !!document.querySelector('#graph-tools:not([hidden])'),
  });
})()"""


def find():
    """The browser's path; installs Debian's where it may."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    if shutil.which("apt-get") and os.geteuid() == 0:
        for command in ["apt-get update -q", "apt-get install -q -y --no-install-recommends chromium"]:
            try:
                done = subprocess.run(command.split(), capture_output=True, text=True, timeout=300)
            except subprocess.TimeoutExpired:
                print(command, "takes more than 300 s")
                break
            if done.returncode != 0:
                print(done.stderr.strip()[-500:])
        return shutil.which("chromium")
    return None


class Browser:
    """Chromium over a pair of pipes."""

    def __init__(self, path, folder):
        to_read, self.out = os.pipe()
        self.inp, to_write = os.pipe()

        def connect():
            # The two ends may have the numbers that they are to get.
            ends = os.dup(to_read), os.dup(to_write)
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        options = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
            "--no-first-run", "--disable-background-networking", "--remote-debugging-pipe", f"--user-data-dir={folder}",
        ]
        self.log = open(Path(folder) / "chromium.log", "w")
        self.process = subprocess.Popen(
            [path, *options, "about:blank"], preexec_fn=connect, close_fds=False, stdout=self.log, stderr=self.log
        )
        os.close(to_read)
        os.close(to_write)
        self.buffer, self.number, self.events = b"", 0, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = None
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ["Page", "Runtime", "Log", "Network"]:
            self.call(f"{domain}.enable")

    session = None

    def receive(self):
        while b"\0" not in self.buffer:
            part = os.read(self.inp, 1 << 20)
            if not part:
                raise SystemExit("the browser has ended; see chromium.log")
            self.buffer += part
        line, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(line)

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise SystemExit(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def open(self, url):
        """Loads a page; returns what its console said and what else it asked for."""
        self.events = []
        self.call("Page.navigate", url=url)
        end = time.monotonic() + 30
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            if time.monotonic() > end:
                raise SystemExit(f"{url} does not load")
            self.events.append(self.receive())
        self.evaluate("0")
        said = []
        for e in self.events:
            params = e.get("params", {})
            match e.get("method"):
                case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                    said.append(params["entry"]["text"])
                case "Runtime.consoleAPICalled":
                    said.append(json.dumps(params["args"]))
                case "Runtime.exceptionThrown":
                    said.append(json.dumps(params["exceptionDetails"]))
                case "Network.requestWillBeSent" if params["request"]["url"] != url:
                    said.append(f"asks for {params['request']['url'][:80]}")
        return said

    def evaluate(self, code):
        return self.call("Runtime.evaluate", expression=code, returnByValue=True)["result"].get("value")

    def view(self, size, dark, scripts=True):
        width, height, scale, mobile = size
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile)
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[theme])
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)

    def screenshot(self, path, width, height):
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        made = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(made["data"]))

    def pdf(self, path):
        made = self.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True, paperWidth=8.27, paperHeight=11.69)
        path.write_bytes(base64.b64decode(made["data"]))

    def close(self):
        self.call("Browser.close") if self.process.poll() is None else None
        self.process.wait(timeout=20)
        self.log.close()


def reports(binary, folder):
    """Reports of every command that makes one, by kind."""
    run = lambda *args: subprocess.run([binary, *map(str, args)], cwd=folder, check=True, capture_output=True)
    run("demo", "--out", "demo")
    data = ["--calib", "demo/calib.npz", "--eval", "demo/eval.npz", "--labels", "demo/labels.npy"]
    model = "demo/model.onnx"
    few = ["--candidates", "int8,int4", "--analysis-samples", "32"]
    run("quantize", model, *data, "--max-drop", "1%", "-o", "q.onnx", "--report", "quantize.html")
    run("quantize", model, *data, "--auto", *few, "--max-drop", "2%", "-o", "a.onnx", "--report", "auto.html")
    run("analyze", model, *data, *few, "-o", "s.json", "--report", "analyze.html")
    assign = ["--sensitivity", "s.json", "--avg-bits", "6", "-o", "plan.toml", "--report", "assign.html"]
    run("assign", model, *data[2:], *assign)
    check = ["--eval", "demo/eval.npz", "--labels", "demo/labels.npy", "--report", "check.html"]
    run("check", model, "q.onnx", *check)
    return {kind: folder / f"{kind}.html" for kind in SECTIONS}


def look(browser, kind, page, folder):
    """All views of a page; returns what is wrong."""
    wrong = []
    grounds = {}
    for name, size in VIEWS.items():
        for theme in ["light", "dark"]:
            where = f"{page.name} ({name}, {theme})"
            browser.view(size, theme == "dark")
            wrong += [f"{where}: console: {s}" for s in browser.open(page.as_uri())]
            browser.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
            found = json.loads(browser.evaluate(PROBE))
            for section in SECTIONS.get(kind, []):
                w, h = found["sections"].get(section, (0, 0))
                if w < 200 or h < 60:
                    wrong.append(f"{where}: section {section} has the size {w} x {h}")
            wrong += [f"{where}: a picture of {w} x {h}" for w, h in found["charts"] if w < 40 or h < 20]
            wrong += [f"{where}: texts overlap: {o}" for o in found["overlaps"][:5]]
            if found["wide"] > 0:
                wrong.append(f"{where}: {found['wide']} pixels wider than the window")
            if "picture" in found["sections"] and not found["tools"]:
                wrong.append(f"{where}: the graph has no buttons")
            grounds[theme] = (found["ground"], found["ink"])
            browser.evaluate("for (const d of document.querySelectorAll('details')) d.open = false")
            height = min(browser.evaluate("document.documentElement.scrollHeight"), 12000)
            browser.screenshot(folder / f"{page.stem}-{name}-{theme}.png", size[0], height)
    if grounds["light"] == grounds["dark"]:
        wrong.append(f"{page.name}: light and dark look alike: {grounds['light']}")
    browser.view(VIEWS["desktop"], False, scripts=False)
    wrong += [f"{page.name} (no scripts): console: {s}" for s in browser.open(page.as_uri())]
    browser.screenshot(folder / f"{page.stem}-noscript.png", 1280, 3000)
    browser.view(VIEWS["desktop"], False)
    browser.open(page.as_uri())
    browser.pdf(folder / f"{page.stem}.pdf")
    if (folder / f"{page.stem}.pdf").read_bytes()[:5] != b"%PDF-":
        wrong.append(f"{page.name}: is not printed")
    return wrong


def main():
    binary, folder = os.path.abspath(sys.argv[1]), Path(sys.argv[2]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    path = find()
    if not path:
        print("SKIPPED: there is no Chromium, and it cannot be installed: reports were NOT opened in a browser")
        return
    pages = reports(binary, folder)
    wrong = []
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(path, profile)
        for kind, page in pages.items():
            found = look(browser, kind, page, folder)
            print(f"{kind:<10} {page.stat().st_size:>9} bytes  {'FAILED' if found else 'ok'}")
            wrong += found
        browser.close()
    for w in wrong:
        print(w)
    if wrong:
        raise SystemExit(f"{len(wrong)} faults")


if __name__ == "__main__":
    main()
