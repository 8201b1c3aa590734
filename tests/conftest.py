"""Fixtures: tiny transformers whose weights are large enough that every part changes the output.

Tests run on one thread: a second thread does not speed up tiny tensors, and makes timings depend on the machine's load.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # no server listens there: no test reaches the hub

import pytest
import torch
from hypothesis import settings

from minirlhf.model import ModelConfig, Transformer
from minirlhf.runtime import ending

from .forks import Forks

torch.set_num_threads(1)
# Property tests have the same examples in every run, and no time limit: a loaded machine made some of them fail.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")

SHAPE = {
    "vocab_size": 37,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 16,
}


def pytest_collection_modifyitems(items):
    """Files whose tests start processes come first: they take long, and the last file leaves a worker without work."""
    slow = {item.path for item in items if "forks" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def outside_of_a_run(monkeypatch):
    """A run of an earlier test that ended with an error is not named."""
    monkeypatch.setattr(ending, "step", None)


@pytest.fixture(scope="session")
def forks():
    """Runs Python programs that need no time to import torch: `Forks.run` and `Forks.ranks`."""
    with Forks() as forks:
        yield forks


@pytest.fixture
def loud():
    """loud(model): add noise to every parameter, also to those that start at 0 or 1."""

    def loud(model, seed=0):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in model.parameters():
                p += 0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
        return model

    return loud


@pytest.fixture
def make(loud):
    """make(seed, **changes): a transformer of SHAPE with these changes."""

    def make(seed=0, **changes):
        torch.manual_seed(seed)
        return loud(Transformer(ModelConfig(**SHAPE | changes)), seed)

    return make


@pytest.fixture
def ids():
    return torch.randint(0, 37, (4, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def mask():
    """Ragged: 9, 4, 1 and 7 real tokens."""
    return torch.arange(9) < torch.tensor([[9], [4], [1], [7]])


@pytest.fixture
def junk(ids, mask):
    """`ids` with other ids in the padding."""
    return torch.where(mask, ids, (ids + 11) % 37)


@pytest.fixture
def hub_server(tmp_path, monkeypatch):
    """The hub has the models maker/small and maker/empty, and the data set maker/rows; its files go into tmp_path."""
    from minirlhf.pretrained import hub

    from .hub_server import Hub

    rows = [b'{"prompt": "p%d", "response": "r"}\n' % i for i in range(3)]
    server = Hub(
        {
            "models/maker/small": {
                "config.json": b"{}",
                "model.safetensors": b"weights",
                "chat_template.jinja": b"{{ messages }}",
                "merges.txt": b"",
                "pytorch_model.bin": b"pickle",
                "modeling_small.py": b"raise SystemExit",
                "original/model.safetensors": b"twice",
            },
            "models/maker/empty": {"README.md": b"nothing"},
            "datasets/maker/rows": {
                "a/train.jsonl": rows[0],
                "a/test.jsonl": rows[1],
                "b/train.jsonl": rows[2],
                "load.py": b"raise SystemExit",
            },
        }
    )
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.chdir(tmp_path)
    hub._fetch.cache_clear()
    hub._commits.clear()
    yield server
    server.shutdown()
    server.server_close()
