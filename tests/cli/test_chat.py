"""`minirlhf chat`: conversations with tiny models, through stdin and at a terminal."""

import dataclasses
import io
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import minirlhf.cli.chat
from minirlhf.cli.main import main
from minirlhf.errors import InputError
from minirlhf.generation import SamplingConfig, generate
from minirlhf.model import (
    LoRAConfig,
    ModelConfig,
    RewardModel,
    Transformer,
    apply_lora,
    load_policy,
    save_adapter,
    save_pretrained,
)
from minirlhf.text import Tokenizer
from minirlhf.training.checkpoint import written_whole
from minirlhf.training.help import field_help

TEXTS = ["User:\nhello\n\nAssistant:\nYes.\n\n", "<|im_start|>user\nthe kettle is good. it is bad.<|im_end|>\n"] * 8
SIZE = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 16}


def make_tokenizer(template="chatml"):
    tokenizer = Tokenizer.train(TEXTS, 400)
    tokenizer.backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.backend.add_tokens(["\n\n"])
    return tokenizer.with_template(template) if template else tokenizer


def random_model(tokenizer, context=96):
    torch.manual_seed(0)
    config = ModelConfig(tokenizer.vocab_size, hidden_size=16, **SIZE, max_position_embeddings=context)
    return Transformer(config)


def parrot(tokenizer, ids, context):
    """A model that writes these ids in this order: its residual stream is the last token, one-hot."""
    V = tokenizer.vocab_size
    width = V + -V % 4  # two heads of even width
    config = ModelConfig(V, hidden_size=width, **SIZE, max_position_embeddings=context, tie_word_embeddings=False)
    model = Transformer(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.fill_(1 if "norm" in name else 0)
        model.model.embed_tokens.weight.copy_(torch.eye(V, width))
        for token, following in itertools.pairwise(ids):
            model.head_weight[following, token] = 9
    return model


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """folder_of(answer, template, context, again): a model that gives this answer, or a random model for None.

    again: after the answer it begins the answer anew, instead of ending it.
    """

    def make(answer=None, template="chatml", context=96, again=False):
        folder, tokenizer = tmp_path_factory.mktemp("model"), make_tokenizer(template)
        model = random_model(tokenizer, context)
        if answer is not None:
            ids = tokenizer.encode(answer)
            assert len(set(ids)) == len(ids)
            (start,) = tokenizer.encode("\n")  # in both layouts it stands before an answer
            model = parrot(tokenizer, [start, *ids, ids[0] if again else tokenizer.eos_id], context)
        save_pretrained(model, folder, tokenizer.token_ids)
        tokenizer.save(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def random_folder(folder_of):
    return folder_of()


@pytest.fixture(scope="module")
def kettle(folder_of):
    return folder_of("the kettle is good.")


@pytest.fixture
def program():
    return minirlhf.cli.chat


@pytest.fixture
def chat(program, monkeypatch, tmp_path, capsys):
    """chat(lines, folder, *flags) -> (stdout, lines of stderr)."""

    def chat(lines, *argv):
        monkeypatch.chdir(tmp_path)
        text = "".join(line + "\n" for line in lines)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8"))
        monkeypatch.setattr(sys, "argv", ["minirlhf", "chat", *map(str, argv), "--device", "cpu"])
        capsys.readouterr()
        main()
        out, err = capsys.readouterr()
        return out, err.splitlines()

    return chat


def saved(path):
    (line,) = path.read_text(encoding="utf-8").splitlines()
    return json.loads(line)["messages"]


def turns(*texts):
    return [{"role": role, "content": text} for role, text in zip(itertools.cycle(["user", "assistant"]), texts)]


# ---- answers


def test_several_processes_are_refused(kettle, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="^chat: needed one process, got 2; start it without torchrun$"):
        minirlhf.cli.chat.main([str(kettle)])


def test_each_line_is_a_turn_and_only_answers_go_to_stdout(chat, kettle):
    out, notes = chat(["hello", "", "  ", "hello again"], kettle)
    assert out == "the kettle is good.\n" * 2
    count = len(make_tokenizer().encode("the kettle is good.")) + 1
    assert notes[0].endswith("a context of 96 tokens, on cpu; /help shows the commands")
    assert [note.split(" tokens")[0] for note in notes[1:]] == [str(count)] * 2


def test_the_model_reads_the_whole_conversation_in_its_template(chat, random_folder, tmp_path):
    flags = "--temperature", "0", "--max_tokens", "6", "--system", "it is"
    out, _ = chat(["hello", "the kettle", "/save dialogue.jsonl"], random_folder, *flags)
    tokenizer, model = Tokenizer.load(random_folder), load_policy(random_folder).transformer
    greedy = SamplingConfig(max_tokens=6, temperature=0, stop_ids=tokenizer.eos_ids)
    messages, shown = [{"role": "system", "content": "it is"}], ""
    for text in ("hello", "the kettle"):
        messages.append({"role": "user", "content": text})
        prompt, _ = tokenizer.encode_chat(messages, add_generation_prompt=True)
        answer = tokenizer.decode(generate(model, [prompt], greedy)[0].ids)
        messages.append({"role": "assistant", "content": answer.strip()})
        shown += answer + "\n"
    assert saved(tmp_path / "dialogue.jsonl") == messages
    assert out == shown and len(out) > 8


def test_the_same_seed_gives_the_same_conversation_and_another_seed_another(chat, random_folder):
    first, again, other = (chat(["hello", "hello"], random_folder, "--seed", seed)[0] for seed in (1, 1, 2))
    assert first == again != other


def test_each_turn_has_its_own_noise_and_clear_starts_again(chat, tmp_path):
    tokenizer = make_tokenizer()
    save_pretrained(parrot(tokenizer, [], context=400), tmp_path, tokenizer.token_ids)  # all tokens are equally likely
    tokenizer.save(tmp_path)
    lines = ["hello", "hello", "/save one", "/clear", "hello", "hello", "/save two"]
    chat(lines, tmp_path, "--max_tokens", "8")
    one, two = saved(tmp_path / "one"), saved(tmp_path / "two")
    assert one == two and one[1]["content"] != one[3]["content"]


@pytest.mark.parametrize(("precision", "dtype"), [("auto", torch.float32), ("bf16", torch.bfloat16)])
def test_weights_are_read_in_the_precision_of_sampling(program, kettle, tmp_path, precision, dtype):
    save_pretrained(load_policy(kettle, dtype=torch.float16), tmp_path)
    make_tokenizer().save(tmp_path)
    config = program.ChatConfig(precision=precision)
    policy, _ = program.load(tmp_path, config, torch.device("cpu"))
    assert {p.dtype for p in policy.parameters()} == {dtype}


def test_an_answer_that_reaches_max_tokens_is_marked(chat, folder_of, kettle):
    out, notes = chat(["hello"], kettle, "--max_tokens", "2")
    assert out == "the kettle\n" and notes[-1].endswith(" a second, cut off")
    out, notes = chat(["hello"], folder_of("it is", context=40, again=True))
    assert notes[-1].startswith("20 tokens")  # half the context


def test_without_a_template_each_line_is_sent_as_typed(chat, folder_of, tmp_path):
    folder = folder_of(None, template=None)
    out, notes = chat([" it is", "hello", "/system be good", "/save rows.jsonl"], folder, "--max_tokens", "6")
    assert notes[0] == (
        f"{folder}: no chat template, so each line is sent as typed; --raw false sends turns of plain text, "
        "--template NAME takes a built-in template"
    )
    assert notes[-2].startswith("error: system: each line is sent as typed, without turns; give --raw false")
    tokenizer, model = Tokenizer.load(folder), load_policy(folder).transformer
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["prompt"] for row in rows] == [" it is", "hello"]
    sampling = SamplingConfig(max_tokens=6, temperature=0.7, top_p=0.95, stop_ids=tokenizer.eos_ids)
    for turn, row in enumerate(rows):  # each line alone, with its spaces
        ids = tokenizer.encode_prompts([row["prompt"]])
        (done,) = generate(model, ids, sampling, seed=0, stream="chat", keys=[(0, 2 * turn + 1, 0)])
        assert row["response"] == tokenizer.decode(done.ids)
    assert out == "".join(row["response"] + "\n" for row in rows)


def test_raw_needs_no_folder_without_a_template_and_a_long_line_is_refused(chat, kettle, random_folder):
    out, notes = chat(["hello", "the kettle " * 60], random_folder, "--raw", "--max_tokens", "4", "--temperature", "0")
    tokenizer, model = Tokenizer.load(random_folder), load_policy(random_folder).transformer
    greedy = SamplingConfig(max_tokens=4, temperature=0, stop_ids=tokenizer.eos_ids)
    assert out == tokenizer.decode(generate(model, tokenizer.encode_prompts(["hello"]), greedy)[0].ids) + "\n"
    assert notes[-1].startswith("error: this text needs ") and notes[-1].endswith(" 92 fit; use fewer words")


def test_without_a_template_raw_false_writes_turns_and_an_answer_ends_before_a_user_turn(chat, folder_of, tmp_path):
    folder = folder_of("Yes.\n\nUser:", template=None)
    out, notes = chat(["hello", "/save dialogue.jsonl"], folder, "--raw", "false")
    assert (
        out == "Yes.\n\n" and "no chat template" not in notes[0]
    )  # the model wrote one newline, the program the other
    assert saved(tmp_path / "dialogue.jsonl") == turns("hello", "Yes.")


def test_a_pipelines_folder_takes_its_last_policy(chat, kettle, random_folder, tmp_path):
    for stage, model in (("sft", random_folder), ("ppo", kettle)):
        (tmp_path / "job" / stage).mkdir(parents=True)
        (tmp_path / "job" / stage / "config.toml").write_text("")
        with written_whole(tmp_path / "job" / stage / "model") as aside:
            shutil.copytree(model, aside, dirs_exist_ok=True)
    out, notes = chat(["hello"], tmp_path / "job")
    assert out == "the kettle is good.\n" and notes[0].startswith(f"{tmp_path / 'job' / 'ppo' / 'model'}: ")


def test_template_variables_are_set_for_the_conversation(chat, folder_of, tmp_path):
    folder = folder_of(None)
    source = Tokenizer.load(folder).templates["default"].source + "{{ 'it is' if brief }}"
    Tokenizer.load(folder).with_template(source).save(folder)
    flags = "--max_tokens", "6", "--temperature", "0"
    plain, brief, off = (
        chat(["hello"], folder, *flags, *words)[0]
        for words in ([], ["--template_variables", '{"brief": true}'], ["--template_variables", '{"brief": false}'])
    )
    assert plain == off != brief


def test_with_the_built_in_plain_template_an_answer_ends_before_a_user_turn_too(chat, folder_of):
    folder = folder_of("Yes.\n\nUser:", template=None)
    assert chat(["hello"], folder, "--template", "plain")[0] == "Yes.\n\n"


def test_with_another_template_the_header_of_a_user_turn_is_plain_text(chat, folder_of):
    out, notes = chat(["hello"], folder_of("Yes.\n\nUser:", template=None), "--template", "chatml")
    assert out == "Yes.\n\nUser:\n" and len(notes) == 2


def test_control_characters_are_saved_but_not_shown(chat, folder_of, tmp_path):
    out, _ = chat(["hello", "/save dialogue.jsonl"], folder_of("a\x1b[b\r\tc"))
    assert out == "a\ufffd[b\ufffd\tc\n"
    assert saved(tmp_path / "dialogue.jsonl") == turns("hello", "a\x1b[b\r\tc")


def test_an_adapter_changes_the_answers(chat, random_folder, tmp_path):
    policy, tokenizer = load_policy(random_folder), Tokenizer.load(random_folder)
    apply_lora(policy, LoRAConfig(r=2))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in policy.named_parameters():
            if name.endswith(".B"):
                p.normal_()
    save_adapter(policy, tmp_path / "adapter")
    prompt, _ = tokenizer.encode_chat(turns("hello"), add_generation_prompt=True)
    greedy = SamplingConfig(max_tokens=6, temperature=0, stop_ids=tokenizer.eos_ids)
    expected = tokenizer.decode(generate(policy.transformer, [prompt], greedy)[0].ids)
    flags = "--temperature", "0", "--max_tokens", "6"
    out, _ = chat(["hello"], random_folder, *flags, "--adapter", tmp_path / "adapter")
    assert out == expected + "\n" != chat(["hello"], random_folder, *flags)[0]


# ---- a conversation longer than the context


def test_the_oldest_turns_are_left_out_in_pairs_and_never_the_system_turn(program):
    tokenizer = make_tokenizer()
    system, dialogue = [{"role": "system", "content": "it is"}], turns("hello", "Yes.", "the kettle", "good.", "bad.")
    lengths = [len(tokenizer.encode_chat(system + dialogue[n:], add_generation_prompt=True)[0]) for n in (0, 2, 4)]
    for limit, left_out in ((lengths[0], 0), (lengths[0] - 1, 2), (lengths[1], 2), (lengths[1] - 1, 4)):
        ids, start = program.fitting_prompt(tokenizer, system, dialogue, limit)
        assert start == left_out
        assert ids == tokenizer.encode_chat(system + dialogue[left_out:], add_generation_prompt=True)[0]
    with pytest.raises(InputError, match=f"this turn needs {lengths[2]} tokens, .* {lengths[2] - 1} fit"):
        program.fitting_prompt(tokenizer, system, dialogue, lengths[2] - 1)


def test_a_line_says_how_many_turns_are_left_out_and_the_saved_conversation_keeps_them(chat, kettle, tmp_path):
    lines = ["the kettle is good. it is bad."] * 3
    out, notes = chat([*lines, "/save dialogue.jsonl"], kettle, "--max_tokens", "48")
    assert notes[3] == "the oldest 2 turns are left out: the context holds 96 tokens, 48 of them for the answer"
    assert out == "the kettle is good.\n" * 3
    assert len(saved(tmp_path / "dialogue.jsonl")) == 6


def test_a_turn_that_can_never_fit_is_refused_and_the_conversation_goes_on(chat, kettle, tmp_path):
    out, notes = chat(["the kettle " * 60, "hello", "/save dialogue.jsonl"], kettle)
    assert notes[1].startswith("error: this turn needs ") and notes[1].endswith(" 48 fit; use fewer words")
    assert out == "the kettle is good.\n"
    assert saved(tmp_path / "dialogue.jsonl") == turns("hello", "the kettle is good.")


# ---- commands


def test_system_sets_the_system_turn_and_without_text_removes_it(chat, kettle, tmp_path):
    lines = ["/system be good", "hello", "/save one.jsonl", "/system it is", "/save two.jsonl", "/system"]
    chat([*lines, "/save three.jsonl"], kettle, "--system", "be bad")
    dialogue = turns("hello", "the kettle is good.")
    assert saved(tmp_path / "one.jsonl") == [{"role": "system", "content": "be good"}, *dialogue]
    assert saved(tmp_path / "two.jsonl") == [{"role": "system", "content": "it is"}, *dialogue]
    assert saved(tmp_path / "three.jsonl") == dialogue


def test_clear_forgets_the_turns_and_keeps_the_system_turn(chat, random_folder, tmp_path):
    lines = ["hello", "/clear", "it is", "/save dialogue.jsonl"]
    chat(lines, random_folder, "--system", "be good", "--max_tokens", "4")
    system, user, _ = saved(tmp_path / "dialogue.jsonl")
    assert (system["content"], user["content"]) == ("be good", "it is")


def test_retry_samples_the_last_answer_again_with_other_noise_each_time(chat, random_folder, tmp_path):
    lines = ["hello", "/save 0", "/retry", "/save 1", "/retry", "/save 2", "it is", "/retry", "/save 3"]
    chat(lines, random_folder, "--max_tokens", "8")
    first, second, third, last = (saved(tmp_path / str(n)) for n in range(4))
    assert len({dialogue[1]["content"] for dialogue in (first, second, third)}) == 3
    assert [len(dialogue) for dialogue in (first, second, third, last)] == [2, 2, 2, 4]
    assert last[:3] == [*third, {"role": "user", "content": "it is"}]


def test_retry_needs_an_answer(chat, kettle):
    out, notes = chat(["/retry", "hello"], kettle)
    assert notes[1] == "error: /retry: needed an answer to sample again, got no answer yet"
    assert out == "the kettle is good.\n"


def test_save_overwrites_no_file_and_says_what_is_missing(chat, kettle, tmp_path):
    (tmp_path / "old.jsonl").write_text("mine")
    _, notes = chat(["/save new.jsonl", "hello", "/save old.jsonl", "/save", "/save new.jsonl"], kettle)
    assert notes[1] == "error: /save: needed a conversation, got nothing"
    assert notes[3:] == [
        "error: /save: needed a file that can be made, got old.jsonl: File exists",
        "error: /save: needed the name of a file, got nothing",
        "saved 2 turns in new.jsonl",
    ]
    assert (tmp_path / "old.jsonl").read_text() == "mine"


def test_help_names_every_command(chat, kettle):
    out, notes = chat(["/help"], kettle)
    assert out == ""
    commands = [note.split()[0] for note in notes[1:]]
    assert commands == ["/system", "/clear", "/retry", "/save", "/help", "/quit"]


def test_quit_leaves_at_once(chat, kettle):
    assert chat(["hello", "/quit", "hello"], kettle)[0] == "the kettle is good.\n"


def test_an_unknown_command_is_refused_and_a_leading_space_makes_it_a_turn(chat, kettle, tmp_path):
    out, notes = chat(["/good", " /good", "/save dialogue.jsonl"], kettle)
    assert notes[1] == "no command /good; /help shows all commands. To say this to the model, begin with a space."
    assert out == "the kettle is good.\n"
    assert saved(tmp_path / "dialogue.jsonl")[0]["content"] == "/good"


# ---- at a terminal


def test_at_a_terminal_ctrl_c_stops_an_answer_and_ctrl_d_leaves(folder_of, tmp_path):
    folder = folder_of(" it is", context=20_000, again=True)
    our_end, program_end = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "minirlhf.cli.main", "chat", folder, "--max_tokens", "10000", "--device", "cpu"],
        stdin=program_end, stdout=program_end, stderr=program_end, cwd=tmp_path, start_new_session=True,
        # in a background job of a shell, Ctrl-C is ignored, and child processes inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env=os.environ | {"OMP_NUM_THREADS": "1", "TERM": "dumb", "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    os.close(program_end)

    unread = ""

    def wait(seconds):
        return select.select([our_end], [], [], seconds)[0]

    def read_until(text):
        nonlocal unread
        while text not in unread:
            assert wait(60), f"no {text!r} in {unread!r}"
            unread += os.read(our_end, 10_000).decode()
            assert len(unread) < 20_000, f"no {text!r} in {unread[:500]!r}"
        before, _, unread = unread.partition(text)
        return before

    assert "/help shows the commands\x1b[0m" in read_until("\n> ")  # dim
    os.write(our_end, b"hello\n")
    read_until("it is it is")
    process.send_signal(signal.SIGINT)
    assert " a second, stopped\x1b[0m" in read_until("\n> ")
    process.send_signal(signal.SIGINT)
    for _ in range(60):  # readline misses a signal that comes before it waits for a key
        if wait(1):
            break
        process.send_signal(signal.SIGINT)
    assert "/quit or Ctrl-D leaves" in read_until("\n> ")
    os.write(our_end, b"/save dialogue.jsonl\n")
    read_until("saved 2 turns")
    read_until("\n> ")
    os.write(our_end, b"\x04")
    assert process.wait(60) == 0
    os.close(our_end)
    assert saved(tmp_path / "dialogue.jsonl")[1]["content"].startswith("it is it is")


# ---- refusals at the start


@pytest.fixture
def refusal(chat, capsys):
    """refusal(*argv): the one line on stderr before exit code 2."""

    def refusal(*argv):
        with pytest.raises(SystemExit) as caught:
            chat(["hello"], *argv)
        out, err = capsys.readouterr()
        assert (caught.value.code, out, err.count("\n")) == (2, "", 1), err
        return err.strip()

    return refusal


def test_a_folder_must_be_named_first(refusal, kettle):
    text = "error: chat: needed a model's folder first, got none: minirlhf chat DIR, or see --help"
    assert refusal() == refusal("--seed", "1") == text
    assert (
        refusal("--seed", "1", kettle) == f"error: command line: needed --name value, got '{kettle}' alone; see --help."
    )


def test_a_folder_without_a_model_is_refused(refusal, tmp_path):
    assert refusal("nowhere") == (
        "error: nowhere: needed a model folder with config.json, found none; check the path; OWNER/NAME names a model "
        "of the hub only if no folder OWNER is here"
    )


def test_a_reward_model_is_refused(refusal, tmp_path):
    tokenizer = make_tokenizer()
    save_pretrained(RewardModel(random_model(tokenizer)), tmp_path / "reward")
    tokenizer.save(tmp_path / "reward")
    text = f"error: {tmp_path / 'reward'}: needed a language model, got a RewardModel; check the folder"
    assert refusal(tmp_path / "reward") == text


def test_an_adapter_folder_without_an_adapter_is_refused(refusal, kettle):
    text = f"error: {kettle}: needed an adapter folder with adapter_config.json, found none; check the path"
    assert refusal(kettle, "--adapter", kettle) == text


def test_impossible_settings_are_refused(refusal, kettle):
    assert "needed one of chatml" in refusal(kettle, "--template", "nonsense")
    assert "--raw sends text without a template" in refusal(kettle, "--raw", "--template", "chatml")
    assert "does not read 'x'; it reads no variables" in refusal(kettle, "--template_variables", '{"x": 1}')
    assert "needed temperature 0 or from 0.001 up" in refusal(kettle, "--temperature", "-1")
    assert "max_tokens and batch_size must be at least 1" in refusal(kettle, "--max_tokens", "0")


def test_every_setting_has_a_unit_and_a_meaning(program):
    assert [field.name for field in dataclasses.fields(program.ChatConfig)] == list(field_help(program.ChatConfig))
