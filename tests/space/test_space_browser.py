"""The demo in a real browser, at a desktop's and a phone's width: ``hf-ebm demo``, and a Space as it is pushed."""

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

import numpy as np
import PIL.Image
import pytest
from playwright.sync_api import expect, sync_playwright

from hf_ebm import EnergyScoringPipeline
from hf_ebm.data import load_digits
from hf_ebm.space.limits import MAX_UPLOAD_BYTES
from hf_ebm.space.push import write_space

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
def running(command, folder, port, **environment):
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
        self.button("Draw").wait_for()

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
        """Click a button and wait for its figure, loaded."""
        self.button(name).click()
        figure = self.shown(".figure img")
        figure.wait_for()
        self.page.wait_for_function("image => image.complete && image.naturalWidth > 500", arg=figure.element_handle())
        self.check_width()

    def check_width(self):
        assert self.page.evaluate("document.scrollingElement.scrollWidth") <= self.width

    def close(self):
        self.check_width()
        assert "Traceback" not in self.page.content()
        assert self.elsewhere == []
        self.page.close()


def check_uploads(visit, files):
    """A picture like the training data, an odd one, a broken file, and one that is too large."""
    visit.open_tab("Check")
    for name, verdict in (("ordinary", "Ordinary: like"), ("odd", "Odd: unlike")):
        visit.shown("input[type=file]").set_input_files(files[name])
        visit.shown(".small-picture img").first.wait_for()
        visit.click_for_figure("Check this picture")
        expect(visit.shown(".prose h3")).to_contain_text(verdict, timeout=PATIENCE * 1000)
        visit.page.get_by_label("Remove Image").or_(visit.page.get_by_label("Clear")).first.click()
    visit.shown("input[type=file]").set_input_files(files["broken"])
    visit.shown(".small-picture img").first.wait_for(state="attached")
    visit.button("Check this picture").click()
    visit.page.get_by_text("cannot be read").first.wait_for()


def test_the_demo_in_a_browser(tiny_pipeline, tiny_dual_mcmc_pipeline, tmp_path):
    chromium = find_chromium()
    ordinary = (
        0.3 * load_digits("test")[0]
    )  # to these random weights, pale pictures are likely and glaring ones are not
    scorer = EnergyScoringPipeline(tiny_pipeline.energy_model, tiny_pipeline.scheduler)
    scorer.set_progress_bar_config(disable=True)
    tiny_pipeline.save_pretrained(tmp_path / "ddaebm")
    scorer.calibrate(ordinary[:40]).save(tmp_path / "ddaebm")
    tiny_dual_mcmc_pipeline.save_pretrained(tmp_path / "dual")

    middle = ordinary[scorer(ordinary).energies.argsort()[len(ordinary) // 2]]
    glaring = 255 * np.random.default_rng(0).integers(0, 2, (8, 8), dtype=np.uint8)
    pictures = {"ordinary": tiny_pipeline.post_process(middle[None], "pil")[0], "odd": PIL.Image.fromarray(glaring)}
    assert scorer(list(pictures.values())).is_ood.tolist() == [False, True]
    files = {name: str(tmp_path / f"{name}.png") for name in ("ordinary", "odd", "broken")}
    for name, picture in pictures.items():
        picture.save(files[name])
    Path(files["broken"]).write_bytes(Path(files["ordinary"]).read_bytes()[:60])

    demo_port, space_port = free_port(), free_port()
    demo = [sys.executable, "-m", "hf_ebm.cli", "demo", "--model", str(tmp_path / "ddaebm"), "--port", str(demo_port)]
    write_space("user/model", tmp_path / "space")
    space = [sys.executable, str(tmp_path / "space" / "app.py")]
    space_environment = {
        "HF_EBM_MODEL": str(tmp_path / "dual"),
        "GRADIO_SERVER_PORT": str(space_port),
        "PYTHONPATH": "",
    }
    with (
        running(demo, tmp_path / "a", demo_port) as demo_process,
        running(space, tmp_path / "b", space_port, **space_environment) as space_process,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        wait_for(demo_port, demo_process, tmp_path / "a" / "log.txt")
        wait_for(space_port, space_process, tmp_path / "b" / "log.txt")
        for width in (1280, 390):
            visit = Visit(browser, demo_port, width)
            visit.click_for_figure("Draw")
            expect(visit.shown(".samples button img")).to_have_count(8)
            check_uploads(visit, files)
            visit.close()

            visit = Visit(browser, space_port, width)
            visit.click_for_figure("Draw others")
            visit.open_tab("Check")
            visit.shown(".gallery-item").first.click()
            visit.shown(".small-picture img").first.wait_for()
            visit.click_for_figure("Check this picture")
            expect(visit.shown(".prose h3")).to_contain_text("not calibrated")
            visit.open_tab("Rebuild")
            visit.shown(".gallery-item").first.click()
            visit.shown(".small-picture img").first.wait_for()
            visit.click_for_figure("Rebuild")
            visit.open_tab("Blend")
            visit.click_for_figure("Blend")
            visit.close()
        browser.close()

        for path in ("/gradio_api/upload", "/gradio_api/queue/join"):
            assert announce(demo_port, path, MAX_UPLOAD_BYTES + 2**17) == 413
