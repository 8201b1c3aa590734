"""CSV, TSV and plain text: what they are recognised by, and what is refused in them."""

import gzip

import pytest

from minirlhf.data.reading import bounded, open_values
from minirlhf.errors import InputError

ROWS = [{"prompt": "a, b", "response": 'say "hi"'}, {"prompt": "two\nlines", "response": "猫"}]
TABLES = {
    "CSV": ('prompt,response\n"a, b","say ""hi"""\n"two\nlines",猫\n', "a.csv", "CSV with header"),
    "semicolons": ('prompt;response\na, b;"say ""hi"""\n"two\nlines";猫\n', "a.csv", "CSV with ; with header"),
    "TSV": ('prompt\tresponse\na, b\t"say ""hi"""\n"two\nlines"\t猫\n', "a.tsv", "TSV with header"),
    "tabs in .csv": ('prompt\tresponse\na, b\t"say ""hi"""\n"two\nlines"\t猫\n', "a.csv", "TSV with header"),
    "CSV in .jsonl": ('prompt,response\n"a, b","say ""hi"""\n"two\nlines",猫\n', "a.jsonl", "CSV with header"),
    "no ending": ('prompt,response\n"a, b","say ""hi"""\n"two\nlines",猫\n', "rows", "CSV with header"),
    "CRLF": ('prompt,response\r\n"a, b","say ""hi"""\r\n"two\nlines",猫\r\n', "a.csv", "CSV with header"),
    "CR alone": ('prompt,response\r"a, b","say ""hi"""\r"two\rlines",猫\r', "a.csv", "CSV with header"),
    "mark": ('\ufeffprompt,response\n"a, b","say ""hi"""\n"two\nlines",猫', "a.csv", "CSV with header, UTF-8 with BOM"),
}


@pytest.mark.parametrize(("content", "name", "words"), TABLES.values(), ids=TABLES.keys())
def test_table_is_recognised(read, tmp_path, content, name, words):
    found = read(content, name)
    assert [(source.unit, source.number, source.value) for source in found] == [
        ("line", 2, ROWS[0]),
        ("line", 3, ROWS[1]),
    ]
    assert open_values(tmp_path / name).format == words


ENCODINGS = {"utf-16": "UTF-16", "gb18030": "GB18030", "gbk": "GBK", "utf-8-sig": "UTF-8 with BOM", "big5": "BIG5"}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("packed", [False, True])
def test_encoding_by_option_or_mark(read, tmp_path, encoding, packed):
    content = 'prompt,response\n你好,"貓,狗"\n'.encode(encoding)
    option = None if ENCODINGS[encoding].startswith("UTF") else encoding
    found = read(gzip.compress(content) if packed else content, "a.csv", encoding=option)
    assert [source.value for source in found] == [{"prompt": "你好", "response": "貓,狗"}]
    details = ", gzip" if packed else ""
    assert open_values(tmp_path / "a.csv", encoding=option).format == f"CSV with header, {ENCODINGS[encoding]}{details}"


@pytest.mark.parametrize(
    ("text", "encoding", "flag"),
    [
        ("你好，世界", "gb18030", "--encoding gb18030 (or latin-1)"),
        ("一个问题？", "gbk", "--encoding gb18030 (or latin-1)"),
        ("un été à Köln", "latin-1", "--encoding latin-1 (or gb18030)"),
        ("a naïve café", "cp1252", "--encoding latin-1 (or gb18030)"),
    ],
)
@pytest.mark.parametrize(
    ("form", "name"), [('{"text": "%s"}\n', "a.jsonl"), ("text,id\n%s,1\n", "a.csv"), ("%s\n", "a.txt")]
)
def test_another_encoding_is_proposed(faults, text, encoding, flag, form, name):
    (fault,) = faults((form % text).encode(encoding), name).values()
    assert fault.startswith("needed UTF-8, got the byte 0x") and fault.endswith(f"name the file's encoding: {flag}")


@pytest.mark.parametrize("encoding", ["gb18030", "latin-1", "utf-16"])
def test_an_encoding_that_is_not_the_file_s_is_refused(read, encoding):
    with pytest.raises(InputError, match=rf"needed {encoding} \(--encoding\), got text in UTF-8; leave --encoding out"):
        read('{"a": "猫"}', encoding=encoding)
    with pytest.raises(InputError, match=r"needed big5 \(--encoding\), got a file with the byte order mark of UTF-16"):
        read('{"a": "猫"}'.encode("utf-16"), encoding="big5")


@pytest.mark.parametrize("encoding", ["klingon", "zip", "rot13", "base64", "", "undefined", "gb\0"])
def test_an_unknown_encoding_is_refused(read, encoding):
    with pytest.raises(InputError, match=r"--encoding: needed an encoding that Python knows, got "):
        read('{"a": 1}', encoding=encoding)


def test_a_byte_that_is_none_of_the_encoding_s_breaks_its_line_only(read):
    content = '{"a": "你"}\n{"a": "X"}\n{"a": "好"}\n'.encode("gb18030").replace(b"X", b"\xff")
    first, second, third = read(content, encoding="gb18030")
    assert (first.value, third.value) == ({"a": "你"}, {"a": "好"})
    assert str(second.value).startswith("needed GB18030, got the byte 0xff in ")


BROKEN_RECORDS = {
    "more cells": ("a,b,c", "needed 2 cells ('prompt,response'), got 3; quote cells that hold ','"),
    "fewer cells": ("a", "needed 2 cells ('prompt,response'), got 1; write all cells of the record"),
    "header again": ("prompt,response", "needed a record, got the header again; remove the line"),
    "text behind a quote": ('"a"b,c', "broken CSV, ',' expected after '\"': "),
    "open quote": ('"a,b', "broken CSV, "),
    "NUL": ("a\0,b", "needed text, got a NUL byte in "),
}


@pytest.mark.parametrize(("line", "message"), BROKEN_RECORDS.values(), ids=BROKEN_RECORDS.keys())
@pytest.mark.parametrize("last", [False, True])
def test_a_broken_record_is_named_and_the_others_are_read(read, faults, line, message, last):
    before = 'prompt,response\n\n"1\n\n2",x\n,\n' + f"{'p' * 1000},r\n" * 100  # beyond the part that is looked at first
    content = before + line + ("\n" if last else '\np,"r"\n')
    ((number, fault),) = faults(content, "a.csv").items()
    assert number == 107 and fault.startswith(message)
    assert len(read(content, "a.csv")) == 102 + (not last)


def test_an_open_quote_takes_no_memory(faults, monkeypatch):
    monkeypatch.setattr(bounded, "MAX_BYTES", 100)
    found = faults('prompt,response\n"a,b\n' + "p,r\n" * 1000, "a.csv")
    assert found == {2: "needed at most 100 bytes, got a record of more; cut it into several rows"}


HEADERS = {
    "Latin-1": ("prompt,réponse\na,b\n".encode("latin-1"), "line 1: needed UTF-8, got the byte 0xe9 in "),
    "data": ("What is 2+2?,4\nWho?,me\n", "line 1: needed a header, got 'What is 2+2?' as the name of a column; write"),
    "numbers": ("a,1\nb,2\n", "line 1: needed a header, got '1' as the name of a column; write"),
    "numbers with a sign": ("a,-1.5\nb,2\n", "line 1: needed a header, got '-1.5' as the name of a column; write"),
    "twice": ("\nprompt,prompt\na,b\n", "line 2: needed a header with different names, got 'prompt' twice; rename"),
    "broken": ('"prompt"x,response\na,b\n', "line 1: broken CSV, ',' expected after '\"': "),
}


@pytest.mark.parametrize(("content", "message"), HEADERS.values(), ids=HEADERS.keys())
def test_a_table_needs_a_header(read, tmp_path, content, message):
    with pytest.raises(InputError) as error:
        read(content, "a.csv")
    assert str(error.value).startswith(f"{tmp_path / 'a.csv'}: {message}")


def test_a_column_without_a_name_gets_its_number(read):
    assert read(",prompt\n0,p\n", "a.csv")[0].value == {"column 1": "0", "prompt": "p"}


def test_a_mark_in_the_middle_of_a_table_is_no_text(read):
    content = "prompt,response\na,b\n\ufeffprompt,response\n\ufeffc,d\n"  # two files, one after the other
    first, again, second = read(content, "a.csv")
    assert (first.value["prompt"], second.value["prompt"]) == ("a", "c")
    assert str(again.value) == "needed a record, got the header again; remove the line"


def test_one_column(read):
    assert [s.value for s in read("prompt\na\n\nb\n", "a.csv")] == [{"prompt": "a"}, {"prompt": "b"}]


PROSE = {
    "lines": ("To be, or not to be,\nthat is, the question\n\nSo, yes\n", 3),
    "brackets": ("[Music] plays\n[1] Title\n", 2),
    "numbered": ("[1] Title\n[2] Other\n", 2),
    "brace": ("{a brace\nand more\n", 2),
    "numbers and words": ("1984\nIt was a bright cold day.\n", 2),
    "quotes": ('"Yes," he said\n"No."\n', 2),
    "Chinese": ("你好，世界\n再见\n", 2),
}


@pytest.mark.parametrize(("content", "count"), PROSE.values(), ids=PROSE.keys())
def test_prose_is_plain_text(read, content, count):
    lines = [line for line in content.split("\n") if line]
    assert [source.value for source in read(content, "a.txt")] == [{"text": line} for line in lines]
    assert len(lines) == count


def test_text_becomes_documents(read):
    content = "\n a\r\nb\r\n\n\nc\n"
    found = read(content, "a.txt", documents="blank_line")
    assert [(s.unit, s.number, s.value["text"]) for s in found] == [("document", 1, " a\nb"), ("document", 2, "c")]
    (whole,) = read(content, "a.txt", documents="file")
    assert (whole.unit, whole.number, whole.value) == ("file", 1, {"text": " a\nb\n\n\nc"})


@pytest.mark.parametrize("documents", ["line", "blank_line", "file"])
def test_the_format_in_words_says_what_a_text_is(tmp_path, documents):
    (tmp_path / "a.txt").write_text("Once upon a time.\n\nThe end.\n")
    words = {"line": "a text a line", "blank_line": "cut at blank lines", "file": "a text a file"}
    assert open_values(tmp_path / "a.txt", documents=documents).format == f"plain text, {words[documents]}"


def test_text_on_demand(read):
    table = "title,text\na,b\n"
    assert read(table, "a.txt")[0].value == {"title": "a", "text": "b"}
    assert [s.value for s in read(table, "a.txt", as_text=True)] == [{"text": "title,text"}, {"text": "a,b"}]
    assert [s.value for s in read("1\n2\n", "a.txt", as_text=True)] == [{"text": "1"}, {"text": "2"}]
    assert [s.value for s in read('{"text": "a"}\n', "a.txt", as_text=True)] == [{"text": "a"}]  # JSON stays JSON


@pytest.mark.parametrize("text", ["{Enter a king}\nHo!", '["Ho!" he said]\nmore', "[cut\nmore"])
@pytest.mark.parametrize("name", ["a.txt", "a.json"])
def test_text_in_brackets_on_demand(read, text, name):
    found = read(text, name, as_text=True)
    assert [source.value["text"] for source in found] == text.split("\n")


def test_a_table_in_markdown_is_no_csv(read):
    text = "| prompt | response |\n|---|---|\n| a | b |\n"
    assert [source.value["text"] for source in read(text, "a.md")] == text.splitlines()


def test_a_document_beyond_the_limit_is_refused(faults, monkeypatch):
    monkeypatch.setattr(bounded, "MAX_BYTES", 100)
    message = "needed at most 100 bytes, got a line of more; cut it into several rows"
    assert faults("a\n" * 99, "a.txt", documents="file") == {1: message}
    assert faults("a\n" * 99 + "\nb\n", "a.txt", documents="blank_line") == {1: message}


@pytest.mark.parametrize(
    ("first", "delimiter"),
    [("sep=;", ";"), ('"sep=,"', ","), ("SEP=|", "|"), ("sep=\t", "\t"), ("\ufeffsep=;", ";")],
)
def test_the_first_line_of_excel_names_the_delimiter(read, tmp_path, first, delimiter):
    content = f'{first}\r\nprompt{delimiter}response\r\n"a, b|;\t"{delimiter}c\r\n'
    for name in ("a.csv", "table.txt"):
        found = read(content, name)
        assert [(source.number, source.value) for source in found] == [(3, {"prompt": "a, b|;\t", "response": "c"})]


@pytest.mark.parametrize("first", ['sep="', '"sep="'])
def test_a_quote_is_no_delimiter(read, first):
    """csv of Python 3.13 refuses a quote as a delimiter with a ValueError."""
    assert read(f"{first}\nprompt\tresponse\na\tb\n", "a.csv")[0].value == {"prompt": "a", "response": "b"}


def test_a_delimiter_without_a_table_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("sep=;")
    with pytest.raises(InputError, match="line 2: needed a header, got the end of the file"):
        open_values(tmp_path / "a.csv")
