import codecs
import json

import pytest

from selfprune.data.hub_texts import join_rows
from selfprune.data.text_files import find_text_files, read_text_file
from selfprune.errors import DataError

TEXT = "Zoë met Åsa.\n\nThey went home.\n"


@pytest.fixture
def write(tmp_path):
    def call(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return call


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_byte_order_marks_and_line_ends_do_not_change_a_text(mark, end, write):
    for name in ("a.txt", "a.md", "a.TXT", "README"):
        assert read_text_file(write(name, mark + TEXT.replace("\n", end).encode())) == TEXT
    lines = "".join(json.dumps({"text": text}) + end for text in ("Zoë met Åsa.", "They went home."))
    for name in ("a.jsonl", "a.JSONL"):
        assert read_text_file(write(name, mark + lines.encode())) == "Zoë met Åsa.\n\nThey went home."


def test_only_a_line_feed_ends_a_line_of_jsonl(write):
    texts = ["one\u2028still one", "two\x85still two", "three\x0cstill three"]
    lines = "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    assert read_text_file(write("a.jsonl", lines)) == "\n\n".join(texts)


def test_null_is_no_document_and_an_empty_text_is_one(write, caplog):
    path = write("a.jsonl", '{"text": "a"}\n{"text": null}\n{"text": ""}\n{"text": "b"}\n')
    with caplog.at_level("INFO"):
        assert read_text_file(path) == "a\n\n\n\nb"
    assert f"{path}: 1 lines have no text (null)" in caplog.text
    rows = [{"text": "a"}, {"text": None}, {"text": ""}, {"text": "b"}]
    assert join_rows(rows, "text", None, "data.search=x/y") == "a\n\n\n\nb"
    assert join_rows(rows, "text", 4, "data.search=x/y") == "a\n\n"


def test_half_a_surrogate_pair_becomes_the_replacement_character(write):
    path = write("a.jsonl", r'{"text": "a\ud83d b \ud83d\ude00"}')
    assert read_text_file(path) == "a\ufffd b \U0001f600"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"body": "b", "id": 1}, r"""expected an object with a field "text", got one with 'body', 'id'; give the column"""),
        ({}, r'expected an object with a field "text", got one with nothing'),
        ({"text": 3}, r"""the field "text" must be text or null, got int: '3'"""),
        ({"text": ["a", "b"]}, r"""the field "text" must be text or null, got list: "\['a', 'b'\]"""),
    ],
)
def test_a_row_without_text_is_refused_by_its_place_in_every_format(row, message, write):
    path = write("a.jsonl", '{"text": "a"}\n\n' + json.dumps(row))
    with pytest.raises(DataError, match=rf"a\.jsonl, line 3: {message}"):
        read_text_file(path)
    with pytest.raises(DataError, match=rf"data\.search=x/y, row 2: {message}"):
        join_rows([{"text": "a"}, row], "text", None, "data.search=x/y")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "déjà".encode("utf-16"), r"its byte 0 is not; it begins as UTF-16 does; convert it by iconv -f utf-16"),
        ("a.txt", "Zoe met Asa".encode("utf-16-le"), r"much of it is zero bytes, as of UTF-16 or binary data"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16"), r"it begins as UTF-16 does"),
        ("a.json", '[{"text": "a"}]', r"a\.json is no plain text; give \.txt, \.md, \.jsonl \(a \.jsonl file holds one"),
        ("a.jsonl.gz", b"\x1f\x8b", r"a\.jsonl\.gz is no plain text"),
        ("a.parquet", b"PAR1", r"a\.parquet is no plain text"),
        ("a.jsonl", '{"text": "a"}\nno JSON\n', r"line 2: expected a JSON object, got 'no JSON'"),
        ("a.jsonl", "null\n", r'line 1: expected an object with a field "text", got NoneType'),
    ],
)
def test_what_is_no_text_is_refused_with_a_remedy(name, content, message, write):
    with pytest.raises(DataError, match=message):
        read_text_file(write(name, content))


def test_a_folder_gives_its_text_files_whatever_the_case_of_their_names(write, tmp_path):
    names = ["B.TXT", "a.jsonl", "c.Md"]
    for name in [*names, "d.json", "e.bin"]:
        write(name, "")
    assert sorted(path.name for path in find_text_files(str(tmp_path), "search")) == sorted(names)
