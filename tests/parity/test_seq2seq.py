"""Random T5, Flan-T5 and mT5 folders, made by transformers: the same logits, gradients and continuations here."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.testing import assert_close

from minirlhf.extras.seq2seq.folder import load_seq2seq, save_seq2seq
from minirlhf.extras.seq2seq.policy import Seq2SeqPolicy
from minirlhf.extras.seq2seq.tokenizer import Seq2SeqTokenizer
from minirlhf.generation import SamplingConfig, generate

pytestmark = pytest.mark.parity

# In double precision, because logits that are not scaled are as large as 20. In transformers the norm of T5 squares in
# single precision all the same.
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
SHAPE = {"vocab_size": 61, "d_model": 24, "d_kv": 5, "d_ff": 40, "num_heads": 3, "decoder_start_token_id": 0}
SHAPE |= {"num_layers": 2, "num_decoder_layers": 3}
SHAPE |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12}
# transformers 5 writes tie_word_embeddings: true for all models; an own head stands in the files alone
MODELS = {
    "t5": ("T5", {}, False),
    "t5, own head": ("T5", {}, True),
    "flan": ("T5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, False),
    "flan, own head": ("T5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, True),
    "silu": ("T5", {"feed_forward_proj": "gated-silu"}, False),
    "mt5": ("MT5", {}, False),
    "mt5, own head": ("MT5", {"tie_word_embeddings": False}, True),
}


def folder_of(folder, name):
    family, settings, own_head = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SHAPE, **settings)
    model = getattr(transformers, f"{family}ForConditionalGeneration")(config)
    model.save_pretrained(folder)
    if own_head:
        weights = load_file(folder / "model.safetensors")
        save_file({**weights, "lm_head.weight": torch.randn(61, 24)}, folder / "model.safetensors", {"format": "pt"})
    if own_head and settings:  # as the hub has them
        raw = json.loads((folder / "config.json").read_text())
        raw.pop("scale_decoder_outputs", None)
        (folder / "config.json").write_text(json.dumps(raw | {"tie_word_embeddings": False}))
    return folder


def theirs_of(folder, dtype=torch.float32):
    return transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=dtype).eval()


def batch():
    """Prompts of 17, 9 and 1 tokens; completions of 20, 3 and 26, so that distances leave the exact buckets."""
    torch.manual_seed(1)
    prompts = [torch.randint(1, 61, (n,)).tolist() for n in (17, 9, 1)]
    answers = [torch.randint(1, 61, (n,)).tolist() for n in (20, 3, 26)]
    return prompts, answers


def padded(rows, value=0):
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], True, value)


def their_logps(theirs, prompts, answers):
    """[B, C] log-probs of the answers' tokens, 0 at padding."""
    mask = padded([[1] * len(prompt) for prompt in prompts])
    labels = padded(answers, -100)
    out = theirs(input_ids=padded(prompts), attention_mask=mask, labels=labels)
    logps = out.logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return torch.where(labels >= 0, logps, 0)


def our_logps(policy, prompts, answers):
    rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    ids, starts = padded(rows), torch.tensor([[len(prompt)] for prompt in prompts])
    mask = torch.arange(ids.shape[1]) < torch.tensor([[len(row)] for row in rows])
    logps = policy(ids, mask, wanted=mask & (torch.arange(ids.shape[1]) >= starts)).logps
    parts = [row[len(p) : len(p) + len(a)] for row, p, a in zip(logps, prompts, answers, strict=True)]
    return torch.nn.utils.rnn.pad_sequence(parts, True)


@pytest.mark.parametrize("name", MODELS)
def test_logits_log_probs_and_gradients(name, tmp_path):
    folder, (prompts, answers) = folder_of(tmp_path, name), batch()
    ours, theirs = load_seq2seq(folder, torch.float64), theirs_of(folder, torch.float64)
    ids, mask = padded(prompts), padded([[True] * len(prompt) for prompt in prompts])
    tokens = padded(answers)
    expected = theirs(input_ids=ids, attention_mask=mask.long(), decoder_input_ids=tokens).logits
    assert_close(ours(tokens, ours.cache(ours.encode(ids, mask), mask)), expected, **CLOSE)
    cache = ours.cache(ours.encode(ids, mask), mask)
    stepwise = torch.cat([ours(tokens[:, t : t + 1], cache) for t in range(tokens.shape[1])], 1)
    assert_close(stepwise, expected, **CLOSE)
    single = load_seq2seq(folder)
    found = single(tokens, single.cache(single.encode(ids, mask), mask)).double()
    assert (found - expected).abs().max() < 1e-5 * max(1, expected.abs().max())

    found, expected = our_logps(Seq2SeqPolicy(ours), prompts, answers), their_logps(theirs, prompts, answers)
    assert_close(found, expected, **CLOSE)
    ours_by_name, theirs_by_name = dict(ours.named_parameters()), dict(theirs.named_parameters())
    assert ours_by_name.keys() == theirs_by_name.keys()
    for logps in (found, expected):
        logps.mean().backward()
    for key, p in ours_by_name.items():
        assert_close(p.grad, theirs_by_name[key].grad, **CLOSE, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", ["t5", "flan, own head", "mt5"])
def test_greedy_continuations(name, tmp_path):
    folder, (prompts, _) = folder_of(tmp_path, name), batch()
    theirs = theirs_of(folder)
    # the cache of transformers 5.24 has as many layers as the encoder, so a deeper decoder fails with it
    options = {"use_cache": False, "max_new_tokens": 15, "do_sample": False, "eos_token_id": 3, "pad_token_id": 0}
    sampling = SamplingConfig(max_tokens=15, temperature=0, stop_ids=(3,))
    found = generate(load_seq2seq(folder), prompts, sampling)
    for prompt, completion in zip(prompts, found, strict=True):
        expected = theirs.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), **options)
        assert completion.ids == expected[0, 1:].tolist()


@pytest.mark.parametrize("name", MODELS)
def test_folders_that_we_write(name, tmp_path):
    folder, (prompts, answers) = folder_of(tmp_path / "read", name), batch()
    save_seq2seq(load_seq2seq(folder), tmp_path / "written")
    assert_close(
        their_logps(theirs_of(tmp_path / "written"), prompts, answers), their_logps(theirs_of(folder), prompts, answers)
    )
    assert load_seq2seq(tmp_path / "written").config == load_seq2seq(folder).config


def unigram(folder):
    """A tokenizer.json as T5 has it: Unigram, sentinels, EOS after each text."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    backend.decoder = decoders.Metaspace()
    names = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=names, unk_token="<unk>", show_progress=False)
    texts = ["translate English to German: the house is small .", "das haus ist klein .", "a cat sat on the mat <s>/"]
    backend.train_from_iterator(texts * 20, trainer)
    sentinels = [f"<extra_id_{i}>" for i in range(3)]
    backend.add_special_tokens([AddedToken(name) for name in sentinels])
    backend.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    config |= {"extra_ids": 3, "additional_special_tokens": sentinels}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_tokenizers(tmp_path):
    ours = Seq2SeqTokenizer.load(unigram(tmp_path / "read"))
    ours.save(tmp_path / "written")
    texts = ["the house is small .", "the <extra_id_0> is <extra_id_1> .", "a  cat sat", ""]
    for folder in ("read", "written"):
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / folder)
        assert ours.encode_prompts(texts) == ours.encode_responses(texts) == theirs(texts)["input_ids"]
    assert ours.token_ids == {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    assert ours.decode_completions(ours.encode_responses(texts[:1])) == texts[:1]
    (ids,) = ours.encode_prompts(["a cat</s> sat"])  # a name of a special token inside a text is text
    assert ids.count(1) == 1 and ids[-1] == 1 and len(ids) > len(ours.encode_prompts(["a cat sat"])[0])
    assert ours.decode(ids).replace(" ", "") == "acat</s>sat"
