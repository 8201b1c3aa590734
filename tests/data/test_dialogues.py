"""Which tokens of a dialogue are learned, and which keys of its turns have an effect."""

import pytest
import tokenizers

from minirlhf.data import encode_rows
from minirlhf.data.colours import pieces, rendered
from minirlhf.data.lengths import Lengths
from minirlhf.text import Tokenizer, render_chat

BYTES = Tokenizer.train(["ab"], 259)  # one token per byte
START, END = "<|im_start|>", "<|im_end|>"


def chat_tokenizer(template):
    backend = tokenizers.Tokenizer.from_str(BYTES.backend.to_str())
    backend.add_special_tokens([START, END])
    return Tokenizer(backend, eos=END).with_template(template)


CHATML = chat_tokenizer("chatml")  # it marks answers by {% generation %}
UNMARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# As Qwen3: it reads reasoning and tools, and drops the reasoning of earlier answers.
FORGETFUL = (
    "{% if tools %}{{ '<|im_start|>system\\n' + tools | tojson + '<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>' + (m.reasoning_content or '') + '</think>' }}{% endif %}"
    "{{ m.content }}{% for call in m.tool_calls or [] %}{{ call.function.arguments | tojson }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def unmarked():
    return chat_tokenizer(UNMARKED)


@pytest.fixture(scope="module")
def forgetful():
    return chat_tokenizer(FORGETFUL)


def user(content, **more):
    return {"role": "user", "content": content, **more}


def says(content, **more):
    return {"role": "assistant", "content": content, **more}


def row_of(*turns, **more):
    last = {} if set(turns[-1]) == {"role", "content"} else {"response_turns": [turns[-1]]}
    prompt = {"prompt": render_chat(list(turns[:-1]), True), "prompt_turns": list(turns[:-1])}
    return {**prompt, "response": turns[-1]["content"], "line": 3, **last, **more}


def seen(tokenizer, row, responses=("response",), **options):
    """The rows as text with marks, and the notes."""
    encoded = encode_rows(tokenizer, [row], responses, context=999, max_refused=1, **options)
    texts = [rendered(pieces(tokenizer, each), colour=False) for each in encoded.rows]
    return [text.replace(START, "<").replace(END, ">") for text in texts], [*encoded.notes, *encoded.refused]


DIALOGUE = row_of(says("a"), user("b"), says("c"), user("d"), says("e"))


@pytest.mark.parametrize("template", ["marked", "unmarked"])
def test_every_assistant_turn_is_learned_with_its_end_token(template, unmarked):
    tokenizer = CHATML if template == "marked" else unmarked
    row = row_of(user("b"), says("c"), user("d"), says("e"))
    text = "<user\nb>\n<assistant\n[+c>+][-\n<user\nd>\n<assistant\n-][+e>+]"
    assert seen(tokenizer, row) == ([text], [])
    assert seen(tokenizer, row, train_on="last") == (["<user\nb>\n<assistant\nc>\n<user\nd>\n<assistant\n[+e>+]"], [])
    assert seen(tokenizer, row, train_on="all") == (["<[+user\nb>\n<assistant\nc>\n<user\nd>\n<assistant\ne>+]"], [])
    assert seen(tokenizer, row | {"chosen": "e"}, ("chosen",))[0] == seen(tokenizer, row, train_on="last")[0]


def test_the_ids_are_the_same_whatever_is_learned(unmarked):
    row = row_of(user("b"), says("c"), user("d"), says("e"))
    ids = {
        tuple(each.prompt + each.responses[0])
        for tokenizer in (CHATML, unmarked)
        for train_on in ("last", "all_turns", "all")
        for each in encode_rows(tokenizer, [row], ("response",), context=999, train_on=train_on).rows
    }
    assert len(ids) == 1


@pytest.mark.parametrize("template", ["marked", "unmarked"])
def test_a_turn_of_weight_0_is_not_learned(template, unmarked):
    tokenizer = CHATML if template == "marked" else unmarked
    first = row_of(user("b"), says("c", weight=0), user("d"), says("e", weight=1))
    assert seen(tokenizer, first)[0] == ["<user\nb>\n<assistant\nc>\n<user\nd>\n<assistant\n[+e>+]"]
    last = row_of(user("b"), says("c"), user("d"), says("e", weight=0))
    assert seen(tokenizer, last)[0] == ["<user\nb>\n<assistant\n[+c>+]"]  # nothing is learned after it
    none = row_of(user("b"), says("c", weight=0), user("d"), says("e", weight=False))
    assert "line 3: needed an assistant turn to learn, got weight 0 on all of them" in seen(tokenizer, none)[1][0]
    assert "line 3: needed an answer to learn, got weight 0" in seen(tokenizer, last, train_on="last")[1][0]
    assert "a turn of weight 0 is not to be learned, but train_on all" in seen(tokenizer, first, train_on="all")[1][0]


@pytest.mark.parametrize("weight", [0.5, -1, 2, "1", [], float("nan")])
def test_other_weights_are_refused_by_name(weight):
    row = row_of(user("b"), says("c", weight=weight), user("d"), says("e"))
    assert "line 3: weight: needed 0 or 1, got" in seen(CHATML, row)[1][0]


def test_an_answer_that_no_prompt_leads_to_and_a_user_turn_of_weight_1_are_named(unmarked):
    assert seen(unmarked, DIALOGUE) == (
        ["<assistant\na>\n<user\nb>\n<assistant\n[+c>+][-\n<user\nd>\n<assistant\n-][+e>+]"],
        ["1 answers at the beginning of a dialogue are not learned: no prompt leads to them"],
    )
    row = row_of(user("b", weight=1), says("c"))
    assert seen(unmarked, row)[1] == ["1 turns of weight 1 are not learned: they are no assistant turns"]
    assert seen(CHATML, DIALOGUE)[0][0].startswith("<assistant\n[+a>+]")  # the template marks it


def test_an_answer_that_the_template_changes_later_is_a_row_of_its_own(forgetful):
    row = row_of(user("b"), says("c", reasoning_content="R"), user("d"), says("e", reasoning_content="S"))
    assert seen(forgetful, row) == (
        ["<user\nb>\n<assistant\n[+<think>R</think>c>+]",
         "<user\nb>\n<assistant\nc>\n<user\nd>\n<assistant\n[+<think>S</think>e>+]"],
        ["1 earlier answers are rows of their own: the chat template writes them differently once turns follow"],
    )  # fmt: skip
    encoded = encode_rows(forgetful, [row], ("response",), context=999)
    assert [each.source is row for each in encoded.rows] == [True, True]


def test_keys_of_turns_go_to_the_template_whole_and_unread_keys_are_named(forgetful):
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    turns = user("b", name="Ann", empty=""), says("c", reasoning_content="R", tool_calls=[call], mood="happy")
    texts, notes = seen(forgetful, row_of(*turns), train_on="last")
    assert texts == ['<user\nb>\n<assistant\n[+<think>R</think>c{"x": 1}>+]']
    assert notes == ["not read by the chat template: name (of user turns), mood (of assistant turns)"]
    assert seen(CHATML, row_of(user("b"), says("c", reasoning_content="R")))[1] == [
        "not read by the chat template: reasoning_content (of assistant turns)"
    ]


def test_a_key_that_some_row_needs_is_read_even_if_other_rows_do_not_show_it(forgetful):
    earlier = row_of(user("b"), says("c", reasoning_content="R"), user("d"), says("e"))
    last = row_of(user("b"), says("c", reasoning_content="R"))
    encoded = encode_rows(forgetful, [earlier, last], ("response",), context=999, train_on="last")
    assert encoded.notes == ()
    encoded = encode_rows(forgetful, [earlier] * 40, ("response",), context=999, train_on="last")
    assert encoded.notes == ("not read by the chat template: reasoning_content (of assistant turns)",)


TOOLS = [{"type": "function", "function": {"name": "add"}}]
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"x": 1}}}
TOOL_ROW = row_of(user("b"), says("", tool_calls=[CALL]), {"role": "tool", "content": "2", "name": "add"}, says("e"),
                  tools=TOOLS)  # fmt: skip


def test_without_a_template_tools_and_calls_are_plain_text():
    texts, notes = seen(BYTES, {**TOOL_ROW, "prompt": "another text"})
    call = '<tool_call>\n{"name": "add", "arguments": {"x": 1}}\n</tool_call>'
    tools = 'Tools:\n{"type": "function", "function": {"name": "add"}}\n\n'
    bos = "<|bos|>"
    assert texts == [
        f"{bos}{tools}User:\nb\n\nAssistant:\n[+{call}+][-\n\nTool:\nadd:\n2\n\nAssistant:\n-][+e<|eos|>+]"
    ]
    assert notes == []


def test_a_template_without_tools_gets_them_as_text_of_the_turns(unmarked):
    texts, notes = seen(unmarked, TOOL_ROW)
    call = '<tool_call>\n{"name": "add", "arguments": {"x": 1}}\n</tool_call>'
    tools = '<system\nTools:\n{"type": "function", "function": {"name": "add"}}>\n'
    assert texts == [f"{tools}<user\nb>\n<assistant\n[+{call}>+][-\n<user\nadd:\n2>\n<assistant\n-][+e>+]"]
    assert notes == [
        "1 rows have tools, and the chat template has none: schemas, calls and results stand in the turns as text"
    ]


def test_an_answer_of_several_turns_has_a_mask_with_a_gap(unmarked):
    turns = TOOL_ROW["prompt_turns"]
    row = {"prompt": "b", "prompt_turns": turns[:1], "chosen": "e", "rejected": "f", "line": 1}
    row["chosen_turns"] = [*turns[1:], says("e")]
    (pair,) = encode_rows(unmarked, [row], ("chosen", "rejected"), context=999).rows
    chosen, rejected = (rendered(pieces(unmarked, pair, side), colour=False) for side in (0, 1))
    assert chosen.count("[+") == 2 and chosen.endswith(f"\n{START}assistant\n-][+e{END}+]")
    assert rejected.endswith(f"assistant\n[+f{END}+]") and all(pair.mask(1))


def test_in_the_plain_layout_earlier_answers_are_learned_without_an_end():
    row = row_of(user("b"), says("c"), user("d"), says("e"))
    text = "<|bos|>User:\nb\n\nAssistant:\n[+c+][-\n\nUser:\nd\n\nAssistant:\n-][+e<|eos|>+]"
    assert seen(BYTES, row) == ([text], [])
    last = encode_rows(BYTES, [row], ("response",), context=999, train_on="last").rows[0]
    assert last.prompt == BYTES.encode_prompts([row["prompt"]])[0]


def test_blocks_without_an_end_token_are_not_followed():
    """Else the model would never learn to stop."""
    plain = chat_tokenizer("plain")
    row = row_of(user("b"), says("c"), user("d"), says("e"))
    assert seen(plain, row)[0][0].endswith("Assistant:\n-][+e>+]")  # EOS


def test_prompts_to_sample_from_have_no_answer():
    (row,) = encode_rows(CHATML, [DIALOGUE], (), context=999).rows
    assert row.responses == () and row.learned is None
    assert CHATML.decode(row.prompt).endswith("user\nd\nassistant\n")


@pytest.mark.parametrize("tokenizer", [BYTES, CHATML], ids=["plain", "chatml"])
@pytest.mark.parametrize("options", [{}, {"wrap": "plain"}, {"train_on": "all"}, {"lengths": Lengths(max_length=90)}])
def test_none_in_a_row_of_memory_is_as_good_as_no_key(tokenizer, options):
    row = {"prompt": "a question", "response": "yes"}
    empty = dict.fromkeys(("prompt_turns", "response_turns", "tools"))
    dialogue = row_of(user("a"), says("b"), user("c"), says("d"))
    for full in (row, dialogue):
        (with_none,) = encode_rows(tokenizer, [empty | full], ("response",), context=200, **options).rows
        (without,) = encode_rows(tokenizer, [full], ("response",), context=200, **options).rows
        assert (with_none.prompt, with_none.responses) == (without.prompt, without.responses)
