"""Completions: their ends, their cost, and that each depends on the weights and its own key alone."""

import itertools
import re
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from minirlhf.data.batches import pad_sequences
from minirlhf.errors import InputError
from minirlhf.generation import SamplingConfig, generate
from minirlhf.model import KVCache, ModelConfig, Policy, Transformer
from minirlhf.runtime.randomness import keyed_uniforms
from minirlhf.text import Tokenizer

EOS = 2


@pytest.fixture(scope="module")
def transformer():
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocab_size=23, hidden_size=24, intermediate_size=40, max_position_embeddings=48))
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn_like(p)
    return model


@pytest.fixture(scope="module")
def prompts():
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 13, (40,), generator=generator).tolist()
    return [torch.randint(3, 23, (n,), generator=generator).tolist() for n in lengths]


class Bigram:
    """In place of a transformer: the logits of the next token are the row of the last token in a table."""

    def __init__(self, table, context=64):
        self.head_weight, self.device, self.dtype = table.T.contiguous(), table.device, table.dtype
        V = len(table)
        self.config = ModelConfig(V, 4, 1, 1, 1, intermediate_size=4, max_position_embeddings=context)
        self.batches = []  # how many rows each forward had

    def model(self, ids, mask, cache):
        if mask is not None:
            cache.lengths = cache.lengths + mask.sum(-1)
        return torch.nn.functional.one_hot(ids, len(self.head_weight)).float()

    def logits(self, hidden):
        return hidden @ self.head_weight.T

    def __call__(self, ids, cache):
        self.batches.append(len(ids))
        return self.logits(self.model(ids, None, cache))


def chain(*ids, size=300):
    """A Bigram that writes these ids in order, and the last id again and again."""
    table = torch.zeros(size, size)
    for token, following in itertools.pairwise((*ids, ids[-1])):
        table[token, following] = 100.0
    return Bigram(table)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["the end of the end", "the word stops here"] * 4, 290)


# ---- log-probs


@pytest.mark.parametrize(("temperature", "batch_size"), [(1.0, 40), (0.7, 40), (0.7, 7)])
def test_sampled_log_prob_equals_the_rescored_one(transformer, prompts, temperature, batch_size):
    config = SamplingConfig(max_tokens=30, temperature=temperature, stop_ids=(EOS,), batch_size=batch_size)
    completions = generate(transformer, prompts, config)
    batch = pad_sequences(prompts, [c.ids for c in completions], 0)
    rescored = Policy(transformer)(batch.input_ids, batch.attention_mask, temperature=temperature).logps
    sampled = torch.tensor([logp for c in completions for logp in c.logps])
    assert len({len(c.ids) for c in completions}) > 5
    assert_close(sampled, rescored[batch.completion_mask], atol=1e-5, rtol=0)


def test_truncated_log_prob_is_the_plain_one_renormalised(transformer, prompts):
    completions = generate(transformer, prompts, SamplingConfig(max_tokens=1, top_k=3))
    for prompt, completion in zip(prompts, completions, strict=True):
        logps = transformer(torch.tensor([prompt]))[0, -1].log_softmax(-1)
        best = logps.topk(3)
        mass = best.values.exp().sum()
        assert completion.ids[0] in best.indices
        assert completion.mass_kept == pytest.approx(mass.item(), rel=1e-4)
        assert completion.logps[0] == pytest.approx((logps[completion.ids[0]] - mass.log()).item(), abs=1e-4)


def test_mass_kept_is_the_mean_over_the_tokens_of_the_completion():
    # after 0 the likeliest token (1) has 0.5, after 1 the likeliest (EOS) 0.7; the mean is 0.6
    table = torch.tensor([[0.2, 0.5, 0.3], [0.2, 0.1, 0.7], [0.9, 0.05, 0.05]]).log()
    completion = generate(Bigram(table), [[0]], SamplingConfig(max_tokens=9, top_k=1, stop_ids=(EOS,)))[0]
    assert completion.ids == [1, EOS]
    assert completion.mass_kept == pytest.approx(0.6)
    assert completion.logps == pytest.approx([0, 0], abs=1e-6)


def test_greedy_equals_the_argmax_of_the_full_forward(transformer, prompts):
    completions = generate(transformer, prompts, SamplingConfig(max_tokens=12, temperature=0))
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = list(prompt)
        for _ in range(12):
            ids.append(transformer(torch.tensor([ids]))[0, -1].argmax().item())
        assert completion.ids == ids[len(prompt) :] and completion.logps == [0] * 12


# ---- a completion depends on the weights and its key


def test_a_completion_does_not_depend_on_its_batch_its_order_or_the_end_of_other_rows(
    transformer, prompts, monkeypatch
):
    dropped = []
    select = KVCache.select
    monkeypatch.setattr(KVCache, "select", lambda cache, rows: (dropped.append(len(rows)), select(cache, rows))[1])
    config = {"max_tokens": 20, "stop_ids": (EOS,), "microbatch_tokens": 32}  # prompts are read in several groups
    keys = [(0, i, 0) for i in range(len(prompts))]
    alone = [
        generate(transformer, [p], SamplingConfig(**config), keys=[k], plain=True)[0]
        for p, k in zip(prompts, keys, strict=True)
    ]
    assert not dropped and {c.finish for c in alone} == {"stop", "length"}
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(3)).tolist()
    for batch_size, chosen in ((40, range(40)), (7, range(40)), (40, order), (11, order), (40, order[:13])):
        completions = generate(
            transformer,
            [prompts[i] for i in chosen],
            SamplingConfig(**config, batch_size=batch_size),
            keys=[keys[i] for i in chosen],
            plain=True,
        )
        for i, completion in zip(chosen, completions, strict=True):
            assert (completion.ids, completion.finish) == (alone[i].ids, alone[i].finish)
            assert completion.logps == pytest.approx(alone[i].logps, abs=1e-5)
    assert len(dropped) > 10  # rows did leave the batch


def test_a_longer_limit_only_adds_tokens(transformer, prompts):
    short, long = (generate(transformer, prompts, SamplingConfig(max_tokens=n)) for n in (5, 20))
    assert [c.ids for c in short] == [c.ids[:5] for c in long]


def test_the_same_key_gives_the_same_completion_and_another_key_another_completion(transformer, prompts):
    def write(keys, **settings):
        completions = generate(
            transformer, [prompts[0]] * len(keys), SamplingConfig(max_tokens=20), keys=keys, **settings
        )
        return [tuple(c.ids) for c in completions]

    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (0, 0, 0)]
    written = write(keys)
    assert written == write(keys) and written[0] == written[-1]
    assert len(set(written)) == len(set(keys))
    others = [write(keys, seed=1), write(keys, stream="other")]
    assert all(a != b for other in others for a, b in zip(written, other, strict=True))


def test_without_keys_rows_are_counted(transformer, prompts):
    config = SamplingConfig(max_tokens=9, batch_size=7)
    keys = [(0, i, 0) for i in range(40)]
    assert generate(transformer, prompts, config) == generate(transformer, prompts, config, keys=keys)


def test_the_noise_of_token_t_is_keyed_by_draw_prompt_sample_and_t():
    # eight equal tokens: the token is the uniform's first three bits
    keys = [(5, 3, 1), (0, 7, 2)]
    completions = generate(
        Bigram(torch.zeros(8, 8)), [[0], [1, 2]], SamplingConfig(max_tokens=6), seed=4, stream="here", keys=keys
    )
    for key, completion in zip(keys, completions, strict=True):
        uniforms = [keyed_uniforms(4, "here", *key, position).item() for position in range(6)]
        assert completion.ids == [int(8 * u) for u in uniforms]


# ---- where a completion ends


def test_stop_token_ends_a_completion_and_belongs_to_it():
    completion = generate(chain(3, 4, 5, EOS, 6), [[3]], SamplingConfig(max_tokens=9, stop_ids=(EOS,)))[0]
    assert (completion.ids, completion.finish) == ([4, 5, EOS], "stop")
    assert len(completion.logps) == 3 and completion.mass_kept == 1


def test_any_of_several_stop_ids_ends_a_completion():
    for stop_ids, ids in (((5, EOS), [4, 5]), ((EOS, 4), [4]), ((7,), [4, 5, EOS, 6, 6])):
        completion = generate(chain(3, 4, 5, EOS, 6), [[3]], SamplingConfig(max_tokens=5, stop_ids=stop_ids))[0]
        assert completion.ids == ids


def test_a_stop_token_in_the_prompt_ends_nothing():
    assert generate(chain(EOS, 4, 5), [[EOS]], SamplingConfig(max_tokens=2, stop_ids=(EOS,)))[0].ids == [4, 5]


def test_max_tokens_counts_the_stop_token():
    for max_tokens, ids, finish in ((2, [4, 5], "length"), (3, [4, 5, EOS], "stop"), (1, [4], "length")):
        completion = generate(chain(3, 4, 5, EOS, 6), [[3]], SamplingConfig(max_tokens, stop_ids=(EOS,)))[0]
        assert (completion.ids, completion.finish) == (ids, finish)


def test_a_finished_row_that_runs_on_keeps_its_first_end():
    # A single row of nine stops at once. It is not dropped, so it runs on and writes 6, then EOS again.
    table = torch.zeros(9, 9)
    for token, following in ((3, EOS), (EOS, 6), (6, EOS), (4, 5), (5, 4)):
        table[token, following] = 100.0
    model = Bigram(table)
    first, *others = generate(model, [[3]] + [[4]] * 8, SamplingConfig(max_tokens=6, stop_ids=(EOS,)))
    assert model.batches == [9] * 5
    assert (first.ids, first.finish, len(first.logps)) == ([EOS], "stop", 1)
    assert all((c.ids, c.finish) == ([5, 4, 5, 4, 5, 4], "length") for c in others)


def test_finished_rows_leave_the_batch_and_an_empty_batch_stops():
    # rows stop after 1, 2, 3 and 4 tokens: 4 rows, then 3, 2 and 1 go on, then none
    model = chain(6, 5, 4, 3, EOS)
    completions = generate(model, [[6], [5], [4], [3]], SamplingConfig(max_tokens=20, stop_ids=(EOS,)))
    assert [c.ids for c in completions] == [[5, 4, 3, EOS], [4, 3, EOS], [3, EOS], [EOS]]
    assert model.batches == [3, 2, 1]


def test_the_token_that_completes_a_stop_string_ends_the_completion(tokenizer):
    ids = tokenizer.encode(" stops")
    words = [*tokenizer.encode("the word"), *ids, *tokenizer.encode(" here")]
    assert len(set(words)) == len(words) and "d stops" not in tokenizer.decode_completions([[i] for i in words])
    config = SamplingConfig(max_tokens=30, stop_strings=("nothing", "d stops"))
    completion = generate(chain(1, *words), [[1]], config, tokenizer=tokenizer)[0]
    assert tokenizer.decode(completion.ids) == "the word stops" and completion.finish == "stop"


@pytest.mark.parametrize("stop_strings", [("z", "xwvutsqpomlk"), ("xwvutsqpomlk", "z")])
def test_the_longest_of_several_stop_strings_is_found_whole(tokenizer, stop_strings):
    # each letter is a token, so a window over the shortest string sees a part of the longest
    ids = tokenizer.encode("xwvutsqpomlkji")
    assert len(ids) == len(set(ids)) == 14
    config = SamplingConfig(max_tokens=14, stop_strings=stop_strings)
    completion = generate(chain(1, *ids), [[1]], config, tokenizer=tokenizer)[0]
    assert (completion.ids, completion.finish) == (ids[:12], "stop")


def test_stop_string_split_inside_a_character(tokenizer):
    ids = tokenizer.encode("a\u00e9z")
    assert len(ids) == 4  # two bytes make the character
    completion = generate(chain(1, *ids), [[1]], SamplingConfig(9, stop_strings=("\u00e9",)), tokenizer=tokenizer)[0]
    assert (completion.ids, completion.finish) == (ids[:3], "stop")


def test_stop_string_inside_a_token_keeps_the_whole_token(tokenizer):
    ids = tokenizer.encode("the end of")
    assert tokenizer.decode(ids[:1]) == "the"
    completion = generate(chain(1, *ids), [[1]], SamplingConfig(9, stop_strings=("h",)), tokenizer=tokenizer)[0]
    assert completion.ids == ids[:1]


def test_stop_string_in_the_prompt_ends_nothing(tokenizer):
    prompt, ids = tokenizer.encode("e"), tokenizer.encode("nd")
    model = chain(*prompt, *ids)
    completion = generate(model, [prompt], SamplingConfig(2, stop_strings=("end",)), tokenizer=tokenizer)[0]
    assert completion.finish == "length"


def test_the_earlier_of_stop_token_and_stop_string_counts(tokenizer):
    ids = tokenizer.encode("xyz")
    for words, length in (([*ids, EOS], 2), ([ids[0], EOS, *ids[1:]], 2), ([*ids[:1], *ids[2:], EOS], 3)):
        config = SamplingConfig(9, stop_ids=(EOS,), stop_strings=("y",))
        assert len(generate(chain(1, *words), [[1]], config, tokenizer=tokenizer)[0].ids) == length


# ---- tokens as they come


def test_on_token_gets_the_tokens_of_each_completion_and_changes_nothing(transformer, prompts):
    config = SamplingConfig(max_tokens=20, stop_ids=(EOS,), batch_size=7)
    tokens = [[] for _ in prompts]
    completions = generate(transformer, prompts, config, on_token=lambda prompt, token: tokens[prompt].append(token))
    assert {c.finish for c in completions} == {"stop", "length"}
    assert tokens == [c.ids for c in completions]
    assert completions == generate(transformer, prompts, config)


def test_on_token_gets_a_token_before_the_next_is_drawn():
    model = chain(3, 4, 5, EOS)
    calls = []
    config = SamplingConfig(max_tokens=9, stop_ids=(EOS,))
    generate(model, [[3]], config, on_token=lambda _, token: calls.append((token, len(model.batches))))
    assert calls == [(4, 0), (5, 1), (EOS, 2)]  # (token, forwards since the prompt was read)


def test_an_exception_of_on_token_ends_the_sampling():
    def stop_at_5(_, token):
        if token == 5:
            raise KeyboardInterrupt

    model = chain(3, 4, 5, 6, 7)
    with pytest.raises(KeyboardInterrupt):
        generate(model, [[3]], SamplingConfig(max_tokens=9), on_token=stop_at_5)
    assert len(model.batches) == 1


# ---- no side effects


def test_weights_and_prompts_are_not_written_to_and_nothing_carries_gradient(transformer, prompts):
    before = [p.clone() for p in transformer.parameters()], [list(p) for p in prompts]
    generate(transformer, prompts, SamplingConfig(max_tokens=3))
    assert all(torch.equal(a, b) for a, b in zip(before[0], transformer.parameters(), strict=True))
    assert before[1] == prompts and all(p.grad is None for p in transformer.parameters())


def test_no_prompts_are_no_completions(transformer):
    assert generate(transformer, [], SamplingConfig()) == []


def test_prompt_and_completion_may_fill_the_context(transformer):
    assert len(generate(transformer, [[3] * 40, [4]], SamplingConfig(max_tokens=8))[0].ids) == 8


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("batch_size", [1, 2, 40])
def test_each_prompt_gets_the_room_that_it_leaves(transformer, temperature, batch_size):
    # context 48; the prompts leave 48 - n tokens, up to 20. Completions are as in a context without an end.
    lengths = [47, 1, 40, 47, 46, 28, 27, 29, 45, 3]
    prompts = [[3 + (7 * i + k) % 20 for k in range(n)] for i, n in enumerate(lengths)]
    wide = Transformer(replace(transformer.config, max_position_embeddings=128))
    wide.load_state_dict(transformer.state_dict())
    config = SamplingConfig(max_tokens=20, temperature=temperature, stop_ids=(EOS,), batch_size=batch_size)
    found, free = (generate(model, prompts, config) for model in (transformer, wide))
    assert any(completion.finish == "stop" for completion in free)
    for prompt, completion, longer in zip(prompts, found, free, strict=True):
        room = min(20, 48 - len(prompt))
        assert completion.ids == longer.ids[:room]
        assert completion.logps == pytest.approx(longer.logps[:room], abs=1e-5)
        assert completion.finish == (longer.finish if len(longer.ids) <= room else "length")


def test_an_end_token_in_the_last_column_of_the_context_is_an_end():
    model = chain(3, 4, EOS)
    model.config = replace(model.config, max_position_embeddings=4)
    first, second = generate(model, [[6, 3], [6, 6, 4]], SamplingConfig(max_tokens=9, stop_ids=(EOS,)))
    assert (first.ids, first.finish, second.ids, second.finish) == ([4, EOS], "stop", [EOS], "stop")


# ---- requests that are refused


def refuses(text):
    return pytest.raises(InputError, match=f"^{re.escape(text)}$")


@pytest.mark.parametrize(
    ("prompts", "text"),
    [
        (["abc"], "got str 'abc' as prompt 0"),
        ("abc", "got str 'abc'"),
        ([[1, 2], ["a"]], "got str 'a' in prompt 1"),
        ([[1.0]], "got float 1.0 in prompt 0"),
        (torch.ones(1, 3, dtype=torch.long), "got Tensor tensor([1, 1, 1]) as prompt 0; write prompt.tolist()"),
        (None, "got None"),
        ((x for x in ["abc"]), "got a generator"),
    ],
)
def test_prompts_are_lists_of_ids(make, prompts, text):
    with pytest.raises(InputError, match="^generate: needed ") as caught:
        generate(make(), prompts, SamplingConfig(max_tokens=2))
    assert text in str(caught.value)


def test_empty_prompt_is_refused(transformer):
    with refuses("generate: prompt 1 is empty; tokenizer.encode_prompts(texts) gives each a token"):
        generate(transformer, [[3], []], SamplingConfig(max_tokens=1))


def test_a_prompt_that_leaves_no_room_is_refused(transformer):
    with refuses("generate: the 48 tokens of prompt 1 leave no room in the context of 48; shorten it"):
        generate(transformer, [[3], [3] * 48], SamplingConfig(max_tokens=8))


def test_stop_strings_without_tokenizer_are_refused(transformer):
    with refuses("generate: stop strings need the tokenizer to read the completions; pass tokenizer="):
        generate(transformer, [[3]], SamplingConfig(max_tokens=1, stop_strings=("x",)))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"max_tokens": 0}, "SamplingConfig: max_tokens and batch_size must be at least 1, got 0 and 256"),
        (
            {"stop_strings": ("a", "")},
            "SamplingConfig: a stop string must not be empty: it would end every completion at once",
        ),
        *(
            (
                settings,
                "SamplingConfig: needed temperature 0 or from 0.001 up, top_k >= 0 and 0 < top_p <= 1, got "
                f"{settings.get('temperature', 1.0)}, {settings.get('top_k', 0)} and {settings.get('top_p', 1.0)}",
            )
            for settings in ({"temperature": -0.1}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1})
        ),
    ],
)
def test_impossible_settings_are_refused(settings, text):
    with refuses(text):
        SamplingConfig(**settings)


def test_the_least_settings_are_accepted():
    SamplingConfig(max_tokens=1, batch_size=1, temperature=1e-3, top_k=0, top_p=1e-9)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batch_size_below_1_is_refused(transformer, batch_size):
    with pytest.raises(InputError, match="batch_size"):
        generate(transformer, [[3]], SamplingConfig(max_tokens=1, batch_size=batch_size))


@pytest.mark.parametrize("keys", [[], [(0, 0, 0)] * 3])
def test_another_count_of_keys_is_refused(transformer, keys):
    with pytest.raises(ValueError, match="keys"):
        generate(transformer, [[3], [4]], SamplingConfig(max_tokens=1), keys=keys)


def test_a_prompt_of_another_vocabulary_is_refused(transformer):
    with pytest.raises(InputError, match="prompt 1 has ids up to 99999, the model's vocabulary holds"):
        generate(transformer, [[3], [99_999]], SamplingConfig(max_tokens=1))


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {}, {"top_k": 2}, {"top_p": 0.5}])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_broken_weights_are_refused_and_not_sampled_from(transformer, settings, value):
    broken = Transformer(transformer.config)
    torch.nn.init.constant_(broken.model.norm.weight, value)
    with pytest.raises(InputError, match="logits are not finite"):
        generate(broken, [[3]], SamplingConfig(max_tokens=1, **settings))
