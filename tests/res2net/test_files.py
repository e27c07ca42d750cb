"""Files and folders are written whole or not at all."""

from pathlib import Path
from typing import Any

import pytest
from faults import fail_flushing, fail_replacing, fail_writing, fails, listing

from res2net import files


@pytest.mark.parametrize("fault", [fail_writing, fail_flushing, fail_replacing])
def test_a_failure_while_writing_a_file_leaves_the_earlier_one(tmp_path: Path, fault: Any) -> None:
    path = tmp_path / "run.json"
    files.write_atomic(path, "earlier")
    fails(fault, 1, lambda: files.write_atomic(path, "later"))
    assert path.read_text() == "earlier"
    assert listing(tmp_path) == ["run.json"]


@pytest.mark.parametrize("content", ["text: ü\n", b"\x00\xff"])
def test_a_file_is_written_as_given(tmp_path: Path, content: str | bytes) -> None:
    files.write_atomic(tmp_path / "file", "before")
    files.write_atomic(tmp_path / "file", content)
    assert (tmp_path / "file").read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert listing(tmp_path) == ["file"]


def test_an_interrupt_while_filling_a_folder_leaves_nothing(tmp_path: Path) -> None:
    def fill(temporary: Path) -> None:
        (temporary / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_folder(tmp_path / "new", fill)
    assert listing(tmp_path) == []


def test_files_to_keep_move_to_the_new_folder(tmp_path: Path) -> None:
    (tmp_path / "folder/notes").mkdir(parents=True)
    (tmp_path / "folder/notes/own").write_text("mine")
    (tmp_path / "folder/old").write_text("theirs")
    files.write_folder(tmp_path / "folder", lambda path: (path / "new").touch(), keep=lambda name: name == "notes")
    assert listing(tmp_path) == ["folder", "folder/new", "folder/notes", "folder/notes/own"]
    assert (tmp_path / "folder/notes/own").read_text() == "mine"
