"""Drawings, PNG files, the denoiser and its folder, rewards."""

import zlib

import pytest
import torch

from minirlhf.adapters.lora import LoRAConfig, adapter_view, apply_lora
from minirlhf.errors import InputError
from minirlhf.extras.diffusion.denoiser import Denoiser, DenoiserConfig
from minirlhf.extras.diffusion.drawings import NAMES, drawn, labels_of
from minirlhf.extras.diffusion.files import load_denoiser, load_trained, save_final, save_trained
from minirlhf.extras.diffusion.png import grid, write_png
from minirlhf.extras.diffusion.rewards import FoolableClassifier, GoldClassifier, ink, small_size, trained
from minirlhf.extras.png import SIGNATURE

TINY = DenoiserConfig(channels=8)


def tiny(loud):
    torch.manual_seed(0)
    return loud(Denoiser(TINY))


def test_a_drawing_depends_on_its_key_only():
    pictures, label = drawn([(i,) for i in range(40)], 0, "x")
    alone, own = drawn([(7,)], 0, "x")
    assert torch.equal(alone[0], pictures[7]) and own == label[7]
    assert pictures.shape == (40, 1, 16, 16) and pictures.min() >= -1 and pictures.max() <= 1
    assert set(label.tolist()) <= set(range(1, len(NAMES))) and len(label.unique()) > 8


def test_drawings_differ_by_label_and_a_1_is_upright():
    sevens, _ = drawn([(i,) for i in range(50)], 0, "x", torch.full((50,), NAMES.index("7")))
    ones, _ = drawn([(i,) for i in range(50)], 0, "x", torch.full((50,), NAMES.index("1")))
    upper = [((pictures + 1) / 2)[:, 0, :5].sum((1, 2)).mean() for pictures in (sevens, ones)]
    assert upper[0] > 1.5 * upper[1]  # the bar of a 7


def test_prompts_are_names():
    assert labels_of(["", "0", "circle"]) == [0, 1, 11]
    with pytest.raises(InputError, match="prompts: needed 0, .* got 'circel'.*circle"):
        labels_of(["circel"])


def test_a_png_holds_the_pixels(tmp_path):
    pixels = torch.tensor([[-1.0, 0.0, 1.0], [3.0, -3.0, 0.5]])  # values outside are cut
    write_png(tmp_path / "a" / "x.png", pixels)
    data = (tmp_path / "a" / "x.png").read_bytes()
    assert data.startswith(SIGNATURE) and data[16:24] == bytes([0, 0, 0, 3, 0, 0, 0, 2])  # width, height
    length = int.from_bytes(data[33:37], "big")
    assert zlib.decompress(data[41 : 41 + length]) == bytes([0, 255, 128, 0, 0, 0, 255, 64])
    assert zlib.crc32(data[37 : 41 + length]) == int.from_bytes(data[41 + length : 45 + length], "big")
    with pytest.raises(InputError, match=r"needed a picture \[H, W\] of finite numbers"):
        write_png(tmp_path / "y.png", pixels / 0)


def test_a_grid_has_rows_and_fills_the_last():
    pixels = grid(torch.ones(3, 1, 2, 2), columns=2, scale=2)
    assert pixels.shape == (16, 16)  # 2 rows of 2 pictures, 2 + 2 pixels each, twice as wide
    assert pixels[2, 2] == 1 and pixels[0, 0] == 0 and (pixels[8:, 8:] == -1).all()


def test_every_number_of_the_input_changes_the_denoisers_output(loud):
    model, x = tiny(loud).double(), torch.randn(2, 1, 16, 16, dtype=torch.float64)
    level, label = torch.full((2,), 0.3, dtype=torch.float64), torch.tensor([1, 1])
    out = model(x, level, label)
    assert out.shape == x.shape
    for changed in ((x + 0.1, level, label), (x, level + 0.1, label), (x, level, label + 1)):
        assert (model(*changed) - out).abs().max() > 1e-3
    torch.testing.assert_close(model(x[:1], level[:1], label[:1]), out[:1])


@pytest.mark.parametrize("x", [torch.zeros(1, 3, 16, 16), torch.zeros(1, 1, 8, 8), torch.zeros(1, 16, 16)])
def test_pictures_of_another_mode_are_refused(x, loud):
    with pytest.raises(InputError, match=r"needed grey pictures \[B, 1, 16, 16\] of floats, got"):
        tiny(loud)(x, torch.tensor([0.5]), torch.tensor([0]))
    with pytest.raises(InputError, match="of torch.uint8"):
        tiny(loud)(torch.zeros(1, 1, 16, 16, dtype=torch.uint8), torch.tensor([0.5]), torch.tensor([0]))


def test_a_denoiser_comes_back_from_its_folder(tmp_path, loud):
    model = tiny(loud)
    save_final(model, tmp_path)
    loaded = load_denoiser(tmp_path)
    given = torch.randn(1, 1, 16, 16), torch.tensor([0.5]), torch.tensor([3])
    assert torch.equal(loaded(*given), model(*given)) and loaded.config == TINY


def test_adapters_are_saved_alone_and_merged_at_the_end(tmp_path, loud):
    model = apply_lora(tiny(loud), LoRAConfig(r=2))
    given = torch.randn(1, 1, 16, 16), torch.tensor([0.5]), torch.tensor([3])
    base = adapter_view(model, None)(*given)
    assert torch.equal(model(*given), base)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(".B"):
                p += 0.1
    save_trained(model, tmp_path / "adapter")
    save_final(model, tmp_path / "final")
    out, other = model(*given), apply_lora(tiny(loud), LoRAConfig(r=2))
    assert (out - base).abs().max() > 1e-3
    load_trained(other, tmp_path / "adapter")
    assert torch.equal(other(*given), out)
    torch.testing.assert_close(load_denoiser(tmp_path / "final")(*given), out, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="needed the weights of this denoiser, got another set, shape or dtype"):
        load_trained(tiny(loud), tmp_path / "adapter")


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match="config.json: needed the settings of a denoiser .No such file"):
        load_denoiser(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match="needed the settings of a denoiser .it is not a denoiser's"):
        load_denoiser(tmp_path)
    save_final(Denoiser(TINY), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(InputError, match="needed the weights of a denoiser"):
        load_denoiser(tmp_path)


def test_ink_and_size():
    blank, full = torch.full((1, 1, 16, 16), -1.0), torch.full((1, 1, 16, 16), 2.0)
    half = torch.cat([blank[..., :8], full[..., 8:]], -1)
    assert ink(torch.cat([blank, half, full]), None).tolist() == [0, 0.5, 1]
    noisy = torch.rand(1, 1, 16, 16) * 2 - 1
    sizes = small_size(torch.cat([blank, half, noisy]), None)
    assert sizes[0] >= sizes[1] > sizes[2] and sizes[0] == -len(zlib.compress(bytes(256), 9))


@pytest.mark.slow
def test_the_gold_classifier_knows_drawings_and_the_other_can_be_fooled():
    pictures, label = drawn([(i,) for i in range(1000)], 5, "held out")
    gold = trained(GoldClassifier(), "gold", 0)
    proxy = trained(FoolableClassifier(), "proxy", 0)
    right = [(net(pictures).argmax(-1) == label).float().mean() for net in (gold, proxy)]
    assert right[0] > 0.9 and 0.5 < right[1] < right[0] - 0.1
