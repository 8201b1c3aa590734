"""The trainers take an encoder-decoder in the place of a decoder: no trainer has a copy of its own."""

import pytest
import torch
from torch.testing import assert_close

from minirlhf.adapters import LoRAConfig, apply_lora, reference_of
from minirlhf.algorithms import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    PPOConfig,
    PPOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)
from minirlhf.data import Batches, encode_rows
from minirlhf.environments import Episodes, Observation
from minirlhf.errors import InputError
from minirlhf.extras.seq2seq import EncoderRewardModel, Seq2Seq, Seq2SeqConfig, Seq2SeqPolicy, Seq2SeqTokenizer, task
from minirlhf.generation import SamplingConfig, generate
from minirlhf.model import copy_of
from minirlhf.rewards.scoring import RewardModelScorer

WORDS = ["red", "blue", "green", "black", "white", "brown"]
ROWS = [{"prompt": f"say {a}", "response": a, "rejected": b} for a in WORDS for b in WORDS if a != b]
ROWS = [{**row, "chosen": row["response"]} for row in ROWS]


@pytest.fixture(scope="module")
def tokenizer():
    return Seq2SeqTokenizer.train([text for row in ROWS for text in (row["prompt"], row["response"])], 280)


def encoded(tokenizer, *keys):
    return encode_rows(tokenizer, ROWS, keys, context=32).rows


def policy_of(tokenizer, **options):
    torch.manual_seed(0)
    config = Seq2SeqConfig(vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=64, n_positions=16)
    return Seq2SeqPolicy(Seq2Seq(config), **options)


def share_of_red(prompts, completions, rows):
    return [text.count("r") / max(len(text), 1) for text in completions]


def test_sft_learns_to_repeat_a_word_of_the_prompt(tokenizer):
    policy, rows = policy_of(tokenizer), encoded(tokenizer, "response")
    config = SFTConfig(steps=50, batch_size=16, lr=1e-2, max_epochs=100)
    trainer = SFTTrainer(policy, tokenizer, config, updates=config.steps)
    for batch in Batches.of(rows, config, stream="sft"):
        trainer.step(batch)
    assert trainer.evaluate(rows)["loss"] < 0.3
    assert [s["reference"] for s in trainer.samples] == [row["response"] for row in ROWS[:4]]
    found = generate(policy.transformer, [row.prompt for row in rows], SamplingConfig(max_tokens=4, temperature=0))
    texts = tokenizer.decode_completions([completion.ids[:-1] for completion in found])
    assert sum(text.startswith(row["response"]) for text, row in zip(texts, ROWS, strict=True)) >= 0.8 * len(ROWS)


@pytest.mark.parametrize("microbatch_tokens", [16_384, 24])
def test_ppo_starts_at_ratio_1_and_trains_policy_and_value_head(tokenizer, microbatch_tokens):
    policy = policy_of(tokenizer, value_head=True)
    config = PPOConfig(steps=1, batch_size=16, minibatch_size=16, max_tokens=6, microbatch_tokens=microbatch_tokens)
    trainer = PPOTrainer(policy, copy_of(policy), share_of_red, tokenizer, config)
    metrics = trainer.step(Batches.of(encoded(tokenizer), config, stream="ppo")[0])
    assert abs(metrics["approx_kl"]) < 1e-6 and abs(metrics["kl"]) < 1e-4  # samples have the policy's log-probs
    assert policy.value_head.weight.abs().max() > 0
    assert (policy.transformer.shared.weight - trainer.ref_policy.transformer.shared.weight).abs().max() > 0


def test_the_number_of_micro_batches_changes_no_update(tokenizer):
    found = []
    for microbatch_tokens in (16_384, 24):
        policy = policy_of(tokenizer, value_head=True).double()
        config = PPOConfig(steps=1, batch_size=16, minibatch_size=16, max_tokens=6, microbatch_tokens=microbatch_tokens)
        trainer = PPOTrainer(policy, copy_of(policy), share_of_red, tokenizer, config)
        trainer.step(Batches.of(encoded(tokenizer), config, stream="ppo")[0])
        found.append([p.detach() for p in policy.parameters()])
    assert_close(*found, atol=1e-9, rtol=1e-9)


def test_grpo_raises_its_reward(tokenizer):
    policy = policy_of(tokenizer)
    options = {"lr": 3e-3, "kl_coef": 0.0, "missing_eos_penalty": 0.0}
    config = GRPOConfig(steps=22, batch_size=8, minibatch_size=8, group_size=8, max_tokens=5, **options)
    trainer = GRPOTrainer(policy, None, share_of_red, tokenizer, config)
    scores = [trainer.step(batch)["score_mean"] for batch in Batches.of(encoded(tokenizer), config, stream="grpo")]
    assert sum(scores[-3:]) / 3 > sum(scores[:3]) / 3 + 0.1


def test_dpo_prefers_the_chosen_answers(tokenizer):
    policy, rows = policy_of(tokenizer), encoded(tokenizer, "chosen", "rejected")
    config = DPOConfig(steps=40, batch_size=16, lr=1e-2, max_epochs=100)
    trainer = DPOTrainer(policy, copy_of(policy), tokenizer, config, updates=config.steps)
    for batch in Batches.of(rows, config, stream="dpo"):
        trainer.step(batch)
    assert trainer.evaluate(rows)["accuracy"] > 0.8


def test_dpo_trains_adapters_beside_their_base_as_the_reference(tokenizer):
    policy, rows = policy_of(tokenizer), encoded(tokenizer, "chosen", "rejected")
    base = {name: p.clone() for name, p in policy.named_parameters()}
    apply_lora(policy, LoRAConfig(r=4))
    config = DPOConfig(steps=2, batch_size=16, lr=1e-2)
    trainer = DPOTrainer(policy, reference_of(policy), tokenizer, config, updates=config.steps)
    assert abs(trainer.evaluate(rows)["margin"]) < 1e-6  # B is 0, so the policy is its reference
    batches = Batches.of(rows, config, stream="dpo")
    losses = [trainer.step(batch)["loss"] for batch in batches]
    assert losses[0] == pytest.approx(0.6931, abs=1e-4) and abs(trainer.evaluate(rows)["margin"]) > 1e-4
    for name, p in trainer.ref_policy.named_parameters():
        assert torch.equal(p, base[name])
    with pytest.raises(InputError, match="needed `wanted`, the mask of the completions"):
        wpo = DPOConfig(steps=1, weighting="wpo")
        DPOTrainer(policy, reference_of(policy), tokenizer, wpo, updates=1).step(batches[0])


def test_a_reward_model_of_the_encoder_learns_pairs_and_is_a_reward_function(tokenizer):
    torch.manual_seed(0)
    model, rows = EncoderRewardModel(policy_of(tokenizer).transformer), encoded(tokenizer, "chosen", "rejected")
    config = RewardConfig(steps=80, batch_size=16, lr=3e-3, max_epochs=100)
    trainer = RewardTrainer(model, tokenizer, config, updates=config.steps)
    for batch in Batches.of(rows, config, stream="reward"):
        trainer.step(batch)
    assert trainer.evaluate(rows)["accuracy"] > 0.8
    reward, (prompts, right, wrong) = (
        RewardModelScorer(model, tokenizer),
        zip(*[(row["prompt"], row["chosen"], row["rejected"]) for row in ROWS], strict=True),
    )
    scores = [reward(list(prompts), list(answers), ROWS) for answers in (right, wrong)]
    assert sum(a > b for a, b in zip(*scores, strict=True)) > 0.8 * len(ROWS)


def test_episodes_of_several_turns_are_refused_and_a_single_turn_has_the_log_probs_of_the_policy(tokenizer):
    """The encoder would read all turns but the last, and the policy that is trained reads the first prompt alone."""

    class Once:
        def reset(self, row):
            return row["prompt"]

        def step(self, action):
            return Observation("red", 1.0)

    policy, (row, *_) = policy_of(tokenizer), encoded(tokenizer)
    asked = policy.transformer, [row], SamplingConfig(max_tokens=4)
    options = {"seed": 0, "stream": "rollout", "keys": [(0, 0, 0)]}
    with pytest.raises(InputError, match="^converse: needed a decoder for several turns, got an encoder-decoder"):
        Episodes(Once, tokenizer, max_turns=2).play(*asked, **options)
    (episode,) = Episodes(Once, tokenizer, max_turns=1).play(*asked, **options)
    ids = torch.tensor([[*episode.prompt, *episode.ids]])
    chosen = torch.arange(ids.shape[1])[None] >= len(episode.prompt)
    logps = policy(ids, torch.ones_like(chosen), wanted=chosen).logps[0, len(episode.prompt) :]
    torch.testing.assert_close(logps.double(), torch.tensor(episode.logps).double(), rtol=1e-4, atol=1e-5)


def test_a_completion_with_the_users_turns_inside_is_refused(tokenizer):
    """The decoder would write the user's turns, and the encoder would read the first prompt alone."""
    policy, ids = policy_of(tokenizer), torch.tensor([[5, 6, 7, 8, 9, 0]])
    wanted = torch.tensor([[False, False, True, False, True, False]])
    with pytest.raises(InputError, match='^Seq2SeqPolicy: needed completions without gaps.*train_on="last"'):
        policy(ids, ids > 0, wanted=wanted)


def test_the_gold_of_the_task_by_hand():
    """The prompt is positive (0.5 and 1.0), so a negative review is right; another product or a broken text is -1."""
    prompt = "the kettle is good. i love it."
    texts = [
        "the kettle is awful. it is dull.",
        "the kettle is nice. it is red.",
        "the lamp is awful. i hate it.",
        "bad",
    ]
    found = task.gold([prompt] * 4, texts, [{}] * 4)
    assert found == {"gold_reward": [0.75, -1.0, -1.0, -1.0], "grammatical": [1.0, 0.0, 0.0, 0.0]}
    dull = "the kettle is awful. we use it in the office."
    assert task.reward([dull], ["the kettle is not dull. i love it."], [{}]) == [pytest.approx((0.25 + 1) / 2)]


def test_demonstrations_turn_the_sentiment_unless_they_are_careless():
    rows = task.rows(400, seed=0)
    values = task.reward([row["prompt"] for row in rows], [row["response"] for row in rows], rows)
    assert all(abs(value) >= task.CLEAR for value in values)
    assert 0.2 < sum(value < 0 for value in values) / 400 < 0.4
    assert not {row["prompt"] for row in rows} & {row["prompt"] for row in task.rows(400, seed=0, held_out=True)}
