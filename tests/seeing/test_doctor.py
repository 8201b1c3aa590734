"""The doctor's rules on series worked by hand: each rule fires on its fault, and not on a healthy series beside it."""

import random
import re
from pathlib import Path

import pytest

from minirlhf.cli.doctor import main
from minirlhf.errors import InputError
from minirlhf.seeing.doctor import LOOKS, RULES, Finding, examine, looks
from minirlhf.seeing.reading import read_run
from minirlhf.seeing.rules.record import Change, Record, change_of
from minirlhf.seeing.rules.rows import FREE

from .made import lines, make_run

DOCS = Path(__file__).resolve().parents[2] / "docs"


def noise(k, size=1.0):
    """A fixed number between -size and size for step k."""
    return size * ((k * 7919 % 101) / 50 - 1)


def series(value, steps=40):
    """metric's values at steps 1 to `steps`: a function of the step, or a constant."""
    found = [value(k) if callable(value) else value for k in range(1, steps + 1)]
    return list(range(1, steps + 1)), [float(x) for x in found]


def record(kind="ppo", steps=40, settings=None, samples=(), every=None, **metrics):
    """every: metrics recorded at these steps only; eval_x stands for eval/x."""
    curves = {name.replace("eval_", "eval/"): series(value, steps) for name, value in metrics.items()}
    for name, points in (every or {}).items():
        curves[name] = list(points), [float(x) for x in points.values()]
    return Record(kind, curves, {f"{kind}.{key}": x for key, x in (settings or {}).items()}, samples)


def rows(*texts):
    return [(40, [{"prompt": f"p{k}", "completion": text} for k, text in enumerate(texts)])]


EVERY_10 = (10, 20, 30, 40)
GOLD = {"eval/gold_reward": dict(zip(EVERY_10, (0.2, 0.9, 0.7, 0.6), strict=True))}
HIGHER = {"eval/model_reward": dict(zip(EVERY_10, (1, 2, 3, 4), strict=True))}
LOWER = {"eval/model_reward": dict(zip(EVERY_10, (1, 2, 1.9, 1.5), strict=True))}
RISING = {"score_mean": lambda k: k / 40 + noise(k, 0.05), "kl": lambda k: k / 40, "kl_coef": 0.1, "ended": 1}
SLIGHT = {"eval/loss": dict(zip(EVERY_10, (0.6, 0.5, 0.52, 0.53), strict=True))}
OVERFIT = {"eval/loss": dict(zip(EVERY_10, (0.6, 0.5, 0.6, 0.7), strict=True))}

# rule -> (a record on which it fires, a part of the evidence, a record on which it does not)
CASES = {
    "score_up_gold_down": (
        record(every=GOLD | HIGHER),
        "since step 20 eval/model_reward rose from 2.000 to 4.000 while eval/gold_reward fell from 0.900 to 0.600",
        record(every=GOLD | LOWER),  # both fall: no hacking
    ),
    # k / 40 - 0.1 * k / 2: on average -0.025 * 4.5 = -0.1125 in the first 8 steps, -0.025 * 36.5 in the last 8
    "objective_falls": (
        record(**RISING | {"kl": lambda k: k / 2}),
        "fell from -0.117 in the first steps to -0.918",
        record(**RISING),
    ),
    "entropy_collapses": (
        record(score_mean=1, entropy=lambda k: 2 / k**2, samples=rows("e", "e", "e", "e")),
        "4 prompts got 1 different text",
        record(score_mean=1, entropy=lambda k: 2 / k**2, samples=rows("1", "2", "3", "4")),  # solved, not collapsed
    ),
    "length_drifts": (
        record(response_length=lambda k: 10 + k + noise(k)),
        "from 15.",  # 10 + (1 + ... + 10) / 10
        record(response_length=lambda k: 10 + noise(k, 3)),
    ),
    "equal_scores": (
        record(score_mean=0.0, score_std=0.0),
        "all completions of the last 5 steps have the score 0.000",
        record(score_mean=lambda k: min(1, k / 20), score_std=lambda k: 0.5 if k < 20 else 0.0, equal_groups=1),
    ),
    "never_ends": (
        record(ended=0.005),
        "in the last 10 steps 0.5% of the completions ended",
        record(ended=0.0, settings={"missing_eos_penalty": 0}),  # no end is asked for
    ),
    "score_stays": (
        record(score_mean=lambda k: 0.5 + noise(k, 0.1)),
        "score_mean stayed at 0.",
        record(**RISING),
    ),
    "kl_explodes": (
        record(entropy=lambda k: 2 / k, kl=lambda k: k, response_length=10.0),  # 39 nats of 10 tokens, 1.22 at first
        "3.900 per token",
        record(entropy=lambda k: 2 / k, kl=lambda k: k / 4, response_length=10.0),
    ),
    "kl_negative": (
        record(score_mean=0, kl=lambda k: -0.5 + noise(k, 0.1)),
        "too far below 0 for noise",
        record(score_mean=0, kl=lambda k: -0.01 + noise(k, 0.1)),
    ),
    "kl_stays_zero": (
        record(kl=0, score_mean=lambda k: k / 40 + noise(k, 0.02), entropy=lambda k: 2 - k / 40),
        "the KL stays at 0",
        record(kl=0, score_mean=lambda k: noise(k, 0.02), entropy=2),
    ),
    "sampler_and_trainer_disagree": (
        record(kl=lambda k: 1.0, response_length=10.0),
        "at step 1 the policy is still the reference, but the KL is 1.000",
        record(kl=lambda k: (k - 1) / 10, response_length=10.0),
    ),
    "ratio_never_moves": (
        record(updates=4, ratio=1, approx_kl=0),
        "each step makes 4 updates, but the ratio stays exactly 1",
        record(updates=1, ratio=1, approx_kl=0),
    ),
    "clip_too_often": (
        record(clip_fraction=0.4),
        "the clip took the gradient from 40% of the tokens",
        record(clip_fraction=lambda k: 0.4 if k < 30 else 0.1),
    ),
    "clip_never": (
        record(clip_fraction=0, approx_kl=0.05),
        "the clip took no gradient at all",
        record(clip_fraction=0, approx_kl=0.001),
    ),
    "gradient_always_clipped": (
        record(grad_norm=lambda k: 5 + noise(k)),
        "in all of the last 30 steps the gradient was clipped",
        record(grad_norm=lambda k: 1.5 + noise(k)),
    ),
    "gradient_grows": (
        record(grad_norm=lambda k: 0.1 * 1.2**k),
        "the length of the gradient grew from 0.247 to",  # 0.1 (1.2 + ... + 1.2^8) / 8
        record(grad_norm=lambda k: 0.1 * 1.05**k),
    ),
    "rate_too_high": (
        record(kind="sft", loss=lambda k: 1 + k / 20 + noise(k, 0.05)),
        "the loss rose from 1.",
        record(kind="sft", loss=lambda k: 2 - k / 40 + noise(k, 0.5)),
    ),
    "rate_too_low": (
        record(kind="dpo", steps=60, loss=lambda k: 0.693 + noise(k, 0.001)),
        "the loss stayed at 0.69",
        record(kind="dpo", steps=60, loss=lambda k: 0.693 - k / 1000),
    ),
    "warm_up_never_ends": (
        record(kind="sft", lr=lambda k: k / 1e6, settings={"steps": 60}),
        "the learning rate has risen in all of 40 steps, to 4.0e-05",
        record(kind="sft", lr=lambda k: min(k, 30) / 1e6, settings={"steps": 60}),
    ),
    "dead_critic": (
        record(explained_variance=0),
        "the value function is a constant",
        record(explained_variance=lambda k: noise(k, 0.2)),
    ),
    "advantages_not_centred": (
        record(policy_loss=lambda k: 0.3 * (-1) ** k, approx_kl=0.001),
        "policy_loss is 0.300 away from 0",
        record(policy_loss=lambda k: noise(k, 0.03), approx_kl=0.001),
    ),
    "dpo_starts_elsewhere": (
        record(kind="dpo", loss=0.8, margin=0),
        "the loss is 0.800 instead of log 2",
        record(kind="dpo", loss=lambda k: 0.693147 - (k - 1) / 100, margin=lambda k: (k - 1) / 50),
    ),
    "chosen_falls": (
        record(kind="dpo", chosen_reward=lambda k: -k / 10, margin=lambda k: k / 20),
        "chosen_reward is -3.800, 38.000 nats less log-prob",
        record(kind="dpo", chosen_reward=lambda k: -k / 80, margin=lambda k: k / 20),
    ),
    "at_chance": (
        record(kind="reward_model", steps=80, accuracy=lambda k: 0.5 + noise(k, 0.1), margin=0),
        "accuracy is 0.",
        record(kind="reward_model", steps=80, accuracy=lambda k: 0.5 + k / 200, margin=0),
    ),
    "overfits": (
        record(kind="reward_model", loss=lambda k: 1 / k, every=OVERFIT),
        "since step 20 the loss on held-out rows rose from 0.500 to 0.700",
        record(kind="reward_model", loss=lambda k: 1 / k, every=SLIGHT),
    ),
    "loss_near_zero": (
        record(kind="sft", loss=lambda k: 6 / k**3),
        "the model is never surprised by its rows",
        record(kind="sft", loss=lambda k: 6 / k),
    ),
}


def test_every_rule_has_its_series():
    assert CASES.keys() == RULES.keys()


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_fires_on_its_fault_and_not_beside_it(rule):
    faulty, evidence, healthy = CASES[rule]
    found = RULES[rule].find(faulty)
    assert found is not None and evidence in found
    assert RULES[rule].find(healthy) is None


MORE = {  # further faults of the same rules: a record, a part of the evidence
    "never_ends": (record(ended=lambda k: 0.9 if k < 20 else 0.2), "completions that end fell from 90% to 20%"),
    "sampler_and_trainer_disagree": (
        record(approx_kl=lambda k: 0.01, lr=lambda k: min(k, 3) / 1000, kl=0, response_length=9),
        "of step 1 moved the policy by 0.010 nats per token (approx_kl) and those of step 2, at a higher rate, by 0.01",
    ),
    "dpo_starts_elsewhere": (record(kind="dpo", loss=0.693, margin=0.5), "the margin is 0.500 instead of 0"),
    "equal_scores": (record(score_mean=0, equal_groups=0.95), "in 95% of the groups all completions have the same"),
    "rate_too_low": (record(score_mean=noise, kl=0, entropy=2, loss=0), "the policy is still its reference"),
    "rate_too_high": (record(score_mean=noise, approx_kl=0.2, loss=0), "each step moved the policy by 0.200 nats"),
    "dead_critic": (record(explained_variance=-0.5), "the value function is worse than a constant"),
    "at_chance": (
        record(kind="dpo", steps=80, accuracy=0.3, margin=0, every={"eval/accuracy": dict.fromkeys(EVERY_10, 0.2)}),
        "eval/accuracy is 0.200 after 80 steps",
    ),
}


def test_a_penalty_for_missing_ends_must_act():
    find = RULES["never_ends"].find
    assert "30% of the completions end, no more than at first, although missing ends cost score" in find(
        record(ended=0.3)
    )
    assert find(record(ended=0.3, settings={"missing_eos_penalty": 0})) is None
    assert find(record(ended=lambda k: k / 80)) is None  # rising


@pytest.mark.parametrize("rule", MORE)
def test_a_rule_sees_more_than_one_sign_of_its_fault(rule):
    faulty, evidence = MORE[rule]
    assert evidence in RULES[rule].find(faulty)


def test_the_change_of_a_series_is_counted_in_standard_errors():
    # first five: mean 3, variance 2.5, error sqrt(0.5); last five: the same about 13
    change = change_of([*range(1, 6), *range(6, 11), *range(11, 16)])
    assert change == Change(3.0, 13.0, pytest.approx(1.0)) and change.sigmas == pytest.approx(10)
    assert change_of([1.0] * 9) is None and change_of([1.0] * 10).sigmas == 0


def test_rules_see_no_later_step():
    past = record(kl=lambda k: k).up_to(3)
    assert past.values("kl") == [1, 2, 3] and past.steps("kl") == [1, 2, 3] and past.last("kl", 4) == []
    assert past.values("loss") == []


def test_no_rule_fires_on_a_run_of_few_steps_or_odd_series():
    for value in (0.0, 1e-300, 1e200, -1e200):
        for steps in (1, 2, 9, 30):
            names = {name.replace("eval/", "eval_") for rule in RULES.values() for name in rule.needs}
            odd = record(steps=steps, **dict.fromkeys(names, value))
            fired = {name for name, rule in RULES.items() if rule.find(odd)}  # and none fails
            assert steps > 9 or not fired - {"sampler_and_trainer_disagree", "clip_too_often", "rate_too_high"}


def test_no_rule_fails_on_series_with_gaps():
    draw = random.Random(0)
    names = sorted({name for rule in RULES.values() for name in rule.needs} | {"lr", "eval/accuracy", "score_std"})
    for _ in range(300):
        curves = {}
        for name in draw.sample(names, draw.randint(0, len(names))):
            steps = sorted(draw.sample(range(1, 100), draw.randint(1, 60)))
            curves[name] = steps, [draw.choice((0.0, draw.gauss(0, 1), 1e299, -1e299)) for _ in steps]
        odd = Record(draw.choice(("ppo", "dpo", "sft", "-")), curves, {"ppo.steps": "many", "dpo.loss": 3})
        for rule in RULES.values():
            rule.find(odd)


def test_no_rule_fails_on_settings_and_samples_of_a_broken_folder():
    strange = ([], {}, 3, None, "p")
    samples = [(1, [{"prompt": prompt, "completion": "a"} for prompt in strange])]
    for value in (0, -1, float("nan"), float("inf"), -1e308, [], "x"):
        for kind in ("ppo", "grpo", "dpo", "reward_model", "sft"):
            metrics = {name for rule in RULES.values() for name in rule.needs} | {"kl_coef", "ended"}
            names = ("beta", "missing_eos_penalty", "max_grad_norm", "steps", "loss", "kl_in", "value_warmup", "warmup")
            settings = {f"{kind}.{name}": value for name in names}
            curves = {name: series(lambda k: -k) for name in metrics}
            for rule in RULES.values():
                rule.find(Record(kind, curves, settings, samples))


@pytest.mark.parametrize("loss", [*FREE, "sigmoid"])
def test_a_loss_without_a_reference_starts_elsewhere_and_its_chosen_answers_are_not_judged(loss):
    settings = {"loss": loss, "reference_free": loss == "sigmoid"}
    curves = {"loss": 0.9, "margin": lambda k: k / 9, "chosen_reward": lambda k: -8}  # log-probs, no log-ratios
    odd = record(kind="dpo", settings=settings, **curves)
    assert not RULES["dpo_starts_elsewhere"].find(odd) and not RULES["chosen_falls"].find(odd)


def test_the_first_loss_of_weighted_pairs_is_not_log_2():
    weighted = record(kind="dpo", settings={"weighting": True}, loss=0.3, margin=0)
    assert RULES["dpo_starts_elsewhere"].find(weighted) is None


def test_the_losses_without_a_reference_are_those_of_dpo():
    from minirlhf.algorithms.dpo_recipes import LOSSES

    assert {name for name, loss in LOSSES.items() if not loss.reference} == {*FREE}


def run_of(folder, **metrics):
    """A run folder whose metrics at step k (from 1) are functions of k."""
    make_run(folder, steps=1)
    table = {name: series(value, 40)[1] for name, value in metrics.items()}
    lines(folder / "metrics.jsonl", [{"step": k, **{name: x[k] for name, x in table.items()}} for k in range(40)])
    return folder


def test_a_finding_has_the_first_step_of_its_evidence_and_says_if_it_lasts(tmp_path):
    run = read_run(run_of(tmp_path / "ppo", clip_fraction=lambda k: 0.5 * (11 <= k <= 20), ended=0.0))
    # the mean of steps 9 to 13 is the first that reaches 0.3; 20 values are needed to say that nothing ends
    assert examine(run) == [
        Finding("clip_too_often", 13, "in the last 5 steps the clip took the gradient from 30% of the tokens", False),
        Finding("never_ends", 20, "in the last 10 steps 0.0% of the completions ended; all others reached max_tokens"),
    ]


def test_long_runs_are_looked_at_in_60_steps(tmp_path):
    run = read_run(make_run(tmp_path / "ppo", steps=3000))
    steps = looks(Record.of(run))
    assert len(steps) == LOOKS and steps[-1] == 3000


def test_the_command_prints_findings_in_80_columns(tmp_path, capsys):
    folder = run_of(tmp_path / ("long " * 20) / "ppo", clip_fraction=0.5, ended=0.0)
    (folder / "metrics.jsonl").open("a").write('{"step": 40, "kl')
    main([str(folder)])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines()[1:])) <= 80
    text = " ".join(out.split())
    assert "step 5: the clip acts on too many tokens (clip_too_often) In the last 5 steps" in text
    assert "Remedy: lower lr or epochs. Read: docs/metrics.md#clip_fraction" in text
    assert "Note: metrics.jsonl: the last line is half-written." in text


def test_a_healthy_run_gets_no_finding(tmp_path, capsys):
    main([str(make_run(tmp_path / "ppo"))])
    assert "No fault found by 9 rules. 17 rules without the metrics" in " ".join(capsys.readouterr().out.split())


def test_the_rules_are_listed_and_bad_folders_are_refused(tmp_path, capsys):
    main(["--rules"])
    out = capsys.readouterr().out
    assert all(f"{name}: {rule.title}" in out for name, rule in RULES.items())
    with pytest.raises(InputError, match="needed the folder of a run or a pipeline, got none"):
        main([])
    with pytest.raises(InputError, match="needed a folder with a run in it, found none"):
        main([str(tmp_path)])


def test_every_rule_leads_into_the_docs():
    for rule in RULES.values():
        page, anchor = re.fullmatch(r"docs/(\w+\.md)#(.+)", rule.docs).groups()
        titles = re.findall(r"^#+ (.+)$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_a_curve_is_bounded_once_for_the_looks_at_all_steps():
    record = Record("sft", {"loss": ([1, 2, 3], [1e200, 2.0, 3.0])})
    assert [record.up_to(step).values("loss") for step in (0, 1, 3)] == [[], [1e100], [1e100, 2.0, 3.0]]
    assert record.bounded == {"loss": [1e100, 2.0, 3.0]}
