"""Both methods reach the optimum of E[score] - kl_coef KL on points, where it is known."""

import math

import pytest
import torch

from minirlhf.data import Draw
from minirlhf.extras.diffusion.alignprop import AlignPropConfig, AlignPropTrainer
from minirlhf.extras.diffusion.chain import Chain, ChainConfig, keyed_noise
from minirlhf.extras.diffusion.ddpo import DDPOConfig, DDPOTrainer
from minirlhf.extras.diffusion.points import Ring, RingDenoiser

KL_COEF = 0.5


def reward(x, label):
    return x[:, 0]


def ddpo(model, reference, chain, steps):
    config = DDPOConfig(
        kl_coef=KL_COEF, steps=steps, batch_size=1, group_size=512, scale="none", updates_per_step=2, lr=1e-2
    )
    return DDPOTrainer(model, reference, reward, chain, config, shape=(2,)), 1


def alignprop(model, reference, chain, steps):
    config = AlignPropConfig(kl_coef=KL_COEF, steps=steps, batch_size=128, checkpointing=False, lr=1e-2)
    return AlignPropTrainer(model, reference, reward, chain, config, shape=(2,)), 128


def trained(method, ring, chain, steps):
    """-> (results [N] of a trained policy, their mean KL, results of the reference)."""
    torch.manual_seed(0)
    model, reference = RingDenoiser(ring), RingDenoiser(ring)
    trainer, draws = method(model, reference, chain, steps)
    for epoch in range(steps):
        trainer.step([Draw(0, i, epoch) for i in range(draws)])
    noise = keyed_noise(9, "evaluation", [(i,) for i in range(8000)], (chain.steps + 1, 2)).float()
    label = torch.zeros(len(noise), dtype=torch.long)
    latents = chain.sample(model, label, noise)
    with torch.no_grad():
        kl = chain.kls(*(chain.all_means(m, latents, label) for m in (model, reference))).sum(-1).mean().item()
    return reward(latents[:, -1], label).double(), kl, reward(chain.sample(reference, label, noise)[:, -1], label)


@pytest.mark.parametrize("method", [ddpo, alignprop])
def test_a_linear_reward_shifts_a_gaussian_by_its_variance_over_the_coefficient(method):
    """pi = pi_ref exp(x / c) of N(m, s^2) is N(m + s^2 / c, s^2), with KL s^2 / (2 c^2); the chain can reach it."""
    chain = Chain(ChainConfig(denoising_steps=4, min_std=0.2))
    scores, kl, ref_scores = trained(method, Ring(modes=1, std=0.5), chain, 50)
    variance = ref_scores.double().var().item()
    assert scores.mean() - ref_scores.mean() == pytest.approx(variance / KL_COEF, rel=0.08)
    # the KL grows with the square of the shift, so it may miss by twice as much
    assert kl == pytest.approx(variance / (2 * KL_COEF**2), rel=0.16)
    assert scores.std() == pytest.approx(variance**0.5, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("method", [ddpo, alignprop])
def test_on_the_ring_the_objective_comes_near_its_bound(method):
    """E[score] - c KL <= c log E_ref[exp(score / c)]; a Gaussian step of fixed width cannot reach the bound exactly."""
    chain = Chain(ChainConfig(denoising_steps=20, min_std=0.1))
    scores, kl, ref_scores = trained(method, Ring(modes=8, std=0.15), chain, 60)
    bound = KL_COEF * (torch.logsumexp(ref_scores.double() / KL_COEF, 0).item() - math.log(len(ref_scores)))
    assert 0.8 * bound < scores.mean() - KL_COEF * kl < 1.02 * bound
