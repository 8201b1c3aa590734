"""The template decides where an answer begins and ends: its end token is learned last, and nothing is written twice."""

from __future__ import annotations

import json
import re

import pytest
import tokenizers

from minirlhf.errors import InputError
from minirlhf.jobs.given_models import check_vocabulary
from minirlhf.model import ModelConfig
from minirlhf.text import LAYOUTS, Tokenizer
from minirlhf.text.checkpoint_tokenizer import template
from minirlhf.text.tokenizer import EOS

OWN = Tokenizer.train(["the kettle is good. it is bad. \n\n### End think user assistant"] * 8, 320)
USER, ANSWER = {"role": "user", "content": "Hi"}, "it is good."
TURNS = ([USER], [USER, {"role": "assistant", "content": "it is"}, USER])


@pytest.fixture(autouse=True, scope="module")
def in_this_process():
    """These templates are not a stranger's. A child process for each of them would take most of the time."""

    class All:
        def __contains__(self, source):
            return True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(template, "BUILT_IN", All())
        yield


def with_template(source, *special):
    """A folder's tokenizer whose own end token is <|eos|>, and a template that may end answers with another token."""
    return OWN.with_special_tokens(special).with_template(source)


def text_of(tokenizer, ids):
    return tokenizer.backend.decode(ids, skip_special_tokens=False)


def each_turn(user, answer, prompt, last="", before=""):
    """A template: texts around the content of a turn; `last` ends the whole dialogue."""
    return (
        f"{before}{{% for m in messages %}}{{% if m.role == 'user' %}}{user}{{% else %}}{answer}{{% endif %}}"
        f"{{% endfor %}}{{% if add_generation_prompt %}}{prompt}{{% else %}}{last}{{% endif %}}"
    )


C = "{{ m.content }}"
NEWLINE = "{{ '\\n' }}"
# family: template, the learned text of an answer, its end token; None: the template writes no end token
FAMILIES = {
    "ChatML": (
        each_turn(
            f"<|im_start|>user{NEWLINE}{C}<|im_end|>{NEWLINE}",
            f"<|im_start|>assistant{NEWLINE}{C}<|im_end|>{NEWLINE}",
            f"<|im_start|>assistant{NEWLINE}",
        ),
        f"{ANSWER}<|im_end|>",
        "<|im_end|>",
    ),
    "ChatML without newlines": (
        each_turn(
            f"<|im_start|>user<|im_sep|>{C}<|im_end|>",
            f"<|im_start|>assistant<|im_sep|>{C}<|im_end|>",
            "<|im_start|>assistant<|im_sep|>",
        ),
        f"{ANSWER}<|im_end|>",
        "<|im_end|>",
    ),
    "the next answer is begun unasked": (
        each_turn(
            f"<|im_start|>user<|im_sep|>{C}<|im_end|>",
            f"<|im_start|>assistant<|im_sep|>{C}<|im_end|>",
            "<|im_start|>assistant<|im_sep|>",
            last="<|im_start|>assistant<|im_sep|>",
        ),
        f"{ANSWER}<|im_end|>",
        "<|im_end|>",
    ),
    "Llama 2": (each_turn(f"<|bos|>[INST] {C} [/INST]", f" {C} {{{{ eos_token }}}}", ""), f" {ANSWER} {EOS}", EOS),
    "Llama 3": (LAYOUTS["llama3"].template, f"{ANSWER}<|eot_id|>", "<|eot_id|>"),
    "Gemma": (LAYOUTS["gemma"].template, f"{ANSWER}<end_of_turn>", "<end_of_turn>"),
    "Mistral": (LAYOUTS["mistral"].template, f" {ANSWER}{EOS}", EOS),
    "Phi-3": (
        each_turn(
            f"<|user|>{NEWLINE}{C}<|end|>{NEWLINE}",
            f"<|assistant|>{NEWLINE}{C}<|end|>{NEWLINE}",
            f"<|assistant|>{NEWLINE}",
            last="{{ eos_token }}",
        ),
        f"{ANSWER}<|end|>",
        "<|end|>",
    ),
    "Phi-4-mini": (
        each_turn(f"<|user|>{C}<|end|>", f"<|assistant|>{C}<|end|>", "<|assistant|>", last="{{ eos_token }}"),
        f"{ANSWER}<|end|>",
        "<|end|>",
    ),
    "Command": (
        each_turn(f"<|user|>{C}<|end_turn|>", f"<|bot|><|say|>{C}<|end_say|><|end_turn|>", "<|bot|><|say|>"),
        f"{ANSWER}<|end_say|><|end_turn|>",
        "<|end_turn|>",
    ),
    "gpt-oss": (
        each_turn(
            f"<|start|>user<|message|>{C}<|end|>",
            f"<|start|>assistant<|message|>{C}{{{{ '<|return|>' if loop.last else '<|end|>' }}}}",
            "<|start|>assistant<|message|>",
        ),
        f"{ANSWER}<|return|>",
        "<|return|>",
    ),
    "text, then the end token": (
        each_turn(f"Q: {C}{NEWLINE}", f"A:{NEWLINE}{C}{NEWLINE}###{{{{ eos_token }}}}{NEWLINE}", f"A:{NEWLINE}"),
        f"{ANSWER}\n###{EOS}",
        EOS,
    ),
    "several tokens of text": (
        each_turn(f"Q: {C}{NEWLINE}", f"A: {C}{NEWLINE}{NEWLINE}### End{NEWLINE}", "A: "),
        ANSWER + EOS,
        None,
    ),
    "nothing (GLM)": (each_turn(f"<|user|>{C}", f"<|assistant|>{C}", "<|assistant|>"), ANSWER + EOS, None),
    "plain": (LAYOUTS["plain"].template, ANSWER + EOS, None),
}


@pytest.mark.parametrize(("source", "learned", "end"), FAMILIES.values(), ids=FAMILIES)
def test_an_answer_ends_with_the_token_that_the_template_writes(tmp_path, source, learned, end):
    special = sorted(set(re.findall(r"<\|[a-z_]+\|>|<[a-z]+_of_turn>", source)) - {"<|bos|>", EOS})
    tokenizer = with_template(source, *special)
    last = tokenizer.backend.token_to_id(end or EOS)
    assert tokenizer.eos_ids == ((OWN.eos_id,) if last == OWN.eos_id else (OWN.eos_id, last))
    for turns in TURNS:
        prompt, (answer,) = tokenizer.encode_turns(turns, [ANSWER])
        assert text_of(tokenizer, answer) == learned and answer[-1] == last
        whole = tokenizer.encode_rendered(
            tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": ANSWER}])
        )
        assert end is None or whole[: len(prompt) + len(answer)] == prompt + answer
        if end:
            assert tokenizer.decode_completions([answer]) == [learned.removesuffix(end)]  # rewards see no end token
    tokenizer.save(tmp_path)
    ends = json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"]
    assert ends == (list(tokenizer.eos_ids) if len(tokenizer.eos_ids) > 1 else OWN.eos_id)
    again = Tokenizer.load(tmp_path)
    assert again.eos_ids == tokenizer.eos_ids and again.encode_turns([USER], [ANSWER]) == tokenizer.encode_turns(
        [USER], [ANSWER]
    )


def test_a_folder_whose_files_name_another_end_token(tmp_path):
    # Qwen2.5's base model: three files name <|endoftext|>, the template ends an answer with <|im_end|> and a newline.
    OWN.with_special_tokens(["<|im_start|>", "<|im_end|>"]).save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {"chat_template": FAMILIES["ChatML"][0], "split_special_tokens": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": OWN.eos_id, "top_p": 0.8}))
    tokenizer = Tokenizer.load(tmp_path)
    end = tokenizer.backend.token_to_id("<|im_end|>")
    assert tokenizer.eos_ids == (OWN.eos_id, end) and tokenizer.eos_id == OWN.eos_id
    assert tokenizer.encode_turns([USER], [ANSWER])[1] == [[*tokenizer.encode(ANSWER), end]]
    tokenizer.save(tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert written["eos_token_id"] == [OWN.eos_id, end] and written["top_p"] == 0.8


def test_a_line_tells_of_answers_that_end_otherwise_than_the_folder_says():
    chatml = with_template(FAMILIES["ChatML"][0], "<|im_start|>", "<|im_end|>")
    lines = {
        chatml: ["it ends answers with '<|im_end|>', the folder names '<|eos|>'; both end answers"],
        with_template(LAYOUTS["plain"].template): ["it writes no end token after an answer, so '<|eos|>' ends answers"],
        with_template("{{ messages[-1].role }}"): ["it leaves a trial answer out, so each row is tried"],
        with_template(LAYOUTS["zephyr"].template): [],
        chatml.with_template("chatml"): [],  # the built-in layout sets the end token
        OWN: [],
    }
    for tokenizer, expected in lines.items():
        said = []
        check_vocabulary(ModelConfig(OWN.vocab_size + 2), tokenizer, "DIR", tell=said.append)
        assert said == [f"DIR: chat template: {line}" for line in expected]


def test_an_end_token_inside_an_answer_does_not_end_it():
    tokenizer = with_template(FAMILIES["ChatML"][0], "<|im_start|>", "<|im_end|>")
    (answer,) = tokenizer.encode_turns([USER], ["it<|im_end|> is"])[1]
    assert text_of(tokenizer, answer) == "it<|im_end|> is<|im_end|>"


def test_an_end_that_is_no_token_of_the_vocabulary_is_not_learned():
    tokenizer = with_template(FAMILIES["ChatML"][0])  # <|im_end|> is ten tokens of text here
    assert tokenizer.eos_ids == (OWN.eos_id,)
    assert tokenizer.encode_turns([USER], [ANSWER])[1] == [[*tokenizer.encode(ANSWER), OWN.eos_id]]
    grown = tokenizer.with_special_tokens(["<|im_end|>"])
    assert grown.eos_ids == (OWN.eos_id, grown.backend.token_to_id("<|im_end|>"))


def test_an_added_token_of_white_space_ends_no_answer():
    backend = tokenizers.Tokenizer.from_str(OWN.backend.to_str())
    backend.add_tokens(["\n\n"])
    tokenizer = Tokenizer(backend).with_template("plain")
    assert tokenizer.eos_ids == (OWN.eos_id,)
    assert text_of(tokenizer, tokenizer.encode_turns([USER], [ANSWER])[1][0]) == ANSWER + EOS


# --- generation prompts that begin the answer ---

START = f"<|im_start|>assistant{NEWLINE}"
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ '\\n' }}"
    "{{ m.content.split('</think>')[-1].lstrip() if m.role == 'assistant' else m.content }}<|im_end|>{{ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n<think>\\n' }}{% endif %}"
)  # as in DeepSeek-R1: the prompt begins the reasoning, and the history drops it
KEEPS = THINKS.replace(".split('</think>')[-1].lstrip()", "")
TWICE = KEEPS.replace(
    "{{ m.content if m.role == 'assistant' else",
    "{{ '<think>\\n' if m.role == 'assistant' }}{{ m.content if m.role == 'assistant' else",
)
CLOSES = TWICE.replace("{{ '<think>\\n' if", "{{ '<think>\\n\\n</think>\\n\\n' if")  # reasoning only from another key
REPLACES = CLOSES.replace("<think>\\n\\n</think>\\n\\n' if", "<think></think>' if")
REASONED = "the kettle\n</think>\n\nit is good."


@pytest.mark.parametrize(
    "source", [THINKS, KEEPS, TWICE, CLOSES, REPLACES], ids=["drops", "keeps", "adds", "closes", "replaces"]
)
@pytest.mark.parametrize("written", ["<think>\n", "<think>", "\n<think>\n", ""])
def test_reasoning_that_the_prompt_begins_is_written_once(source, written):
    tokenizer = with_template(source, "<|im_start|>", "<|im_end|>")
    prompt, (answer,) = tokenizer.encode_turns([USER], [written + REASONED])
    assert text_of(tokenizer, prompt + answer) == (
        f"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n{REASONED}<|im_end|>"
    )
    assert text_of(tokenizer, prompt).endswith("<think>\n")


def test_an_answer_without_the_reasoning_that_the_prompt_begins_is_refused_unless_it_was_sampled():
    tokenizer = with_template(THINKS, "<|im_start|>", "<|im_end|>")
    text = (
        "chat template: its generation prompt begins every answer with '<think>', and this answer neither begins so "
        "nor goes on from it; begin the answer with '<think>', or set a variable of the template"
    )
    with pytest.raises(InputError, match=f"^{re.escape(text)}$"):
        tokenizer.encode_turns([USER], [ANSWER])


@pytest.mark.parametrize("reasoning", ["", "<think></think>"], ids=["drops", "replaces"])  # DeepSeek-R1, Nemotron 3
def test_a_sampled_answer_that_ends_in_its_reasoning_is_read(reasoning):
    # A policy that reached max_tokens while it reasoned: a reward model must read this answer.
    source = THINKS.replace(
        "{{ m.content.split", f"{{{{ '{reasoning}' if m.role == 'assistant' }}}}{{{{ m.content.split"
    )
    tokenizer = with_template(source, "<|im_start|>", "<|im_end|>")
    for answer in (ANSWER, "\n  " + ANSWER):
        assert text_of(tokenizer, tokenizer.encode_turns([USER], [answer], sampled=True)[1][0]) == answer + "<|im_end|>"


def test_an_empty_reasoning_in_the_prompt_needs_no_reasoning_in_the_answer():
    # As in Qwen3 with enable_thinking=False and a history that drops all reasoning.
    tokenizer = with_template(
        THINKS.replace("<think>\\n' }}", "<think>\\n\\n</think>\\n\\n' }}"), "<|im_start|>", "<|im_end|>"
    )
    prompt, (answer,) = tokenizer.encode_turns([USER], [ANSWER])
    assert text_of(tokenizer, prompt + answer).endswith(f"assistant\n<think>\n\n</think>\n\n{ANSWER}<|im_end|>")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages | length }}" + FAMILIES["ChatML"][0],  # the beginning depends on later turns
        THINKS.replace("<think>\\n' }}", "Sure: ' }}"),  # words that the history drops
        FAMILIES["ChatML"][0].replace("{% else %}", "{% else %}<|im_start|>", 1),  # another header in the history
    ],
    ids=["length", "words", "header"],
)
def test_a_template_that_does_not_show_where_an_answer_begins_is_refused(source):
    tokenizer = with_template(source, "<|im_start|>", "<|im_end|>")
    with pytest.raises(InputError, match=r"^chat template: its generation prompt (begins every answer|ends with) "):
        tokenizer.encode_turns([USER], [ANSWER])


def test_words_that_the_history_drops_are_written_once():
    tokenizer = with_template(THINKS.replace("<think>\\n' }}", "Sure: ' }}"), "<|im_start|>", "<|im_end|>")
    prompt, (answer,) = tokenizer.encode_turns([USER], ["Sure: " + ANSWER])
    assert text_of(tokenizer, prompt + answer).endswith(f"assistant\nSure: {ANSWER}<|im_end|>")


def test_a_template_that_refuses_the_trial_is_tried_with_the_rows_own_turns():
    source = "{% if messages[0].role != 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    tokenizer = with_template(source + FAMILIES["ChatML"][0], "<|im_start|>", "<|im_end|>")
    system = {"role": "system", "content": "be good"}
    (answer,) = tokenizer.encode_turns([system, USER], [ANSWER])[1]
    assert text_of(tokenizer, answer) == f"{ANSWER}<|im_end|>"
