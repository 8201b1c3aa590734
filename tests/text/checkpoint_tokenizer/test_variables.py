"""Template variables: values of every type act in every part of a template, and a saved tokenizer keeps them."""

from __future__ import annotations

import re

import pytest

from minirlhf.errors import InputError
from minirlhf.text import LAYOUTS, Tokenizer
from minirlhf.text.checkpoint_tokenizer import template

OWN = Tokenizer.train(["the kettle is good. think"] * 8, 280)
USER = {"role": "user", "content": "Hi"}
QWEN = (  # as in Qwen3
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{% endif %}"
)
EMPTY = "<think>\n\n</think>\n\n"


def deep(levels):
    return [deep(levels - 1)] if levels else None


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    class All:
        def __contains__(self, source):
            return True

    monkeypatch.setattr(template, "BUILT_IN", All())


def test_a_variable_acts_in_training_and_sampling_and_is_saved(tmp_path):
    qwen = OWN.with_template(QWEN)
    silent = qwen.with_template(variables={"enable_thinking": False})
    assert not qwen.apply_chat_template([USER], True).endswith(EMPTY)
    silent.save(tmp_path)
    for tokenizer in (silent, Tokenizer.load(tmp_path), OWN.with_template(QWEN, '{"enable_thinking": false}')):
        text = tokenizer.apply_chat_template([USER], True)
        assert text == qwen.apply_chat_template([USER], True) + EMPTY
        assert tokenizer.encode_turns([USER])[0] == tokenizer.encode_rendered(text)
        # a value in a call, and a later value, win
        assert tokenizer.apply_chat_template([USER], True, variables={"enable_thinking": True}) == text.removesuffix(
            EMPTY
        )
        again = tokenizer.with_template(variables={"enable_thinking": True})
        assert again.apply_chat_template([USER], True) == text.removesuffix(EMPTY)


@pytest.mark.parametrize(
    "value",
    [None, True, False, 0, -3, 1.5, 1e30, "", "a'\"\\ \n\t{% if x %}{{ y }} %} \u00e9 \U0001f600", [1, [None, "a"]],
     {"a": {"b": [True]}, "c d": "'"}, deep(20)],
    ids=range(12),
)  # fmt: skip
def test_every_json_value_arrives_unchanged(value):
    source = (
        "\n  {% macro show() %}{{ x | tojson }}{% endmacro %}{% for m in messages %}{{ x | tojson }} {% endfor %}"
        "{{ show() }}\n"
    )
    tokenizer, plain = OWN.with_template(source, {"x": value}), OWN.with_template(source)
    assert tokenizer.apply_chat_template([USER]) == plain.apply_chat_template([USER], variables={"x": value})


def test_generation_blocks_keep_their_answers():
    marked = QWEN.replace("m.content + '<|im_end|>\\n' }}", "' }}{% generation %}{{ m.content }}{% endgeneration %}")
    marked = marked.replace("'\\n' + ' }}", "'\\n' }}")
    turns = [USER, {"role": "assistant", "content": "the"}]
    tokenizer = OWN.with_template(marked)
    assert tokenizer.with_template(variables={"enable_thinking": False}).encode_chat(turns) == tokenizer.encode_chat(
        turns
    )
    assert any(tokenizer.encode_chat(turns)[1])


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"enable_thinkin": False}, "the chat template does not read 'enable_thinkin'; it reads enable_thinking"),
        ({"messages": []}, "the chat template does not read 'messages'; it reads enable_thinking"),
        ({"m": 1}, "the chat template does not read 'm'; it reads enable_thinking"),  # a name of its own loop
        ({"raise_exception": 1}, "the chat template does not read 'raise_exception'; it reads enable_thinking"),
        ({"eos_token": "x"}, "the chat template does not read 'eos_token'; it reads enable_thinking"),
        ({"x = 1 %}{% set y": 1}, "the chat template does not read 'x = 1 %}{% set y'; it reads enable_thinking"),
        ({"enable_thinking": float("nan")}, "needed a JSON value, got nan"),
        ({"enable_thinking": {1}}, "needed a JSON value, got {1}"),
        ({"enable_thinking": {"a": 1, 2: 3}}, "needed a JSON value, got {'a': 1, 2: 3}"),
        (
            "enable_thinking=false",
            'needed a JSON object such as {"enable_thinking": false}, got \'enable',
        ),
        ("[1]", "needed a JSON object such as"),
        ('{"enable_thinking": False}', "needed a JSON object such as"),
        ('{"enable_thinking": true, "enable_thinking": false}', "needed a JSON object such as"),
        ({"enable_thinking": {"a": deep(20)}}, "needed at most 20 lists and objects inside each other, got more"),
        ('{"enable_thinking": ' + "[" * 800 + "]" * 800 + "}", "needed at most 20 lists and objects inside each other"),
    ],
    ids=range(15),
)
def test_variables_without_effect_are_refused(variables, text):
    with pytest.raises(InputError, match=f"^template_variables: {re.escape(text)}"):
        OWN.with_template(QWEN + "{{ eos_token if raise_exception is not defined }}", variables)


def test_a_tokenizer_or_template_that_reads_no_variable_is_named():
    with pytest.raises(InputError, match="the tokenizer has no chat template, so nothing reads 'x'"):
        OWN.with_template(variables={"x": 1})
    with pytest.raises(InputError, match="the chat template does not read 'x'; it reads no variables"):
        OWN.with_template("zephyr", {"x": 1})
    assert set(LAYOUTS) == {"chatml", "llama3", "mistral", "gemma", "zephyr", "alpaca", "plain"}


def test_in_a_folder_of_several_templates_each_takes_the_variables_that_it_reads(tmp_path):
    two = OWN.with_template("{{ a }}")
    two.templates["tool_use"] = template.ChatTemplate("{{ b }}")
    both = two.with_template(variables={"a": 1, "b": 2})
    assert both.apply_chat_template([USER]) == "1" and both.apply_chat_template([USER], tools=[]) == "2"
    assert "b" not in both.templates["default"].source
