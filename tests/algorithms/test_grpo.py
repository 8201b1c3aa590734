"""GRPO and its family: the gradient of each paper in plain loops, each setting, resampling, refusals."""

import math
from dataclasses import fields, replace

import pytest
import tiny
import torch
from torch.testing import assert_close

from minirlhf.algorithms import GRPOConfig, GRPOTrainer
from minirlhf.algorithms.grpo_recipes import ALGORITHMS, DEFAULTS, PER_TOKEN_SURROGATES, WITHOUT_RATIO
from minirlhf.data import Batches
from minirlhf.errors import InputError
from minirlhf.generation import generate
from minirlhf.losses import token_logps
from minirlhf.model import Policy, copy_of
from minirlhf.training.vocabulary import METRICS

BATCH = tiny.batches(4, 6)


def moved(trainer, batch=None):
    """Collect the rollout of the trainer's next step, then move the weights, so that no ratio is 1."""
    rollout = trainer.collect(batch or BATCH[0])
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in trainer.optimizer.parameters.values():
            p += 0.08 * p.std().nan_to_num(0.1) * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    trainer.collect = lambda batch: rollout
    return rollout


def one_update(settings, **more):
    return tiny.grpo(**{"batch_size": 4, "minibatch_size": 4, **settings}, **more)


# The papers, in plain loops. A row is one completion.


def rows_of(trainer, rollout):
    """A dict for each completion. logps (as sampled) and ref are lists with one number per completion token."""
    rows = []
    for b, length in enumerate(rollout.lengths):
        mask = rollout.completion_mask[b]
        row = {"ids": rollout.input_ids[b : b + 1, :length], "mask": mask[:length], "n": int(mask.sum())}
        row |= {"logps": rollout.logps[b][mask].tolist(), "ref": rollout.ref_logps[b][mask].tolist()}
        row |= {
            "scores_by_function": rollout.scores_by_function[b].tolist(),
            "ended": bool(rollout.ended[b]),
            "penalty": 0.0,
        }
        weighted = [
            w * s for w, s in zip(trainer.config.reward_weights, row["scores_by_function"], strict=True) if s == s
        ]
        rows.append({**row, "score": sum(weighted) if weighted else math.nan})
    return rows


def grouped(values, size):
    return [values[i : i + size] for i in range(0, len(values), size)]


def mean_std(values):
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def normalised(values):
    """A group's (s - mean) / (std + 1e-4), nan as 0."""
    judged = [v for v in values if v == v]
    mean, std = mean_std(judged) if len(judged) > 1 else (sum(judged), 0.0)
    return [(v - mean) / (std + 1e-4) if v == v else 0.0 for v in values]


def token_returns(row, kl_coef, gamma):
    rewards = [-kl_coef * (p - q) for p, q in zip(row["logps"], row["ref"], strict=True)]
    rewards[-1] += row["score"]
    returns = []
    for reward in reversed(rewards):
        returns.insert(0, reward + gamma * (returns[0] if returns else 0.0))
    return returns


def beta_density(x, a, b):
    return math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)) * x ** (a - 1) * (1 - x) ** (b - 1)


def advantages_of(trainer, rows, greedy):
    """The advantage of each paper: for each completion a list with one number per token."""
    config, G, name = trainer.config, trainer.config.group_size, trainer.config.algorithm
    if name in ("reinforce", "reinforce++"):
        returns = [token_returns(row, config.kl_coef, config.gamma) for row in rows]
        if name == "reinforce":
            return returns
        mean, std = mean_std([r for row in returns for r in row])
        return [[(r - mean) / math.sqrt(std**2 + 1e-8) for r in row] for row in returns]
    scores = [row["score"] for row in rows]
    if name in ("rloo", "remax"):  # the KL is paid in the score
        gaps = [sum(row["logps"]) - sum(row["ref"]) for row in rows]
        scores = [s - config.kl_coef * gap for s, gap in zip(scores, gaps, strict=True)]
    groups = grouped(scores, G)
    if name == "rloo":
        flat = [s - (sum(group) - s) / (G - 1) for group in groups for s in group]
    elif name == "remax":
        flat = [s - greedy[i // G] for i, s in enumerate(scores)]
    elif name == "dr_grpo":
        flat = [s - sum(group) / G for group in groups for s in group]
    elif name == "reinforce++_baseline":
        centred = [s - sum(group) / G for group in groups for s in group]
        mean, std = mean_std(centred)
        flat = [(s - mean) / (std + 1e-4) for s in centred]
    elif name == "bnpo":
        p = [sum(group) / G for group in groups]
        mean, std = mean_std(p)
        size = mean * (1 - mean) / std**2 - 1  # a + b
        law = 1 + mean * size / 3, 1 + (1 - mean) * size / 3
        flat = [(s - q) / beta_density(q, *law) if 0 < q < 1 else 0.0
                for group, q in zip(groups, p, strict=True) for s in group]  # fmt: skip
    elif name == "raft":
        flat = [float(i == group.index(max(group))) for group in groups for i in range(G)]
    elif name == "gdpo":
        columns = [
            [a for g in grouped([row["scores_by_function"][f] for row in rows], G) for a in normalised(g)]
            for f in (0, 1)
        ]
        summed = [sum(w * c[i] for w, c in zip(config.reward_weights, columns, strict=True)) for i in range(len(rows))]
        mean, std = mean_std(summed)
        flat = [(s - mean) / (std + 1e-4) for s in summed]
    else:
        flat = [a for group in groups for a in normalised(group)]
    return [[a] * row["n"] for a, row in zip(flat, rows, strict=True)]


def clipped(r, A, low=0.2, high=0.2):
    return -torch.minimum(r * A, r.clamp(1 - low, 1 + high) * A)


def surrogate_of(name, logps, old, A):
    """The losses of one completion's tokens."""
    d = logps - old
    r = d.exp()
    if name in ("reinforce", "rloo", "remax", "raft"):
        return -A * logps
    if name == "cispo":
        return -r.detach().clamp(max=5) * A * logps
    if name == "sapo":
        tau = torch.where(A > 0, 1.0, 1.05)
        return -4 / tau * torch.sigmoid(tau * (r - 1)) * A
    if name in ("gspo", "gspo_token"):  # with one advantage a sequence the two have one gradient
        return clipped(d.mean().exp(), A, 0.02, 0.02)
    if name == "gmpo":
        bounded = d.clamp(max=0.4) if A[0] > 0 else d.clamp(min=-0.4)
        return -A * bounded.mean().exp()
    if name == "vespo":
        w = d.sum().exp().detach()
        k, lam = (2.0, 3.0) if A[0] >= 0 else (3.0, 2.0)
        return -(w**k) * torch.exp(lam * (1 - w)) * A * logps
    losses = clipped(r, A, 0.2, 0.28 if name == "dapo" else 0.2)
    if name == "two_sided":
        losses = torch.where(A < 0, torch.minimum(losses, -4 * A), losses)
    return losses


REDUCTION = {"reinforce": "sum", "rloo": "sum", "remax": "sum", "dr_grpo": "constant"}
REDUCTION |= dict.fromkeys(("grpo", "gspo", "gspo_token", "gmpo", "sapo"), "sequence")


def reduced(name, losses):
    """The losses of all completions, a tensor each -> the loss."""
    if name == "sequence":
        return sum(x.mean() for x in losses) / len(losses)
    total = sum(x.sum() for x in losses)
    return total / {"sum": len(losses), "constant": len(losses) * 8}.get(name, sum(map(len, losses)))


def papers_loss(trainer, rollout, greedy=None):
    config, name = trainer.config, trainer.config.algorithm
    rows, losses = rows_of(trainer, rollout), []
    for row in rows:
        if name == "dapo":  # max_tokens is 8, a fifth of it is 2 tokens
            row["score"] += max(-1.0, min(0.0, (8 - 2 - row["n"]) / 2))
        row["score"] -= 0 if row["ended"] else config.missing_eos_penalty
    for row, advantages in zip(rows, advantages_of(trainer, rows, greedy), strict=True):
        if name == "raft" and not advantages[0]:  # a completion that is not the best adds no loss and no token
            continue
        logits = trainer.models["policy"].transformer(row["ids"])  # unpadded, one row at a time, from the full logits
        logps = token_logps(logits, row["ids"], config.temperature)[0, row["mask"]]
        old, ref, A = (torch.tensor(x, dtype=torch.float64) for x in (row["logps"], row["ref"], advantages))
        token_losses = surrogate_of(name, logps, old, A)
        if name not in ("reinforce", "rloo", "remax", "reinforce++"):
            d = logps - ref
            kl = 0.5 * d**2 if name == "reinforce++_baseline" else torch.exp(-d) - 1 + d
            token_losses = token_losses + config.kl_coef * kl
        losses.append(token_losses)
    return reduced(REDUCTION.get(name, "token"), losses)


def settings_of(name):
    rewards = {"bnpo": tiny.has_e, "gdpo": [tiny.likes_e, tiny.short]}.get(name, tiny.likes_e)
    weights = (1.0, 0.5) if name == "gdpo" else (1.0,)
    penalty = 0.0 if name in ("bnpo", "gdpo") else 0.3
    settings = {"algorithm": name, "resample": 0, "kl_coef": 0.3, "temperature": 0.8}
    if GRPOConfig(algorithm=name).recipe.advantage in ("returns", "whitened_returns"):
        settings["gamma"] = 0.9
    return {**settings, "reward_weights": weights, "missing_eos_penalty": penalty, "rewards": rewards}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_gradient_of_a_moved_policy_is_that_of_the_paper_in_plain_loops(name):
    trainer = one_update(settings_of(name))
    rollout, greedy = moved(trainer), None
    if name == "remax":
        sampling = replace(trainer.config.sampling(trainer.tokenizer.eos_ids), temperature=0.0)
        prompts = [draw.row.prompt for draw in BATCH[0]]
        completions = generate(trainer.models["policy"].transformer, prompts, sampling)
        texts = trainer.tokenizer.decode_completions([c.ids for c in completions])
        greedy = tiny.likes_e(texts, texts, [])
    loss = papers_loss(trainer, rollout, greedy)
    expected = torch.autograd.grad(loss, list(trainer.optimizer.parameters.values()))
    found, metrics = tiny.gradients(trainer, BATCH[0])
    # advantages and old log-probs are float32
    assert_close(found, dict(zip(trainer.optimizer.parameters, expected, strict=True)), rtol=1e-4, atol=2e-6)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-4, abs=1e-6)
    assert max(g.abs().max() for g in expected) > 1e-3
    assert abs(metrics["ratio"] - 1) > 1e-3


@pytest.mark.parametrize("name", ["token", "sequence", "constant", "sum"])
def test_reductions_by_hand(name):
    trainer = one_update({"reduction": name, "advantage": "leave_one_out", "surrogate": "reinforce", "kl_coef": 0.0})
    rollout, losses = moved(trainer), []
    for row in (rows := rows_of(trainer, rollout)):
        logits = trainer.models["policy"].transformer(row["ids"])
        row["now"] = token_logps(logits, row["ids"])[0, row["mask"]]
    for group in grouped(rows, 4):
        total = sum(row["score"] for row in group)
        losses += [-(row["score"] - (total - row["score"]) / 3) * row["now"] for row in group]
    loss = reduced(name, losses)
    expected = torch.autograd.grad(loss, trainer.models["policy"].transformer.model.norm.weight)[0]
    found, metrics = tiny.gradients(trainer, BATCH[0])
    assert_close(found["policy.transformer.model.norm.weight"], expected, rtol=1e-4, atol=1e-6)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize(
    "name", [name for name in ALGORITHMS if GRPOConfig(algorithm=name).recipe.surrogate in PER_TOKEN_SURROGATES]
)
def test_fused_is_open(name, monkeypatch):
    found = {}
    for fused in (True, False):
        settings = {"overlong_filter": True, "sampler_cap": 1.1, "missing_eos_penalty": 0.0, "high_entropy_share": 0.5}
        trainer = one_update(settings_of(name) | settings)
        moved(trainer)
        found[fused] = tiny.gradients(trainer, BATCH[0])
        monkeypatch.setattr("minirlhf.algorithms.grpo.PER_TOKEN_SURROGATES", ())
    assert_close(found[True][0], found[False][0], rtol=1e-6, atol=1e-9)
    assert found[True][1] == pytest.approx(found[False][1], rel=1e-6, abs=1e-9)
    assert found[True][1].keys() == found[False][1].keys()


@pytest.mark.parametrize("entropy_coef", [0.0, 0.1])
def test_one_completion_a_microbatch_is_all_in_one(entropy_coef):
    (joined, metrics), (split, others) = (
        tiny.gradients(one_update({"entropy_coef": entropy_coef, "microbatch_tokens": n}), BATCH[0])
        for n in (10_000, 1)
    )
    assert_close(split, joined, rtol=1e-9, atol=1e-9)
    assert others == pytest.approx(metrics, rel=1e-6, abs=1e-9)


def choices(config):
    """The settings that a row of ALGORITHMS may choose, without the settings that stay None."""
    names = {"kl_estimator", *DEFAULTS, *(name for row in ALGORITHMS.values() for name in row)}
    return {name: getattr(config, name) for name in names if getattr(config, name) is not None}


def test_the_papers_rows_reach_the_recipe_and_single_settings_replace_them():
    dapo = choices(GRPOConfig(algorithm="dapo").recipe)
    assert dapo == {**DEFAULTS, **ALGORITHMS["dapo"], "kl_estimator": "k3"}
    mixed = GRPOConfig(algorithm="dapo", reduction="sequence", clip_eps=0.1, resample=0).recipe
    assert choices(mixed) == {**dapo, "reduction": "sequence", "clip_eps": 0.1, "resample": 0}
    assert GRPOConfig(algorithm="rloo").recipe.kl_estimator == "k1" and GRPOConfig().recipe.kl_estimator == "k3"
    assert GRPOConfig(kl_in="reward", kl_coef=0.1).recipe.kl_estimator == "k1"
    assert GRPOConfig(algorithm="reinforce++_baseline").recipe.kl_estimator == "k2"


def test_a_recipe_leaves_the_settings_as_they_are_and_is_its_own_recipe():
    config = GRPOConfig(algorithm="dapo", group_size=5)
    recipe = config.recipe
    assert config == GRPOConfig(algorithm="dapo", group_size=5) and config.clip_eps is None
    assert recipe.group_size == 5 and recipe.recipe == recipe


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_row_chooses_settings_that_exist(name):
    assert ALGORITHMS[name].keys() <= {field.name for field in fields(GRPOConfig)}
    GRPOConfig(**ALGORITHMS[name], kl_coef=0.1)  # each choice may be made as a setting too


def test_raft_is_sft_on_the_best_completions():
    # 1 prompt with scores 2, 3, 3, nan: the second completion is the best, the first of the equal scores
    given = [2.0, 3.0, 3.0, None]
    settings = {"algorithm": "raft", "kl_coef": 0.0, "missing_eos_penalty": 0.0}
    trainer = one_update(settings | {"batch_size": 4}, rewards=lambda p, c, rows: given * (len(c) // 4))
    rollout, sft = trainer.collect(BATCH[0]), tiny.sft()
    assert trainer.advantages(rollout).any(-1).tolist() == [False, True, False, False] * 4
    best = []
    for draw, row in zip(BATCH[0], range(1, 16, 4), strict=True):
        ids = rollout.input_ids[row][rollout.completion_mask[row]].tolist()
        best.append(draw._replace(row=replace(draw.row, responses=(ids,))))
    found, metrics = tiny.gradients(trainer, BATCH[0])
    expected, others = tiny.gradients(sft, best)
    assert_close(found, expected, rtol=1e-6, atol=1e-9)
    assert metrics["loss"] == pytest.approx(others["loss"], rel=1e-6)


def test_raft_learns_nothing_from_a_prompt_that_no_reward_judges():
    trainer = one_update({"algorithm": "raft", "kl_coef": 0.0}, rewards=lambda p, c, rows: [None] * len(c))
    before = tiny.weights(trainer)
    assert trainer.step(BATCH[0])["grad_norm"] == 0
    assert_close(tiny.weights(trainer), before, rtol=0, atol=0)


# Scores that teach nothing, or are missing


def test_groups_of_equal_reward_have_a_gradient_of_exactly_0():
    trainer = one_update({"kl_coef": 0.0}, rewards=lambda p, c, rows: [0.7] * len(c))
    before = tiny.weights(trainer)
    metrics = trainer.step(BATCH[0])
    assert (metrics["equal_groups"], metrics["grad_norm"]) == (1.0, 0.0)
    assert_close(tiny.weights(trainer), before, rtol=0, atol=0)


def test_equal_groups_are_counted():
    trainer = one_update({}, rewards=lambda p, c, rows: [float(i) if i < 4 else 1.0 for i in range(len(c))])
    assert trainer.step(BATCH[0])["equal_groups"] == 0.75


@pytest.mark.parametrize("name", ["grpo", "rloo", "reinforce++_baseline", "gdpo", "bnpo", "remax", "dapo"])
def test_completions_without_a_score_have_no_advantage_and_change_no_other_advantage(name):
    judged = lambda p, c, rows: [None if i % 4 == 1 else len(t) % 2 for i, t in enumerate(c)]  # noqa: E731
    settings = settings_of(name) | {"rewards": judged, "reward_weights": (1.0,), "kl_coef": 0.0}
    trainer = one_update(settings)
    rollout = trainer.collect(BATCH[0])
    advantages = trainer.advantages(rollout)
    assert rollout.scores.isnan().tolist() == [i % 4 == 1 for i in range(16)]
    assert advantages.isfinite().all() and (advantages[1::4] == 0).all() and (advantages != 0).any()
    if name == "rloo":  # by hand: the baseline is the mean of the two other scores
        scores = rollout.scores - 0.3 * ~rollout.ended
        for g in range(0, 16, 4):
            first, third, fourth = (scores[g + i].item() for i in (0, 2, 3))
            mask = rollout.completion_mask[g]
            assert_close(advantages[g][mask], torch.full((int(mask.sum()),), first - (third + fourth) / 2))


@pytest.mark.parametrize("name", ["reinforce", "reinforce++"])
def test_a_completion_without_a_score_has_no_return(name):
    judged = lambda p, c, rows: [None if i % 4 == 1 else 1.0 + i for i in range(len(c))]  # noqa: E731
    trainer = one_update({"algorithm": name, "kl_coef": 0.0}, rewards=judged)
    advantages = trainer.advantages(trainer.collect(BATCH[0]))
    assert (advantages[1::4] == 0).all() and (advantages[0::4] != 0).any()


def test_a_score_that_is_nan_is_refused_by_name():
    def broken(prompts, completions, rows):
        return [math.nan] * len(completions)

    with pytest.raises(InputError, match="^reward broken: needed a finite number for every completion, got nan"):
        one_update({}, rewards=broken).step(BATCH[0])


def test_several_rewards_are_weighed_and_none_adds_nothing():
    trainer = one_update({"reward_weights": (2.0, 0.5)}, rewards=[tiny.has_e, tiny.short])
    rollout = trainer.collect(BATCH[0])
    assert any(len(text) < 3 for text in rollout.completions)
    for text, score in zip(rollout.completions, rollout.scores.tolist(), strict=True):
        expected = 2.0 * ("e" in text) + (0.5 * -0.2 * len(text) if len(text) >= 3 else 0)
        assert score == pytest.approx(expected, abs=1e-6)


# Penalties


def test_cut_and_long_completions_lose_score():
    nothing = lambda p, c, rows: [0.0] * len(c)  # noqa: E731
    settings = {"advantage": "greedy", "kl_coef": 0.0, "missing_eos_penalty": 0.25, "overlong_share": 0.5}
    trainer = one_update(settings, rewards=nothing)
    rollout = trainer.collect(BATCH[0])
    advantages = trainer.advantages(rollout)
    assert 0 < rollout.ended.sum() < 16
    for b, n in enumerate(rollout.completion_mask.sum(-1).tolist()):
        # max_tokens is 8, and the last half is penalised: 5, 6, 7, 8 tokens lose 1/4, 1/2, 3/4, 1
        expected = -max(0, n - 4) / 4 - (0 if rollout.ended[b] else 0.25)
        assert_close(advantages[b][rollout.completion_mask[b]], torch.full((n,), expected))


def test_the_overlong_filter_drops_the_loss_of_cut_completions():
    trainer = one_update({"overlong_filter": True, "kl_coef": 0.3, "reduction": "token"})
    rollout = moved(trainer)
    assert 0 < rollout.ended.sum() < 16
    rows = rows_of(trainer, rollout)
    advantages = [a for group in grouped([row["score"] for row in rows], 4) for a in normalised(group)]
    losses = []
    for row, a in zip(rows, advantages, strict=True):
        if not row["ended"]:
            continue  # its score counts in the mean of its group, but it has no loss
        logits = trainer.models["policy"].transformer(row["ids"])
        logps = token_logps(logits, row["ids"])[0, row["mask"]]
        old, ref = (torch.tensor(x, dtype=torch.float64) for x in (row["logps"], row["ref"]))
        d = logps - ref
        A = torch.full_like(logps, a)
        losses.append(clipped((logps - old).exp(), A) + 0.3 * (torch.exp(-d) - 1 + d))
    loss = torch.cat(losses).mean()
    expected = torch.autograd.grad(loss, list(trainer.optimizer.parameters.values()))
    found, metrics = tiny.gradients(trainer, BATCH[0])
    assert_close(found, dict(zip(trainer.optimizer.parameters, expected, strict=True)), rtol=1e-4, atol=2e-6)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)


# Dynamic sampling


def only(good):
    """Completions of the prompts in `good` differ in reward; all other completions get 0."""
    return lambda p, c, rows: [float(i % 2) if row["prompt"] in good else 0.0 for i, row in enumerate(rows)]


def texts(draws):
    return [draw.row.source["prompt"] for draw in draws]


def test_only_a_group_of_equal_reward_is_replaced_and_by_the_spare_prompt_of_its_number():
    batch = BATCH[0]
    spare = tiny.grpo(batch_size=4, minibatch_size=4).spare
    prompts, first, second = texts(batch), texts(spare[0]), texts(spare[1])
    assert not {*first, *second} & {*prompts} and not {*first} & {*second}
    # groups 1 and 3 differ in reward at once, group 0 with its first spare prompt, group 2 with its second
    good = {prompts[1], prompts[3], first[0], second[2]}
    settings = {"batch_size": 4, "minibatch_size": 4, "resample": 2}
    trainer, plain = (tiny.grpo(rewards=only(good), **settings | {"resample": n}) for n in (2, 0))
    rollout, before = trainer.collect(batch), plain.collect(batch)
    assert texts(trainer.drawn) == [first[0], prompts[1], second[2], prompts[3]]
    sampled = [trainer.tokenizer.decode(rollout.input_ids[b, 1 : n - int(rollout.completion_mask[b].sum())].tolist())
             for b, n in enumerate(rollout.lengths)]  # fmt: skip
    assert sampled == [prompt for prompt in texts(trainer.drawn) for _ in range(4)]
    assert rollout.scores.tolist() == [0.0, 1.0, 0.0, 1.0] * 4
    for group in (1, 3):  # these groups stay as they were sampled
        rows = slice(4 * group, 4 * group + 4)
        assert rollout.completions[rows] == before.completions[rows]
        width = min(rollout.logps.shape[1], before.logps.shape[1])
        assert_close(rollout.logps[rows, :width], before.logps[rows, :width], rtol=0, atol=0)
    assert [s["prompt"] for s in trainer.samples] == texts(trainer.drawn)
    logps = trainer.policy(rollout.input_ids, rollout.attention_mask).logps
    assert_close(torch.where(rollout.completion_mask, logps, 0).float(), rollout.logps, atol=1e-5, rtol=1e-5)


def test_resampling_gives_up_after_its_attempts_and_goes_on_in_the_next_step():
    trainer = tiny.grpo(batch_size=4, minibatch_size=4, resample=2, rewards=only(()))
    trainer.collect(BATCH[0])
    assert texts(trainer.drawn) == texts(trainer.spare[1])
    assert trainer.step(BATCH[0])["equal_groups"] == 1.0
    trainer.collect(BATCH[1])
    assert texts(trainer.drawn) == texts(trainer.spare[3])


def test_a_batch_without_equal_groups_is_left_as_it_is():
    everything = {row.source["prompt"] for row in tiny.rows(24)}
    trainer, plain = (tiny.grpo(batch_size=4, minibatch_size=4, resample=n, rewards=only(everything)) for n in (2, 0))
    assert trainer.step(BATCH[0]) == plain.step(BATCH[0])


# Entropy and the sampler


def test_only_the_tokens_of_highest_entropy_carry_a_policy_gradient():
    fraction = 0.25
    trainer = one_update({"high_entropy_share": fraction, "kl_coef": 0.0, "algorithm": "reinforce++_baseline"})
    rollout = moved(trainer)
    now = trainer.policy(rollout.input_ids, rollout.attention_mask)
    mask = rollout.completion_mask
    trained = mask & (now.entropy >= now.entropy[mask].quantile(1 - fraction))
    assert int(trained.sum()) == pytest.approx(fraction * int(mask.sum()), abs=1)
    A = trainer.advantages(rollout)
    losses = clipped((now.logps - rollout.logps).exp(), A)
    loss = losses[trained].sum() / mask.sum()  # over all tokens, as in the paper
    expected = torch.autograd.grad(loss, list(trainer.optimizer.parameters.values()))
    found, _ = tiny.gradients(trainer, BATCH[0])
    assert_close(found, dict(zip(trainer.optimizer.parameters, expected, strict=True)), rtol=1e-4, atol=2e-6)


def test_the_entropy_bonus_is_the_mean_entropy_of_the_tokens():
    constant = lambda p, c, rows: [0.0] * len(c)  # noqa: E731
    trainer = one_update({"entropy_coef": 0.7, "kl_coef": 0.0, "reduction": "token"}, rewards=constant)
    rollout = moved(trainer)
    now = trainer.policy(rollout.input_ids, rollout.attention_mask)
    loss = -0.7 * now.entropy[rollout.completion_mask].mean()  # the whole loss: equal rewards have no advantage
    expected = torch.autograd.grad(loss, list(trainer.optimizer.parameters.values()))
    found, _ = tiny.gradients(trainer, BATCH[0])
    assert_close(found, dict(zip(trainer.optimizer.parameters, expected, strict=True)), rtol=1e-4, atol=2e-6)


def test_the_adaptive_bonus_follows_its_rule():
    # At or below the target the bonus rises by delta. Above the target it falls, and the loss has no bonus.
    low = tiny.train(one_update({"entropy_coef": 0.5, "entropy_target": 9.0, "entropy_delta": 0.125}), BATCH)
    assert [m["entropy_coef"] for m in low] == [0.625, 0.75, 0.875, 1.0, 1.125, 1.25]
    trainer = one_update({"entropy_coef": 0.5, "entropy_target": 0.1, "entropy_delta": 0.125})
    assert [m["entropy_coef"] for m in tiny.train(trainer, BATCH)] == [0.0] * 6
    assert trainer.entropy.state_dict() == {"level": 0.0, "low": 0.0}


@pytest.mark.parametrize("settings", [{}, {"high_entropy_share": 0.2}, {"sampler_cap": 2.0}, {"kl_coef": 0.0}])
def test_updates_without_a_token_to_train_on_adapt_nothing_and_report_no_mean(settings):
    # No completion ends at its first token, so the filter leaves no token. The entropy of nothing is no entropy.
    filtered = {"max_tokens": 1, "stop_token": 0, "overlong_filter": True, "minibatch_size": 2}
    trainer = one_update({**filtered, "entropy_target": 2.0, "entropy_coef": 0.5, **settings})
    metrics = trainer.step(BATCH[0])
    assert metrics["ended"] == 0 and trainer.entropy.state_dict() == {"level": 0.5, "low": 1.0}
    assert metrics["entropy_coef"] == 0.5 and metrics["loss"] == metrics["grad_norm"] == 0
    assert not {"entropy", "ratio", "approx_kl", "clip_fraction"} & metrics.keys()


@pytest.mark.parametrize("name", {ALGORITHMS[name].get("advantage"): name for name in ALGORITHMS}.values())
def test_no_statistic_breaks_or_is_reported_if_no_reward_applies(name):
    functions = 2 if name == "gdpo" else 1
    nothing = lambda p, c, rows: [None] * len(c)  # noqa: E731
    settings = {"algorithm": name, "resample": 0, "reward_weights": (1.0,) * functions, "kl_coef": 0.0}
    trainer = one_update(settings, rewards=[nothing] * functions)
    metrics = trainer.step(BATCH[0])
    assert metrics["loss"] == metrics["grad_norm"] == 0 and all(map(math.isfinite, metrics.values()))
    assert not {"score_mean", "score_std", "ratio", "entropy"} & metrics.keys()
    assert [sample["score"] for sample in trainer.samples] == [None] * 4  # NaN is no JSON


def test_groups_of_one_completion_report_no_share_of_equal_groups():
    assert "equal_groups" not in one_update({"algorithm": "remax", "group_size": 1}).step(BATCH[0])
    assert "equal_groups" in one_update({}).step(BATCH[0])


def test_correcting_for_a_sampler_that_is_the_trainer_changes_nothing():
    plain, corrected = one_update({}), one_update({"sampler_cap": 2.0})
    expected, metrics = tiny.gradients(plain, BATCH[0])
    found, others = tiny.gradients(corrected, BATCH[0])
    assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert others == pytest.approx(metrics, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("sampler_cap", [None, 1.001])
def test_in_bf16_the_old_log_probs_are_the_trainers_and_the_cap_knows_the_samplers(sampler_cap):
    trainer, weights = one_update({"sampler_cap": sampler_cap, "microbatch_tokens": 10_000}, dtype=torch.float32), []
    update = trainer.update
    trainer.update = lambda old, A, W, *rest: weights.append((old, W)) or update(old, A, W, *rest)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        metrics = trainer.step(BATCH[0])
    assert metrics["ratio"] == pytest.approx(1, abs=1e-3) and 0 < metrics["sampler_gap"] < 0.2
    ((old, W),) = weights
    expected = (old.logps - old.sampler_logps).exp().clamp(max=sampler_cap) if sampler_cap else torch.ones_like(W)
    mask = old.completion_mask
    assert_close(W[mask], expected[mask])
    assert sampler_cap is None or W[mask].max() == pytest.approx(1.001) and W[mask].min() < 1


def test_a_sampler_of_other_weights_is_corrected_for():
    trainer = one_update({"sampler_cap": 1.1, "kl_coef": 0.0, "reduction": "token"})
    rollout = moved(trainer)  # the rollout's log-probs come from the weights before the move
    now = trainer.policy(rollout.input_ids, rollout.attention_mask).logps
    mask = rollout.completion_mask
    weights = (now - rollout.logps).exp().clamp(max=1.1).detach()
    assert weights[mask].max() == pytest.approx(1.1) and weights[mask].min() < 0.9
    losses = (
        -weights * trainer.advantages(rollout) * (now - now.detach()).exp()
    )  # the old log-probs are the trainer's, so the ratio is 1
    expected = torch.autograd.grad(losses[mask].sum() / mask.sum(), list(trainer.optimizer.parameters.values()))
    found, metrics = tiny.gradients(trainer, BATCH[0])
    assert_close(found, dict(zip(trainer.optimizer.parameters, expected, strict=True)), rtol=1e-4, atol=2e-6)
    assert metrics["ratio"] == pytest.approx(1, abs=1e-6)


# The rest


@pytest.mark.parametrize("name", ALGORITHMS)
def test_metrics_are_finite_and_explained(name):
    epochs = 1 if GRPOConfig(algorithm=name).recipe.surrogate in WITHOUT_RATIO else 2
    settings = {"resample": None, "epochs": epochs, "minibatch_size": None, "entropy_target": 1.0}
    metrics = tiny.grpo(**settings_of(name) | settings).step(tiny.batches(8)[0])
    assert metrics.keys() <= METRICS.keys() and all(map(math.isfinite, metrics.values()))
    assert metrics["updates"] == (1 if epochs == 1 else 4)


@pytest.mark.parametrize("reduction", ["token", "sequence", "constant", "sum"])
def test_without_kl_the_policy_loss_is_the_loss(reduction):
    metrics = one_update({"reduction": reduction, "kl_coef": 0.0}).step(BATCH[0])
    assert metrics["policy_loss"] == pytest.approx(metrics["loss"], abs=1e-7)


def test_an_update_without_advantages_reports_no_ratio_and_no_entropy():
    constant = lambda p, c, rows: [0.0] * len(c)  # noqa: E731
    metrics = one_update({"kl_coef": 0.0}, rewards=constant).step(BATCH[0])
    assert metrics["loss"] == metrics["grad_norm"] == 0 and not {"ratio", "entropy", "approx_kl"} & metrics.keys()
    first = {draw.row.source["prompt"] for draw in BATCH[0][:2]}  # only the first of the two updates has advantages
    trainer = tiny.grpo(batch_size=4, minibatch_size=2, kl_coef=0.0, rewards=only(first))
    assert trainer.step(BATCH[0])["ratio"] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("surrogate", ["gspo", "sapo", "reinforce"])
def test_a_surrogate_that_clips_no_tokens_reports_no_clip_fraction(surrogate):
    assert "clip_fraction" not in one_update({"surrogate": surrogate}).step(BATCH[0])
    assert "clip_fraction" in one_update({}).step(BATCH[0])


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"algorithm": "gspo", "dual_clip": 4.0}, "dual_clip has no part in the surrogate gspo; leave it out"),
        ({"algorithm": "rloo", "clip_eps": 0.1}, "clip_eps has no part in the surrogate reinforce; leave it out"),
        ({"algorithm": "rloo", "scale_rewards": "batch"}, "scale_rewards has no part in leave_one_out advantages"),
        ({"gamma": 0.9}, "gamma has no part in group advantages; leave it out"),
        ({"algorithm": "reinforce", "group_size": 1, "resample": 1}, "resample needs groups of at least 2 completions"),
        ({"kl_in": "reward"}, "kl_in has no part without a KL, kl_coef is 0; leave it out"),
        ({"kl_estimator": "k2"}, "kl_estimator has no part without a KL, kl_coef is 0; leave it out"),
        ({"entropy_delta": 0.1}, "entropy_delta has no part without an entropy_target; leave it out"),
        (
            {"algorithm": "remax", "overlong_filter": True, "missing_eos_penalty": 1.0},
            "missing_eos_penalty has no part in greedy advantages beside overlong_filter; leave it out",
        ),
        ({"target_kl": 0.1, "epochs": 1, "minibatch_size": 64}, "target_kl has no part in a step of a single update"),
        ({"algorithm": "cispo", "clip_eps": 0.1}, "clip_eps has no part in the surrogate cispo; leave it out"),
        ({"allow_truncation": True}, "allow_truncation has no part without top_k or top_p; leave it out"),
    ],
)
def test_a_setting_that_would_do_nothing_is_refused(settings, text):
    with pytest.raises(InputError, match=f"^GRPOConfig: {text}"):
        GRPOConfig(**settings)


@pytest.mark.parametrize("settings", [{"minibatch_size": 4}, {"epochs": 2}, {"minibatch_size": 2, "epochs": 3}])
@pytest.mark.parametrize("choice", [{"algorithm": name} for name in ("reinforce", "rloo", "remax")])
def test_a_surrogate_without_ratio_makes_one_update_of_each_batch(choice, settings):
    # log pi of samples that another policy drew is no policy gradient, and no ratio corrects it
    for asked in (choice, {"surrogate": "reinforce"}):
        text = (
            "^GRPOConfig: .* surrogate reinforce has no ratio .* one update .* epochs 1 and minibatch_size to 8 or none"
        )
        with pytest.raises(InputError, match=text):
            GRPOConfig(**{"batch_size": 8, "minibatch_size": 8, **settings, **asked})
    assert GRPOConfig(**{**choice, "surrogate": "clip", "batch_size": 8, "minibatch_size": 8, **settings})


def test_without_a_minibatch_size_the_surrogate_decides_on_one_update_or_two():
    # settings of a user, then of the paper: (batch, minibatch, updates of a step)
    for settings, minibatch, updates in [
        ({"algorithm": "rloo"}, 8, 1),
        ({"algorithm": "grpo"}, 4, 2),
        ({"algorithm": "grpo", "surrogate": "reinforce"}, 8, 1),
        ({"algorithm": "remax", "surrogate": "clip"}, 4, 2),
        ({"algorithm": "grpo", "epochs": 3}, 4, 6),
        ({"algorithm": "grpo", "batch_size": 5}, 5, 1),  # an odd batch has no halves
    ]:
        config = GRPOConfig(**{"batch_size": 8, "minibatch_size": None, "steps": 10, **settings}).recipe
        assert (config.minibatch_size, config.minibatches * config.epochs) == (minibatch, updates)
        assert config.updates == 10 * updates
    trainer = tiny.grpo(algorithm="rloo", minibatch_size=None)
    assert trainer.step(tiny.batches(8)[0])["updates"] == 1 and trainer.optimizer.updates == tiny.STEPS


def test_a_group_stands_side_by_side_and_its_completions_differ():
    rollout = one_update({}).collect(BATCH[0])
    prompts = [rollout.input_ids[b, : n - int(rollout.completion_mask[b].sum())].tolist()
               for b, n in enumerate(rollout.lengths)]  # fmt: skip
    assert prompts == [draw.row.prompt for draw in BATCH[0] for _ in range(4)]
    assert all(len({*group}) == 4 for group in grouped(rollout.completions, 4))


def test_a_reference_is_read_only_if_it_is_given():
    assert (one_update({"kl_coef": 0.1}).collect(BATCH[0]).ref_logps != 0).any()
    trainer = GRPOTrainer(
        Policy(tiny.transformer()), None, tiny.likes_e, tiny.tokenizer(), one_update({"kl_coef": 0}).config
    )
    assert (trainer.collect(BATCH[0]).ref_logps == 0).all()


def test_the_compiled_surrogate_is_the_eager_one(monkeypatch):
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compile(f, **options | {"backend": "eager"}))
    make = lambda compiled: GRPOTrainer(  # noqa: E731
        Policy(tiny.transformer()), None, tiny.likes_e, tiny.tokenizer(), one_update({"kl_coef": 0}).config,
        compiled=compiled,
    )  # fmt: skip
    (eager, metrics), (compiled, others) = (tiny.gradients(make(flag), BATCH[0]) for flag in (False, True))
    assert_close(compiled, eager, rtol=1e-9, atol=1e-9)
    assert others == pytest.approx(metrics)


@pytest.mark.parametrize("name", ["grpo", "rloo", "dapo"])
def test_it_learns_the_toy_reward(name):
    settings = {"batch_size": 16, "minibatch_size": 16, "group_size": 4, "kl_coef": 0.0, "lr": 5e-2, "max_tokens": 10}
    trainer = tiny.grpo(torch.float32, steps=20, algorithm=name, microbatch_tokens=10_000, **settings)
    log = tiny.train(trainer, tiny.batches(16, 20))
    assert log[0]["score_mean"] < -0.2 and sum(m["score_mean"] for m in log[-5:]) / 5 > 0.3


# What is refused


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"algorithm": "grop"}, "GRPOConfig: algorithm must be one of reinforce, rloo, remax, .*, got 'grop'"),
        ({"advantage": "gae"}, "GRPOConfig: advantage must be one of returns, whitened_returns, group, .*, got 'gae'"),
        ({"surrogate": "ppo"}, "GRPOConfig: surrogate must be one of reinforce, clip, .*, got 'ppo'"),
        ({"group_size": 1}, "GRPOConfig: group_size must be at least 2 for grpo, got 1: one completion has nothing"),
        ({"group_size": 0, "algorithm": "remax"}, "GRPOConfig: group_size must be at least 1, got 0"),
        ({"kl_estimator": "k1", "kl_coef": 0.1}, "GRPOConfig: kl_estimator must be k2 or k3 in the loss, got k1"),
        ({"algorithm": "gdpo", "kl_in": "reward", "kl_coef": 0.1}, "GRPOConfig: kl_in must be loss for gdpo"),
        ({"algorithm": "bnpo", "kl_in": "reward", "kl_coef": 0.1}, "GRPOConfig: kl_in must be loss for bnpo"),
        ({"dual_clip": 1.0}, "GRPOConfig: dual_clip must be above 1, got 1.0"),
        ({"sampler_cap": 0.5}, "GRPOConfig: sampler_cap must be at least 1, got 0.5"),
        ({"high_entropy_share": 0.0}, "GRPOConfig: high_entropy_share must be above 0 and at most 1, got 0.0"),
        ({"overlong_share": 1.5}, "GRPOConfig: overlong_share must be at least 0 and at most 1, got 1.5"),
        ({"clip_eps": 0.0}, "GRPOConfig: clip_eps must be above 0, got 0.0"),
        ({"kl_coef": -0.1}, "GRPOConfig: kl_coef must be at least 0, got -0.1"),
        ({"batch_size": 6, "minibatch_size": 4}, "GRPOConfig: batch_size must be a multiple of minibatch_size"),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(settings, text):
    with pytest.raises(InputError, match=f"^{text}"):
        GRPOConfig(**{"minibatch_size": 4, "batch_size": 8} | settings)


def make(policy=None, reference=None, rewards=tiny.likes_e, **settings):
    config = GRPOConfig(batch_size=4, minibatch_size=4, **settings)
    return GRPOTrainer(policy or Policy(tiny.transformer()), reference, rewards, tiny.tokenizer(), config)


def test_parts_that_do_not_fit_are_refused():
    policy = Policy(tiny.transformer())
    for parts, text in [
        ({"kl_coef": 0.1}, "kl_coef > 0 needs a reference, got none; pass copy_of"),
        (
            {"rewards": [tiny.has_e, tiny.short]},
            r"needed a reward function for each of the reward_weights \(1.0,\), got 2",
        ),
        ({"reward_weights": (1.0, 2.0)}, "needed a reward function for each of the reward_weights .* got 1 functions"),
        ({"resample": 1}, r"resample needs spare prompts, got none; pass spare=Batches\(...\)"),
        ({"algorithm": "dapo"}, "resample needs spare prompts"),
        (
            {"policy": policy, "reference": policy, "kl_coef": 0.1},
            "the reference must be a frozen copy, got the policy",
        ),
        ({"stop_token": 30}, "stop_token must be an id of the vocabulary, got 30"),
    ]:
        with pytest.raises(InputError, match=f"^GRPOTrainer: {text}"):
            make(**parts)
    assert make(policy, copy_of(policy), kl_coef=0.1).config.kl_coef == 0.1


def test_a_policy_with_a_value_head_that_nothing_would_train_is_refused():
    # Parameters without gradient make DistributedDataParallel fail in the second update.
    with pytest.raises(InputError, match="value head"):
        make(Policy(tiny.transformer(), value_head=True))


@pytest.mark.parametrize("settings", [{}, {"missing_eos_penalty": 0.5}])
def test_rewards_outside_0_and_1_are_refused_for_bnpo(settings):
    reward = tiny.likes_e if not settings else tiny.has_e
    with pytest.raises(InputError, match="0"):
        one_update({"algorithm": "bnpo", **settings}, rewards=reward).step(BATCH[0])


def test_spare_prompts_are_a_function_of_the_step():
    spare = Batches(tiny.rows(20, seed=4), batch_size=4, steps=9, seed=0, stream="spare")
    assert texts(spare[0]) == texts(tiny.grpo(batch_size=4, minibatch_size=4).spare[0])
