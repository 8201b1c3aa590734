"""A template renders as its author meant; harmful and broken templates are refused when they arrive."""

from __future__ import annotations

import re

import pytest

from minirlhf.data import encode_rows
from minirlhf.errors import InputError
from minirlhf.text import LAYOUTS, Tokenizer, render_chat
from minirlhf.text.checkpoint_tokenizer.template import ChatTemplate

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
SYSTEM, BYE = {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Bye"}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
END = "; choose a built-in layout, or delete the template"


def rendered(source, *turns, **options):
    return ChatTemplate(source, TOKENS).render(list(turns or [USER]), **options)[0]


def test_blocks_leave_no_line_breaks_and_no_indentation():
    source = "{% for m in messages %}\n    {% if true %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}\nend\n"
    assert rendered(source, USER, ANSWER) == "Hi\nHello\nend"


def test_loops_can_be_left_early():
    assert (
        rendered("{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}x{% endfor %}", USER, BYE) == "x"
    )


def test_json_is_not_escaped_for_html():
    source = "{{ tools[0] | tojson }} {{ tools | tojson(indent=1) }}"
    assert rendered(source, tools=[{"a": "<b> & '\u00e9'"}]) == (
        '{"a": "<b> & \'\u00e9\'"} [\n {\n  "a": "<b> & \'\u00e9\'"\n }\n]'
    )


def test_a_template_reads_special_tokens_variables_and_the_date():
    source = "{{ bos_token }}{{ unk_token }}{{ eos_token }} {{ thinking }} {{ strftime_now('%Y') | length }}"
    assert rendered(source, variables={"thinking": False}) == "<s></s> False 4"


def test_documents_and_tools_are_none_and_not_missing():
    assert rendered("{{ documents is none }} {{ tools is none }} {{ other is defined }}") == "True True False"


def test_a_key_without_value_is_missing_and_reasoning_has_three_names():
    turn = ANSWER | {"content": None, "reasoning": "Hm."}
    assert rendered("{{ messages[0].content is defined }} {{ messages[0].reasoning_content }}", turn) == "False Hm."
    assert rendered("{{ messages[0].thinking }}", turn) == "Hm."


def test_generation_blocks_give_their_spans():
    source = "{% for m in messages %}<{{ m.role }}>{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    # "<user>Hi<user>Bye": 0-5 <user>, 6-7 Hi, 8-13 <user>, 14-16 Bye
    assert ChatTemplate(source).render([USER, BYE]) == ("<user>Hi<user>Bye", [(6, 8), (14, 17)])
    assert ChatTemplate(source).marks_answers and not ChatTemplate("generation").marks_answers


def test_a_second_render_starts_with_no_spans():
    template = ChatTemplate("a{% generation %}b{% endgeneration %}")
    assert template.render([USER]) == template.render([USER]) == ("ab", [(1, 2)])


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        (
            "{{ ''.__class__.__mro__ }}",
            "it tries to leave the sandbox: access to attribute '__class__' of 'str' object is",
        ),
        ("{{ cycler.__init__.__globals__ }}", "it tries to leave the sandbox: access to attribute '__init__'"),
        ("{% set n = namespace(_a=1) %}", "it tries to leave the sandbox: a namespace may not hold '_a'"),
        ("{% set n = namespace() %}{% set n._a = 1 %}", "it tries to leave the sandbox: a namespace may not hold '_a'"),
        ("{{ messages.append(1) }}", "it tries to leave the sandbox: access to attribute 'append' of 'list' object is"),
        ("{% for x in range(99999) %}{% for x in range(99999) %}{% endfor %}{% endfor %}", "it ran for more than 1 s"),
        (
            "{% for x in range(99999) %}{% for x in range(99999) %}hello{% endfor %}{% endfor %}",
            "it wrote more than 1,0",
        ),
        ("{{ 'x' * 10 ** 10 }}", "it needs more than 512 MiB"),
        ("\n{% for %}", "line 2 is no valid Jinja: Expected an expression"),
        ("{{ 1 | unheard_of }}", "line 1 is no valid Jinja: No filter named 'unheard_of'"),
        ("{% if true %}", "line 1 is no valid Jinja: Unexpected end of template"),
        ("{% generation %}", "line 1 is no valid Jinja: "),
        ("{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}", "it cannot be compiled: maximum recursion depth exceeded"),
        ("x" * (2**20 + 1), "needed at most 1,048,576 characters, got 1,048,577"),
    ],
    ids=lambda x: x[:30],
)
@pytest.mark.usefixtures("patient")
def test_harmful_and_broken_templates_are_refused_on_arrival(source, fault):
    with pytest.raises(InputError, match=f"^chat template: {re.escape(fault)}.*{END}$"):
        ChatTemplate(source)


@pytest.mark.usefixtures("patient")
def test_compiling_can_run_away_and_is_stopped():
    with pytest.raises(InputError, match=f"^chat template: it (ran for more than 1 s|needs more).*{END}$"):
        ChatTemplate("{{ (10 ** 99999999) % 7 }}")


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{{ raise_exception('roles must\nalternate') }}", "roles must alternate"),
        ("{{ messages[0].content + none }}", "can only concatenate str"),
        ("{{ messages[7].content }}", "list object has no element 7"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "maximum recursion depth exceeded"),
        ("{% include 'secrets' %}", "no loader for this environment specified"),
    ],
)
def test_a_template_may_refuse_a_conversation(source, why):
    # The template itself is not refused: it may suit other conversations.
    start = f"chat template: it refuses this conversation: {why}"
    with pytest.raises(InputError, match=f"^{re.escape(start)}.*; change the turns or the template$"):
        rendered(source)


def test_a_template_that_waits_for_a_word_is_stopped_while_it_writes():
    source = "{% if messages[0].content == 'now' %}{% for x in range(99999) %}{% for x in range(99999) %}hello"
    template = ChatTemplate(source + "{% endfor %}{% endfor %}{% endif %}")
    assert template.render([USER])[0] == ""
    with pytest.raises(
        InputError, match=f"^chat template: it wrote more than 1,00.,... characters and was stopped{END}$"
    ):
        template.render([USER | {"content": "now"}])


def test_a_template_that_waits_for_a_word_cannot_leave_the_sandbox_either():
    template = ChatTemplate("{% if messages[0].content == 'now' %}{{ ''.__class__.__mro__ }}{% endif %}")
    with pytest.raises(InputError, match="refuses this conversation: access to attribute '__class__'"):
        template.render([USER | {"content": "now"}])


def test_the_conversation_is_not_changed_and_must_be_json():
    turns = [USER | {"content": None}]
    ChatTemplate("x").render(turns)
    assert turns == [USER | {"content": None}]
    with pytest.raises(InputError, match="^chat template: needed turns and tools as JSON data .*set.*; convert them$"):
        ChatTemplate("x").render([USER | {"content": {1}}])


@pytest.mark.parametrize("source", ["{{ '\\ud800' }}", "{{ messages[0].content[:1] }}"])
def test_half_a_surrogate_pair_in_the_output_is_refused(source):
    # no tokenizer can encode it, and no terminal can show it
    text = "chat template: it writes half of a surrogate pair, which is no text; change the template"
    with pytest.raises(InputError, match=f"^{text}$"):
        rendered(source, USER | {"content": "\ud83d"})


@pytest.mark.parametrize("turns", [[], ["Hi"]])
def test_no_turns_are_refused(turns):
    with pytest.raises(
        InputError, match="^chat template: needed at least one turn, each an object with role and content$"
    ):
        ChatTemplate("x").render(turns)


# text of [system, user " Hi", answer, user], with generation prompt; the text in generation blocks
LAYOUT_TEXTS = {
    "chatml": (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n Hi<|im_end|>\n<|im_start|>assistant\n"
        "Hello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
        "Hello<|im_end|>",
    ),
    "llama3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "Hello<|eot_id|>",
    ),
    "mistral": ("<s>[INST] Be kind.\n\n Hi[/INST] Hello</s>[INST] Bye[/INST]", " Hello</s>"),
    "gemma": (
        "<s><start_of_turn>user\nBe kind.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
        "Hello<end_of_turn>",
    ),
    "zephyr": (
        "<|system|>\nBe kind.</s>\n<|user|>\n Hi</s>\n<|assistant|>\nHello</s>\n<|user|>\nBye</s>\n<|assistant|>\n",
        "Hello</s>",
    ),
    "alpaca": (
        "<s>Be kind.\n\n### Instruction:\n Hi\n\n### Response:\nHello</s>\n\n### Instruction:\nBye\n\n### Response:\n",
        "Hello</s>",
    ),
    "plain": ("<s>System:\nBe kind.\n\nUser:\n Hi\n\nAssistant:\nHello\n\nUser:\nBye\n\nAssistant:\n", "Hello\n\n"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_built_in_layout(name):
    text, said = LAYOUT_TEXTS[name]
    template = ChatTemplate(LAYOUTS[name].template, TOKENS)
    turns = [SYSTEM, USER | {"content": " Hi"}, ANSWER, BYE]
    got, ((start, end),) = template.render(turns, add_generation_prompt=True)
    assert got == text and got[start:end] == said
    assert text.startswith(template.render(turns)[0])


@pytest.mark.parametrize("name", LAYOUTS)
def test_built_in_layout_without_system_turn_and_without_bos(name):
    text, _ = ChatTemplate(LAYOUTS[name].template, {"eos_token": "</s>"}).render([USER, ANSWER])
    assert "kind" not in text and "<s>" not in text and text.index("Hi") < text.index("Hello")


def test_the_plain_template_writes_the_text_of_render_chat():
    turns = [SYSTEM, USER, ANSWER, BYE]
    for prompt in (False, True):
        assert ChatTemplate(LAYOUTS["plain"].template).render(turns, prompt)[0] == render_chat(turns, prompt)


@pytest.mark.parametrize("name", ["mistral", "gemma", "alpaca"])
def test_layouts_for_two_speakers_refuse_a_third(name):
    with pytest.raises(InputError, match="needed user and assistant in turn after at most one system turn, got user"):
        rendered(LAYOUTS[name].template, USER, BYE)


IN_PARTS = (  # as SmolVLM
    "{% for m in messages %}{{ m.role }}:{% for part in m.content %}"
    "{% if part.type == 'text' %} {{ part.text }}{% endif %}{% endfor %}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (IN_PARTS, "user: Hi</s>assistant:</s>user: a</s>"),
        ("{% for m in messages %}{{ m.content is string }}{% endfor %}", "TrueFalseFalse"),
        ("{% for m in messages %}{{ m.content is string and m.content }} {% endfor %}", "Hi False False "),
    ],
)
def test_a_template_that_writes_only_parts_gets_parts(source, text):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None}]
    turns += [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    assert ChatTemplate(source, {"eos_token": "</s>"}).render(turns)[0] == text


def test_an_answer_is_learned_where_a_template_writes_only_parts():
    backend = Tokenizer.train(["ab"], 259).backend
    tokenizer = Tokenizer(backend).with_template(IN_PARTS)
    row = {"prompt": "x", "prompt_turns": [{"role": "user", "content": "Hi"}], "response": "there"}
    (found,) = encode_rows(tokenizer, [row], ("response",), context=200).rows
    assert tokenizer.decode(found.prompt) == "user: Hiassistant:" and tokenizer.decode(found.responses[0]) == " there"
