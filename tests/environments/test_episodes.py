"""Episodes: the engine's slots and the plain path play the same dialogues, and no id is encoded twice."""

import asyncio
import threading
import time

import pytest
import torch
from games import LETTERS, TOKENIZER, Echo, Endless, model_of, rows

from minirlhf.data import EncodedRow
from minirlhf.environments import Episodes, Observation
from minirlhf.environments.threads import THREADS, Threads
from minirlhf.errors import InputError
from minirlhf.generation import SamplingConfig, generate
from minirlhf.generation import slots as slots_module
from minirlhf.generation.conversing import stream_of
from minirlhf.generation.slot_cache import SlotCache
from minirlhf.losses import token_logps
from minirlhf.rewards.calling import TookTooLong


def played(make, sampling, model=None, n=24, plain=False, data=None, **options):
    data = rows(n) if data is None else data
    keys = [(0, i, 0) for i in range(len(data))]
    episodes = Episodes(make, TOKENIZER, **options)
    return episodes.play(model or model_of(), data, sampling, seed=3, stream="rollout", keys=keys, plain=plain)


STOP = {"stop_ids": TOKENIZER.eos_ids}
CASES = {
    "stop ids": (STOP, {}),
    "limits of turns": (STOP | {"max_tokens": 4}, {"max_turns": 2}),
    "one token": (STOP | {"max_tokens": 1}, {"max_turns": 3}),
    "stop strings": (STOP | {"stop_strings": ("a", "gh"), "max_tokens": 6}, {}),
    "few slots": (STOP | {"batch_size": 5, "max_tokens": 5}, {}),
    "no end": ({"max_tokens": 7}, {"max_tool_tokens": 2}),
    "context": ({"max_tokens": 9, "stop_strings": ("ab",)}, {"make": Endless, "max_turns": 9}),
    "truncated": (STOP | {"top_k": 5, "temperature": 0.7}, {}),
}


@pytest.mark.parametrize("every", [1, 5], ids=["each token", "every fifth"])
@pytest.mark.parametrize("case", CASES)
def test_the_slots_play_the_episodes_of_the_plain_path(case, every, monkeypatch):
    if every > 1:  # as on a GPU: turns are found to have ended some tokens later
        monkeypatch.setattr(slots_module, "LOOK_EVERY", every)
        monkeypatch.setattr(slots_module, "waits_for_a_look", lambda device: True)
    sampling, options = CASES[case]
    options = {"make": Echo, "max_turns": 4} | options
    sampling = SamplingConfig(**{"max_tokens": 9} | sampling)
    ours, plain = (played(sampling=sampling, plain=plain, **options) for plain in (False, True))
    for a, b in zip(ours, plain, strict=True):
        assert (a.prompt, a.ids, a.chosen, a.turns, a.finish, a.whole) == (
            b.prompt, b.ids, b.chosen, b.turns, b.finish, b.whole,
        )  # fmt: skip
        assert a.rewards == b.rewards and a.chosen[-1]
        assert a.logps == pytest.approx(b.logps, abs=1e-5) and a.masses == pytest.approx(b.masses, abs=1e-5)
        assert all(logp == 0 for logp, chosen in zip(a.logps, a.chosen, strict=True) if not chosen)
    assert len({len(episode.rewards) for episode in ours}) > 1


def test_the_cases_reach_every_end():
    finishes = {}
    for case, (sampling, options) in CASES.items():
        sampling = SamplingConfig(**{"max_tokens": 9} | sampling)
        found = played(sampling=sampling, **{"make": Echo, "max_turns": 4} | options)
        finishes[case] = {(episode.finish, episode.whole) for episode in found}
    assert {"done", "turns", "context"} == {finish for found in finishes.values() for finish, _ in found}
    assert {("done", True), ("done", False)} <= set.union(*finishes.values())


def test_a_slow_environment_changes_no_bit():
    """Which rows share a forward decides how sums are rounded: a count of rows decides it, and no clock."""
    delays = torch.rand(400, generator=torch.Generator().manual_seed(5)).tolist()

    class Slow(Echo):
        def step(self, action):
            time.sleep(delays.pop() / 100)
            return super().step(action)

    sampling = SamplingConfig(max_tokens=6, **STOP)
    first, second = (played(make, sampling) for make in (Echo, Slow))
    assert [episode.logps for episode in first] == [episode.logps for episode in second]
    assert [episode.ids for episode in first] == [episode.ids for episode in second]


def test_no_id_is_encoded_again():
    """An episode holds the ids that were drawn, although the encoder writes the same text with other ids."""
    sampling, drawn = SamplingConfig(max_tokens=8, **STOP), []

    class Seen(Echo):
        def step(self, action):
            drawn.append(action)
            return super().step(action)

    episodes, other = played(Seen, sampling), 0
    data = rows(24)
    for row, episode in zip(data, episodes, strict=True):
        assert episode.prompt == TOKENIZER.encode_prompts([row.source["prompt"]])[0]
        position = 0
        for turn in episode.turns:
            ids = episode.ids[turn.start : turn.stop]
            assert turn.start == position and episode.chosen[turn.start : turn.stop] == [turn.by == "policy"] * len(ids)
            position = turn.stop
            if turn.by == "policy":
                assert TOKENIZER.decode_completions([ids]) == [turn.text]
                other += TOKENIZER.encode(turn.text) != [token for token in ids if token not in TOKENIZER.eos_ids]
            elif ids:
                assert ids == TOKENIZER.encode(turn.text)
        assert position == len(episode.ids) == len(episode.chosen) == len(episode.logps)
    assert other > 10
    assert sorted(drawn) == sorted(turn.text for e in episodes for turn in e.turns if turn.by == "policy")


def test_the_first_turn_is_the_completion_of_generate_and_a_whole_episode_of_one_turn_is_that_completion():
    class Once(Echo):
        def step(self, action):
            return Observation("not read", 1.0, True)

    sampling, model, data = SamplingConfig(max_tokens=9, **STOP), model_of(), rows(24)
    prompts = TOKENIZER.encode_prompts([row.source["prompt"] for row in data])
    options = {"seed": 3, "stream": "rollout", "keys": [(0, i, 0) for i in range(24)], "tokenizer": TOKENIZER}
    completions = generate(model, prompts, sampling, **options)
    for episode, completion in zip(played(Once, sampling, model), completions, strict=True):
        found = episode.completion
        assert (found.ids, found.logps, found.finish) == (completion.ids, completion.logps, completion.finish)
        assert found.chosen == [True] * len(found.ids) and episode.finish == "done"


def test_logps_are_those_of_a_forward_over_the_whole_dialogue():
    model = model_of(torch.float64)
    for episode in played(Echo, SamplingConfig(max_tokens=6, **STOP), model, n=8):
        ids = torch.tensor([[*episode.prompt, *episode.ids]])
        expected = token_logps(model(ids), ids)[0, len(episode.prompt) :]
        expected = torch.where(torch.tensor(episode.chosen), expected, 0)
        torch.testing.assert_close(torch.tensor(episode.logps, dtype=torch.float64), expected, rtol=1e-5, atol=1e-6)


class Bad(Echo):
    """An environment that goes wrong: `act` is its step."""

    act = staticmethod(lambda action: Observation())

    def step(self, action):
        return self.act(action)


def fails(action):
    return {}[action]  # a mistake


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (fails, r"environment Bad: step: test_episodes.py, line \d+: KeyError: .* \(in return \{\}\[action\]"),
        (lambda action: None, r"step needed to return an Observation\(text, reward, done\), got None"),
        (lambda action: Observation(5), "step: needed text for the policy to read, got 5"),
        (lambda action: Observation("a", float("nan")), "needed a finite reward of at most 1e[+]15 in size, got nan"),
        (lambda action: Observation("a", "much"), "needed a finite reward .* got 'much'"),
        (lambda action: time.sleep(5), "step: needed an answer within 0.05 s, got none; end it sooner"),
        (lambda action: exit(3), "step: test_episodes.py, line .*SystemExit"),
    ],
    ids=["raises", "no observation", "no text", "nan", "no number", "hangs", "exits"],
)
def test_a_broken_step_ends_with_one_line(act, message, monkeypatch):
    monkeypatch.setattr(Bad, "act", staticmethod(act))
    with pytest.raises(InputError, match=message) as error:
        played(Bad, SamplingConfig(max_tokens=3), timeout=0.05 if "0.05" in message else 30)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("reset", "message"),
    [
        (lambda row: 3, "reset needed to return text or a list of turns, got 3"),
        (lambda row: [], "reset needed to return text or a list of turns"),
        (lambda row: "a" * 47, "reset: needed a first prompt that leaves room in the context of 48, got 48 tokens"),
        (lambda row: row["answer"], "reset: .*KeyError: 'answer'"),
    ],
)
def test_a_broken_reset_ends_with_one_line(reset, message, monkeypatch):
    monkeypatch.setattr(Bad, "reset", lambda self, row: reset(row))
    with pytest.raises(InputError, match=message):
        played(Bad, SamplingConfig(max_tokens=3))


def test_an_object_that_is_no_environment_is_refused(monkeypatch):
    with pytest.raises(InputError, match="environment dict: needed an object with reset and step|reset: needed"):
        played(dict, SamplingConfig(max_tokens=3))
    monkeypatch.setattr(Bad, "step", lambda self: None)
    with pytest.raises(InputError, match=r"TypeError: .*; needed the methods reset\(row\) and step\(action\)"):
        played(Bad, SamplingConfig(max_tokens=3))
    with pytest.raises(InputError, match="max_turns and max_tool_tokens must be at least 1 and timeout above 0, got 0"):
        Episodes(Echo, TOKENIZER, max_turns=0)


def test_megabytes_of_text_are_cut_and_marked(monkeypatch):
    monkeypatch.setattr(Bad, "act", staticmethod(lambda action: Observation("abc" * 1_000_000)))
    monkeypatch.setattr("minirlhf.environments.answers.CUT", "pp")
    for episode in played(Bad, SamplingConfig(max_tokens=3), n=3, max_tool_tokens=6):
        texts = [turn for turn in episode.turns if turn.by == "environment"]
        assert {turn.text for turn in texts} == {"abcabcpp"}
        assert {turn.stop - turn.start for turn in texts} == {6, 0}  # nobody reads the last text


def test_half_of_a_surrogate_pair_in_a_text_is_replaced_and_in_a_prompt_refused(monkeypatch):
    monkeypatch.setattr(Bad, "act", staticmethod(lambda action: Observation("a\udc00b")))
    for episode in played(Bad, SamplingConfig(max_tokens=3), n=3, max_turns=2):
        assert [turn.text for turn in episode.turns if turn.by == "environment"] == ["a\ufffdb"] * 2
    for first in ("a\udc00", [{"role": "user", "content": "a\udc00"}]):
        monkeypatch.setattr(Bad, "reset", lambda self, row, first=first: first)
        with pytest.raises(InputError, match="^environment Bad: reset: "):
            played(Bad, SamplingConfig(max_tokens=3), n=1)


def test_an_error_that_cannot_say_its_message_ends_with_one_line(monkeypatch):
    class Mute(Exception):
        def __str__(self):
            raise ValueError("no words")

    def fails(action):
        raise Mute

    monkeypatch.setattr(Bad, "act", staticmethod(fails))
    with pytest.raises(InputError, match="test_episodes.py, line .*: Mute: its message cannot be read"):
        played(Bad, SamplingConfig(max_tokens=3), n=1)


def test_a_later_turn_has_noise_of_its_own():
    """It is the completion of `generate` after all ids so far, with the noise of its number."""
    sampling, model = SamplingConfig(max_tokens=5, **STOP), model_of()
    for i, episode in enumerate(played(Endless, sampling, model, n=6, max_turns=3)):
        assert len(episode.rewards) == 3 and episode.finish == "turns"
        for number, turn in enumerate(episode.turns[::2]):
            before = [*episode.prompt, *episode.ids[: turn.start]]
            options = {"seed": 3, "stream": stream_of("rollout", number), "keys": [(0, i, 0)]}
            (completion,) = generate(model, [before], sampling, **options)
            assert completion.ids == episode.ids[turn.start : turn.stop]
    assert [stream_of("rollout", number) for number in range(3)] == ["rollout", "rollout turn 1", "rollout turn 2"]


def test_a_time_out_of_the_environment_itself_is_an_error_of_its_code(monkeypatch):
    def asks(action):
        raise TimeoutError("the server is away")

    monkeypatch.setattr(Bad, "act", staticmethod(asks))
    with pytest.raises(InputError, match="step: test_episodes.py, line .*: TimeoutError: the server is away"):
        played(Bad, SamplingConfig(max_tokens=3), n=1)


def test_a_call_that_hangs_ends_no_later_call():
    before = sum(thread.name == "environment" for thread in threading.enumerate())
    hang, threads = threading.Event(), Threads(0.2)
    late = [threads.submit(hang.wait) for _ in range(THREADS)]  # every thread hangs
    assert threads.wait(threads.submit(lambda: "next")) == "next"
    for call in late:
        with pytest.raises(TookTooLong):
            threads.wait(call)
    hang.set()  # late answers are dropped, and their threads end
    for number in range(2 * THREADS):
        assert threads.wait(threads.submit(lambda number=number: number)) == number
    deadline = time.monotonic() + 5
    while sum(thread.name == "environment" for thread in threading.enumerate()) > before + THREADS:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(TookTooLong):
        threads.wait(late[0])


@pytest.mark.parametrize(("max_turns", "tokens"), [(2, 30), (9, 30), (2, 1)])
def test_the_slots_are_as_large_as_the_episodes_can_become(max_turns, tokens, monkeypatch):
    """A model of 128,000 tokens has short episodes too. A template's own tokens may exceed the estimate."""
    sizes, grow = [], SlotCache.grow
    monkeypatch.setattr(SlotCache, "grow", lambda self, columns: sizes.append(columns) or grow(self, columns))
    monkeypatch.setattr(slots_module, "FIRST_COLUMNS", 200)

    class Long(Endless):
        def step(self, action):
            return Observation("a" * 30)

    model, sampling = model_of(max_position_embeddings=100_000), SamplingConfig(max_tokens=20)
    options = {"n": 4, "max_turns": max_turns, "max_tool_tokens": 30}
    monkeypatch.setattr("minirlhf.environments.episodes.Answers.cut", lambda self, text, closing: text)
    episodes = played(Long, sampling, model, **options | {"max_tool_tokens": tokens})
    needed = max(len(episode.prompt) + len(episode.ids) for episode in episodes)
    assert needed == 5 + max_turns * 20 + (max_turns - 1) * 30 and sizes[-1] >= needed
    assert sizes[-1] <= needed + 50 and len(sizes) <= 2 + max_turns


def test_stop_strings_that_differ_between_episodes_are_refused():
    """All episodes of a batch stop at the same texts, so an episode would depend on the others."""

    class Stops(Echo):
        def reset(self, row):
            self.stop_strings = (LETTERS[row["number"] // 2],)
            return super().reset(row)

    message = r"^environment Stops: needed the same stop_strings in every episode, got \('a',\) and \('b',\)"
    with pytest.raises(InputError, match=message):
        played(Stops, SamplingConfig(max_tokens=3), n=3)
    assert len(played(Stops, SamplingConfig(max_tokens=3), n=2)) == 2 and played(Stops, SamplingConfig(), n=0) == []


def test_an_environment_cannot_change_its_row():
    """Else a deck of cards would be empty in the second epoch, and the episodes of a group would share a deck."""

    class Deck(Echo):
        def reset(self, row):
            super().reset(row)
            self.cards = row["cards"]
            return row["prompt"]

        def step(self, action):
            return super().step(action)._replace(text=self.cards.pop())

    data = [EncodedRow({"prompt": "a", "number": 4, "cards": ["a", "b", "c", "d", "e"]}, [], ())] * 2
    first, second = (played(Deck, SamplingConfig(max_tokens=2), data=data, max_turns=4) for _ in range(2))
    texts = [[turn.text for turn in episode.turns if turn.by == "environment"] for episode in (*first, *second)]
    assert texts == [["e", "d", "c", "b"]] * 4


def test_the_mass_that_truncation_kept_is_a_mean_over_tokens():
    """As in a completion of one turn: a turn of one token does not count as much as a turn of nine."""
    for episode in played(Echo, SamplingConfig(max_tokens=9, top_k=5, **STOP)):
        sizes = [turn.stop - turn.start for turn in episode.turns if turn.by == "policy"]
        expected = sum(mass * n for mass, n in zip(episode.masses, sizes, strict=True)) / sum(episode.chosen)
        assert episode.completion.mass_kept == pytest.approx(expected)


def test_an_async_environment_is_awaited():
    class Waits(Echo):
        async def reset(self, row):
            return Echo.reset(self, row)

        async def step(self, action):
            return Echo.step(self, action)

    sampling = SamplingConfig(max_tokens=4, **STOP)
    first, second = (played(make, sampling, n=6) for make in (Echo, Waits))
    assert [episode.ids for episode in first] == [episode.ids for episode in second]

    class Cancels(Echo):
        async def step(self, action):
            raise asyncio.CancelledError

    with pytest.raises(InputError, match="step: test_episodes.py, line .*: RuntimeError: the coroutine was cancelled"):
        played(Cancels, sampling, n=1)
