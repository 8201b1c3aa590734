"""Where each loss leads, in a space so small that every expectation is a sum over all completions.

    python tests/losses/enumerated.py     prints the figures of docs/fixed_points.md

N completions of up to T = 3 tokens out of V = 6, one prompt; N * N pairs. A policy is a table: one softmax per prefix,
`logits` [1 + 6 + 36, V]. `logps` [N, T] are the log-probs of the tokens of all completions. `weights` [N] =
exp(sum of logps), detached, replace sampling. All numbers are float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor

from minirlhf.losses import (
    apo_zero_loss,
    bco_loss,
    bco_pair_loss,
    discounted_returns,
    dpo_sigmoid_loss,
    gae,
    group_advantages,
    hinge_dpo_loss,
    ipo_loss,
    kl_k1,
    kl_k2,
    kl_k3,
    kl_shaped_rewards,
    kto_kl,
    kto_loss,
    masked_whiten,
    mean_logps,
    nca_loss,
    ppo_policy_loss,
    reinforce_policy_loss,
    rloo_advantages,
    robust_dpo_loss,
    sum_logps,
)

V, T, BETA, FLIP = 6, 3, 0.5, 0.1  # FLIP: fraction of wrong labels, for losses that assume wrong labels
Loss = Callable[[Tensor, Tensor], Tensor]  # (logps with gradient, weights) -> scalar


@dataclass(frozen=True)
class Space:
    tokens: Tensor  # [N, T]
    nodes: Tensor  # [N, T] the row of `logits` a token is drawn from
    mask: Tensor  # [N, T]
    ref_logits: Tensor  # [nodes, V]
    rewards: Tensor  # [N]

    def logps(self, logits: Tensor) -> Tensor:
        return torch.where(self.mask, logits.log_softmax(-1)[self.nodes, self.tokens], 0)

    def visits(self, weights: Tensor) -> Tensor:
        """[N] -> [nodes, V]: probability of reaching a node and choosing a token at it."""
        totals = torch.zeros_like(self.ref_logits)
        spread = torch.where(self.mask, weights[:, None], 0)
        return totals.index_put((self.nodes, self.tokens), spread, accumulate=True)

    def values(self, returns: Tensor, weights: Tensor) -> Tensor:
        """[N, T]: the expected return at the node that each token is drawn from."""
        totals = torch.zeros_like(self.ref_logits[:, 0])
        totals = totals.index_put((self.nodes,), weights[:, None] * returns, accumulate=True)
        return (totals / self.visits(weights).sum(-1))[self.nodes]

    @cached_property
    def ref_logps(self) -> Tensor:
        return self.logps(self.ref_logits)

    @cached_property
    def ref(self) -> Tensor:
        """[N] log pi_ref(y)."""
        return sum_logps(self.ref_logps, self.mask)

    def tilted(self, logratios: Tensor) -> Tensor:
        """log of pi_ref exp(logratios), normalised."""
        return (self.ref + logratios).log_softmax(-1)

    @cached_property
    def optimum(self) -> Tensor:
        return self.tilted(self.rewards / BETA)

    def reward_and_kl(self, policy: Tensor) -> tuple[float, float]:
        """(mean reward, KL to the reference) of log-probs [N]; a completion of probability 0 adds nothing."""
        p = policy.exp()
        return float(p @ self.rewards), float(torch.where(p > 0, p * (policy - self.ref), 0).sum())

    def relative(self, policy: Tensor) -> tuple[float, float, float]:
        """(reward gained / the optimum's, KL / the optimum's, reward gained / the largest gain at this KL)."""
        start, (reward, kl) = self.reward_and_kl(self.ref)[0], self.reward_and_kl(policy)
        best_reward, best_kl = self.reward_and_kl(self.optimum)
        low, high = math.log(1e-3), math.log(1e3)
        for _ in range(60):  # the best policies are pi_ref exp(reward / b): find the b with this KL
            middle = (low + high) / 2
            reward_at_b, kl_at_b = self.reward_and_kl(self.tilted(self.rewards / math.exp(middle)))
            low, high = (middle, high) if kl_at_b > kl else (low, middle)
        return (reward - start) / (best_reward - start), kl / best_kl, (reward - start) / (reward_at_b - start)


def make_space(eos: bool = False, seed: int = 0) -> Space:
    """All 216 completions of three tokens; with `eos` token 0 ends a completion: 1 + 5 + 150 of lengths 1, 2, 3."""
    generator = torch.Generator().manual_seed(seed)
    randn = partial(torch.randn, generator=generator, dtype=torch.float64)
    tokens = torch.cartesian_prod(*[torch.arange(V)] * T)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    if eos:
        mask[:, 1:] = (tokens != 0).cumprod(-1)[:, :-1].bool()
        unique = ((tokens == 0) | mask).all(-1)  # each completion that ends early once, padded with zeros
        tokens, mask = tokens[unique], mask[unique]
    first, second = tokens[:, 0], tokens[:, 1]
    nodes = torch.stack([torch.zeros_like(first), 1 + first, 1 + V + V * first + second], -1)
    return Space(tokens, nodes, mask, randn(1 + V + V * V, V), randn(len(tokens)))


SPACE, EOS_SPACE = make_space(), make_space(eos=True)
N = len(SPACE.rewards)
FIRST, SECOND = torch.arange(N).repeat_interleave(N), torch.arange(N).repeat(N)  # all pairs, [N * N] each


class Solution(NamedTuple):
    policy: Tensor  # [N] log-probs
    gradient_left: float  # the largest entry; 0 at a fixed point


# Two ways of training: along the expected gradient, or down a loss that is a function of the policy alone.


def gradient(loss: Loss, logits: Tensor, space: Space = SPACE) -> Tensor:
    logits = logits.detach().requires_grad_()
    logps = space.logps(logits)
    return torch.autograd.grad(loss(logps, sum_logps(logps, space.mask).detach().exp()), logits)[0]


def follow(loss: Loss, step: float = 0.2, steps: int = 2000, decay: float = 1.0, cap: float = 0.5) -> Solution:
    """On-policy training with exact expectations.

    The gradient is divided by the probability of reaching and choosing the token. This is the natural gradient of a
    table: all nodes move equally fast and stop where the gradient vanishes. With k1 in the reward, a step of 1 / beta
    and no cap, each step solves one more level of the tree, so T steps are exact.
    """
    logits = SPACE.ref_logits
    for n in range(steps):
        grad = gradient(loss, logits)
        if grad.abs().max() < 1e-10:
            break
        visits = SPACE.visits(sum_logps(SPACE.logps(logits), SPACE.mask).exp())
        move = step * decay**n * grad / visits.clamp(min=1e-300)
        logits = (logits - move.clamp(-cap, cap)).log_softmax(-1)
    return Solution(sum_logps(SPACE.logps(logits), SPACE.mask), float(grad.abs().max()))


def minimise(
    loss: Callable[[Tensor, Tensor], Tensor], steps: int = 400, shift: bool = False, space: Space = SPACE
) -> Solution:
    """LBFGS on loss(logps [N, T], shift); `shift` makes that scalar a parameter, else it is 0."""
    scale = space.visits(space.ref.exp()).clamp(min=1e-12).rsqrt()  # rare tokens move as far as common ones
    theta = torch.zeros_like(space.ref_logits, requires_grad=True)
    free = torch.zeros((), dtype=torch.float64, requires_grad=shift)
    lbfgs = torch.optim.LBFGS(
        [theta, free] if shift else [theta],
        max_iter=steps,
        max_eval=2 * steps,
        tolerance_grad=1e-9,
        tolerance_change=1e-13,
        history_size=100,
        line_search_fn="strong_wolfe",
    )

    def closure():
        lbfgs.zero_grad()
        value = loss(space.logps(space.ref_logits + scale * theta), free)
        value.backward()
        return value

    lbfgs.step(closure)
    logits = (space.ref_logits + scale * theta).detach()
    return Solution(sum_logps(space.logps(logits), space.mask), float(theta.grad.abs().max()))


# Reinforcement learning


def expected(losses: Tensor, weights: Tensor) -> Tensor:
    """Sum over tokens, exact mean over completions."""
    return (weights * losses.sum(-1)).sum()


def shaped(logps: Tensor, estimator: str = "k1") -> Tensor:
    parts = {"logps": logps.detach(), "ref_logps": SPACE.ref_logps, "mask": SPACE.mask}
    return kl_shaped_rewards(SPACE.rewards, **parts, kl_coef=BETA, estimator=estimator)


def scores_minus_k1(logps: Tensor) -> Tensor:
    return SPACE.rewards - BETA * kl_k1(logps.detach(), ref_logps=SPACE.ref_logps).sum(-1)


def raw_scores(logps: Tensor) -> Tensor:
    return SPACE.rewards


def reinforce_returns(logps: Tensor, weights: Tensor, estimator: str = "k1") -> Tensor:
    returns = discounted_returns(shaped(logps, estimator), mask=SPACE.mask)
    return expected(reinforce_policy_loss(logps, advantages=returns), weights)


def reinforce_plus_plus(logps: Tensor, weights: Tensor) -> Tensor:
    returns = discounted_returns(shaped(logps), mask=SPACE.mask)
    n = 1e9  # so many samples that ddof 1 makes no difference; the weights distribute them
    moments = (T * weights.sum(), expected(returns, weights), expected(returns.square(), weights))
    whitened = masked_whiten(returns, SPACE.mask, moments=tuple(n * x for x in moments))
    return expected(ppo_policy_loss(logps, old_logps=logps.detach(), advantages=whitened), weights)


def ppo(logps: Tensor, weights: Tensor, lam: float = 1.0) -> Tensor:
    rewards = shaped(logps)
    values = SPACE.values(discounted_returns(rewards, mask=SPACE.mask), weights)
    advantages, _ = gae(rewards, values=values, mask=SPACE.mask, gamma=1.0, lam=lam)
    return expected(ppo_policy_loss(logps, old_logps=logps.detach(), advantages=advantages), weights)


def sequence(advantages: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """REINFORCE with one advantage per completion; advantages: (logps, weights) -> [N]."""

    def loss(logps, weights):
        spread = advantages(logps, weights)[:, None].expand_as(logps)
        return expected(reinforce_policy_loss(logps, advantages=spread), weights)

    return loss


def in_groups(advantages: Callable[[Tensor], Tensor], scores: Callable[[Tensor], Tensor]) -> Loss:
    """The exact expectation over all groups of two, (y, y') for every y and y'."""

    def of_first(logps, weights):
        s = scores(logps)
        groups = advantages(torch.stack([s[FIRST], s[SECOND]], -1).flatten())
        return groups.view(N, N, 2)[..., 0] @ weights

    return sequence(of_first)


def kl_term(estimator: Callable[..., Tensor], whole: bool = False) -> Loss:
    """The estimator as a loss term: of each token, or of the log-ratio of the whole sequence."""

    def loss(logps, weights):
        ref_logps = SPACE.ref_logps
        if whole:
            logps, ref_logps = logps.sum(-1, keepdim=True), ref_logps.sum(-1, keepdim=True)
        return expected(estimator(logps, ref_logps=ref_logps), weights)

    return loss


def plus(policy_loss: Loss, kl_loss: Loss) -> Loss:
    return lambda logps, weights: policy_loss(logps, weights) + BETA * kl_loss(logps, weights)


BASELINE = sequence(lambda logps, weights: SPACE.rewards - weights @ SPACE.rewards)  # REINFORCE of the score alone
RLOO = in_groups(partial(rloo_advantages, group_size=2), scores_minus_k1)
GRPO = in_groups(partial(group_advantages, group_size=2), scores_minus_k1)
DR_GRPO = in_groups(partial(group_advantages, group_size=2, scale="none"), scores_minus_k1)
GRPO_RAW = in_groups(partial(group_advantages, group_size=2), raw_scores)
DR_GRPO_RAW = in_groups(partial(group_advantages, group_size=2, scale="none"), raw_scores)


# Preferences: y and y' from the reference, the label from Bradley-Terry. Single completions: judged good with
# probability sigmoid(reward - threshold).


def wins() -> Tensor:
    """[N * N] probability that FIRST is preferred."""
    return torch.sigmoid(SPACE.rewards[FIRST] - SPACE.rewards[SECOND])


def flipped() -> Tensor:
    return (1 - FLIP) * wins() + FLIP * (1 - wins())


def win_rates() -> Tensor:
    """[N] probability to be preferred to a completion of the reference."""
    return wins().view(N, N) @ SPACE.ref.exp()


def logratios(logps: Tensor) -> Tensor:
    return sum_logps(logps, SPACE.mask) - SPACE.ref


def of_pairs(loss: Callable[..., Tensor], labels: Callable[[], Tensor] = wins, beta: float = BETA, **options):
    ref = SPACE.ref.exp()
    weights = ref[FIRST] * ref[SECOND] * labels()

    def value(logps, _shift):
        x = logratios(logps)
        return weights @ loss(x[FIRST], x[SECOND], beta=beta, **options)

    return value


def length_normalised(logps: Tensor, _shift: Tensor) -> Tensor:
    """DPO of mean log-probs, in the space whose completions differ in length."""
    space = EOS_SPACE
    x = mean_logps(logps, space.mask) - mean_logps(space.ref_logps, space.mask)
    first, second = torch.meshgrid(torch.arange(len(x)), torch.arange(len(x)), indexing="ij")
    first, second = first.flatten(), second.flatten()
    labels = torch.sigmoid(space.rewards[first] - space.rewards[second])
    weights = space.ref.exp()[first] * space.ref.exp()[second] * labels
    return weights @ dpo_sigmoid_loss(x[first], x[second], beta=BETA)


def judged_good(threshold: float = 0.0) -> Tensor:
    """[N] probability of the label "good"; the threshold is added to the reference's mean reward."""
    return torch.sigmoid(SPACE.rewards - SPACE.ref.exp() @ SPACE.rewards - threshold)


def of_single(loss: Callable[..., Tensor], x: Tensor, threshold: float = 0.0, **options) -> Tensor:
    ref, good = SPACE.ref.exp(), judged_good(threshold)
    yes, no = torch.ones(N, dtype=torch.bool), torch.zeros(N, dtype=torch.bool)
    of_good, of_bad = (loss(x, desirable=label, beta=BETA, **options) for label in (yes, no))
    return ref @ (good * of_good + (1 - good) * of_bad)


def kto(logps: Tensor, _shift: Tensor) -> Tensor:
    x = logratios(logps)
    kl = kto_kl(x, total=SPACE.ref.exp() @ x, count=1)  # the reference's completions as other prompts' answers
    return of_single(kto_loss, x, kl=kl)


def bco(logps: Tensor, shift: Tensor, threshold: float = 0.0) -> Tensor:
    return of_single(bco_loss, logratios(logps), threshold, shift=shift)


def bco_running_mean(logps: Tensor, weights: Tensor, threshold: float = 0.0) -> Tensor:
    """The shift is the mean implicit reward of the data under the current policy, without gradient."""
    return bco(logps, (BETA * SPACE.ref.exp() @ logratios(logps)).detach(), threshold)


def bco_of_pairs(logps: Tensor, shift: Tensor) -> Tensor:
    return of_pairs(bco_pair_loss, shift=shift)(logps, shift)


def smooth_hinge(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    return torch.nn.functional.softplus(20 * (1 - beta * (chosen - rejected))) / 20


@cache
def hinge_levels() -> tuple[Tensor, float, float]:
    """(implicit rewards [N] in whole numbers, their hinge loss, the hinge loss before rounding).

    The loss is piecewise linear in differences, with kinks at +-1. So the loss of x is the mean of the losses of
    (x + offset).floor() over all offsets in [0, 1), and one of these is at least as good as x.
    """
    loss = of_pairs(hinge_dpo_loss)
    x = BETA * (minimise(of_pairs(smooth_hinge)).policy - SPACE.ref)
    offsets = torch.cat([1 - x % 1 + 1e-9, torch.zeros(1)])
    rounded = [(x + offset).floor() for offset in offsets[::4]]
    values = [float(loss(as_logps(levels / BETA), None)) for levels in rounded]
    best = min(range(len(values)), key=values.__getitem__)
    return rounded[best], values[best], float(loss(as_logps(x / BETA), None))


def as_logps(x: Tensor) -> Tensor:
    """Log-probs [N, T] with the log-ratios x [N]; the probabilities need not sum to 1."""
    return ((SPACE.ref + x) / T)[:, None].expand(N, T)


# The figures of the page

EXACT = {"step": 1 / BETA, "steps": 10, "cap": math.inf}
COOLING = {"step": 0.3, "steps": 300, "decay": 0.97}  # advantages over their std never get small: the step shrinks

FIXED_POINTS: dict[str, Callable[[], Solution]] = {
    "REINFORCE, k1 in the rewards": lambda: follow(reinforce_returns, **EXACT),
    "REINFORCE, score minus k1": lambda: follow(sequence(lambda logps, _: scores_minus_k1(logps)), **EXACT),
    "RLOO, score minus k1": lambda: follow(RLOO, **EXACT),
    "PPO, k1 in the rewards": lambda: follow(ppo, **EXACT),
    "REINFORCE++, k1 in the rewards": lambda: follow(reinforce_plus_plus, **COOLING),
    "Dr.GRPO, score minus k1": lambda: follow(DR_GRPO, **EXACT | {"step": 2 / BETA}),
    "GRPO, score minus k1": lambda: follow(GRPO, **COOLING),
    "k2 loss, whole sequence": lambda: follow(plus(BASELINE, kl_term(kl_k2, whole=True))),
    "Dr.GRPO + k2 loss, whole sequence": lambda: follow(plus(DR_GRPO_RAW, kl_term(kl_k2, whole=True))),
    "k2 loss, each token": lambda: follow(plus(BASELINE, kl_term(kl_k2))),
    "k3 loss, each token": lambda: follow(plus(BASELINE, kl_term(kl_k3))),
    "k3 loss, whole sequence": lambda: follow(plus(BASELINE, kl_term(kl_k3, whole=True))),
    "GRPO + k3 loss, each token": lambda: follow(plus(GRPO_RAW, kl_term(kl_k3)), step=0.5),
    "k1 loss": lambda: follow(plus(BASELINE, kl_term(kl_k1)), step=0.5),
    "k2 in the rewards": lambda: follow(partial(reinforce_returns, estimator="k2")),
    "k3 in the rewards": lambda: follow(partial(reinforce_returns, estimator="k3")),
    "DPO": lambda: minimise(of_pairs(dpo_sigmoid_loss)),
    "DPO, 10% of labels flipped": lambda: minimise(of_pairs(dpo_sigmoid_loss, flipped)),
    "robust DPO, 10% of labels flipped": lambda: minimise(of_pairs(robust_dpo_loss, flipped, label_smoothing=FLIP)),
    "cDPO, e = 0.1": lambda: minimise(of_pairs(dpo_sigmoid_loss, label_smoothing=FLIP)),
    "DPO of mean log-probs": lambda: minimise(length_normalised, space=EOS_SPACE),
    "IPO": lambda: minimise(of_pairs(ipo_loss)),
    "hinge": lambda: Solution(SPACE.tilted(hinge_levels()[0] / BETA), 0.0),
    "NCA": lambda: minimise(of_pairs(nca_loss)),
    "APO-zero": lambda: minimise(of_pairs(apo_zero_loss)),
    "KTO": lambda: minimise(kto),
    "BCO, shift learned": lambda: minimise(bco, shift=True),
    "BCO, running mean, strict judge": lambda: follow(partial(bco_running_mean, threshold=1.0), step=0.5),
    "BCO, running mean, mild judge": lambda: follow(partial(bco_running_mean, threshold=-1.0), step=0.5),
    "BCO of pairs, shift learned": lambda: minimise(bco_of_pairs, shift=True),
}


@cache
def solve(name: str) -> Solution:
    return FIXED_POINTS[name]()


def figures(name: str) -> tuple[float, float, float]:
    """(reward gained / the optimum's, KL / the optimum's, reward gained / the largest gain at this KL)."""
    space = EOS_SPACE if name == "DPO of mean log-probs" else SPACE
    return space.relative(solve(name).policy)


def times_ratio(estimator: Callable[..., Tensor]) -> Loss:
    """The estimator times the ratio of the whole sequence; the ratio carries the gradient of the sampling."""

    def loss(logps, weights):
        ratio = (logps - logps.detach()).sum(-1, keepdim=True).exp()
        return expected(ratio * estimator(logps, ref_logps=SPACE.ref_logps), weights)

    return loss


def in_rewards(estimator: str) -> Loss:
    """The estimator as the only reward: its policy gradient."""

    def loss(logps, weights):
        parts = {"logps": logps.detach(), "ref_logps": SPACE.ref_logps, "mask": SPACE.mask}
        rewards = kl_shaped_rewards(torch.zeros_like(weights), **parts, kl_coef=1.0, estimator=estimator)
        advantages = discounted_returns(rewards, mask=SPACE.mask)
        return expected(reinforce_policy_loss(logps, advantages=advantages), weights)

    return loss


KL_GRADIENTS: dict[str, Loss] = {
    "k1 in the rewards": in_rewards("k1"),
    "k2 in the rewards": in_rewards("k2"),
    "k3 in the rewards": in_rewards("k3"),
    "k1 loss": kl_term(kl_k1),
    "k2 loss, each token": kl_term(kl_k2),
    "k3 loss, each token": kl_term(kl_k3),
    "k2 loss, whole sequence": kl_term(kl_k2, whole=True),
    "k3 loss, whole sequence": kl_term(kl_k3, whole=True),
    "k1 loss times the ratio": times_ratio(kl_k1),
    "k3 loss times the ratio": times_ratio(kl_k3),
}


def optimal_logits() -> Tensor:
    visits = SPACE.visits(SPACE.optimum.exp())
    return (visits / visits.sum(-1, keepdim=True)).log()


def kl_gradient(logits: Tensor) -> Tensor:
    """The gradient of KL(pi || pi_ref) itself; it needs no estimator here."""
    logits = logits.detach().requires_grad_()
    policy = sum_logps(SPACE.logps(logits), SPACE.mask)
    return torch.autograd.grad(policy.exp() @ (policy - SPACE.ref), logits)[0]


@cache
def kl_gradient_error(name: str) -> tuple[float, float]:
    """(length of the error over the length of the true gradient, cosine of the angle between them), at the optimum."""
    true, got = kl_gradient(optimal_logits()).flatten(), gradient(KL_GRADIENTS[name], optimal_logits()).flatten()
    cosine = float(true @ got / (true.norm() * got.norm().clamp(min=1e-6)))  # 0 if the estimator has no gradient
    return float((got - true).norm() / true.norm()), cosine


if __name__ == "__main__":
    reward, kl = SPACE.reward_and_kl(SPACE.optimum)
    print(f"reference: reward {SPACE.reward_and_kl(SPACE.ref)[0]:.2f};  optimum: reward {reward:.2f}, KL {kl:.2f}\n")
    print("| loss | reward gained, % | KL, % | of the best at that KL, % |")
    for name in FIXED_POINTS:
        print(f"| {name} | " + " | ".join(f"{100 * x:.0f}" for x in figures(name)) + " |")
    print("\n| KL estimator | relative error | cosine |")
    for name in KL_GRADIENTS:
        print(
            f"| {name} | " + " | ".join(f"{abs(x) if abs(x) < 5e-3 else x:.2f}" for x in kl_gradient_error(name)) + " |"
        )
