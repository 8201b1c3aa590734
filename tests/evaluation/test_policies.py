"""The report of a tiny random policy: every measure equals its definition."""

from dataclasses import replace

import pytest
import torch

from minirlhf.data import EncodedRow, encode_rows
from minirlhf.evaluation import MEASURES, Report, comparison, distinct_n, evaluate_policy, summary, win_rate
from minirlhf.evaluation.policies import sequence_kl
from minirlhf.generation import SamplingConfig, generate
from minirlhf.losses import token_logps
from minirlhf.model import ModelConfig, Policy, RewardModel, Transformer, copy_of
from minirlhf.rewards import RewardModelScorer, RewardSum
from minirlhf.rewards.answers import exact_match
from minirlhf.text import Tokenizer

TOKENIZER = Tokenizer.train(["the lamp is good. the tent is bad."] * 8, 280)
PROMPTS = ["the lamp", "the tent is", "good", "", "bad bad", "lamp"]
ROWS = encode_rows(TOKENIZER, [{"prompt": p, "n": i} for i, p in enumerate(PROMPTS)], (), context=64).rows
SAMPLING = SamplingConfig(max_tokens=12, temperature=0.8, stop_ids=(TOKENIZER.eos_id,))


def loud_policy(seed):
    torch.manual_seed(seed)
    policy = Policy(
        Transformer(ModelConfig(TOKENIZER.vocab_size, 24, intermediate_size=32, max_position_embeddings=64))
    )
    with torch.no_grad():
        for p in policy.parameters():
            p += 0.15 * torch.randn_like(p)
    return policy


@pytest.fixture(scope="module")
def policy():
    policy = loud_policy(0)
    with torch.no_grad():  # EOS looks like many other tokens, so that some completions end by themselves
        policy.transformer.head_weight[TOKENIZER.eos_id] = policy.transformer.head_weight[3:].mean(0) * 4
    return policy


@pytest.fixture(scope="module")
def completions(policy):
    prompts = [row.prompt for row in ROWS]
    return generate(
        policy.transformer, prompts, SAMPLING, seed=5, stream="evaluation", keys=[(0, i, 0) for i in range(6)]
    )


def test_measures_are_means_over_the_completions(policy, completions):
    arguments = {}

    def reward(prompts, texts, rows):
        arguments["reward"] = prompts, texts, rows
        return [row["n"] for row in rows]

    def gold(prompts, texts, rows):
        arguments["gold"] = prompts, texts, rows
        return {"gold_reward": [row["n"] ** 2 for row in rows], "grammatical": [1.0, 0, 0, 0, 0, 1]}

    report = evaluate_policy(policy, TOKENIZER, ROWS, SAMPLING, reward=reward, gold=gold, seed=5)
    texts = TOKENIZER.decode_completions([c.ids for c in completions])
    assert (report.prompts, report.completions) == (PROMPTS, texts)
    assert arguments["reward"] == arguments["gold"] == (PROMPTS, texts, [row.source for row in ROWS])
    assert report.measures == pytest.approx(
        {
            "gold_reward": 55 / 6,  # (0 + 1 + 4 + 9 + 16 + 25) / 6
            "model_reward": 15 / 6,
            "grammatical": 2 / 6,
            "length": sum(len(c.ids) for c in completions) / 6,
            "distinct_2": distinct_n(texts),
            "kl": None,
            "ended": sum(c.finish == "stop" for c in completions) / 6,
        }
    )
    assert "kl" not in report.known() and len(report.known()) == 6


@pytest.mark.parametrize(("scores", "mean"), [([3.0, None, None, 1.0, None, 8.0], 4.0), ([None] * 6, None)])
def test_completions_without_a_score_are_left_out_of_the_mean(policy, scores, mean):
    """Training accepts such a reward in GRPO, so an evaluation must not end the run."""
    reward = lambda prompts, texts, rows: [scores[row["n"]] for row in rows]  # noqa: E731
    assert evaluate_policy(policy, TOKENIZER, ROWS, SAMPLING, reward=reward).measures["model_reward"] == mean


def test_measures_that_a_task_does_not_have_are_none(policy):
    report = evaluate_policy(policy, TOKENIZER, ROWS, SAMPLING)
    assert set(report.known()) == {"length", "distinct_2", "ended"}
    arithmetic = evaluate_policy(policy, TOKENIZER, ROWS, SAMPLING, gold=lambda p, t, r: {"gold_reward": [1.0] * 6})
    assert (arithmetic.measures["gold_reward"], arithmetic.measures["grammatical"]) == (1.0, None)


def test_kl_is_the_sampled_log_ratio_per_sequence_at_the_sampling_temperature(policy, completions):
    reference = loud_policy(1)
    report = evaluate_policy(policy, TOKENIZER, ROWS, SAMPLING, ref_policy=reference, seed=5)
    total = 0.0
    for row, completion in zip(ROWS, completions, strict=True):
        ids = torch.tensor([row.prompt + completion.ids])
        logps, ref_logps = (
            token_logps(p.transformer(ids), ids, temperature=0.8)[0, len(row.prompt) :] for p in (policy, reference)
        )
        total += (logps - ref_logps).sum().item()
    assert report.measures["kl"] == pytest.approx(total / 6, abs=1e-4)
    assert abs(total) > 1


def test_kl_to_itself_is_0(policy):
    report = evaluate_policy(policy, TOKENIZER, ROWS, SAMPLING, ref_policy=copy_of(policy))
    assert report.measures["kl"] == pytest.approx(0, abs=1e-5)


def test_a_process_without_rows_has_no_kl(policy):
    assert sequence_kl(policy, TOKENIZER, [], [], SAMPLING) == []


def test_a_report_is_a_function_of_the_seed(policy):
    first, again, other = (evaluate_policy(policy, TOKENIZER, ROWS, SAMPLING, seed=seed) for seed in (5, 5, 6))
    assert first == again and first.completions != other.completions


def test_a_completion_is_keyed_by_the_index_of_its_row(policy):
    whole, some = (evaluate_policy(policy, TOKENIZER, rows, SAMPLING) for rows in (ROWS, ROWS[:2]))
    assert whole.completions[:2] == some.completions
    same_prompt = evaluate_policy(policy, TOKENIZER, [EncodedRow({"prompt": ""}, [1], ())] * 4, SAMPLING)
    assert len(set(same_prompt.completions)) == 4


def test_greedy_evaluation_with_a_reference_has_no_kl(policy):
    report = evaluate_policy(policy, TOKENIZER, ROWS, SamplingConfig(4, temperature=0), ref_policy=copy_of(policy))
    assert report.measures["kl"] is None


def test_without_prompts_nothing_is_measured(policy):
    def never(*_):
        raise AssertionError("called without prompts")

    report = evaluate_policy(policy, TOKENIZER, [], SAMPLING, reward=never, gold=never, ref_policy=copy_of(policy))
    assert report.known() == {} and report.measures.keys() == MEASURES.keys() and report.prompts == []
    assert win_rate(report, report) is None and win_rate(*[Report({}, [], [], [])] * 2) is None
    assert summary(report, report)["after"]["gold_reward"] is None
    assert comparison(report, report, "PPO").startswith("on held-out prompts")


def test_a_prompt_gets_the_room_that_it_leaves_and_without_room_it_is_left_out(policy):
    # the context holds 64 tokens
    rows = [EncodedRow({"prompt": str(n)}, [1] + [5] * (n - 1), ()) for n in (3, 64, 63, 100, 60)]
    free = replace(SAMPLING, stop_ids=())
    with pytest.warns(UserWarning, match="^2 of 5 prompts leave no room in the context of 64: left out$"):
        report = evaluate_policy(policy, TOKENIZER, rows, free, ref_policy=copy_of(policy))
    assert report.prompts == ["3", "63", "60"] and len(report.completions) == 3
    assert report.measures["length"] == pytest.approx((12 + 1 + 4) / 3)
    assert report.measures["ended"] == 0 and report.measures["kl"] == pytest.approx(0, abs=1e-5)


def test_a_win_is_a_higher_gold_reward_and_a_tie_half_a_win():
    # of four prompts: won, equal, lost, won
    before, after = (Report({}, [], [], gold) for gold in ([0.0, 1.0, 2.0, -3.0], [1.0, 1.0, 1.5, -2.0]))
    assert win_rate(before, after) == 2.5 / 4 and win_rate(after, before) == 1.5 / 4
    assert win_rate(before, Report({}, [], [])) is None and win_rate(Report({}, [], []), after) is None


def report_of(**measures):
    return Report(dict.fromkeys(MEASURES) | measures, ["a prompt"], ["a text"])


def test_a_report_has_the_measures_of_the_table(policy):
    report = evaluate_policy(policy, TOKENIZER, ROWS, SAMPLING)
    # this order is the order of keys in metrics.jsonl
    assert list(report.measures) == [*(name for name in MEASURES if name != "distinct_2"), "distinct_2"]


REWARDS = {
    "reward function's score": lambda p, c, r: [0.0] * len(c),
    "sum of the rewards": RewardSum([exact_match, exact_match]),
    "reward model's score": RewardModelScorer(RewardModel(loud_policy(0).transformer), TOKENIZER),
}


@pytest.mark.parametrize(("label", "reward"), REWARDS.items(), ids=REWARDS)
def test_the_table_names_the_kind_of_the_reward(policy, label, reward):
    rows = [replace(row, source={**row.source, "answer": 1}) for row in ROWS[:1]]
    report = evaluate_policy(policy, TOKENIZER, rows, SAMPLING, reward=reward)
    assert comparison(report, report, "GRPO").splitlines()[2].startswith(label + "  ")


def test_summary_has_every_measure_before_and_after_and_one_kl():
    before, after = report_of(gold_reward=0.1, length=9.0, kl=0.0, ended=0.5), report_of(gold_reward=0.9, kl=3.0)
    names = ["gold_reward", "model_reward", "grammatical", "length", "distinct_2"]
    found = summary(before, after)
    assert list(found) == ["before", "after", "kl"] and found["kl"] == 3.0
    assert list(found["before"].items()) == list(zip(names, [0.1, None, None, 9.0, None], strict=True))
    assert list(found["after"].items()) == list(zip(names, [0.9, None, None, None, None], strict=True))


def test_comparison_shows_the_measures_that_either_report_has():
    before, after = report_of(gold_reward=0.1, ended=0.5), report_of(gold_reward=0.9, kl=3.0)
    assert comparison(before, after, "PPO").splitlines()[:5] == [
        "on held-out prompts         before PPO  after PPO",
        "--------------------------  ----------  ---------",
        "gold reward                      0.100      0.900",
        "KL to the reference (nats)           -      3.000",
        "",
    ]
