"""The file of rows: torn anywhere it is repaired, one process has it, a full disk leaves it whole."""

import json
import os

import pytest

from sparsegnn.study.store import Store

ROWS = [{"id": "a", "case": "first", "curve": [[1, 0.5]]}, {"id": "b", "case": "é", "error": "no"}]


def written(path, rows=ROWS):
    with Store(path) as store:
        for row in rows:
            store.add(row)
    return path.read_bytes()


def test_rows_come_back(tmp_path):
    path = tmp_path / "out.jsonl"
    content = written(path)
    assert [json.loads(line) for line in content.splitlines()] == ROWS
    with Store(path) as store:
        assert store.whole("a") == ROWS[0] and store.done("b") and store.failed("b") and not store.failed("a")
        assert [row["id"] for row in store.good()] == ["a"] and not store.done("c") and store.removed == 0
        store.add({"id": "b", "case": "later"})
        assert store.whole("b") == {"id": "b", "case": "later"} and not store.failed("b")
    with Store(path) as store:
        assert store.rows["b"]["case"] == "later" and len(store.rows) == 2


def test_floats_have_seven_digits_and_integers_all(tmp_path):
    row = {"id": "a", "curve": [[12345678901, 2.7387723210063086, None]], "lr": 1e-10 / 3, "whole": 2.0}
    assert json.loads(written(tmp_path / "out.jsonl", [row])) == {
        "id": "a", "curve": [[12345678901, 2.738772, None]], "lr": 3.333333e-11, "whole": 2.0}  # fmt: skip


def test_a_line_that_is_torn_anywhere(tmp_path):
    path = tmp_path / "out.jsonl"
    content = written(path)
    first = content.index(b"\n") + 1
    for end in range(len(content) + 1):
        path.write_bytes(content[:end])
        with Store(path) as store:
            whole = [row["id"] for row, size in zip(ROWS, (first - 1, len(content) - 1), strict=True) if end >= size]
            assert list(store.rows) == whole
            store.add({"id": "c"})
        lines = path.read_bytes().splitlines()
        assert [json.loads(line)["id"] for line in lines] == [*whole, "c"]


@pytest.mark.parametrize(
    "line", [b"no JSON\n", b"[1]\n", b'{"case": "x"}\n', b'{"id": 3}\n', b"\xff\xfe\n", b"\n", b"text", b'{"a": 1']
)
def test_what_is_no_row_is_refused_and_kept(tmp_path, line):
    path = tmp_path / "out.jsonl"
    content = written(path) + line
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"out.jsonl:3: each line must be the JSON of a run"), Store(path):
        pass
    assert path.read_bytes() == content


def test_one_study_at_a_time(tmp_path):
    path = tmp_path / "out.jsonl"
    with Store(path):
        with pytest.raises(ValueError, match="out must be a file that no other study writes now"), Store(path):
            pass
    written(path)


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"
    content, write, left = written(path), os.write, [7]

    def short(handle, data):
        n = min(len(data), left[0])
        left[0] -= n
        if n == 0:
            raise OSError(28, "No space left on device")
        return write(handle, data[:n])

    with Store(path) as store:
        monkeypatch.setattr(os, "write", short)
        with pytest.raises(OSError, match="No space left"):
            store.add({"id": "c"})
        assert not store.done("c")
        monkeypatch.undo()
    assert path.read_bytes() == content


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ValueError, match="out must be a file in a writable folder"), Store(tmp_path):
        pass
