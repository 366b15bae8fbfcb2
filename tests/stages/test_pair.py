"""pair: previews in memory."""

from types import SimpleNamespace

from cloudjob.stages import pair


def test_previews_are_kept_as_far_as_memory_goes_those_used_last():
    opened = []

    def open_preview(name: str) -> SimpleNamespace:
        opened.append(name)
        return SimpleNamespace(name=name, nbytes=150 if name == "large" else 30)

    preview = pair._kept(open_preview, memory=100)
    assert [preview(name).name for name in "abcabcabc"] == list("abcabcabc")
    assert "".join(opened) == "abc"
    for name in "adab":  # a is used before d comes: b must go, then c
        preview(name)
    assert "".join(opened) == "abcdb"
    preview("large")  # more than the memory: it alone is kept
    preview("large")
    preview("a")
    assert opened[5:] == ["large", "a"]
