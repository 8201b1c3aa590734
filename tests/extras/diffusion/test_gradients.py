"""The gradients of DDPO and AlignProp, against integrals and differences, on points."""

import numpy
import pytest
import torch

from minirlhf.data import Draw
from minirlhf.errors import InputError
from minirlhf.extras.diffusion.alignprop import AlignPropConfig, AlignPropTrainer
from minirlhf.extras.diffusion.chain import Chain, ChainConfig, keyed_noise
from minirlhf.extras.diffusion.ddpo import DDPOConfig, DDPOTrainer
from minirlhf.extras.diffusion.points import Ring, RingDenoiser
from minirlhf.losses import group_advantages

RING = Ring(modes=3, std=0.2)


def reward(x, label):
    """Smooth and bounded, so that quadrature converges."""
    return torch.sin(2 * x[:, 0]) + torch.cos(x[:, 1])


def policy(seed=0, width=4):
    torch.manual_seed(seed)
    model = RingDenoiser(RING, width=width).double()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return model


def flat_grad(objective, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(objective, list(model.parameters()))])


def draws(n):
    return [Draw(0, i, 0) for i in range(n)]


def test_ddpos_expected_gradient_is_that_of_the_integral():
    """Two chains of one step each: a quadrature with 10^4 nodes gives the exact expectation and its gradient."""
    chain, model = Chain(ChainConfig(denoising_steps=1, min_std=0.5)), policy()
    nodes, weights = map(torch.tensor, numpy.polynomial.hermite_e.hermegauss(10))
    grid = torch.cartesian_prod(nodes, nodes, nodes, nodes)
    weight = torch.cartesian_prod(weights, weights, weights, weights).prod(-1)
    label = torch.zeros(len(grid), dtype=torch.long)
    x = chain.step(model, grid[:, :2], 0, label, grid[:, 2:])[0]
    exact = flat_grad((weight / weight.sum()) @ reward(x, label), model)

    config = DDPOConfig(loss="reinforce", updates_per_step=1, group_size=100, batch_size=1, scale="none", kl_coef=0)
    trainer = DDPOTrainer(model, None, reward, chain, config, shape=(2,))
    samples = []  # each chain is a part of its group's mean: the advantages are 99 / 100 of those of the gradient
    for k in range(60):
        chains, _ = trainer.collect([Draw(0, k, 0)])
        logps = chain.logps(chain.all_means(model, chains.latents, chains.label), chains.latents)
        samples.append(-flat_grad(trainer.losses(logps, chains).mean(), model) * 100 / 99)
    samples = torch.stack(samples)
    error = samples.std(0) / len(samples) ** 0.5
    assert ((samples.mean(0) - exact).abs() < 3 * error + 1e-9).all()
    assert (exact.abs() > 3 * error).sum() > 10  # the bound is tight enough to see the gradient


def test_both_methods_have_the_same_expected_gradient_with_kl():
    """Three steps: policy gradients (DDPO) and derivatives of the path (AlignProp) are two estimates of one number."""
    chain, model, reference = Chain(ChainConfig(denoising_steps=3, min_std=0.3)), policy(0), policy(1)
    config = DDPOConfig(
        loss="reinforce", updates_per_step=1, group_size=1000, batch_size=1, scale="none", kl_coef=0.3,
        microbatch_size=4000,
    )  # fmt: skip
    ddpo = DDPOTrainer(model, reference, reward, chain, config, shape=(2,))
    direct = AlignPropTrainer(model, reference, reward, chain, AlignPropConfig(kl_coef=0.3), shape=(2,))
    one, two = [], []
    for k in range(12):
        chains, _ = ddpo.collect([Draw(0, k, 0)])
        logps = chain.logps(chain.all_means(model, chains.latents, chains.label), chains.latents)
        one.append(-flat_grad(ddpo.losses(logps, chains).sum(-1).mean(), model) * 1000 / 999)
        noise = keyed_noise(3, "direct", [(k, i) for i in range(300)], (4, 2))
        samples, kls = direct.rollout(torch.zeros(300, dtype=torch.long), noise)
        two.append(flat_grad((reward(samples, None) - 0.3 * kls).mean(), model))
    one, two = torch.stack(one), torch.stack(two)
    error = ((one.var(0) + two.var(0)) / 12).sqrt()
    apart = (one.mean(0) - two.mean(0)).abs() / error
    assert (apart < 5).all() and apart.square().mean() < 2.5  # 11 degrees of freedom: Student's t
    assert (two.mean(0).abs() > 5 * error).sum() > 3


@pytest.mark.parametrize("last", [None, 2, 1])
def test_alignprops_gradient_is_that_of_finite_differences(last):
    """With K last steps the first steps are constants: they come from a frozen copy of the policy."""
    chain = Chain(ChainConfig(denoising_steps=3, min_std=0.2))
    model, frozen, reference = policy(0), policy(0), policy(1)
    noise = keyed_noise(0, "fd", [(i,) for i in range(5)], (4, 2))
    label, first = torch.zeros(5, dtype=torch.long), 3 - (last or 3)
    config = AlignPropConfig(last_steps=last, kl_coef=0.1)

    def objective():
        trainer = AlignPropTrainer(model, reference, reward, chain, config, shape=(2,))
        with torch.no_grad():  # the constants
            x = noise[:, 0]
            for k in range(first):
                x = chain.step(frozen, x, k, label, noise[:, k + 1])[0]
            kls = 0
            for k in range(first, 3):
                following, mean = chain.step(model, x, k, label, noise[:, k + 1])
                ref_mean = chain.step(reference, x, k, label, noise[:, k + 1])[1]
                kls = kls + 0.5 * ((mean - ref_mean) / chain.std[k]).square().sum(-1)
                x = following
        return trainer, (reward(x, label) - 0.1 * kls).mean()

    trainer, value = objective()
    samples, kls = trainer.rollout(label, noise)
    found = (reward(samples, label) - 0.1 * kls).mean()
    torch.testing.assert_close(found, value)
    gradient, step = flat_grad(found, model), 1e-6
    numbers = [(p, i) for p in model.parameters() for i in range(p.numel())]
    for place in range(0, len(numbers), 5):
        p, i = numbers[place]
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                p.view(-1)[i] += sign * step
                ends.append(objective()[1])
                p.view(-1)[i] -= sign * step
        assert gradient[place].item() == pytest.approx(((ends[0] - ends[1]) / (2 * step)).item(), rel=1e-5, abs=1e-8)


def test_checkpointing_changes_no_gradient():
    chain, noise = Chain(ChainConfig(denoising_steps=3)), keyed_noise(0, "ck", [(i,) for i in range(4)], (4, 2))
    found = []
    for checkpointing in (True, False):
        model = policy()
        trainer = AlignPropTrainer(
            model, None, reward, chain, AlignPropConfig(checkpointing=checkpointing, kl_coef=0), shape=(2,)
        )
        samples, _ = trainer.rollout(torch.zeros(4, dtype=torch.long), noise)
        found.append(flat_grad(reward(samples, None).sum(), model))
    torch.testing.assert_close(*found)


def test_advantages_compare_the_samples_of_a_prompt():
    config = DDPOConfig(batch_size=2, group_size=4, updates_per_step=2, kl_coef=0)
    chain, model = Chain(ChainConfig(denoising_steps=2)), policy()
    trainer = DDPOTrainer(model, None, reward, chain, config, shape=(2,))
    chains, _ = trainer.collect(draws(2))
    expected = group_advantages(reward(chains.latents[:, -1], None), 4)
    torch.testing.assert_close(chains.advantages, expected[:, None].expand(-1, 2))
    # the first update of fresh samples: every ratio is 1, so the surrogate is minus the advantage
    logps = chain.logps(chain.all_means(model, chains.latents, chains.label), chains.latents)
    torch.testing.assert_close(trainer.losses(logps, chains), -chains.advantages)


def test_the_future_of_a_step_holds_its_own_kl_and_no_earlier_kl():
    config = DDPOConfig(batch_size=1, group_size=3, updates_per_step=1, kl_coef=0.5, scale="none")
    chain, model, reference = Chain(ChainConfig(denoising_steps=2)), policy(0), policy(1)
    trainer = DDPOTrainer(model, reference, reward, chain, config, shape=(2,))
    chains, _ = trainer.collect(draws(1))
    ref_logps = chain.logps(chain.all_means(reference, chains.latents, chains.label), chains.latents)
    ratio, scores = chains.old_logps - ref_logps, reward(chains.latents[:, -1], None)
    returns = scores[:, None] - 0.5 * torch.stack([ratio.sum(1), ratio[:, 1]], 1)
    torch.testing.assert_close(chains.advantages, returns - returns.mean(0))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (lambda x, label: x, r"needed a tensor \[4\], a score for each sample, got a tensor \[4, 2\]"),
        (lambda x, label: [0.0] * 4, r"needed a tensor \[4\], a score for each sample, got \[0.0"),
        (lambda x, label: x[:, 0] * float("nan"), "needed finite scores, got nan for sample 0 .and 3 more"),
    ],
)
def test_bad_rewards_are_refused_and_no_weight_changes(bad, words):
    model = policy()
    before = [p.clone() for p in model.parameters()]
    chain = Chain(ChainConfig(denoising_steps=2))
    ddpo = DDPOTrainer(model, None, bad, chain, DDPOConfig(group_size=4, kl_coef=0), shape=(2,))
    direct = AlignPropTrainer(model, None, bad, chain, AlignPropConfig(kl_coef=0), shape=(2,))
    for trainer, batch in ((ddpo, draws(1)), (direct, draws(4))):
        with pytest.raises(InputError, match=words):
            trainer.step(batch)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_settings_that_cannot_work_are_refused():
    model, noisy, silent = policy(), Chain(ChainConfig()), Chain(ChainConfig(min_std=0.0))
    mixed = AlignPropConfig(mix_coef=1, kl_coef=0)
    for trainer, words in (
        (lambda: DDPOTrainer(model, None, reward, silent, DDPOConfig(), shape=(2,)), "step 9 has no noise"),
        (lambda: DDPOTrainer(model, None, reward, noisy, DDPOConfig(kl_coef=1), shape=(2,)), "needs a reference"),
        (lambda: DDPOConfig(loss="reinforce"), "one update on fresh samples"),
        (lambda: DDPOConfig(group_size=5), "updates_per_step must divide group_size, got 2 and 5"),
        (lambda: AlignPropTrainer(model, None, reward, noisy, AlignPropConfig(last_steps=11), shape=(2,)), "at most"),
        (lambda: AlignPropTrainer(model, None, reward, noisy, mixed, shape=(2,)), "needs drawn"),
        (lambda: AlignPropConfig(last_steps=0), "last_steps must be at least 1"),
    ):
        with pytest.raises(InputError, match=words):
            trainer()

    def counted(x, label):
        return (x.detach() > 0).double().sum(-1)

    with pytest.raises(InputError, match="the reward has no gradient"):
        AlignPropTrainer(model, None, counted, noisy, AlignPropConfig(kl_coef=0), shape=(2,)).step(draws(2))
