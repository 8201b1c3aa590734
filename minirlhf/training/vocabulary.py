"""The names of the metrics."""

from __future__ import annotations

# name: (unit, meaning). Anchors of docs/metrics.md are these names.
METRICS: dict[str, tuple[str, str]] = {
    "loss": ("-", "what the optimizer minimises; in PPO and GRPO its size says nothing, watch score_mean and kl"),
    "accuracy": ("share", "pairs that are ranked right, answers or steps judged right"),
    "policy_loss": ("score", "clipped surrogate; near 0 at every first minibatch, because advantages are whitened"),
    "value_loss": ("score^2", "half the squared error of the value function"),
    "kl": ("nats per sequence", "estimated KL(policy || reference); single batches may be negative"),
    "kl_coef": ("score per nat", "what a nat of KL costs"),
    "entropy": ("nats per token", "how undecided the policy is; a fall to 0 is a collapse"),
    "ratio": (
        "-",
        "pi / pi_old, mean over tokens and over the updates of a step; 1 at the first update, near it after",
    ),
    "clip_fraction": ("share", "tokens whose gradient the clip took away"),
    "approx_kl": ("nats per token", "how far the updates of this step have moved the policy"),
    "explained_variance": ("share", "of the returns, by the value function; 1 is perfect, 0 a constant, below 0 worse"),
    "score_mean": ("score", "mean of the reward function over the batch, before KL and missing-EOS penalty"),
    "score_std": ("score", "its spread over the batch"),
    "response_length": ("tokens", "mean length of the completions, EOS included"),
    "ended": ("share", "completions that ended by themselves (EOS or a stop string)"),
    "mass_kept": ("share", "probability that top-k / top-p left to sample from; 1 without truncation"),
    "updates": ("updates", "optimizer steps in this step; fewer when target_kl stopped it"),
    "margin": ("score", "mean of chosen minus rejected score; in DPO, of beta times the log-ratios"),
    "equal_groups": (
        "share",
        "groups whose completions all score the same: compared, they teach nothing",
    ),
    "entropy_coef": ("score per nat", "what a nat of entropy earns, if it adapts"),
    "chosen_reward": ("score", "DPO's implicit reward of the chosen answers; it usually falls, see #chosen_reward"),
    "rejected_reward": ("score", "that of the rejected ones; it should fall faster"),
    "chosen_logps": ("nats", "log-prob of the chosen answers (per token where the loss takes means)"),
    "rejected_logps": ("nats", "log-prob of the rejected ones"),
    "reward_mean": ("score", "mean implicit reward of single answers, liked and not"),
    "win_prob": ("share", "the judge's chance that the policy's answer beats its opponent's"),
    "on_policy": ("-", "1 if this step's answers were the student's own, 0 if the data's"),
    "router_loss": ("-", "how unevenly experts are used: num_experts_per_tok if evenly, up to num_experts if not"),
    "grad_norm": ("norm", "length of the gradient before clipping"),
    "lr": ("per update", "learning rate"),
}


def metrics_help() -> str:
    """The table of metrics that `--help` prints below the settings."""
    lines = ["metrics (explained in docs/metrics.md#NAME)"]
    lines += [f"  {name:<20}  [{unit}]  {meaning}" for name, (unit, meaning) in METRICS.items()]
    lines += ["  eval/NAME             the same, or what the task measures, on held-out rows"]
    return "\n".join(lines)
