"""Recorded decode steps without a GPU: everything but the call of CUDA, for which a step that runs again stands in."""

import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from minirlhf.generation import SamplingConfig, generate, graphs
from minirlhf.generation import slots as slots_module
from minirlhf.generation.decoder import Decoder
from minirlhf.generation.slot_cache import SlotCache
from minirlhf.model import ModelConfig, Transformer
from minirlhf.model.config import FULL, SLIDING

EOS = 2
SHAPE = {"vocab_size": 23, "hidden_size": 24, "intermediate_size": 40, "max_position_embeddings": 200}
KINDS = {
    "llama": {},
    "gpt2": {"norm": "layer", "positions": "learned", "gated_mlp": False, "hidden_act": "gelu_tanh", "mlp_bias": True},
    "gemma": {
        "norm": "rms_plus_one",
        "embedding_scale": True,
        "final_logit_softcapping": 3.0,
        "attn_logit_softcapping": 2.0,
        "layer_types": (SLIDING, FULL),
        "sliding_window": 5,
    },
}


def model_of(**kind):
    torch.manual_seed(0)
    model = Transformer(ModelConfig(**SHAPE | kind))
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn_like(p)
    return model


class Recorder:
    """Stands in for CUDA: a step that is repeated runs again, and writes to the tensor of the first time."""

    log: list

    def __init__(self, device):
        self.log.append("recorder")

    def run(self, step):
        return step()

    def record(self, step):
        result = step().clone()
        self.log.append(tuple(result.shape[:1]))

        def repeat():
            self.log.append("repeat")
            result.copy_(step())

        return repeat, result

    def wait(self):
        self.log.append("wait")


@pytest.fixture
def log(monkeypatch):
    """Record on the CPU -> what happens."""
    monkeypatch.setattr(slots_module, "waits_for_a_look", lambda device: True)
    monkeypatch.setattr(graphs, "recorded", graphs.RecordedDecoder)
    monkeypatch.setattr(graphs, "refused", set())
    monkeypatch.setattr(graphs, "LEAST_COLUMNS", 8)
    monkeypatch.setattr(Recorder, "log", [], raising=False)
    monkeypatch.setattr(graphs, "Recorder", Recorder)
    return Recorder.log


@pytest.fixture(scope="module")
def prompts():
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 20, (12,), generator=generator).tolist()
    distinct = [torch.randint(3, 23, (n,), generator=generator).tolist() for n in lengths]
    return [*distinct, *distinct[:6]]


def same(model, prompts, config):
    plain, completions = generate(model, prompts, config, plain=True), generate(model, prompts, config)
    assert [(c.ids, c.finish) for c in completions] == [(c.ids, c.finish) for c in plain]
    for ours, theirs in zip(completions, plain, strict=True):
        assert ours.logps == pytest.approx(theirs.logps, abs=1e-5, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slots", [1, 7, 32])
def test_completions_are_those_of_the_plain_loop(kind, slots, prompts, log, monkeypatch):
    monkeypatch.setattr(slots_module, "FIRST_COLUMNS", 16)  # so that the cache grows while graphs exist
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(model_of(**KINDS[kind]), prompts, SamplingConfig(max_tokens=60, stop_ids=(EOS,), batch_size=slots))
    assert log.count("repeat") > 20 and log.count("wait") > 0


def test_a_graph_is_forgotten_when_the_memory_that_it_reads_is_given_back(log):
    model = model_of()
    decoder = graphs.RecordedDecoder(Decoder(model, torch.float32), 4, model.device)
    cache = SlotCache(model.config, 4, 10, model.device)
    cache.width = 5

    def steps(rows):
        for _ in range(graphs.BEFORE + 1):
            decoder(torch.zeros(rows, dtype=torch.int64), torch.full((rows,), 4), cache)
        return [*decoder.graphs]

    with torch.inference_mode():
        assert steps(2) == [(2, 8)]
        cache.width = 9
        assert steps(2) == [(2, 8), (2, 10)]  # the cache has ten columns, so no more are read
        assert steps(3) == [(4, 10)]  # more rows than ever: the decoder's buffers are new
        cache.grow(20)
        assert steps(3) == [(4, 16)]
    assert cache.width == 9
    assert log.count("recorder") == 3 and log.count("wait") == 2


def test_a_graph_is_forgotten_when_a_plain_step_moves_the_buffers(log):
    model = model_of()
    decoder = graphs.RecordedDecoder(Decoder(model, torch.float32), 8, model.device)
    cache = SlotCache(model.config, 8, 10, model.device)
    cache.width = 5

    def step(rows):
        decoder(torch.zeros(rows, dtype=torch.int64), torch.full((rows,), 4), cache)
        return [*decoder.graphs]

    with torch.inference_mode():
        step(5)
        assert [step(4) for _ in range(graphs.BEFORE + 1)][-1] == [(4, 8)]
        assert step(5) == [(4, 8)]
        assert step(7) == []


def test_rows_that_have_ended_ask_for_no_column_beyond_those_read(log):
    """A rotary table has 1,024 rows as long as no text is longer; a completion of 1,200 tokens has ended."""
    model = model_of(max_position_embeddings=2048)
    decoder = graphs.RecordedDecoder(Decoder(model, torch.float32), 4, model.device)
    cache = SlotCache(model.config, 4, 1300, model.device)
    tokens = torch.zeros(4, dtype=torch.int64)
    with torch.inference_mode():
        for lengths in ([100, 100, 100, 1200], [101, 101, 101]):
            cache.width = max(lengths) + 1
            for _ in range(graphs.BEFORE + 2):
                decoder(tokens[: len(lengths)], torch.tensor(lengths), cache)
    assert len(decoder.graphs) == 2


def broken_by(monkeypatch, record):
    monkeypatch.setattr(Recorder, "record", record)


def test_a_graph_that_differs_is_not_used_and_the_warning_comes_once(prompts, log, monkeypatch):
    """It repeats what it computed while it was recorded, as if its inputs were constants."""
    broken_by(monkeypatch, lambda self, step: (lambda: self.log.append("repeat"), step().clone()))
    model, config = model_of(), SamplingConfig(max_tokens=30, stop_ids=(EOS,), batch_size=7)
    with pytest.warns(UserWarning, match="without CUDA graphs.*results of a graph differ") as caught:
        same(model, prompts, config)
    assert len(caught) == 1 and log.count("repeat") == 1
    assert (model.config, torch.float32, model.device) in graphs.refused


def test_a_recording_that_fails_is_not_tried_again(prompts, log, monkeypatch):
    def fail(self, step):
        self.log.append("failed")
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    broken_by(monkeypatch, fail)
    model, config = model_of(), SamplingConfig(max_tokens=30, stop_ids=(EOS,), batch_size=7)
    with pytest.warns(UserWarning, match="operation not permitted when stream is capturing$") as caught:
        same(model, prompts, config)
    assert len(caught) == 1 and log.count("failed") == 1


def test_broken_logits_are_the_rollouts_own_error(prompts, log):
    model = model_of()
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Exception, match="not finite"):
            generate(model, prompts, SamplingConfig(max_tokens=30, batch_size=7))


@pytest.mark.parametrize(
    ("device", "kind", "records"),
    [
        ("cuda", {}, True),
        ("cpu", {}, False),
        ("mps", {}, False),
        ("cuda", {"num_experts": 4, "moe_intermediate_size": 16}, False),
        ("cuda", {"rope_type": "dynamic", "rope_factor": 2.0}, False),
    ],
)
def test_what_is_recorded(device, kind, records, monkeypatch):
    decoder, device = Decoder(model_of(**kind), torch.float32), torch.device(device)
    monkeypatch.setattr(graphs, "RecordedDecoder", lambda *arguments: "recorded")
    assert (graphs.recorded(decoder, 4, device) == "recorded") == records
    monkeypatch.setattr(graphs, "refused", {(decoder.config, torch.float32, device)})
    assert graphs.recorded(decoder, 4, device) is decoder


def test_nothing_is_recorded_while_autocast_keeps_cast_weights(monkeypatch):
    decoder, device = Decoder(model_of(), torch.float32), torch.device("cuda")
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: True)
    assert graphs.recorded(decoder, 4, device) is decoder


def test_sizes():
    for slots in (1, 5, 16, 256):
        for count in range(1, slots + 1):
            rows = graphs.rows_for(count, slots)
            assert count <= rows <= slots and (rows == slots or rows < 2 * count + 2)
    for width in range(1, 3000):
        columns = graphs.columns_for(width)
        assert width <= columns <= max(128, 1.5 * width) and columns % 64 == 0
    assert len({graphs.columns_for(width) for width in range(1, 4097)}) < 16


class NoHost(TorchDispatchMode):
    """Refuses tensors on the host, which a recorded step could not read or copy."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for x in (*arguments, *(result if isinstance(result, tuple | list) else [result])):
            assert not isinstance(x, torch.Tensor) or x.device.type == "meta", function
        return result


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_a_step_makes_nothing_on_the_host(kind, monkeypatch):
    meta = torch.device("meta")
    model = Transformer(ModelConfig(**SHAPE | KINDS[kind])).to(meta)
    step, cache = Decoder(model, torch.float32), SlotCache(model.config, 3, 16, meta)
    cache.width = 9
    inputs = torch.zeros(3, dtype=torch.int64, device=meta), torch.full((3,), 8, device=meta), cache
    step(*inputs)  # the tables of the angles are made on the host, once
    monkeypatch.delattr(torch, "tensor")  # a copy from the host that the mode does not see
    with NoHost():
        assert step(*inputs).shape == (3, 23)
