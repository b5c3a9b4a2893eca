"""Progress bars appear after a delay and are removed at the end; `no_bar` shows none."""

from hf_ebm.utils.logging import no_bar, passing_bar


def test_a_passing_bar_is_shown_after_a_while_and_leaves_nothing(capfd):
    assert list(passing_bar(unit="batch")(range(3), desc="quick", total=3)) == [0, 1, 2]
    assert "quick" not in capfd.readouterr().err
    assert list(passing_bar(unit="batch", delay=0.0, mininterval=0.0)(range(3), desc="slow")) == [0, 1, 2]
    found = capfd.readouterr()
    assert "slow: 100%" in found.err and "batch" in found.err and not found.out
    assert not found.err.split("\r")[-1].strip()


def test_no_bar_passes_on_what_it_gets():
    assert list(no_bar(range(3), desc="nothing", total=3)) == [0, 1, 2]
