"""One run at a time in a folder of scores: the lock is the system's."""

import multiprocessing
import time

import pytest

from hf_ebm.evaluation.bulk_scoring import ShardFolder, run


def test_two_runs_in_one_folder_are_refused(settings, tmp_path):
    """The lock is the system's: what a killed run leaves does not keep the next one out."""
    folder = ShardFolder(tmp_path / "out", 360, 50)

    def hold(ready):
        with folder.alone():
            ready.set()
            time.sleep(60)

    fork = multiprocessing.get_context("fork")
    ready = fork.Event()
    other = fork.Process(target=hold, args=(ready,))
    other.start()
    assert ready.wait(30)
    with pytest.raises(ValueError, match="has a run at work"):
        run(settings())
    other.kill()
    other.join()
    assert run(settings())["scored"] == 360


def test_a_disk_without_locks_is_not_a_run_at_work(settings, monkeypatch):
    import fcntl

    def no_locks(*arguments):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    with pytest.raises(OSError, match="No locks available"), ShardFolder(settings().output, 1, 1).alone():
        pass
