"""Rows: every accepted shape, and each problem with its reason code and place."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.data.rows import ReadCounts, Row, RowProblem, read_rows
from trainer.runs import DataSettings, RowSource

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the public data files are not on this machine")
ASK = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


def read(path: Path, *, counts: ReadCounts | None = None, **settings) -> list[Row | RowProblem]:
    source = RowSource(name=path.name, path=str(path))
    return list(read_rows(source, DataSettings(**settings), counts=counts))


def read_lines(folder: Path, *lines: object, **settings) -> list[Row | RowProblem]:
    path = folder / "rows.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_bytes("\n".join(texts).encode("utf-8", "surrogatepass"))
    return read(path, **settings)


def good(folder: Path, *lines: object, **settings) -> list[Row]:
    rows = read_lines(folder, *lines, **settings)
    assert not [str(row) for row in rows if isinstance(row, RowProblem)]
    return [row for row in rows if isinstance(row, Row)]


def problem(folder: Path, line: object, **settings) -> RowProblem:
    [found] = read_lines(folder, line, **settings)
    assert isinstance(found, RowProblem)
    assert (found.file, found.line) == (str(folder / "rows.jsonl"), 1)
    return found


def chat(*messages: dict, **row) -> dict:
    return {"messages": list(messages), **row}


def test_each_kind_is_told_by_its_keys(tmp_path):
    rows = good(tmp_path, chat(ASK, ANSWER), {"prompt": "p", "completion": "c"}, {"text": "t", "messages": None})
    assert [(row.kind, row.line) for row in rows] == [("chat", 1), ("completion", 2), ("text", 3)]
    assert rows[0].messages == (ASK, ANSWER)
    assert rows[0].trained == (1,)
    assert (rows[1].prompt, rows[1].completion, rows[2].text) == ("p", "c", "t")


def test_a_row_of_two_kinds_needs_the_format(tmp_path):
    both = {"text": "t", "prompt": "p", "completion": "c"}
    assert "data.format" in problem(tmp_path, both).message
    counts = ReadCounts()
    [row] = good(tmp_path, both, format="text", counts=counts)
    assert row.kind == "text"
    assert counts.unused_fields == {"prompt": 1, "completion": 1}


@pytest.mark.parametrize(
    ("row", "code", "says"),
    [
        ({"prompt": "p"}, "format", "prompt"),
        ({"chosen": [], "rejected": []}, "format", "preference"),
        ({"prompt": 1, "completion": "c"}, "type", "prompt must be a string, not a number"),
        ({"messages": []}, "messages", "an empty array"),
        ({"messages": "hi"}, "messages", "a string"),
        (chat("hi"), "messages", "messages[0]"),
        (chat({"role": "bot", "content": ""}), "role", "system, user, assistant, tool"),
        (chat(ASK), "grammar", "last message"),
        (chat(ANSWER), "grammar", "assistant stands after the beginning"),
        (chat(ASK, ASK, ANSWER), "grammar", "messages[1]: user stands after user"),
        (chat(ASK, {"role": "system", "content": "s"}, ANSWER), "grammar", "system stands after user"),
        (chat(ASK, {"role": "tool", "content": "s"}, ANSWER), "grammar", "tool stands after user"),
        (chat({"role": "user"}, ANSWER), "content", "messages[0].content is missing"),
        (chat(ASK, {"role": "assistant", "content": None}), "content", "messages[1]"),
        (chat({"role": "user", "content": 5}, ANSWER), "content", "a number"),
        (chat(ASK, ANSWER | {"weight": 2}), "weight", "0 and 1"),
        (chat(ASK, ANSWER | {"weight": True}), "weight", "True"),
        (chat(ASK, ANSWER | {"trainable": 1}), "trainable", "true and false"),
        (chat(ASK | {"trainable": True}, ANSWER), "trainable", "user"),
        (chat(ASK, ANSWER | {"tools": [{}]}), "message_tools", "messages[1].tools"),
        (chat(ASK | {"thinking": "t"}, ANSWER), "field_of_role", "reasoning on a message of user"),
        (chat(ASK | {"tool_call_id": "c"}, ANSWER), "field_of_role", "tool_call_id"),
        (chat(ASK, ANSWER | {"tool_calls": {}}), "tool_calls", "an object"),
        (chat(ASK, ANSWER | {"tool_calls": [{"name": "f"}]}), "tool_calls", "messages[1].tool_calls[0]"),
        (chat(ASK, ANSWER | {"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}), "tool_calls", "column"),
        (chat(ASK, ANSWER, tools={}), "tools", "an object"),
        (chat(ASK, ANSWER, tools=[{"type": "function"}]), "tools", "tools[0]"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, row, code, says):
    found = problem(tmp_path, row)
    assert (found.code, says in found.message) == (code, True), found.message


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("{", "json", "column"),
        ("[1]", "not_an_object", "an array"),
        ('{"text": NaN}', "not_finite", "NaN"),
        ('{"text": -Infinity}', "not_finite", "-Infinity"),
        ('{"text": 1e999}', "not_finite", "1e999"),
        ('{"text": "a", "x": {"k": 1, "k": 1}}', "duplicate_key", "'k'"),
        ('{"text": "\\ud83d"}', "surrogate", "surrogate"),
        ('{"text": "a"} x', "json", "Extra data"),
        ('{"text": ' + "9" * 5000 + "}", "not_finite", "5000 digits"),
        ('{"text": ' + "[" * 100_000 + "]" * 100_000 + "}", "json", "nested"),
        ('{"text": "\ud800"}', "not_utf8", "byte 11"),
    ],
)
def test_json_is_read_strictly_and_goes_on_after_a_bad_line(tmp_path, line, code, says):
    bad, fine = read_lines(tmp_path, line, {"text": "\U0001f600"})
    assert isinstance(bad, RowProblem)
    assert isinstance(fine, Row)
    assert (bad.line, bad.code, says in bad.message) == (1, code, True), bad.message
    assert (fine.line, fine.text) == (2, "\U0001f600")


def test_bom_crlf_and_blank_lines_keep_line_numbers(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n  \n{"text": "b"}\r\n')
    counts = ReadCounts()
    assert [(row.line, row.text) for row in read(path, counts=counts)] == [(1, "a"), (4, "b")]
    assert counts.blank_lines == 2


def test_weight_only_removes_loss_and_trainable_wins(tmp_path):
    counts = ReadCounts()
    [row] = good(
        tmp_path,
        chat(
            ASK | {"weight": 1},
            ANSWER | {"weight": 0},
            ASK,
            ANSWER | {"weight": 0, "trainable": True},
            ASK,
            ANSWER | {"weight": 1, "trainable": False},
            ASK,
            ANSWER | {"weight": 1.0},
        ),
        counts=counts,
    )
    assert row.trained == (3, 7)
    assert all(set(message) == {"role", "content"} for message in row.messages)
    assert counts.unused_fields == {
        "messages[].weight (1 on user)": 1, "messages[].weight (trainable says otherwise)": 2
    }  # fmt: skip


def test_parts_are_joined_and_media_refused_by_name(tmp_path):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache": 1}]
    thought = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "c"}]
    counts = ReadCounts()
    [row] = good(
        tmp_path, chat({"role": "user", "content": parts}, {"role": "assistant", "content": thought}), counts=counts
    )
    assert row.messages[0]["content"] == "ab"
    assert row.messages[1] == {"role": "assistant", "content": "c", "reasoning_content": "hm"}
    assert counts.unused_fields == {"messages[].content[].cache": 1}
    for type_ in ("image_url", "image", "input_audio", "video"):
        found = problem(tmp_path, chat({"role": "user", "content": [{"type": type_}]}, ANSWER))
        assert found.code == "part_type"
        assert f"messages[0].content[0] is of type {type_!r}" in found.message


def test_reasoning_precedence(tmp_path):
    def reasoning(**fields):
        counts = ReadCounts()
        [row] = good(tmp_path, chat(ASK, ANSWER | fields), counts=counts)
        return row.messages[1].get("reasoning_content"), dict(counts.unused_fields)

    assert reasoning(reasoning_content="c") == ("c", {})
    assert reasoning(reasoning="", reasoning_content="c") == ("c", {})
    assert reasoning(reasoning="r", reasoning_content="c") == ("r", {"messages[].reasoning_content": 1})
    assert reasoning(thinking="t", reasoning="t") == ("t", {})
    assert reasoning(thinking="t", reasoning="r") == ("t", {"messages[].reasoning": 1})
    assert reasoning(thinking="", reasoning_content="") == (None, {})


def test_tool_rows(tmp_path):
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "name": "add", "content": "2"},
        ANSWER,
    ]
    as_array, as_string = good(tmp_path, chat(*messages, tools=tools), chat(*messages, tools=json.dumps(tools)))
    assert as_array.tools == as_string.tools == tuple(tools)
    assert as_array.sha256 == as_string.sha256
    assert "content" not in as_array.messages[1]
    assert as_array.messages[1]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    assert as_array.messages[2] == {"role": "tool", "content": "2", "tool_call_id": "c1", "name": "add"}
    assert as_array.trained == (1, 3)
    messages[2] = messages[2] | {"tool_call_id": "c2"}
    found = problem(tmp_path, chat(*messages))
    assert (found.code, "'c2' answers no call; calls are c1" in found.message) == ("tool_call_id", True)


def test_columns_are_renamed_first(tmp_path):
    names = {"prompt": "question", "completion": "answer"}
    row = {"question": "q", "answer": "a", "id": 7}
    counts = ReadCounts()
    [found] = good(tmp_path, row, columns=names, counts=counts)
    assert (found.kind, found.prompt, found.completion) == ("completion", "q", "a")
    assert counts.unused_fields == {"id": 1}
    assert problem(tmp_path, {"question": "q"}, columns=names).code == "no_column"
    assert problem(tmp_path, row | {"prompt": "p"}, columns=names).code == "column_clash"
    with pytest.raises(ValueError, match=r"data\.columns: answr: no such field"):
        read_lines(tmp_path, row, columns={"answr": "answer"})


def test_the_hash_is_of_what_is_used(tmp_path):
    same = ('{"text": "a", "id": 1}', '{"id": 2, "text": "a"}', '{"text": "b"}')
    hashes = [row.sha256 for row in good(tmp_path, *same)]
    assert hashes[0] == hashes[1] != hashes[2]
    weighed = [row.sha256 for row in good(tmp_path, chat(ASK, ANSWER), chat(ASK, ANSWER | {"weight": 0}))]
    assert weighed[0] != weighed[1]


def test_max_rows_stops_and_says_so(tmp_path):
    counts = ReadCounts()
    assert len(read_lines(tmp_path, {"text": "a"}, "{", {"text": "b"}, max_rows=2, counts=counts)) == 2
    assert counts.stopped
    counts = ReadCounts()
    assert len(read_lines(tmp_path, {"text": "a"}, max_rows=1, counts=counts)) == 1
    assert not counts.stopped


def test_a_json_array_streams_with_line_numbers(tmp_path):
    path = tmp_path / "rows.json"
    long = "x" * 200_000  # longer than what is read at a time
    path.write_text(f'\n[{{"text": "a"}},\n\n {{"text":\n "{long}"}}, 12,\n{{"text": NaN}},{{"text": "b"}}\n]\n')
    rows = read(path)
    assert [(row.line, row.code if isinstance(row, RowProblem) else len(row.text)) for row in rows] == [
        (2, 1),
        (4, 200_000),
        (5, "not_an_object"),
        (6, "not_finite"),
        (6, 1),
    ]
    path.write_text(json.dumps([{"text": str(number)} for number in range(20_000)]), encoding="utf-8-sig")
    assert [row.text for row in read(path)] == [str(number) for number in range(20_000)]
    path.write_text("[]")
    assert read(path) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"text": "a"}\n{"text": "b"}', "name it .jsonl"),
        ('[{"text": "a"} {"text": "b"}]', "after an item"),
        ('[{"text": "a"},', "the rest of the file cannot be read"),
        ('[{"text": "a"}] x', "after the array's end"),
        ("", "begins with ''"),
    ],
)
def test_a_damaged_array_raises(tmp_path, text, says):
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(RowProblem) as caught:
        read(tmp_path / "rows.json")
    assert says in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'rows.json'}:")


def test_a_folder_and_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.core.pa.Table.from_pylist(
        [chat(ASK, ANSWER | {"weight": 0, "reasoning_content": "r"}), chat(ASK, ANSWER)]  # nulls fill the second row
    )
    parquet.write_table(table, tmp_path / "b.parquet")
    (tmp_path / "a.jsonl").write_text(json.dumps(chat(ASK, ANSWER)))
    (tmp_path / "README.md").write_text("a card")
    for hidden in ("_left_over.jsonl", ".DS_Store", "_SUCCESS"):  # the first looks like rows, so it is told
        (tmp_path / hidden).write_text("")
    counts = ReadCounts()
    first, second, third = read(tmp_path, counts=counts)
    assert [Path(row.file).name for row in (first, second, third)] == ["a.jsonl", "b.parquet", "b.parquet"]
    assert (second.line, second.trained, third.line, third.trained) == (1, (), 2, (1,))
    assert first.sha256 == third.sha256
    assert counts.skipped_files == [str(tmp_path / "README.md"), str(tmp_path / "_left_over.jsonl")]
    assert not counts.unused_fields


def test_sources_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        read(tmp_path / "absent.jsonl")
    with pytest.raises(ValueError, match="holds no"):
        read(tmp_path)
    (tmp_path / "rows.csv").write_text("a,b")
    with pytest.raises(ValueError, match=r"this one in '\.csv'"):
        read(tmp_path / "rows.csv")
    (tmp_path / "rows.jsonl").write_text("{}")
    source = RowSource(name="rows", path=str(tmp_path / "rows.jsonl"), sha256="0" * 64)
    with pytest.raises(ValueError, match="has changed since"):
        list(read_rows(source, DataSettings()))


def test_hub_ids_load_through_datasets_and_fail_with_the_way_out(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "train.jsonl").write_text('{"text": "a", "n": null}\n{"text": "b", "n": 1}\n')
    (tmp_path / "several").mkdir()
    (tmp_path / "several" / "README.md").write_text(
        "---\nconfigs:\n- {config_name: one, data_files: 1.jsonl}\n- {config_name: two, data_files: 2.jsonl}\n---\n"
    )
    for number in (1, 2):
        (tmp_path / "several" / f"{number}.jsonl").write_text(f'{{"text": "{number}"}}\n')
    program = """
import sys
from trainer.data.rows import _hub_items, read_rows
from trainer.runs import DataSettings, RowSource
file = RowSource(name="f", path="here/train.jsonl")
assert [row.text for row in read_rows(file, DataSettings())] == ["a", "b"]
assert not {"datasets", "pyarrow", "transformers", "torch"} & set(sys.modules)
assert list(_hub_items("several", "train", "two")) == [("several", 1, {"text": "2"})]
try:
    list(_hub_items("several", "train", None))
except ValueError as error:
    assert "Config name is missing" in str(error) and "data.subset" in str(error), error
else:
    raise AssertionError("one of several was taken without being named")
assert list(_hub_items("here", "train", None)) == [("here", 1, {"text": "a"}), ("here", 2, {"text": "b", "n": 1})]
try:
    list(read_rows(RowSource(name="x", path="no/such-set"), DataSettings(split="test")))
except ValueError as error:
    print(error)
"""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        env={
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(tmp_path / "hub"),
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "dataset 'no/such-set'" in result.stdout
    assert "split 'test' cannot be loaded" in result.stdout
    assert "local file" in result.stdout


@needs_data
def test_real_files():
    rows = read(DATA / "gsm8k" / "test.jsonl", columns={"prompt": "question", "completion": "answer"})
    assert len(rows) == 1319
    assert all(isinstance(row, Row) and row.kind == "completion" for row in rows)
    rows = read(DATA / "text2sql" / "train.jsonl")
    assert [row.trained for row in rows] == [(2,)] * 100
    rows = read(DATA / "food_reasoning" / "train.jsonl")
    assert {row.code for row in rows} == {"part_type"}
    assert all("messages[0].content[0] is of type 'image_url'" in row.message for row in rows)
    rows = read(DATA / "countdown" / "train.jsonl")
    assert {row.code for row in rows} == {"grammar"}
