"""The chain of denoising steps, on points whose density is known."""

import math

import pytest
import torch

from minirlhf.errors import InputError
from minirlhf.extras.diffusion.chain import LEVELS, Chain, ChainConfig, denoising_loss, guided, keyed_noise, levels
from minirlhf.extras.diffusion.points import Ring, RingDenoiser


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_levels_fall_from_clean_to_noise(schedule):
    level = levels(schedule)
    assert level[0] == 1 and len(level) == LEVELS + 1 and (level.diff() < 0).all() and 0 < level[-1] < 1e-4


def test_a_step_of_one_denoising_step_is_worked_by_hand():
    # T = 1: from level a_T to level 1: sigma = 0, std = min_std; mean = x_0 = sqrt(a) x - sqrt(1 - a) v
    chain = Chain(ChainConfig(denoising_steps=1, min_std=0.1))
    level = levels("cosine")[-1].item()
    mean = chain.means(lambda x, level, label: 2 * x, torch.ones(1, 2), torch.tensor([0]), torch.tensor([0]))
    torch.testing.assert_close(mean, torch.full((1, 2), level**0.5 - 2 * (1 - level) ** 0.5))
    # log N(mean + 0.1; mean, 0.1^2) in two dimensions = 2 (-1/2 - log 0.1 - log(2 pi) / 2)
    latents = torch.stack([torch.ones(1, 2), mean + 0.1], 1)
    hand = 2 * (-0.5 - math.log(0.1) - 0.5 * math.log(2 * math.pi))
    assert chain.logps(mean[:, None], latents).item() == pytest.approx(hand, rel=1e-5)
    assert chain.kls(mean[:, None], mean[:, None] + 0.1).item() == pytest.approx(1.0, rel=1e-5)


def test_the_noise_of_ddpm_and_ddim():
    ddpm, ddim = (Chain(ChainConfig(denoising_steps=5, eta=eta, min_std=0.0)) for eta in (1.0, 0.0))
    following = torch.cat([ddpm.level[1:], torch.ones(1)])
    # the posterior variance of DDPM (Ho et al., Eq. 7): (1 - a') / (1 - a) beta, beta = 1 - a / a'
    torch.testing.assert_close(
        ddpm.std.square(), (1 - following) / (1 - ddpm.level) * (1 - ddpm.level / following), check_dtype=False
    )
    assert ddpm.std[-1] == 0 and (ddpm.std[:-1] > 0).all() and not ddim.std.any()


def test_many_steps_sample_the_ring():
    ring = Ring(modes=3, std=0.3)
    chain = Chain(ChainConfig(denoising_steps=100, eta=0.0, min_std=0.0))
    noise = keyed_noise(0, "ring", [(i,) for i in range(1500)], (101, 2))
    x = chain.sample(RingDenoiser(ring).double(), torch.zeros(1500, dtype=torch.long), noise)[:, -1]
    generator = torch.Generator().manual_seed(0)
    mode = torch.randint(3, (1500,), generator=generator)
    exact = ring.centres[mode] + 0.3 * torch.randn(1500, 2, generator=generator, dtype=torch.float64)
    # entropy by the known density: the standard error of the difference of both means is 0.04
    assert abs(ring.log_density(x).mean() - ring.log_density(exact).mean()) < 0.12
    assert ((x[:, None] - ring.centres).norm(dim=-1).argmin(-1).bincount() - 500).abs().max() < 60


def test_the_rings_density_integrates_to_1_and_its_denoiser_is_the_mean():
    ring, side = Ring(modes=8, std=0.15), torch.linspace(-2.5, 2.5, 201, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    density, area = ring.log_density(grid).exp(), (side[1] - side[0]) ** 2
    assert (density.sum() * area).item() == pytest.approx(1, abs=1e-6)
    x, level = torch.tensor([[0.3, -0.4]], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)
    likelihood = torch.exp(-0.5 * (x - level.sqrt() * grid).square().sum(-1) / (1 - level))
    mean = (density * likelihood) @ grid / (density * likelihood).sum()
    torch.testing.assert_close(ring.expected_clean(x, level)[0], mean)


def test_guidance_extrapolates_from_the_unconditional_model():
    def denoiser(x, level, label):
        return x * (1 + label)[:, None]  # v = x without a label, 3 x with label 2

    x, label = torch.ones(1, 2), torch.tensor([2])
    for guidance, v in ((1, 3.0), (0, 1.0), (2, 5.0)):  # 1 + 2 (3 - 1) = 5
        assert guided(denoiser, x, torch.tensor([0.5]), label, guidance).tolist() == [[v, v]]


def test_the_loss_of_pretraining_is_0_for_the_right_v():
    clean, noise = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, -1.0]])
    uniforms, level = torch.tensor([0.4]), levels("cosine")[1 + int(0.4 * LEVELS)].float()
    v = level.sqrt() * noise - (1 - level).sqrt() * clean
    losses = denoising_loss(lambda x, level, label: v + 0.5, "cosine", clean, torch.tensor([0]), uniforms, noise)
    torch.testing.assert_close(losses, torch.tensor([0.25]))


def test_noise_depends_on_its_key_only():
    rows = keyed_noise(0, "x", [(0, 1), (2, 3)], (400,))
    assert torch.equal(keyed_noise(0, "x", [(2, 3)], (400,)), rows[1:])
    assert not torch.equal(keyed_noise(1, "x", [(2, 3)], (400,)), rows[1:])
    assert abs(rows.mean()) < 0.12 and abs(rows.std() - 1) < 0.09


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"denoising_steps": 0}, "denoising_steps must be at least 1 and at most 1000, got 0"),
        ({"denoising_steps": 1001}, "denoising_steps must be at least 1 and at most 1000, got 1001"),
        ({"eta": 1.5}, "eta must be at least 0 and at most 1, got 1.5"),
        ({"guidance": float("nan")}, "guidance must be"),
        ({"schedule": "cos"}, "schedule: needed cosine or linear, got 'cos'"),
    ],
)
def test_bad_chains_are_refused(changes, words):
    with pytest.raises(InputError, match=words):
        Chain(ChainConfig(**changes))
