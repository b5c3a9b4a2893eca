"""Files are written completely or not at all."""

import pytest

from hf_ebm.utils.files import whole_file


def test_the_file_appears_at_the_end_and_replaces_an_old_one(tmp_path):
    target = tmp_path / "new" / "a.json"
    for content in ("first", "second"):
        with whole_file(target) as path:
            path.write_text(content)
            assert path != target and path.suffix == ".json"
            assert not target.is_file() or target.read_text() == "first"
        assert target.read_text() == content
    assert [path.name for path in target.parent.iterdir()] == ["a.json"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.json"
    target.write_text("old")
    with pytest.raises(RuntimeError), whole_file(target) as path:
        path.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old" and len(list(tmp_path.iterdir())) == 1
