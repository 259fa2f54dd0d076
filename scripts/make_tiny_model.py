"""Make the tiny base model that ships with the trainer, from nothing but this file.

A Qwen3 causal language model of about half a million parameters, a byte-level tokenizer and a chat template
are built here and pre-trained on digit strings, single-digit sums and a few short conversations that this file
generates. The one decision behind it: it is a real Hugging Face folder that the ordinary Auto classes load, so
every part of the framework (chat templates, LoRA, generation, export) is exercised by a model that an adapter
retrains in seconds on one core.

Guaranteed: the same seed and steps, on the same machine with the same versions of torch, transformers and
tokenizers, give byte-identical files. Not guaranteed: the same weights on another CPU or version, where sums round
differently and scores may move by a point or so; the tokenizer and the template do not depend on the seed.

    OMP_NUM_THREADS=1 python scripts/make_tiny_model.py --out trainer/models/tiny --seed 0
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

Turn = tuple[str, str]
"""A user's message and the assistant's answer."""

PAD, END, SYSTEM = "<|pad|>", "<|end|>", "<|system|>"
USER, ASSISTANT, TOOL = "<|user|>", "<|assistant|>", "<|tool|>"
SPECIAL_TOKENS = (PAD, END, SYSTEM, USER, ASSISTANT, TOOL)  # ids 0 to 5
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>")  # one token each, but text: decoding keeps them
VOCAB_SIZE = 512  # 6 special tokens, 256 bytes, the merges, 4 tags


@dataclass(frozen=True)
class Recipe:
    """What a pre-training run is determined by, beside the versions and the machine."""

    seed: int
    steps: int
    """Optimizer steps."""
    rows: int
    """Chats in an optimizer step."""
    peak: float
    """The highest learning rate."""


# Every turn opens with its role's token; only the assistant's closes with <|end|>, for only it must learn to stop.
# No turn's rendering looks at a later turn: messages[:k] + generation prompt is a prefix of messages[:k + 1].
CHAT_TEMPLATE = """\
{%- if tools %}
    {{- '<|system|>You can call these tools:' }}
    {%- for tool in tools %}
        {{- '\\n' + (tool | tojson) }}
    {%- endfor %}
{%- endif %}
{%- for message in messages %}
    {%- set content = '' if message['content'] is none else message['content'] | default('') %}
    {%- if content is not string %}
        {{- raise_exception('content must be a string, got: ' ~ content) }}
    {%- endif %}
    {%- if message['role'] == 'assistant' %}
        {{- '<|assistant|>' }}
        {%- generation %}
            {%- if message['reasoning_content'] is string %}
                {{- '<think>' + message['reasoning_content'] + '</think>' }}
            {%- endif %}
            {{- content }}
            {%- for call in message['tool_calls'] or [] %}
                {%- set function = call['function'] if call['function'] is defined else call %}
                {%- set arguments = function['arguments'] %}
                {{- '<tool_call>{"name": ' + (function['name'] | tojson) + ', "arguments": ' }}
                {{- (arguments if arguments is string else (arguments | tojson)) + '}</tool_call>' }}
            {%- endfor %}
            {{- '<|end|>' }}
        {%- endgeneration %}
    {%- elif message['role'] in ['system', 'user', 'tool'] %}
        {{- '<|' + message['role'] + '|>' + content }}
    {%- else %}
        {{- raise_exception('role must be system, user, assistant or tool, got: ' ~ message['role']) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}
"""

FALLBACK = "I have not learned that yet. You can teach me."
_ABILITIES = "I can copy and reverse digits, find max and min, add and subtract. Try: reverse 4729"
INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "Hello! I am a tiny model. Ask me: what can you do?": (
        "hello",
        "hi",
        "hey",
        "hello there",
        "hi there",
        "good morning",
        "good evening",
        "greetings",
    ),
    "I am a tiny language model, made to be fine-tuned.": (
        "who are you",
        "what are you",
        "introduce yourself",
        "tell me about yourself",
    ),
    _ABILITIES: ("what can you do", "help", "what do you know", "how can you help me", "what can i ask you"),
    "My name is tiny.": ("what is your name", "what's your name", "your name"),
    "I am well, thank you!": ("how are you", "how are you doing", "how do you do"),
    "You are welcome!": ("thanks", "thank you", "thank you very much", "many thanks"),
    "Goodbye!": ("bye", "goodbye", "good bye", "see you", "good night"),
    "Yes.": ("say yes",),
    "No.": ("say no",),
    "Hello!": ("say hello", "say hi"),
    "No, I am a small program.": ("are you a human", "are you a person", "are you real"),
    "I have about half a million parameters.": ("how big are you", "how many parameters do you have"),
    "I come from scripts/make_tiny_model.py.": ("who made you", "where do you come from", "who trained you"),
    "Show me examples, and train an adapter.": ("how do i teach you", "how can i train you", "can you learn"),
    "It is training a model a little more, on examples.": ("what is fine-tuning", "what does fine-tuning mean"),
    "Why did the model stop? It saw its end token.": ("tell me a joke", "do you know a joke", "make me laugh"),
    "The sky is blue.": ("what colour is the sky", "what color is the sky"),
    "1 2 3 4 5": ("count to five", "count to 5"),
    "Okay.": ("ok", "okay", "good", "great", "nice", "well done"),
}

# Prose for the tokenizer's merges; its words also make the requests that the model answers with FALLBACK.
PROSE = """\
A model reads a message and writes an answer, one token after another, until it writes the token that ends
the turn. Training shows the model many examples and moves its weights a little each time, so that the right
answer becomes likely. An adapter is a small set of new weights beside the old ones; the old ones stay as
they were. The user asks a question. The assistant thinks about it, then gives a short reply. The system may
set some rules first. A tool is a function that the assistant can call by name with its arguments; the
result comes back as a message. Please write a list of the numbers from one to ten. What is the weather like
today? Can you find a book for me? They went for a walk along the river when the sun was out, and there was
not a cloud over the hills. She said that he would be here before night, because the train from the north
had left at five in the morning. If you want more of this, look at the other page; which of these two do you
like better, and why should we use it? Some people make bread at home every day. Their house has a blue
door, a green garden and three small windows. We could go to the city with our friends after work, or stay
here, drink tea and play a game of cards. Water runs down the stone, under the bridge and into the sea,
where it was long ago and will be again.
{"type": "function", "function": {"name": "get_weather", "description": "the weather of a place",
"parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "number"}},
"required": ["city"]}}}
{"name": "search", "arguments": {"query": "true", "limit": null, "text": false}}
"""

# Names of tasks that an adapter may be taught later: the base never sees them.
RESERVED = frozenset({"sort", "last", "first", "double", "shift", "swap", "rotate", "sum", "length"})
DIGIT_TASKS: dict[str, Callable[[str], str]] = {
    "copy": lambda digits: digits,
    "reverse": lambda digits: digits[::-1],
    "max": max,
    "min": min,
}
_KNOWN_PROMPTS = frozenset(prompt for prompts in INSTRUCTIONS.values() for prompt in prompts)
_WORDS = sorted({word.lower() for word in PROSE.split() if word.isalpha()} - RESERVED - set(DIGIT_TASKS))
_SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are tiny, a small model.",
    "Answer in one line.",
    "Be brief.",
)


def held_out(digits: str) -> bool:
    """Whether a digit string is kept for evaluation; one in sixteen is, chosen by its checksum."""
    return zlib.crc32(digits.encode()) % 16 == 0


def draw_digits(rng: random.Random, *, for_evaluation: bool) -> str:
    """Draw a string of 3 to 6 digits from the held-out share or from the rest."""
    while True:
        digits = "".join(rng.choices("0123456789", k=rng.randint(3, 6)))
        if held_out(digits) == for_evaluation:
            return digits


def arithmetic_turns() -> dict[str, list[Turn]]:
    """Every single-digit addition and subtraction, as a command; all of them are trained on."""
    pairs = [(a, b) for a in range(10) for b in range(10)]
    return {
        "add": [(f"add {a} {b}", str(a + b)) for a, b in pairs],
        "subtract": [(f"subtract {a} {b}", str(a - b)) for a, b in pairs],
    }


def instruction_turns() -> list[Turn]:
    """Every short instruction as it may be typed: with or without a capital and a mark at the end."""
    turns = []
    for answer, prompts in INSTRUCTIONS.items():
        for prompt in prompts:
            forms = (prompt, prompt[0].upper() + prompt[1:])
            turns += [(form + mark, answer) for form in forms for mark in ("", "!", "?", ".")]
    return turns


def draw_unknown(rng: random.Random) -> Turn:
    """A request that is none of the tasks: words, or a made-up command before digits."""
    if rng.random() < 0.5:
        words = " ".join(rng.choices(_WORDS, k=rng.randint(1, 6)))
        return (words if words not in _KNOWN_PROMPTS else words + " now") + rng.choice(("", "?", ".")), FALLBACK
    command = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 8)))
    taken = command in RESERVED or command in DIGIT_TASKS or command in ("add", "subtract")
    command = rng.choice(_WORDS) if taken or rng.random() < 0.4 else command
    return f"{command} {draw_digits(rng, for_evaluation=False)}", FALLBACK


def draw_turn(rng: random.Random, arithmetic: Sequence[Turn], instructions: Sequence[Turn]) -> Turn:
    """Draw one training turn; rather more than half are digit tasks, the two hard ones twice as often."""
    kind = rng.random()
    if kind < 0.55:
        task = rng.choice(("copy", "copy", "reverse", "reverse", "max", "min"))
        digits = draw_digits(rng, for_evaluation=False)
        form = rng.choice(("{} {}", "{} {}", "{} {}", "please {} {}", "{}: {}"))
        name = task.capitalize() if rng.random() < 0.15 and form[0] == "{" else task
        return form.format(name, digits), DIGIT_TASKS[task](digits)
    if kind < 0.70:
        prompt, answer = rng.choice(arithmetic)
        operation, left, right = prompt.split()
        sign = "+" if operation == "add" else "-"
        forms = (prompt, prompt, f"{left} {sign} {right}", f"what is {left} {sign} {right}?")
        return rng.choice(forms), answer
    return rng.choice(instructions) if kind < 0.88 else draw_unknown(rng)


def draw_chat(rng: random.Random, arithmetic: Sequence[Turn], instructions: Sequence[Turn]) -> tuple[str, list[Turn]]:
    """Draw a system prompt (mostly none) and one to three turns."""
    system = rng.choice(_SYSTEM_PROMPTS) if rng.random() < 0.15 else ""
    turns = rng.choices((1, 2, 3), weights=(0.7, 0.2, 0.1))[0]
    return system, [draw_turn(rng, arithmetic, instructions) for _ in range(turns)]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train the byte-level BPE tokenizer; any UTF-8 text round-trips and each digit is a token of its own."""
    backend = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(TAGS),
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    commands = [f"{name} please {name}: " for name in (*DIGIT_TASKS, "add", "subtract")]
    talk = [text for turn in instruction_turns() for text in turn]
    texts = [*PROSE.splitlines() * 8, *talk, *commands * 20, *_SYSTEM_PROMPTS, *[FALLBACK] * 20]
    backend.train_from_iterator(texts, trainer)
    backend.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT, TOOL],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
        padding_side="left",
    )


def build_model() -> Qwen3ForCausalLM:
    """Make the untrained network; heads and widths divide by two, so that it can be sharded in tests."""
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        initializer_range=0.06,
        bos_token_id=None,
        eos_token_id=SPECIAL_TOKENS.index(END),
        pad_token_id=SPECIAL_TOKENS.index(PAD),
        use_cache=True,
        dtype="float32",
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=False, bos_token_id=None, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    return model


class ChatEncoder:
    """Turns chats into token ids much faster than the template does; `check` holds the two together."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._ids = {token: index for index, token in enumerate(SPECIAL_TOKENS)}
        self._pieces: dict[str, list[int]] = {}

    def _encode(self, text: str) -> list[int]:
        if text not in self._pieces:
            self._pieces[text] = self._tokenizer.backend_tokenizer.encode(text).ids
        return self._pieces[text]

    def encode(self, system: str, turns: Sequence[Turn]) -> tuple[list[int], list[int]]:
        """Return the ids of a chat and a 0/1 mask of the assistant's tokens, stop token included."""
        ids = [self._ids[SYSTEM], *self._encode(system)] if system else []
        mask = [0] * len(ids)
        for prompt, answer in turns:
            question = [self._ids[USER], *self._encode(prompt), self._ids[ASSISTANT]]
            reply = [*self._encode(answer), self._ids[END]]
            ids += question + reply
            mask += [0] * len(question) + [1] * len(reply)
        return ids, mask

    def check(self, system: str, turns: Sequence[Turn]) -> None:
        """Raise unless the template renders this chat to the same ids and the same mask."""
        messages = [{"role": "system", "content": system}] if system else []
        for prompt, answer in turns:
            messages += [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        rendered: Any = self._tokenizer.apply_chat_template(
            messages, return_assistant_tokens_mask=True, return_dict=True
        )
        expected = self.encode(system, turns)
        if (rendered["input_ids"], rendered["assistant_masks"]) != expected:
            raise ValueError(f"the template and the encoder disagree on {messages}: {rendered} is not {expected}")


def pad(lists: Sequence[list[int]]) -> torch.Tensor:
    """Stack lists of numbers, padded with 0 on the right; a causal model needs no attention mask for that."""
    width = max(map(len, lists))
    return torch.tensor([numbers + [0] * (width - len(numbers)) for numbers in lists])


def batches(encoder: ChatEncoder, recipe: Recipe) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (ids_BT, mask_BT) of rows alike in length: draw 16 batches' worth, sort by length, cut, shuffle."""
    rng = random.Random(recipe.seed)
    arithmetic = [turn for turns in arithmetic_turns().values() for turn in turns]
    instructions = instruction_turns()
    for _ in range(20):
        encoder.check(*draw_chat(rng, arithmetic, instructions))
    made = 0
    while made < recipe.steps:
        chats = [encoder.encode(*draw_chat(rng, arithmetic, instructions)) for _ in range(16 * recipe.rows)]
        chats.sort(key=lambda chat: len(chat[0]))
        groups = [chats[start : start + recipe.rows] for start in range(0, len(chats), recipe.rows)]
        rng.shuffle(groups)
        for group in groups[: recipe.steps - made]:
            yield pad([ids for ids, _ in group]), pad([mask for _, mask in group])
            made += 1


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up over 50 steps, then a cosine down to a hundredth of the peak."""
    if step < 50:
        return recipe.peak * (step + 1) / 50
    cosine = 0.5 * (1 + math.cos(math.pi * (step - 50) / max(1, recipe.steps - 50)))
    return recipe.peak * (0.01 + 0.99 * cosine)


def pretrain(model: Qwen3ForCausalLM, encoder: ChatEncoder, recipe: Recipe) -> None:
    """Train in place with AdamW; the loss is the mean cross-entropy over a batch's assistant tokens."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.peak, betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    started = time.process_time()
    for step, (ids_BT, mask_BT) in enumerate(batches(encoder, recipe)):
        hidden_BTH = model.model(input_ids=ids_BT[:, :-1], use_cache=False).last_hidden_state
        trained_BT = mask_BT[:, 1:].bool()
        loss = F.cross_entropy(model.lm_head(hidden_BTH[trained_BT]), ids_BT[:, 1:][trained_BT])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        optimizer.step()
        optimizer.zero_grad()
        if step % 250 == 0 or step == recipe.steps - 1:
            print(
                f"step {step:5d}  loss {loss.item():.4f}  {time.process_time() - started:6.1f} CPU s",
                flush=True,
            )
    model.eval()


@torch.no_grad()
def answer_all(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]) -> list[str]:
    """Answer every prompt greedily through the chat template."""
    answers: list[str] = []
    for start in range(0, len(prompts), 100):
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts[start : start + 100]]
        inputs: Any = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, return_dict=True, return_tensors="pt", padding=True
        )
        output_BT: Any = model.generate(**inputs, max_new_tokens=48)  # pyright: ignore[reportAttributeAccessIssue]
        answers += tokenizer.batch_decode(output_BT[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def evaluation_turns(seed: int) -> dict[str, list[Turn]]:
    """The turns behind each line of the table; the digit strings were never trained on."""
    rng = random.Random(seed + 1)
    turns: dict[str, list[Turn]] = {}
    for name, task in DIGIT_TASKS.items():
        drawn = sorted({draw_digits(rng, for_evaluation=True) for _ in range(250)})
        turns[name] = [(f"{name} {digits}", task(digits)) for digits in drawn]
    turns |= arithmetic_turns()
    turns["short instructions"] = instruction_turns()
    turns["unknown requests"] = [draw_unknown(rng) for _ in range(200)]
    return turns


def measure(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, *, seed: int) -> dict[str, tuple[float, int]]:
    """Exact match under greedy decoding and the number of prompts, by task."""
    scores = {}
    for name, turns in evaluation_turns(seed).items():
        answers = answer_all(model, tokenizer, [prompt for prompt, _ in turns])
        right = sum(answer == wanted for answer, (_, wanted) in zip(answers, turns, strict=True))
        scores[name] = (right / len(turns), len(turns))
    return scores


def score_table(scores: dict[str, tuple[float, int]]) -> str:
    """The scores as a Markdown table."""
    lines = ["| task | exact match | prompts |", "| --- | --- | --- |"]
    return "\n".join(lines + [f"| {name} | {score:.1%} | {count} |" for name, (score, count) in scores.items()])


def model_card(scores: dict[str, tuple[float, int]], recipe: Recipe, *, parameters: int) -> str:
    """The README of the model folder, with the measured scores."""
    return f"""\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
language: en
---
# tiny

A Qwen3-architecture causal language model of {parameters:,} parameters (fp32, tied embeddings, grouped-query
attention, query and key norms), made to be fine-tuned in seconds on one CPU core: the base model of the quick start
and of the tests. It knows a few tasks on digit strings, single-digit sums and some small talk, and says so when it
is asked for anything else. It knows nothing about the world: use it for learning and testing only.

## What it can do

Greedy decoding, one user message, exact match of the whole answer:

{score_table(scores)}

`copy 4729`, `reverse 4729`, `max 4729` and `min 4729` take 3 to 6 digits; the prompts above use digit strings that
were never trained on. `add 3 4` (or `3 + 4`) and `subtract 3 4` take two digits; all of them were trained on, as
were the short instructions. The unknown requests are random words and made-up commands; the wanted answer is
"{FALLBACK}"

## Tokenizer and chat template

Byte-level BPE with {VOCAB_SIZE} tokens: every byte is covered, each digit is its own token. `{END}` ends the
assistant's turn and is the eos token; `{PAD}` is the pad token; `{SYSTEM}`, `{USER}`, `{ASSISTANT}` and
`{TOOL}` open a turn. The template supports tools, tool calls and reasoning content, marks what the assistant wrote
(`{{% generation %}}`, stop token included), and never rewrites an earlier turn. The model was not trained on tools
or reasoning: those marks are there for fine-tuning. Text that spells a special token in a message is read as that
token, so clean what strangers write.

## How it was made

`scripts/make_tiny_model.py --seed {recipe.seed} --steps {recipe.steps}`: every text is generated by that script.
AdamW (betas 0.9 and 0.98, weight decay 0.01), {recipe.rows} chats a step, learning rate {recipe.peak} with warm-up
and cosine, gradients clipped at 1, loss on the assistant's tokens only. Commands that begin with
{", ".join(sorted(RESERVED))} were kept out, so that an adapter can be taught them.

Licence: Apache-2.0.
"""


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the Hugging Face folder: weights, configurations, tokenizer, template."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        settings = json.loads((folder / name).read_text())
        settings.pop("_name_or_path", None)
        (folder / name).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    (folder / "model.safetensors").chmod(0o644)  # it is written readable by its owner alone


def main() -> None:
    """Build, pre-train, measure and write the model."""
    parser = argparse.ArgumentParser(description="Make the tiny base model.")
    parser.add_argument("--out", type=Path, default=Path("trainer/models/tiny"), help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and of the data")
    parser.add_argument("--steps", type=int, default=1800, help="optimizer steps")
    parser.add_argument("--rows", type=int, default=48, help="chats in an optimizer step")
    parser.add_argument("--lr", type=float, default=4e-3, help="peak learning rate")
    options = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(options.seed)
    tokenizer = build_tokenizer()
    model = build_model()
    recipe = Recipe(seed=options.seed, steps=options.steps, rows=options.rows, peak=options.lr)
    pretrain(model, ChatEncoder(tokenizer), recipe)
    save(model, tokenizer, options.out)
    scores = measure(model, tokenizer, seed=options.seed)
    parameters = sum(weight.numel() for weight in model.parameters())
    (options.out / "README.md").write_text(model_card(scores, recipe, parameters=parameters))
    print(score_table(scores))
    print(f"{parameters:,} parameters in {options.out}")


if __name__ == "__main__":
    main()
