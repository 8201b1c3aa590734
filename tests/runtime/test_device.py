"""Devices and precisions by name, and the session around a program."""

import pytest
import torch
from torch import nn

from minirlhf.errors import InputError, exits_cleanly
from minirlhf.runtime import resolve_device, resolve_precision, session
from minirlhf.runtime.device import cpu_has_bf16

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch):
    """machine(cuda, mps, bf16): make torch report these devices."""

    def set_up(cuda=False, mps=False, bf16=True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return set_up


def refusal(call, *args):
    with pytest.raises(InputError) as caught:
        call(*args)
    return str(caught.value)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(True, True, "cuda:3"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_takes_cuda_then_mps_then_cpu_and_the_gpu_of_its_local_rank(machine, monkeypatch, cuda, mps, expected):
    machine(cuda, mps)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert resolve_device() == torch.device(expected)


def test_a_named_device_is_used(machine):
    machine(cuda=True)
    assert resolve_device("cpu") == CPU and resolve_device("cuda:1") == torch.device("cuda:1")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_a_missing_device_is_refused(machine, name):
    machine()
    assert refusal(resolve_device, name) == f"device: needed {name}, but torch does not find it here; use --device auto"


@pytest.mark.parametrize("name", ["gpu", "cudas", ""])
def test_an_unknown_device_name_is_refused(machine, name):
    machine()
    assert refusal(resolve_device, name) == f"device: needed auto, cpu, cuda, cuda:N or mps, got {name!r}"


def test_auto_precision_depends_on_the_machine(machine):
    cuda = torch.device("cuda", 0)
    for bf16, expected in ((True, torch.bfloat16), (False, torch.float32)):
        machine(cuda=True, bf16=bf16)
        assert resolve_precision("auto", cuda) == expected
    assert resolve_precision("fp32", CPU) == torch.float32
    assert resolve_precision("bf16", CPU) == torch.bfloat16
    assert refusal(resolve_precision, "fp16", CPU) == "precision: needed fp32, bf16 or auto, got 'fp16'"


@pytest.mark.parametrize("where", ["cuda", "cpu"])
@pytest.mark.parametrize("has_bf16", [False, True])
def test_auto_takes_bf16_from_a_million_parameters_on(machine, monkeypatch, where, has_bf16):
    machine(cuda=True, bf16=has_bf16)
    monkeypatch.setattr("minirlhf.runtime.device.cpu_has_bf16", lambda: has_bf16)
    found = [resolve_precision("auto", torch.device(where), n) for n in (999_999, 1_000_000)]
    assert found == [torch.float32, torch.bfloat16 if has_bf16 else torch.float32]
    # nothing is trained: a CPU decodes in fp32
    decodes = torch.bfloat16 if has_bf16 and where == "cuda" else torch.float32
    assert resolve_precision("auto", torch.device(where)) == decodes
    assert resolve_precision("bf16", torch.device(where), 1) == torch.bfloat16  # the user decides


def test_the_instructions_of_the_processor_decide(monkeypatch):
    for avx512, amx in ((False, False), (True, False), (False, True)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda found=avx512: found)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda found=amx: found)
        assert cpu_has_bf16() == (avx512 or amx)
        with session(device="cpu", parameters=1_000_000):
            assert torch.is_autocast_enabled("cpu") == (avx512 or amx)
        with session(device="cpu", parameters=1_000):
            assert not torch.is_autocast_enabled("cpu")


def test_a_session_seeds_and_yields_its_device():
    draws = []
    for _ in range(2):
        with session(device="cpu", seed=5) as device:
            draws.append(torch.rand(3))
            assert device == CPU and not torch.is_autocast_enabled("cpu")
    assert torch.equal(*draws)


def test_a_bf16_session_casts_weights_again_after_an_optimizer_step():
    # a cached bf16 copy of the weight would still be used after the step
    layer, x = nn.Linear(4, 4, bias=False), torch.randn(2, 4)
    with session(device="cpu", precision="bf16"):
        optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
        before = layer(x)
        assert before.dtype == torch.bfloat16 and layer.weight.dtype == torch.float32
        before.float().sum().backward()
        optimizer.step()
        assert not torch.equal(layer(x), before)
        assert torch.equal(layer(x), (x.bfloat16() @ layer.weight.bfloat16().T))
    assert not torch.is_autocast_enabled("cpu")


# How a program ends


def ends(main, capsys):
    with pytest.raises(SystemExit) as caught:
        exits_cleanly(main)()
    return caught.value.code, capsys.readouterr().err


def fail(error):
    raise error


def test_bad_input_ends_in_one_line_and_code_2(capsys):
    assert ends(lambda: fail(InputError("x: needed y")), capsys) == (2, "error: x: needed y\n")


def test_an_error_of_one_of_several_processes_names_the_rank(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert ends(lambda: fail(InputError("x")), capsys) == (2, "[rank 1] error: x\n")


def test_an_interrupt_ends_without_a_traceback_and_a_bug_with_one(capsys):
    assert ends(lambda: fail(KeyboardInterrupt), capsys) == (130, "stopped\n")
    with pytest.raises(ZeroDivisionError):
        exits_cleanly(lambda: 1 / 0)()
