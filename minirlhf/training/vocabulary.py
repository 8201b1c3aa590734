"""The metrics of all algorithms: name, unit and meaning. Imports no torch, so tools that only read runs start fast."""

from __future__ import annotations

# name: (unit, meaning). The headings of docs/metrics.md are these names.
METRICS: dict[str, tuple[str, str]] = {
    "loss": ("-", "the number that the optimizer minimises; in PPO and GRPO watch score_mean and kl instead"),
    "accuracy": ("share", "pairs that are ranked right; answers or steps that are judged right"),
    "policy_loss": ("score", "clipped surrogate; near 0 in every first minibatch, because advantages are whitened"),
    "value_loss": ("score^2", "half the squared error of the value function"),
    "kl": ("nats per sequence", "estimated KL(policy || reference); a single batch may be negative"),
    "kl_coef": ("score per nat", "the price of one nat of KL"),
    "entropy": ("nats per token", "how undecided the policy is; a fall to 0 is a collapse"),
    "ratio": ("-", "pi / pi_old, mean over tokens and the updates of a step; 1 at the first update, then near 1"),
    "clip_fraction": ("share", "tokens that have no gradient because of the clip"),
    "approx_kl": ("nats per token", "how far the updates of this step moved the policy"),
    "explained_variance": ("share", "of the returns' variance, by the value function; 1: all; 0: none; below 0: worse"),
    "score_mean": ("score", "mean of the reward function over the batch, before KL and missing-EOS penalty"),
    "score_std": ("score", "standard deviation of the scores in the batch"),
    "response_length": ("tokens", "mean length of the completions, EOS included"),
    "ended": ("share", "completions that ended with EOS or a stop string"),
    "sampler_gap": ("nats per token", "in bf16: how far the sampler's log-probs are from the trainer's, without sign"),
    "turns": ("turns", "mean number of the policy's turns in an episode"),
    "forced_tokens": ("tokens", "mean number of tokens between the policy's turns, by the environment or the template"),
    "mass_kept": ("share", "probability that remains after top-k / top-p; 1 without truncation"),
    "updates": ("updates", "optimizer steps in this step; fewer if target_kl stopped the step"),
    "margin": ("score", "mean of chosen minus rejected score; in DPO, of beta times the log-ratios"),
    "equal_groups": ("share", "groups whose completions all have the same score; comparing them teaches nothing"),
    "entropy_coef": ("score per nat", "the reward for one nat of entropy, reported if it adapts"),
    "chosen_reward": ("score", "DPO's implicit reward of the chosen answers; it usually falls, see #chosen_reward"),
    "rejected_reward": ("score", "DPO's implicit reward of the rejected answers; it should fall faster"),
    "chosen_logps": ("nats", "log-prob of the chosen answers (per token where the loss takes means)"),
    "rejected_logps": ("nats", "log-prob of the rejected answers"),
    "reward_mean": ("score", "mean implicit reward of single answers, good and bad"),
    "win_prob": ("share", "the judge's probability that the policy's answer beats the other answer"),
    "disagreement": ("share", "pairs for which a judge that is asked in both orders names another winner in each"),
    "on_policy": ("-", "1 if the student wrote this step's answers, 0 if they came from the data"),
    "router_loss": ("-", "imbalance of experts: num_experts_per_tok if all are used equally, at most num_experts"),
    "grad_norm": ("norm", "length of the gradient before clipping"),
    "lr": ("per update", "learning rate"),
}


def metrics_help() -> str:
    """The table of metrics that `--help` prints below the settings."""
    lines = ["metrics (explained in docs/metrics.md#NAME)"]
    lines += [f"  {name:<20}  [{unit}]  {meaning}" for name, (unit, meaning) in METRICS.items()]
    lines += ["  eval/NAME             the same metric, or a measure of the task, on held-out rows"]
    lines += ["  eval/SET/NAME         the same on the rows of --validation SET=FILE"]
    return "\n".join(lines)
