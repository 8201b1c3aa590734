"""A tokenizer that decodes otherwise than the trained ones."""

import pytest
import tokenizers

from minirlhf.text import Tokenizer


@pytest.fixture(scope="module")
def sentencepiece():
    """Decodes like Llama 2: "_" is a space, the first space is dropped, unknown characters are byte tokens."""
    vocab = {f"<0x{i:02X}>": i for i in range(256)} | {"<eos>": 256, "\u2581the": 257, "\u2581kettle": 258}
    model = tokenizers.models.BPE(vocab, [], byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    parts = [
        tokenizers.decoders.Replace("\u2581", " "),
        tokenizers.decoders.ByteFallback(),
        tokenizers.decoders.Fuse(),
        tokenizers.decoders.Strip(" ", 1, 0),
    ]
    backend.decoder = tokenizers.decoders.Sequence(parts)
    backend.add_special_tokens(["<eos>", "<pad>"])
    return Tokenizer(backend, pad="<pad>", bos="<eos>", eos="<eos>")
