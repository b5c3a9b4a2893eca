"""A pushed Space in a real browser, with a desktop's and a phone's width."""

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from hf_ebm import EnergyScoringPipeline
from hf_ebm.data.digits import load_digits
from hf_ebm.demo.limits import MAX_UPLOAD_BYTES
from hf_ebm.demo.push import write_space

PATIENCE = 180  # seconds: other programs may keep the cores busy


def find_chromium():
    """Debian's Chromium; a machine without it skips, but not in CI."""
    path = shutil.which("chromium")
    if path is None and os.environ.get("CI") == "true":
        pytest.fail("CI needs a browser: apt-get install chromium")
    if path is None:
        pytest.skip("no chromium here: apt-get install chromium")
    return path


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def running(command, folder, **environment):
    """A server started in `folder`; in the end it is stopped, and must have left nothing behind."""
    temporary, work = folder / "tmp", folder / "work"
    temporary.mkdir(parents=True)
    work.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1", **environment}
    with open(folder / "log.txt", "w") as log:
        process = subprocess.Popen(command, cwd=work, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process
        assert len(list(temporary.glob("hf-ebm-demo-*"))) == 1  # while it runs
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(PATIENCE)
    assert code == 0, (folder / "log.txt").read_text()
    assert not list(temporary.glob("hf-ebm-demo-*")) and not list(work.iterdir())


def wait_for(port, process, log):
    end = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert process.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.2)


def announce(port, path, num_bytes):
    """The status of a POST that announces a body of this size, and sends none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.putrequest("POST", path)
    connection.putheader("Content-Type", "multipart/form-data; boundary=b")
    connection.putheader("Content-Length", str(num_bytes))
    connection.endheaders()
    with contextlib.closing(connection):
        return connection.getresponse().status


class Visit:
    """A page of the demo in a window of some width, from which no request goes elsewhere."""

    def __init__(self, browser, port, width):
        self.url = f"http://127.0.0.1:{port}/"
        self.width = width
        self.elsewhere = []
        self.page = browser.new_page(viewport={"width": width, "height": 844})
        self.page.set_default_timeout(PATIENCE * 1000)
        self.page.on("request", self.note)
        self.page.goto(self.url)
        self.button("Generate").wait_for()

    def note(self, request):
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.elsewhere.append(request.url)

    def button(self, name):
        return self.page.get_by_role("button", name=name, exact=True)

    def shown(self, selector):
        return self.page.locator(f"[role=tabpanel]:visible {selector}")

    def open_tab(self, name):
        self.page.get_by_role("tab", name=name, exact=True).click()

    def click_for_figure(self, name):
        """Click a button and wait for its figures, loaded."""
        self.button(name).click()
        figures = self.shown(".figure img")
        figures.first.wait_for()
        for figure in figures.element_handles():
            self.page.wait_for_function("image => image.complete && image.naturalWidth > 500", arg=figure)
        self.check_width()

    def check_width(self):
        assert self.page.evaluate("document.scrollingElement.scrollWidth") <= self.width

    def check_level(self):
        """Without a verdict the columns begin at one height; a narrow page has them below one another."""
        if self.width > 1000:
            headings = [self.shown("h4").nth(index).element_handle() for index in (0, 1)]
            level = "headings => new Set(headings.map(one => one.getBoundingClientRect().top)).size == 1"
            self.page.wait_for_function(level, arg=headings)

    def close(self):
        self.check_width()
        assert "Traceback" not in self.page.content()
        assert self.elsewhere == []
        self.page.close()

    def take_example(self, index):
        self.shown(".gallery-item").nth(index).click()
        self.shown(".small-image img").first.wait_for()


def check_uploads(visit, files):
    """Upload an in-distribution image, an OOD one, a broken file."""
    visit.open_tab("Check")
    visit.check_level()
    for name, verdict in (("in-distribution", "In-distribution: like"), ("ood", "Out-of-distribution: unlike")):
        visit.shown("input[type=file]").set_input_files(files[name])
        visit.shown(".small-image img").first.wait_for()
        visit.click_for_figure("Check this image")
        expect(visit.shown(".prose h3")).to_contain_text(verdict, timeout=PATIENCE * 1000)
        shown = visit.shown(".prose h3").count()
        visit.page.get_by_label("Remove Image").click()
        expect(visit.shown(".figure img")).to_have_count(0)  # the result is removed with its image
        visit.check_level()
    visit.take_example(0)  # Gradio makes a new field then
    visit.page.get_by_label("Remove Image").click()
    visit.shown("input[type=file]").set_input_files(files["broken"])
    visit.shown(".small-image img").first.wait_for(state="attached")
    visit.button("Check this image").click()
    visit.page.get_by_text("cannot be read").first.wait_for()
    expect(visit.shown(".prose h3")).to_have_count(shown - 1)  # the last image's verdict and figure are removed
    expect(visit.shown(".figure img")).to_have_count(0)


def write_images(pipeline, folder):
    """Files of an in-distribution, an OOD and a broken image in `folder`, calibrated on what the model finds likely."""
    digits = load_digits("test")[0]
    scorer = EnergyScoringPipeline(**pipeline.components)
    scorer.set_progress_bar_config(disable=True)
    ordered = digits[scorer(digits).energies.argsort()]
    scorer.calibrate(ordered[:40]).save(folder)
    files = {name: str(folder / f"{name}.png") for name in ("in-distribution", "ood", "broken")}
    for name, x in (("in-distribution", ordered[20]), ("ood", ordered[-1])):
        pipeline.post_process(x[None] * 2 - 1, "pil")[0].save(files[name])
    Path(files["broken"]).write_text("no picture")
    return files


def test_the_space_in_a_browser(tiny_dual_mcmc_pipeline, tmp_path):
    chromium = find_chromium()
    tiny_dual_mcmc_pipeline.save_pretrained(tmp_path / "model")
    files = write_images(tiny_dual_mcmc_pipeline, tmp_path / "model")
    write_space("user/model", tmp_path / "space")
    command = [sys.executable, str(tmp_path / "space" / "app.py")]
    port = free_port()
    environment = {"HF_EBM_MODEL": str(tmp_path / "model"), "GRADIO_SERVER_PORT": str(port), "PYTHONPATH": ""}
    with running(command, tmp_path / "run", **environment) as process, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        wait_for(port, process, tmp_path / "run" / "log.txt")
        for width in (1280, 390):
            visit = Visit(browser, port, width)
            visit.click_for_figure("Generate")
            expect(visit.shown(".samples button img")).to_have_count(8)
            cell = visit.shown(".samples .gallery-item").first.bounding_box()
            assert abs(cell["width"] - cell["height"]) < 8  # square, as its image
            if width > 1000:
                check_uploads(visit, files)
            else:
                visit.open_tab("Check")
                visit.take_example(0)
                visit.click_for_figure("Check this image")
            visit.open_tab("Reconstruct")
            visit.take_example(0)
            visit.click_for_figure("Reconstruct")
            visit.open_tab("Interpolate")
            visit.click_for_figure("Interpolate")
            visit.close()
        browser.close()
        for path in ("/gradio_api/upload", "/gradio_api/queue/join"):
            assert announce(port, path, MAX_UPLOAD_BYTES + 2**17) == 413
