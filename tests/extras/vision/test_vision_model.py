"""A decoder that reads images computes the same numbers alone, in a batch, with a cache, and in training."""

import pytest
import torch
from torch.testing import assert_close

from minirlhf.errors import InputError
from minirlhf.extras.vision import VisionConfig, VisionModel, VisionPolicy
from minirlhf.extras.vision.encoder import patches_of
from minirlhf.generation import SamplingConfig, generate
from minirlhf.model import ModelConfig, copy_of
from minirlhf.model.vocabulary import resize_embeddings

SHAPE = ModelConfig(vocab_size=30, hidden_size=32, intermediate_size=48, max_position_embeddings=160)
VISION = VisionConfig(image_size=16, patch_size=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
GREEDY = SamplingConfig(max_tokens=6, temperature=0)


def image(seed):
    return torch.randint(0, 256, (3, 16, 16), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = VisionModel(SHAPE, VISION)
    torch.nn.init.normal_(model.model.embed_tokens.encoder.output_proj.weight, std=0.5)  # so that images matter
    return model


def prompts_of(model):
    """Two prompts with one image, one with two images, one without an image; of different lengths."""
    first, second = model.ids_of(image(1)), model.ids_of(image(2))
    return [[1, *first, 5, 6, 7], [1, *first, 8, 9], [1, 4, *second, 5, *first, 6, 7, 8, 9], [1, 5, 6]]


def padded(rows):
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return ids, torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]


def images_encoded(model, function):
    """The number of images that the encoder sees while the function runs."""
    counts = []
    hook = model.model.embed_tokens.encoder.register_forward_hook(lambda _, given, __: counts.append(len(given[0])))
    function()
    hook.remove()
    return sum(counts)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("tail", [0, 60])  # tokens that two rows share; from 64 on a forward computes them once
def test_the_logits_of_a_batch_are_those_of_each_row_alone(model, dtype, bound, tail):
    model, rows = model.to(dtype), [[*row, *[3] * tail, 2] for row in prompts_of(model)]
    rows.append([*rows[0], 4, 5])
    ids, mask = padded(rows)
    together = model(ids, mask)
    assert images_encoded(model, lambda: model(ids, mask)) == 2  # four rows contain them
    for row, logits in zip(rows, together, strict=True):
        assert_close(logits[: len(row)], model(torch.tensor([row]))[0], atol=bound, rtol=0)


def test_an_image_changes_what_follows_it_and_nothing_before_it(model):
    one, other = ([1, 4, 5, *model.ids_of(image(seed)), 6, 7] for seed in (1, 2))
    logits, changed = model(torch.tensor([one, other]))
    assert_close(logits[:3], changed[:3], atol=1e-6, rtol=0)
    assert (logits[3:] - changed[3:]).abs().amax(-1).min() > 1e-3


def test_patches_stand_row_by_row_by_hand():
    """Pixels 0 to 15 of 4 x 4 in patches of 2 x 2: the second patch is the upper right one."""
    patches = patches_of(torch.arange(16).view(1, 1, 4, 4), 2)
    assert patches.tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]]


def test_patches_have_positions(model):
    """Two images with the same patches in another order are two images to the decoder."""
    mirrored = image(1).flip(-1)
    one, other = ([1, *model.ids_of(pixels), 6] for pixels in (image(1), mirrored))
    patches = model.model.embed_tokens.encoder
    assert_close(patches(image(1)[None]).shape, torch.Size([1, 16, 32]))
    logits, changed = model(torch.tensor([one, other]))
    assert (logits[-1] - changed[-1]).abs().max() > 1e-3


def test_greedy_generation_is_the_plain_loop_without_a_cache(model):
    prompts = prompts_of(model)
    for prompt, found in zip(prompts, generate(model, prompts, GREEDY), strict=True):
        ids = list(prompt)
        for _ in range(GREEDY.max_tokens):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        assert found.ids == ids[len(prompt) :]


def test_a_group_of_samples_reads_its_image_once(model):
    prompts, sampling = [prompt for prompt in prompts_of(model) for _ in range(4)], SamplingConfig(max_tokens=5)
    found = []
    assert images_encoded(model, lambda: found.extend(generate(model, prompts, sampling))) == 2
    plain = generate(model, prompts, sampling, plain=True)
    assert [completion.ids for completion in found] == [completion.ids for completion in plain]
    ids, mask = padded([[*prompt, *completion.ids] for prompt, completion in zip(prompts, found, strict=True)])
    wanted = mask & (torch.arange(ids.shape[1]) >= torch.tensor([len(prompt) for prompt in prompts])[:, None])
    logps = VisionPolicy(model)(ids, mask, wanted=wanted).logps
    assert_close(logps[wanted], torch.tensor([p for c in found for p in c.logps]), atol=1e-5, rtol=0)


def test_patches_have_no_log_prob_and_text_has_that_of_its_logits(model):
    ids, mask = padded(prompts_of(model))
    outputs = VisionPolicy(model, value_head=True)(ids, mask)
    text = mask & (ids < 30)
    text[:, 0] = False
    expected = model(ids, mask).log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None].clamp(max=29))[..., 0]
    assert_close(outputs.logps[:, 1:][text[:, 1:]], expected[text[:, 1:]], atol=1e-5, rtol=0)
    assert not outputs.logps[~text].any() and not outputs.entropy[~text].any()


def test_the_gradient_reaches_the_encoder_and_is_the_sum_over_the_rows(model):
    model = model.double()
    rows = [[*row, 2] for row in prompts_of(model)]

    def gradients(batch):
        ids, mask = padded(batch)
        VisionPolicy(model)(ids, mask, wanted=mask & (ids == 2)).logps.sum().backward()
        found = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        return found

    together, alone = gradients(rows), [gradients([row]) for row in rows[:3]]
    names = [name for name, _ in model.named_parameters()]
    for name, whole, *parts in zip(names, together, *alone, strict=True):
        if "encoder" in name:
            assert whole.abs().max() > 0
            assert_close(whole, sum(parts), atol=1e-9, rtol=1e-9)


def test_a_reference_reads_the_images_of_its_policy(model):
    reference = copy_of(VisionPolicy(model))
    ids, mask = padded(prompts_of(model))  # these images are added after the copy
    assert_close(reference(ids, mask).logps, VisionPolicy(model)(ids, mask).logps)


def test_bad_images_and_ids_are_refused(model):
    for wrong in (torch.zeros(3, 16, 16), torch.zeros(1, 16, 16, dtype=torch.uint8)):
        with pytest.raises(InputError, match=r"needed images \[3, 16, 16\] of torch.uint8, got "):
            model.ids_of(wrong)
    known = model.ids_of(image(1))
    assert model.ids_of(image(1)) == known and model.ids_of(image(2))[0] == known[-1] + 1
    with pytest.raises(InputError, match="prompt 0 has ids up to 62, the model's vocabulary holds 62"):
        generate(model, [[1, 62]], GREEDY)
    with pytest.raises(InputError, match="image_size must be a multiple of patch_size, got 32 and 5"):
        VisionConfig(patch_size=5)


def test_a_vocabulary_that_would_take_the_ids_of_images_is_refused(model):
    ids = torch.tensor([prompts_of(model)[0]])
    before = model(ids)
    with pytest.raises(InputError, match="the vocabulary cannot grow, because ids of images follow it"):
        resize_embeddings(model, 200)
    assert torch.equal(model(ids), before)
