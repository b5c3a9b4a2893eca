"""Progress bars appear on a terminal after a delay and are removed at the end; `no_bar` shows none."""

import sys

import huggingface_hub.utils

from hf_ebm.utils.logging import hide_library_bars, no_bar, passing_bar


def test_a_passing_bar_is_shown_after_a_while_and_leaves_nothing(capfd, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(passing_bar(unit="batch")(range(3), desc="quick", total=3)) == [0, 1, 2]
    assert "quick" not in capfd.readouterr().err
    assert list(passing_bar(unit="batch", delay=0.0, mininterval=0.0)(range(3), desc="slow")) == [0, 1, 2]
    found = capfd.readouterr()
    assert "slow: 100%" in found.err and "batch" in found.err and not found.out
    assert not found.err.split("\r")[-1].strip()


def test_without_a_terminal_there_is_no_bar(capfd):
    assert list(passing_bar(delay=0.0, mininterval=0.0)(range(3), desc="slow")) == [0, 1, 2]
    assert not capfd.readouterr().err


def test_only_bars_of_downloads_stay(capfd, monkeypatch):
    import diffusers.utils.logging
    import transformers.utils.logging

    libraries = (diffusers.utils.logging, transformers.utils.logging)
    for library in libraries:
        monkeypatch.setattr(library, "_tqdm_active", True)
    hide_library_bars()
    for library in libraries:
        assert list(library.tqdm(range(3), desc="weights")) == [0, 1, 2]
    assert not capfd.readouterr().err
    assert not huggingface_hub.utils.are_progress_bars_disabled()


def test_no_bar_passes_on_what_it_gets():
    assert list(no_bar(range(3), desc="nothing", total=3)) == [0, 1, 2]
