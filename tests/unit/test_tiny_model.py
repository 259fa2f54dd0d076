"""The shipped base model and the quick start's data keep what the rest of the project relies on.

The folder is opened as a user opens it, with the Auto classes; nothing of `trainer` is imported.
"""

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

_ROOT = Path(__file__).parents[2]
_MODEL = _ROOT / "trainer" / "models" / "tiny"
_DATA = _ROOT / "datasets" / "quickstart"

_TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
_ARGUMENTS = {"city": "Zürich", "days": 2}
_CHATS: dict[str, list[dict[str, Any]]] = {
    "multi-turn": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": " Hello 🎉"},
        {"role": "user", "content": "reverse 123"},
        {"role": "assistant", "content": "321\n"},
    ],
    "tools": [
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"type": "function", "function": {"name": "get_weather", "arguments": _ARGUMENTS}}],
        },
        {"role": "tool", "content": "sunny"},
        {"role": "assistant", "content": "It is sunny."},
        {"role": "user", "content": "thanks"},
        {"role": "assistant", "content": "You are welcome!"},
    ],
    "reasoning": [
        {"role": "user", "content": "max 19"},
        {"role": "assistant", "content": "9", "reasoning_content": "9 is more than 1"},
        {"role": "user", "content": "min 19"},
        {"role": "assistant", "content": "1", "reasoning_content": "1 is less than 9"},
    ],
}
_WRITTEN = {
    "multi-turn": [" Hello 🎉<|end|>", "321\n<|end|>"],
    "tools": [
        '<tool_call>{"name": "get_weather", "arguments": {"city": "Zürich", "days": 2}}</tool_call><|end|>',
        "It is sunny.<|end|>",
        "You are welcome!<|end|>",
    ],
    "reasoning": ["<think>9 is more than 1</think>9<|end|>", "<think>1 is less than 9</think>1<|end|>"],
}


@cache
def _tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(_MODEL)


@cache
def _model() -> Any:
    return AutoModelForCausalLM.from_pretrained(_MODEL).eval()


def _rows(name: str) -> list[tuple[str, str]]:
    lines = (_DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    chats = [json.loads(line)["messages"] for line in lines]
    assert all([message["role"] for message in chat] == ["user", "assistant"] for chat in chats)
    return [(chat[0]["content"], chat[1]["content"]) for chat in chats]


def _answers(prompts: list[str]) -> list[str]:
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    inputs = _tokenizer().apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        output_BT = _model().generate(**inputs, max_new_tokens=32)
    return _tokenizer().batch_decode(output_BT[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def _exact_match(rows: list[tuple[str, str]]) -> float:
    answers = _answers([prompt for prompt, _ in rows])
    return sum(answer == wanted for answer, (_, wanted) in zip(answers, rows, strict=True)) / len(rows)


def _render(messages: list[dict[str, Any]], **settings: Any) -> str:
    return _tokenizer().apply_chat_template(messages, tools=_TOOLS, tokenize=False, **settings)


def test_loads_as_a_small_qwen3_with_tied_embeddings() -> None:
    model = _model()
    assert model.config.model_type == "qwen3"
    assert model.dtype == torch.float32
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.config.num_attention_heads > model.config.num_key_value_heads
    assert model.config.max_position_embeddings == 2048
    assert 300_000 <= model.num_parameters() <= 900_000
    assert len(_tokenizer()) == model.config.vocab_size == 512


def test_eos_and_pad_are_the_same_everywhere_and_distinct() -> None:
    tokenizer, model = _tokenizer(), _model()
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|pad|>", "<|end|>")
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
    for config in (model.config, model.generation_config):
        assert (config.pad_token_id, config.eos_token_id) == (0, 1)
    assert not model.generation_config.do_sample


def test_role_tokens_are_special_and_tags_are_text() -> None:
    tokenizer = _tokenizer()
    roles = ["<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
    tags = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
    assert sorted(tokenizer.all_special_ids) == [0, 1, *tokenizer.convert_tokens_to_ids(roles)]
    assert tokenizer.convert_tokens_to_ids(tags) == [508, 509, 510, 511]
    ids = tokenizer("<|user|><think>a</think><|end|>")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>a</think>"


def test_the_folder_names_no_path_and_no_code() -> None:
    names = {path.name for path in _MODEL.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "README.md"} < names
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} < names
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        text = (_MODEL / name).read_text(encoding="utf-8")
        assert "name_or_path" not in text
        assert "auto_map" not in text
        assert not [value for value in json.loads(text).values() if isinstance(value, str) and "/" in value]
    assert sum(path.stat().st_size for path in _MODEL.iterdir()) < 4_000_000


@pytest.mark.parametrize("text", ["reverse 4729", "12 + 34", "x0y1", " 007", "1234567890", "2.5e10"])
def test_each_digit_is_its_own_token(text: str) -> None:
    tokens = [token for token in _tokenizer().tokenize(text) if any(character.isdigit() for character in token)]
    assert tokens == [character for character in text if character.isdigit()]


@pytest.mark.parametrize("seed", range(3))
def test_any_text_round_trips(seed: int) -> None:
    rng = random.Random(seed)
    points = [point for point in range(0x30000) if not 0xD800 <= point < 0xE000]
    samples = ["", " a  b ", "\r\n\t\x00", "don't , stop .", "e\u0301 é 🎉👩‍👩‍👧 ١٢ ² ﬁ", "<think>x</think>"]
    samples += ["".join(map(chr, rng.choices(points, k=30))) for _ in range(30)]
    samples += ["".join(map(chr, rng.choices(range(256), k=30))) for _ in range(30)]
    for text in samples:
        assert _tokenizer().decode(_tokenizer()(text)["input_ids"]) == text


@pytest.mark.parametrize("name", _CHATS)
def test_generation_marks_cover_exactly_what_the_assistant_writes_and_its_stop_token(name: str) -> None:
    tokenizer = _tokenizer()
    rendered = tokenizer.apply_chat_template(
        _CHATS[name], tools=_TOOLS, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = rendered["input_ids"], rendered["assistant_masks"]
    spans: list[list[int]] = []
    for token, marked, before in zip(ids, mask, [0, *mask[:-1]], strict=True):
        if marked and not before:
            spans.append([])
        if marked:
            spans[-1].append(token)
    assert [tokenizer.decode(span) for span in spans] == _WRITTEN[name]
    assert all(span[-1] == tokenizer.eos_token_id for span in spans)


@pytest.mark.parametrize("name", _CHATS)
def test_the_prefix_rule(name: str) -> None:
    messages = _CHATS[name]
    for length in range(1, len(messages)):
        prompted = messages[length]["role"] == "assistant"
        earlier = _render(messages[:length], add_generation_prompt=prompted)
        assert _render(messages[: length + 1]).startswith(earlier)


def test_tools_are_rendered_as_json_in_a_system_block() -> None:
    text = _render(_CHATS["tools"][:1], add_generation_prompt=True)
    head, _, rest = text.partition("<|user|>")
    assert head.startswith("<|system|>")
    assert json.loads(head.splitlines()[1]) == _TOOLS[0]
    assert rest == "weather?<|assistant|>"


def test_arguments_given_as_a_json_string_render_as_the_same_text() -> None:
    call = {
        "type": "function",
        "function": {"name": "get_weather", "arguments": json.dumps(_ARGUMENTS, ensure_ascii=False)},
    }
    chat = [_CHATS["tools"][0], {"role": "assistant", "content": "", "tool_calls": [call]}]
    assert _render(chat) == _render(_CHATS["tools"][:2])


@pytest.mark.parametrize(
    "message", [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "robot", "content": "a"}]
)
def test_what_the_template_does_not_know_is_refused(message: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="must be"):
        _render([message])


def test_the_base_reverses_and_talks() -> None:
    rng = random.Random(7)
    numbers = ["".join(rng.choices("0123456789", k=rng.randint(3, 6))) for _ in range(40)]
    assert _exact_match([(f"reverse {digits}", digits[::-1]) for digits in numbers]) >= 0.9
    assert _answers(["hello", "Who are you?"]) == [
        "Hello! I am a tiny model. Ask me: what can you do?",
        "I am a tiny language model, made to be fine-tuned.",
    ]


def test_the_base_cannot_do_the_quick_start() -> None:
    assert _exact_match(_rows("eval")[:40]) < 0.1


def test_quick_start_rows_are_right_and_share_no_prompt() -> None:
    train, evaluation = _rows("train"), _rows("eval")
    assert (len(train), len(evaluation)) == (4000, 200)
    prompts = [prompt for prompt, _ in train + evaluation]
    assert len(set(prompts)) == len(prompts)
    sorting = [(prompt, answer) for prompt, answer in train + evaluation if prompt.startswith("sort ")]
    assert len(sorting) == 3200  # 3000 to learn from, all 200 to be judged by; the rest rehearses
    assert all(prompt.startswith("sort ") for prompt, _ in evaluation)
    for prompt, answer in sorting:
        assert answer == "".join(sorted(prompt.removeprefix("sort ")))


def test_the_rehearsal_is_what_the_base_does_already() -> None:
    rehearsal = [row for row in _rows("train") if not row[0].startswith("sort ")]
    assert len(rehearsal) == 1000
    assert _exact_match(rehearsal[:60]) >= 0.95
