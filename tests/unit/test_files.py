"""Files are written whole; JSON that others have written is read, or is a ValueError."""

import os
from pathlib import Path

import pytest

from bigmap.files import parse_json, replace_whole, write_and_sync


def test_json_is_read_from_bytes_and_text():
    assert parse_json(b'{"a": [1, "\xc3\xa9"]}') == parse_json('{"a": [1, "é"]}') == {"a": [1, "é"]}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", "[" * 2_000, '{"a":' * 2_000, "1" * 5_000, b"\x00" * 9]
)
def test_what_is_no_json_is_a_value_error(content):
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the words are those of Python
        parse_json(content)
    assert str(raised.value)


def test_a_file_takes_its_name_when_it_and_its_folder_are_on_the_disk(tmp_path, monkeypatch):
    file = tmp_path / "new" / "a.bin"
    synced = []

    def sync(descriptor):
        place = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append((place == file.parent, file.exists()))

    monkeypatch.setattr(os, "fsync", sync)
    write_and_sync(file, b"whole")
    assert synced == [(False, False), (True, True)]
    assert file.read_bytes() == b"whole"
    assert [each.name for each in file.parent.iterdir()] == ["a.bin"]


def test_after_an_error_the_old_file_is_there_and_nothing_of_the_new(tmp_path):
    file = tmp_path / "a.bin"
    file.write_bytes(b"old")

    def fill():
        with replace_whole(file) as temporary:
            temporary.write_bytes(b"half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fill()
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_writer_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), replace_whole(tmp_path / "a.bin"):
        pass
    assert not list(tmp_path.iterdir())
