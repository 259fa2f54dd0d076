"""Rendering: exact ids and masks written out, for each kind of template.

The tokenizer is byte-level without merges but one ("\\n\\n"), so ids can be read: byte b is 10 + b, a control token
is its number in CONTROLS, and the merge is 266.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from trainer.data.render import PrefixRuleError, Renderer, RenderError, load_tokenizer
from trainer.data.rows import Row, read_rows
from trainer.runs import DataSettings, RowSource

CONTROLS = ("<s>", "</s>", "<|u|>", "<|a|>", "<|t|>")
BOS, EOS, U, A, T = range(5)
TINY = Path(__file__).parents[2] / "trainer" / "models" / "tiny"

MARKS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<|a|>{% generation %}"
    "{{ m.content }}</s>{% endgeneration %}{{ '\n' }}{% else %}<|u|>{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|a|>{% endif %}"
)
NO_MARKS = re.sub(r"\{% (end)?generation %\}", "", MARKS)
# Writes the reasoning of the last turn only, as templates of reasoning models do.
DROPS_REASONING = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|a|>"
    "{% if loop.last %}[{{ m.reasoning_content }}]{% endif %}{{ m.content }}</s>"
    "{% else %}<|u|>{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|a|>{% endif %}"
)


def alphabet() -> list[str]:
    """The character that byte-level tokenizers write for each byte."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = iter(range(256, 512))
    return [chr(byte) if byte in kept else chr(next(moved)) for byte in range(256)]


def build_tokenizer(*, template: str | None = None, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    letters = alphabet()
    newline = letters[10]
    vocabulary = {token: number for number, token in enumerate(CONTROLS)}
    vocabulary |= {letter: 10 + byte for byte, letter in enumerate(letters)} | {newline * 2: 266}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[(newline, newline)]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROLS])
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", chat_template=template, padding_side="left"
    )


def renderer(template: str | None = None, *, stop_ids=None, adds_bos: bool = False) -> Renderer:
    return Renderer(build_tokenizer(adds_bos=adds_bos), template, stop_ids=stop_ids)


def ids(*pieces: int | str) -> list[int]:
    return [i for piece in pieces for i in ([piece] if isinstance(piece, int) else [10 + b for b in piece.encode()])]


def row(folder: Path, *messages: dict, **fields) -> Row:
    path = folder / "row.jsonl"
    path.write_text(json.dumps({"messages": list(messages)} if messages else fields))
    [found] = read_rows(RowSource(name="row", path=str(path)), DataSettings())
    assert isinstance(found, Row), found
    return found


def user(content: str) -> dict:
    return {"role": "user", "content": content}


def answer(content: str, **fields) -> dict:
    return {"role": "assistant", "content": content, **fields}


def learnt(rendered) -> list[int]:
    return rendered.ids[rendered.mask].tolist()


@pytest.mark.parametrize("template", [MARKS, NO_MARKS])
def test_a_turn_is_learnt_with_its_stop_token_and_without_what_follows(tmp_path, template):
    found = renderer(template).render(row(tmp_path, user("hi"), answer("yo"), user("u"), answer("é")))
    assert found.ids.tolist() == ids(BOS, U, "hi", A, "yo", EOS, "\n", U, "u", A, "é", EOS, "\n")
    assert found.mask.tolist() == [bit == "1" for bit in "000001110000" + "1110"]
    assert (found.ids.dtype, found.mask.dtype) == (np.int64, np.bool_)
    assert [(turn.message, turn.spans) for turn in found.turns] == [(1, ((5, 8),)), (3, ((12, 15),))]
    assert found.stop_trained


@pytest.mark.parametrize("template", [MARKS, NO_MARKS])
def test_weight_removes_loss_from_one_message(tmp_path, template):
    found = renderer(template).render(row(tmp_path, user("a"), answer("b", weight=0), user("c"), answer("d")))
    assert learnt(found) == ids("d", EOS)
    found = renderer(template).render(row(tmp_path, user("a"), answer("b"), user("c"), answer("d", trainable=False)))
    assert learnt(found) == ids("b", EOS)
    found = renderer(template).render(row(tmp_path, user("a"), answer("b", weight=0)))
    assert (learnt(found), found.turns, found.stop_trained) == ([], (), True)


@pytest.mark.parametrize("template", [MARKS, NO_MARKS])
def test_the_prompt_for_sampling_is_how_the_row_begins(tmp_path, template):
    chat = row(tmp_path, user("a"), answer("b"), user("c"), answer("d"))
    whole, prompt = renderer(template).render(chat), renderer(template).prompt_ids(chat)
    assert prompt.tolist() == ids(BOS, U, "a", A, "b", EOS, "\n", U, "c", A)
    assert whole.ids[: len(prompt)].tolist() == prompt.tolist()
    assert whole.turns[-1].spans[0][0] == len(prompt)
    assert Renderer.reference(chat) == "d"
    assert renderer(template).chat_ids([user("c") | {"name": None}]).tolist() == ids(BOS, U, "c", A)


def test_ids_are_those_of_apply_chat_template(tmp_path):
    tokenizer = build_tokenizer(template=MARKS)
    chat = row(tmp_path, user("a"), answer("b\n\n"), user(""), answer(""))
    theirs = tokenizer.apply_chat_template(list(chat.messages), return_assistant_tokens_mask=True, return_dict=True)
    ours = Renderer(tokenizer).render(chat)
    assert ours.ids.tolist() == theirs["input_ids"]
    assert ours.mask.tolist() == [bool(bit) for bit in theirs["assistant_masks"]]
    prompt = tokenizer.apply_chat_template(list(chat.messages[:-1]), add_generation_prompt=True)["input_ids"]
    assert Renderer(tokenizer).prompt_ids(chat).tolist() == prompt


def test_a_stop_token_right_after_the_mark_is_taken_in(tmp_path):
    outside = MARKS.replace("</s>{% endgeneration %}", "{% endgeneration %}</s>")
    found = renderer(outside).render(row(tmp_path, user("a"), answer("b")))
    assert learnt(found) == ids("b", EOS)
    assert found.stop_trained


@pytest.mark.parametrize("template", [MARKS, NO_MARKS])
def test_a_template_that_drops_the_stop_token_is_told(tmp_path, template):
    found = renderer(template.replace("</s>", "")).render(row(tmp_path, user("a"), answer("b"), user("c"), answer("d")))
    assert [turn.stop_trained for turn in found.turns] == [False, False]
    assert not found.stop_trained


@pytest.mark.parametrize("template", [MARKS, NO_MARKS])
def test_where_the_next_role_ends_the_turn_all_but_the_last_learn_to_stop(tmp_path, template):
    glm = template.replace("</s>", "").replace("{{ '\n' }}", "")
    found = renderer(glm, stop_ids=[EOS, U]).render(row(tmp_path, user("a"), answer("b"), user("c"), answer("d")))
    assert learnt(found) == ids("b", U, "d")
    assert [turn.stop_trained for turn in found.turns] == [True, False]


def test_a_template_that_drops_earlier_reasoning_is_named(tmp_path):
    messages = [user("a"), answer("b", reasoning="r"), user("c"), answer("d", reasoning="s")]
    with pytest.raises(PrefixRuleError, match=r"messages\[1\].*part at character 11, '\[r\]") as caught:
        renderer(DROPS_REASONING).render(row(tmp_path, *messages))
    assert caught.value.message_index == 1
    messages[1]["weight"] = 0  # the last turn alone obeys the rule
    found = renderer(DROPS_REASONING).render(row(tmp_path, *messages))
    assert found.ids.tolist() == ids(U, "a", A, "b", EOS, U, "c", A, "[s]d", EOS)
    assert learnt(found) == ids("[s]d", EOS)


def test_a_token_over_the_edge_of_the_answer_breaks_the_rule(tmp_path):
    for template in (MARKS, NO_MARKS):
        newline = template.replace("<|a|>", "<|a|>\n")
        assert learnt(renderer(newline).render(row(tmp_path, user("a"), answer("b")))) == ids("b", EOS)
        with pytest.raises(PrefixRuleError, match=r"messages\[1\]"):
            renderer(newline).render(row(tmp_path, user("a"), answer("\nb")))  # "\n" + "\n" is one token
        with pytest.raises(PrefixRuleError, match=r"messages\[3\]"):
            renderer(newline).render(row(tmp_path, user("a"), answer("b"), user("a"), answer("\nb")))


def test_a_token_over_the_end_of_an_unstopped_answer_breaks_the_rule(tmp_path):
    chat = row(tmp_path, user("a"), answer("b\n"), user("c"), answer("d"))
    with pytest.raises(PrefixRuleError, match=r"messages\[1\]"):  # the template writes a line break after the mark
        renderer(MARKS.replace("</s>", "")).render(chat)
    found = renderer(NO_MARKS.replace("</s>", "")).render(chat)  # without marks that break is the answer's own
    assert learnt(found) == [*ids("b"), 266, *ids("d\n")]


def test_marks_that_do_not_match_messages_one_to_one(tmp_path):
    split = (
        "{% for m in messages %}{% if m.role == 'assistant' %}<|a|>{% if m.reasoning_content %}{% generation %}"
        "{{ m.reasoning_content }}{% endgeneration %}|{% endif %}{% generation %}{{ m.content }}</s>"
        "{% endgeneration %}{% else %}<|u|>{{ m.content }}{% endif %}{% endfor %}"
    )
    messages = [user("a"), answer("b", weight=0), user("c"), answer("d", reasoning="r")]
    found = renderer(split).render(row(tmp_path, *messages))
    assert found.ids.tolist() == ids(U, "a", A, "b", EOS, U, "c", A, "r|d", EOS)
    assert learnt(found) == ids("rd", EOS)
    assert [(turn.message, turn.spans, turn.stop_trained) for turn in found.turns] == [(3, ((8, 9), (10, 12)), True)]
    last_only = MARKS.replace("{% generation %}", "{% if loop.last %}{% generation %}{% endif %}")
    with pytest.raises(ValueError, match="jinja_template: line 1"):  # marks and ifs must nest
        renderer(last_only).render(row(tmp_path, *messages))
    last_only = NO_MARKS.replace(
        "{{ m.content }}</s>",
        "{% if loop.last %}{% generation %}{{ m.content }}</s>{% endgeneration %}"
        "{% else %}{{ m.content }}</s>{% endif %}",
    )
    with pytest.raises(RenderError, match="marks"):  # which message a mark is of cannot be told
        renderer(last_only).render(row(tmp_path, user("a"), answer("b"), user("c"), answer("d")))


def test_template_errors(tmp_path):
    chat = row(tmp_path, user("a"), answer("b"))
    with pytest.raises(ValueError, match="chat rows need a chat template"):
        renderer().render(chat)
    with pytest.raises(RenderError, match="no such luck"):
        renderer("{{ raise_exception('no such luck') }}").render(chat)
    with pytest.raises(RenderError, match="SecurityError"):
        renderer("{{ messages.__class__.__mro__ }}").render(chat)
    with pytest.raises(RenderError, match=r"messages\[1\] is to be learnt"):
        renderer("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}").render(chat)


def test_tools_reach_the_template(tmp_path):
    path = tmp_path / "tools.jsonl"
    tools = [{"type": "function", "function": {"name": "f"}}]
    path.write_text(json.dumps({"messages": [user("a"), answer("b")], "tools": tools}))
    [found] = read_rows(RowSource(name="t", path=str(path)), DataSettings())
    template = "{% for tool in tools or [] %}<|t|>{{ tool.function.name }}{% endfor %}" + NO_MARKS
    assert isinstance(found, Row)
    assert renderer(template).render(found).ids.tolist() == ids(T, "f", BOS, U, "a", A, "b", EOS, "\n")
    assert renderer(template).prompt_ids(found).tolist() == ids(T, "f", BOS, U, "a", A)


@pytest.mark.parametrize("adds_bos", [False, True])
def test_completion_and_text_rows(tmp_path, adds_bos):
    bos = [BOS] if adds_bos else []
    completion = row(tmp_path, prompt="ab", completion="c")
    found = renderer(adds_bos=adds_bos).render(completion)
    assert found.ids.tolist() == bos + ids("abc", EOS)
    assert learnt(found) == ids("c", EOS)
    assert renderer(adds_bos=adds_bos).prompt_ids(completion).tolist() == bos + ids("ab")
    assert (Renderer.reference(completion), found.stop_trained) == ("c", True)
    text = row(tmp_path, text="abc")
    found = renderer(adds_bos=adds_bos).render(text)
    assert found.ids.tolist() == bos + ids("abc", EOS)
    assert found.mask.tolist() == [False] + [True] * (len(bos) + 3)
    with pytest.raises(ValueError, match="no prompt"):
        renderer().prompt_ids(text)
    with pytest.raises(ValueError, match="no answer"):
        Renderer.reference(text)


def test_completion_edges(tmp_path):
    merged = row(tmp_path, prompt="a\n", completion="\nb")  # in one go this would be one token; a sampler has two
    assert renderer().render(merged).ids.tolist() == ids("a\n", "\n", "b", EOS)
    doubled = row(tmp_path, prompt="<s>a", completion="b</s>")
    assert renderer(adds_bos=True).render(doubled).ids.tolist() == ids(BOS, "ab", EOS)
    empty = row(tmp_path, prompt="", completion="b")
    assert learnt(renderer().render(empty)) == [EOS]  # nothing predicts the first token
    assert not renderer(stop_ids=[U]).render(empty).stop_trained


def test_cutting(tmp_path):
    found = renderer(MARKS).render(row(tmp_path, user("a"), answer("b"), user("c"), answer("de")))
    cut = found.cut(11)  # <s> <|u|> a <|a|> b </s> \n <|u|> c <|a|> d
    assert learnt(cut) == ids("b", EOS, "d")
    assert [(turn.spans, turn.stop_trained) for turn in cut.turns] == [(((4, 6),), True), (((10, 11),), False)]
    assert len(found.cut(10).turns) == 1
    assert found.cut(100).ids.tolist() == found.ids.tolist()


def test_a_batch_keeps_order_and_reports_errors_in_place(tmp_path):
    rows = [
        row(tmp_path, text="t"),
        row(tmp_path, user("a"), answer("\nb")),
        row(tmp_path, prompt="p", completion="c"),
        row(tmp_path, user("a"), answer("b")),
    ]
    newline = renderer(MARKS.replace("<|a|>", "<|a|>\n"))
    text, bad, completion, chat = newline.render_batch(rows)
    assert isinstance(bad, PrefixRuleError)
    assert [learnt(found) for found in (text, completion, chat)] == [[EOS], ids("c", EOS), ids("b", EOS)]
    assert newline.render_batch([]) == []


def test_a_tokenizer_is_loaded_or_the_path_named(tmp_path):
    build_tokenizer(template=MARKS).save_pretrained(tmp_path / "model")
    loaded = load_tokenizer(str(tmp_path / "model"), None)
    assert Renderer(loaded).stop_ids == {EOS}
    chat = row(tmp_path, user("hi"), answer("yo"))
    assert Renderer(loaded).render(chat).ids.tolist() == renderer(MARKS).render(chat).ids.tolist()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"its tokenizer cannot be loaded \(the folder\)"):
        load_tokenizer(str(tmp_path / "empty"), None)


def test_the_shipped_template_learns_to_stop_with_tools_and_reasoning(tmp_path):
    tokenizer = load_tokenizer(str(TINY), None)
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    chat = row(
        tmp_path,
        user("add 1"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2"},
        answer("two", reasoning="hm"),
    )
    found = Renderer(tokenizer).render(chat)
    assert [turn.stop_trained for turn in found.turns] == [True, True]
    assert tokenizer.decode(found.ids[found.mask]) == (
        '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call><|end|><think>hm</think>two<|end|>'
    )
    unmarked = re.sub(r"\{%-? *(end)?generation *-?%\}", "", str(tokenizer.chat_template))
    compared = Renderer(tokenizer, unmarked).render(chat)
    assert compared.ids.tolist() == found.ids.tolist()
    assert compared.turns == found.turns
