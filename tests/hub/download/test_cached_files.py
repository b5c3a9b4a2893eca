"""Files of a pull in the cache: which belong to a variant, and which are taken back when damaged or moved."""

from hf_ebm.hub import download as hub_cache
from hf_ebm.hub.download import known_checksums, remove_damaged, restore_ref, weight_patterns


def test_a_ref_is_put_back_only_if_it_was_moved_by_this_pull(tmp_path):
    ref, ours, theirs = tmp_path / "main", "a" * 40, "b" * 40
    for before, held, commit, left in (
        (None, ours, ours, None),
        (b"old", ours, ours, "old"),
        (b"old", theirs, ours, theirs),
        (b"old", ours, None, "old"),
        (b"old", "no commit", None, "no commit"),
    ):
        ref.write_text(held)
        restore_ref(ref, before, commit)
        assert (ref.read_text() if ref.is_file() else None) == left
    restore_ref(tmp_path, b"old", ours)  # a folder, as a branch's name may be the start of another's
    assert tmp_path.is_dir()


def test_weights_of_a_variant_are_not_those_of_another(tmp_path):
    names = [
        "model.safetensors", "model-00001-of-00002.safetensors", "model.fp16.safetensors",
        "model.fp16-00001-of-00002.safetensors", "model.bin", "other.safetensors",
    ]  # fmt: skip
    (tmp_path / "energy_model").mkdir()
    for name in names:
        (tmp_path / "energy_model" / name).touch()

    def found(variant):
        return {path.name for pattern in weight_patterns("energy_model", variant) for path in tmp_path.glob(pattern)}

    assert found(None) == set(names[:2]) and found("fp16") == set(names[2:4]) and found("bf16") == set()


def test_two_files_of_one_content_are_taken_back(tmp_path):
    """Two links to one damaged content: both go, nothing is raised half-way, and what is whole stays."""
    commit, blobs = tmp_path / "snapshots" / "c", tmp_path / "blobs"
    commit.mkdir(parents=True)
    blobs.mkdir()
    whole = blobs / "9e26dfeeb6e641a33dae4961196235bdb965b21b"  # git's name of the two bytes "{}"
    damaged = blobs / ("0" * 40)
    links = {"a.json": damaged, "b.json": damaged, "c.json": whole}
    for name, content in links.items():
        content.write_text("{}")
        (commit / name).symlink_to(content)
    expected = known_checksums(commit, [commit / name for name in links])
    assert expected == {name: content.name for name, content in links.items()}
    assert set(remove_damaged(commit, expected)) == {"a.json", "b.json"}
    assert list(commit.iterdir()) == [commit / "c.json"] and list(blobs.iterdir()) == [whole]


def test_what_somebody_replaces_while_it_is_read_is_left(tmp_path, monkeypatch):
    commit = tmp_path / "snapshots" / "c"
    commit.mkdir(parents=True)
    for name in ("a.json", "b.json"):
        (commit / name).write_text("{?")
    whole = tmp_path / "whole"
    whole.write_text("{}")
    checksum = hub_cache.file_checksum

    def read(path, large):
        found = checksum(path, large)
        if path.name == "a.json":
            whole.replace(path)  # as another pull does
        return found

    monkeypatch.setattr(hub_cache, "file_checksum", read)
    expected = dict.fromkeys(("a.json", "b.json"), "9e26dfeeb6e641a33dae4961196235bdb965b21b")
    assert set(remove_damaged(commit, expected)) == {"a.json", "b.json"}
    assert [path.name for path in commit.iterdir()] == ["a.json"] and (commit / "a.json").read_text() == "{}"
