"""Real chat templates give the same text, the same ids and the same mask as in transformers.

The templates come from real checkpoints, through trl. The vocabulary is small and trained here, with the tokens that a
template writes: "<|...|>" as special tokens, "<tool_call>" and the like as ordinary tokens.
"""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import tokenizers
import transformers

from minirlhf.data import encode_rows
from minirlhf.errors import InputError
from minirlhf.text import LAYOUTS, Tokenizer
from minirlhf.text.tool_turns import tool_form

pytestmark = pytest.mark.parity
FOLDER = Path(importlib.util.find_spec("trl").origin).parent / "chat_templates"
REAL = {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.jinja"))}
TRAINING = sorted(name for name in REAL if name.endswith("_training"))
PLAIN = sorted(REAL.keys() - set(TRAINING))
# they mark an answer by several blocks, so the text decides what is learned; a test by hand is below
SEVERAL_BLOCKS = {"diffusion_gemma_training", "phi3_5_training", "phi3_training"}
TOKENS = re.compile(r"<[|\uff5c][^|\uff5c<>\s'\"]+[|\uff5c]>|<\|[a-z_]+>|<[a-z_]+\|>|</?[a-z_]+>|\[/?[A-Z_]+\]")
ENDS = ("<turn|>", "<end_of_turn>", "<end_of_utterance>", "<|im_end|>")  # of turns

USER, ANSWER = {"role": "user", "content": " Hi there\n"}, {"role": "assistant", "content": "Hello, you."}
SYSTEM, MORE = (
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "And <b>\u00e9 \U0001f600</b> & 'q'?"},
)
CALL = {"type": "function", "function": {"name": "add", "arguments": {"x": 1, "y": "\u00e9 <b>"}}}
TOOL_TURNS = [
    {"role": "user", "content": "Add"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "name": "add", "content": "2"},
    {"role": "assistant", "content": "It is 2."},
]
PARAMETERS = {"type": "object", "properties": {"x": {"type": "integer", "description": "d"}}, "required": ["x"]}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": PARAMETERS}}]
INSIDE = "<|im_end|><|eot_id|><end_of_turn></s> <s><|end|><|eos|>\n<think>x</think> <\uff5cUser\uff5c>[INST]"
GRID = {
    "one turn": ([USER], None),
    "system": ([SYSTEM, USER, ANSWER], None),
    "many turns": ([USER, ANSWER, MORE, ANSWER, USER], None),
    "system, many turns": ([SYSTEM, USER, ANSWER, MORE, ANSWER], None),
    "empty content": ([USER | {"content": ""}, ANSWER | {"content": ""}, MORE], None),
    "special text": ([SYSTEM, USER | {"content": INSIDE}, ANSWER | {"content": INSIDE}], None),
    "reasoning": ([USER, ANSWER | {"reasoning_content": "Hm."}, MORE, ANSWER | {"thinking": "So."}], None),
    "no content": ([USER, ANSWER | {"content": None}], None),
    "tools offered": ([SYSTEM, USER], TOOLS),
    "tools used": (TOOL_TURNS, TOOLS),
    "tools used, system": ([SYSTEM, *TOOL_TURNS, MORE], TOOLS),
}


def bytes_backend():
    texts = ["Hello, you. Hi there. It is good. user assistant system model tool function name"] * 8
    return Tokenizer.train(texts, 400).backend


def pieces_backend():
    # SentencePiece as in Llama 2: spaces are letters, a space comes first, unknown characters fall back to bytes
    words = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{i:02X}>" for i in range(256)),
        "\u2581",
        *"abcdefghijklmnopqrstuvwxyz",
        "he",
    ]
    model = tokenizers.models.BPE(
        {word: i for i, word in enumerate(words)}, [("h", "e")], unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("\u2581"), tokenizers.normalizers.Replace(" ", "\u2581")]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return backend


def both(folder, template, backend=None, **config):
    """A checkpoint's folder, read by minirlhf and by transformers."""
    backend = backend or bytes_backend()
    for token in sorted(set(TOKENS.findall(template + INSIDE)) - {"<unk>", "<s>", "</s>"}):
        is_special = token[1] in "|\uff5c" or token.endswith(("_of_turn>", "|>"))
        (backend.add_special_tokens if is_special else backend.add_tokens)([token])
    backend.add_special_tokens(["<s>", "</s>", "<pad>"])
    backend.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "chat_template": template} | config
    config |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder)


class Reference:
    """A tokenizer of transformers. It gives contents as lists of parts to a template that writes no others."""

    def __init__(self, tokenizer):
        self.tokenizer, self.decode, self.in_parts = tokenizer, tokenizer.decode, False
        text = self.apply_chat_template([USER], tokenize=False)
        self.in_parts = USER["content"].strip() not in text

    def apply_chat_template(self, turns, **options):
        if self.in_parts:
            turns = [
                turn | {"content": [{"type": "text", "text": turn["content"]}]} if turn["content"] is not None else turn
                for turn in turns
            ]
        return self.tokenizer.apply_chat_template(turns, **options)


def same(ours, reference, messages, tools, prompt):
    """Compare text and ids -> whether the template accepts the conversation. Both libraries must agree."""
    reference = reference if isinstance(reference, Reference) else Reference(reference)
    try:
        text = reference.apply_chat_template(messages, tools=tools, add_generation_prompt=prompt, tokenize=False)
    except Exception:
        with pytest.raises(InputError, match="^chat template: it refuses this conversation: .*; change"):
            ours.apply_chat_template(messages, prompt, tools)
        return False
    assert ours.apply_chat_template(messages, prompt, tools) == text
    ids = reference.apply_chat_template(messages, tools=tools, add_generation_prompt=prompt)["input_ids"]
    assert ours.encode_rendered(text) == ids
    return True


@pytest.mark.parametrize("name", PLAIN)
def test_text_and_ids(tmp_path, name):
    ours, reference = both(tmp_path, REAL[name])
    taken = [same(ours, reference, turns, tools, prompt) for turns, tools in GRID.values() for prompt in (False, True)]
    assert sum(taken) >= 6  # gemma refuses system turns, so half of the grid


def test_there_are_at_least_eight_real_templates():
    assert len(PLAIN) >= 8 and len(TRAINING) >= 8


@pytest.mark.parametrize("name", TRAINING)
def test_generation_blocks_give_the_same_mask(tmp_path, name):
    ours, reference = both(tmp_path, REAL[name])
    reference = Reference(reference)
    compared = 0
    for turns, tools in GRID.values():
        if same(ours, reference, turns, tools, False):
            other = reference.apply_chat_template(turns, tools=tools, return_assistant_tokens_mask=True)
            ids, mask = ours.encode_chat(turns, tools=tools)
            assert ids == other["input_ids"] and mask == [bool(x) for x in other["assistant_masks"]]
            compared += any(mask)
    assert compared >= 3


@pytest.mark.parametrize("name", ["cohere", "gemma", "llama3", "phi3", "qwen2_5"])
def test_answer_spans_finds_the_answers_of_generation_blocks(tmp_path, name):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    plain, marked = both(tmp_path / "a", REAL[name])[0], both(tmp_path / "b", REAL[f"{name}_training"])[0]
    turns = [USER, ANSWER, MORE, ANSWER]
    assert plain.apply_chat_template(turns) == marked.apply_chat_template(turns)
    end = {"cohere": "<|END_OF_TURN_TOKEN|>", "gemma": "<end_of_turn>", "llama3": "<|eot_id|>", "phi3": "<|end|>"}
    end = end.get(name, "<|im_end|>")
    masks = []
    for folder, tokenizer in (("a", plain), ("b", marked)):
        stop = {"eos_token_id": [tokenizer.eos_id, tokenizer.backend.token_to_id(end)]}
        (tmp_path / folder / "generation_config.json").write_text(json.dumps(stop))
        tokenizer = Tokenizer.load(tmp_path / folder)
        ids, mask = tokenizer.encode_chat(turns)
        masks.append(
            tokenizer.backend.decode([i for i, m in zip(ids, mask, strict=True) if m], skip_special_tokens=False)
        )
    # trl's blocks also hold the line break after the end token. No model writes it.
    assert "".join(masks[0].split()) == "".join(masks[1].split()) and end in masks[0]


def test_qwen3_changes_earlier_answers_and_still_gives_a_mask(tmp_path):
    ours, _ = both(tmp_path, REAL["qwen3"], eos_token="<|im_end|>")
    ids, mask = ours.encode_chat([USER, ANSWER, MORE, ANSWER])
    said = ours.backend.decode([i for i, m in zip(ids, mask, strict=True) if m], skip_special_tokens=False)
    assert said == "Hello, you.<|im_end|><think>\n\n</think>\n\nHello, you.<|im_end|>"


@pytest.mark.parametrize("name", ["cohere", "gemma", "llama3", "phi3", "qwen2_5", "qwen3", "phi3_5", "gptoss"])
def test_prompt_and_answer_ids_are_the_ids_of_the_dialogue_up_to_its_end_token(tmp_path, name):
    end = {"qwen2_5": "<|im_end|>", "qwen3": "<|im_end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>"}
    end |= {"phi3": "<|end|>", "phi3_5": "<|end|>", "cohere": "<|END_OF_TURN_TOKEN|>", "gptoss": "<|return|>"}
    ours, reference = both(tmp_path, REAL[name], eos_token=end.get(name, "</s>"))
    for turns in ([USER], [USER, ANSWER, MORE]):
        prompt, (answer,) = ours.encode_turns(turns, [ANSWER["content"]])
        whole = reference.apply_chat_template([*turns, ANSWER])["input_ids"]
        joined = [*prompt, *answer]
        assert joined[-1] == ours.eos_id
        rest = reference.decode(whole[len(joined) :], skip_special_tokens=True)
        assert whole[: len(joined)] == joined and not rest.strip()


@pytest.mark.parametrize("layout", ["mistral", "zephyr", "llama3", "gemma", "chatml", "alpaca", "plain"])
@pytest.mark.parametrize("backend", [bytes_backend, pieces_backend])
def test_transformers_reads_saved_built_in_layouts(tmp_path, layout, backend):
    (tmp_path / "other").mkdir()
    ours, _ = both(tmp_path, LAYOUTS[layout].template, backend())
    ours.with_template(layout).save(tmp_path / "other")
    ours, reference = Tokenizer.load(tmp_path / "other"), transformers.AutoTokenizer.from_pretrained(tmp_path / "other")
    assert reference.eos_token_id == ours.eos_id
    for name in ("one turn", "system", "many turns", "empty content", "special text"):
        turns, _ = GRID[name]
        assert same(ours, reference, turns, None, True)
        other = reference.apply_chat_template(turns, return_assistant_tokens_mask=True)
        assert ours.encode_chat(turns)[1] == [bool(x) for x in other["assistant_masks"]]


def test_transformers_reads_a_tokenizer_trained_here_with_a_layout(tmp_path):
    Tokenizer.train(["Hello, you."] * 4, 300).with_template("zephyr").save(tmp_path)
    ours, reference = Tokenizer.load(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert same(ours, reference, [SYSTEM, USER | {"content": "<|eos|> <|pad|>"}, ANSWER], None, True)


@pytest.mark.parametrize("name", ["qwen2_5", "deepseekv3", "gemma"])
def test_a_sentencepiece_tokenizer(tmp_path, name):
    ours, reference = both(tmp_path, REAL[name], pieces_backend())
    assert sum(same(ours, reference, turns, tools, True) for turns, tools in GRID.values()) >= 3


@pytest.mark.parametrize("where", ["list", "file", "files"])
def test_templates_are_found_in_every_location_and_written_back(tmp_path, where):
    named = {"default": "{{ messages[0].content }}", "tool_use": "{{ tools[0].function.name }}"}
    ours, _ = both(tmp_path, "{{ 'old' }}")
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    if where == "list":
        config["chat_template"] = [{"name": name, "template": text} for name, text in named.items()]
        path.write_text(json.dumps(config))
    else:
        (tmp_path / "chat_template.jinja").write_text(named["default"])
    if where == "files":
        (tmp_path / "additional_chat_templates").mkdir()
        (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text(named["tool_use"])
    for _ in range(2):
        ours, reference = Tokenizer.load(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
        for tools in (None, TOOLS):
            assert same(ours, reference, [USER], tools, False)
        assert ours.apply_chat_template([USER]) == USER["content"]
        ours.save(tmp_path)


# (tokenizer_config.json, whether tokenizer.json puts BOS first) of Llama 2, Llama 3, GPT-2 and Qwen
FOLDERS = [
    ({"add_bos_token": True}, True),
    ({"add_bos_token": False}, False),
    ({"add_bos_token": True}, False),
    ({}, True),
    ({}, False),
    ({"bos_token": None}, False),
    (
        {
            "bos_token": {"__type": "AddedToken", "content": "<s>"},
            "eos_token": {"__type": "AddedToken", "content": "</s>"},
        },
        True,
    ),
]


@pytest.mark.parametrize(("config", "in_file"), FOLDERS)
def test_a_prompt_begins_with_bos_exactly_if_it_does_in_transformers(tmp_path, config, in_file):
    backend = bytes_backend()
    backend.add_special_tokens(["<s>"])
    bos = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))])
    bytes_level = tokenizers.processors.ByteLevel(trim_offsets=False)
    backend.post_processor = tokenizers.processors.Sequence([bytes_level, bos] if in_file else [bytes_level])
    ours, reference = both(tmp_path, "{{ bos_token }}{{ messages[0].content }}", backend, **config)
    assert ours.encode_prompts(["Hi there"]) == [reference("Hi there")["input_ids"]]
    assert len(ours.encode_prompts([""])[0]) == 1
    same(ours, reference, [USER], None, True)


def test_transformers_reads_a_saved_folder_like_the_original(tmp_path):
    changes = {"model_max_length": 77, "additional_special_tokens": ["<|end|>"], "clean_up_tokenization_spaces": False}
    ours, first = both(tmp_path, REAL["qwen3"], **changes)
    ours.save(tmp_path / "again")
    second = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert second.special_tokens_map == first.special_tokens_map and second.get_vocab() == first.get_vocab()
    assert second.all_special_tokens == first.all_special_tokens and second.model_max_length == 77
    assert second.chat_template == first.chat_template
    assert second(INSIDE)["input_ids"] == first(INSIDE)["input_ids"]


@pytest.mark.parametrize("layout", ["zephyr", "llama3", "alpaca", "mistral"])
def test_an_answer_of_a_sentencepiece_tokenizer_has_the_ids_of_the_whole(tmp_path, layout):
    """Such a tokenizer puts a space before every text, so an answer encoded alone would begin with a space."""
    ours, reference = both(tmp_path, LAYOUTS[layout].template, pieces_backend())
    prompt, (answer,) = ours.encode_turns([USER], ["he"])
    whole = reference.apply_chat_template([USER, {"role": "assistant", "content": "he"}])["input_ids"]
    assert [*prompt, *answer][: len(whole)] == whole[: len(prompt) + len(answer)]
    assert len(answer) > 1


def learned(ours, turns, tools):
    """All ids of a dialogue's rows in SFT, and which are learned."""
    row = {"prompt": "", "prompt_turns": turns[:-1], "response": turns[-1]["content"] or "", "tools": tools}
    row["response_turns"] = [{"content": "", **{k: v for k, v in turns[-1].items() if v is not None}}]
    found = encode_rows(ours, [row], ("response",), context=10**5, max_refused=1.0).rows
    return [([*row.prompt, *row.responses[0]], [False] * len(row.prompt) + row.mask()) for row in found]


@pytest.mark.parametrize("name", TRAINING)
def test_sft_learns_the_tokens_of_generation_blocks(tmp_path, name):
    end = next((end for end in ENDS if end in REAL[name]), "</s>")
    ours, reference = both(tmp_path, REAL[name], eos_token=end)
    reference = Reference(reference)
    compared, has_tools = 0, tool_form(ours) is not None
    for turns, tools in GRID.values():
        if tools and not has_tools:
            continue  # the template drops tools in silence; here they become text
        turns = [turn | {"content": turn["content"] or ""} for turn in turns]
        if turns[-1]["role"] != "assistant" or not same(ours, reference, turns, tools, False):
            continue
        other = reference.apply_chat_template(turns, tools=tools, return_assistant_tokens_mask=True)
        mask = [bool(x) for x in other["assistant_masks"]]
        blocks = ours.templates["default"].render(turns, False, tools)[1]
        answers = sum(turn["role"] == "assistant" for turn in turns)
        inside = [token for token, is_inside in zip(other["input_ids"], mask, strict=True) if is_inside]
        if len(blocks) != answers or not {*inside} & {*ours.eos_ids}:
            continue  # these blocks would not teach the model to stop
        ((ids, ours_mask),) = learned(ours, turns, tools)
        assert ids == other["input_ids"][: len(ids)] and not any(mask[len(ids) :]) and ours_mask == mask[: len(ids)]
        compared += 1
    assert compared or name in SEVERAL_BLOCKS


ANSWERS = {  # the learned text of two answers "Hello, you.", by hand
    "phi3_training": "Hello, you.<|end|>Hello, you.<|end|>",  # no model writes the line break and EOS behind <|end|>
    "phi3_5_training": "Hello, you.<|end|>Hello, you.<|end|>",
    "idefics3_training": " Hello, you.<end_of_utterance>\n Hello, you.<end_of_utterance>\n",  # as its blocks
    "smolvlm_training": " Hello, you.<end_of_utterance>\n Hello, you.<end_of_utterance>\n",
    "llava_next_training": " Hello, you.</s> Hello, you.</s>",
    "diffusion_gemma_training": "Hello, you.<turn|>Hello, you.<turn|>",
}


@pytest.mark.parametrize("name", ANSWERS)
def test_sft_learns_both_answers_with_their_ends(tmp_path, name):
    end = next((end for end in ENDS if end in REAL[name]), "</s>")
    ours, _ = both(tmp_path, REAL[name], eos_token=end)
    ((ids, mask),) = learned(ours, [USER, ANSWER, MORE, ANSWER], None)
    found = [i for i, is_learned in zip(ids, mask, strict=True) if is_learned]
    assert ours.backend.decode(found, skip_special_tokens=False) == ANSWERS[name]
    whole = ours.backend.decode(ids, skip_special_tokens=False)
    assert all(turn["content"].strip() in whole for turn in (USER, ANSWER, MORE))


@pytest.mark.parametrize("layout", sorted(LAYOUTS.keys() - {"plain"}))
def test_sft_learns_the_tokens_of_built_in_blocks(tmp_path, layout):
    ours, _ = both(tmp_path, LAYOUTS[layout].template)
    (tmp_path / "other").mkdir()
    ours.with_template(layout).save(tmp_path / "other")
    ours, reference = Tokenizer.load(tmp_path / "other"), transformers.AutoTokenizer.from_pretrained(tmp_path / "other")
    for turns in ([USER, ANSWER], [SYSTEM, USER, ANSWER, MORE, ANSWER]):
        other = reference.apply_chat_template(turns, return_assistant_tokens_mask=True)
        ((ids, mask),) = learned(ours, turns, None)
        expected = [bool(x) for x in other["assistant_masks"]]
        assert ids == other["input_ids"][: len(ids)]
        assert mask == expected[: len(ids)] and not any(expected[len(ids) :]) and any(mask)
