"""JSON that others have written is read, or is a ValueError whatever is wrong with it."""

import pytest

from bigmap.files import parse_json


def test_json_is_read_from_bytes_and_text():
    assert parse_json(b'{"a": [1, "\xc3\xa9"]}') == parse_json('{"a": [1, "é"]}') == {"a": [1, "é"]}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", "[" * 2_000, '{"a":' * 2_000, "1" * 5_000, b"\x00" * 9]
)
def test_what_is_no_json_is_a_value_error(content):
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the words are those of Python
        parse_json(content)
    assert str(raised.value)
