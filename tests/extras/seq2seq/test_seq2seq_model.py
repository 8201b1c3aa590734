import json

import pytest
import torch
from torch.testing import assert_close

from minirlhf.adapters import LoRAConfig, apply_lora, reference_of
from minirlhf.errors import InputError
from minirlhf.extras.seq2seq.config import Seq2SeqConfig
from minirlhf.extras.seq2seq.folder import load_seq2seq, save_seq2seq
from minirlhf.extras.seq2seq.model import Seq2Seq, buckets
from minirlhf.extras.seq2seq.policy import EncoderRewardModel, Seq2SeqPolicy
from minirlhf.generation import SamplingConfig, generate
from minirlhf.model import ModelConfig, Transformer, copy_of, load_pretrained, save_pretrained

TINY = {"vocab_size": 30, "hidden_size": 16, "head_dim": 5, "num_attention_heads": 2, "intermediate_size": 24}


def tiny(**settings):
    torch.manual_seed(0)
    return Seq2Seq(Seq2SeqConfig(**TINY, num_decoder_layers=3, **settings)).double()


def random_policy(**options):
    policy = Seq2SeqPolicy(tiny(), **options)
    if policy.value_head:
        torch.nn.init.normal_(policy.value_head.weight)
    return policy.double()


def test_buckets_by_hand():
    """8 buckets, 16 tokens. A decoder: 0..3 tokens back have a bucket each; then 4 + floor(4 log(d / 4) / log(16 / 4)).

    d = 4 or 5: 4 (log(5 / 4) / log 4 is 0.16); d = 6 or 7: 5; d = 8: 6; d = 16: 8, but 7 is the last.
    """
    config = Seq2SeqConfig(num_buckets=8, max_distance=16)
    back = torch.tensor([3, 0, -1, -3, -4, -5, -6, -8, -16, -99])
    assert buckets(back, config, both_ways=False).tolist() == [0, 0, 1, 3, 4, 4, 5, 6, 7, 7]
    # An encoder: 4 buckets each way, later keys from 4 on. Exact up to 1; then 2 + floor(2 log(d / 2) / log 8).
    # d = 2..5: 2 (log(5 / 2) / log 8 is 0.44); d = 6: 3 (0.53).
    assert buckets(torch.tensor([0, -1, -2, -5, -6, 1, 5, 6, 99]), config, both_ways=True).tolist() == [
        0, 1, 2, 2, 3, 5, 6, 7, 7,
    ]  # fmt: skip


def batch():
    """Three rows of 9: prompts of 3, 4 and 3 tokens, completions of 4, 2 and 6; rows 0 and 2 have one prompt."""
    ids = torch.randint(1, 30, (3, 9), generator=torch.Generator().manual_seed(1))
    ids[2, :3] = ids[0, :3]
    columns, starts, ends = torch.arange(9), torch.tensor([[3], [4], [3]]), torch.tensor([[7], [6], [9]])
    mask = columns < ends
    return torch.where(mask, ids, 0), mask, mask & (columns >= starts)


@pytest.mark.parametrize("tied", [True, False])
def test_a_policy_gives_the_numbers_of_each_row_alone(tied):
    model = tiny(tie_word_embeddings=tied, scale_outputs=tied)
    policy = Seq2SeqPolicy(model, value_head=True).double()
    torch.nn.init.normal_(policy.value_head.weight)
    ids, mask, wanted = batch()
    found = policy(ids, mask, temperature=0.7, wanted=wanted)
    for row in range(3):
        prompt = ids[row : row + 1, : int(wanted[row].int().argmax())]
        answer = ids[row][wanted[row]][None]
        real = torch.ones_like(prompt, dtype=torch.bool)
        read = torch.cat((torch.zeros(1, 1, dtype=torch.int64), answer[:, :-1]), 1)  # the start token comes first
        hidden = model.decode(read, model.cache(model.encode(prompt, real), real))
        logps = (model.logits(hidden) / 0.7).log_softmax(-1)
        assert_close(found.logps[row][wanted[row]], logps.gather(-1, answer[..., None])[0, :, 0])
        assert_close(found.entropy[row][wanted[row]], -(logps.exp() * logps).sum(-1)[0])
        assert_close(found.values[row][wanted[row]], policy.value_head.weight[0] @ hidden[0].T)
    for numbers in found:
        assert not numbers[~wanted].any()
    assert_close(policy.read_values(ids, mask, wanted), found.values)


def test_junk_in_padding_and_other_rows_changes_neither_numbers_nor_gradients():
    policy = random_policy(value_head=True)
    ids, mask, wanted = batch()

    def gradients(ids, mask, wanted):
        policy.zero_grad()
        out = policy(ids, mask, wanted=wanted)
        (out.logps.sum() + out.entropy.sum() + out.values.square().sum()).backward()
        return [p.grad.clone() for p in policy.parameters()]

    expected = gradients(ids, mask, wanted)
    widened = [torch.nn.functional.pad(x, (0, 4)) for x in (ids, mask, wanted)]
    widened[0][~widened[1]] = 7
    assert_close(gradients(*widened), expected)


def test_samples_have_the_log_probs_of_the_policy_and_groups_share_the_encoder():
    policy = random_policy()
    prompts = [[5, 6, 1], [9, 1], [5, 6, 1], [5, 6, 1]]
    read = []
    encode = policy.transformer.encoder.encode
    policy.transformer.encoder.encode = lambda x, mask: read.append(mask.sum().item()) or encode(x, mask)
    sampling = SamplingConfig(max_tokens=12, temperature=0.8, stop_ids=(1,))
    found = generate(policy.transformer, prompts, sampling)
    assert sum(read) == 5  # the tokens of two distinct prompts
    for prompt, completion in zip(prompts, found, strict=True):
        ids = torch.tensor([[*prompt, *completion.ids]])
        wanted = torch.arange(ids.shape[1])[None] >= len(prompt)
        logps = policy(ids, torch.ones_like(wanted), 0.8, wanted=wanted).logps[0, len(prompt) :]
        assert_close(logps, torch.tensor(completion.logps), atol=1e-5, rtol=1e-5, check_dtype=False)
    alone = generate(policy.transformer, prompts[1:2], sampling, keys=[(0, 1, 0)])
    assert alone[0].ids == found[1].ids


def test_lora_copies_and_references():
    policy, (ids, mask, wanted) = random_policy(), batch()
    frozen = copy_of(policy)
    before = policy(ids, mask, wanted=wanted).logps
    assert_close(frozen(ids, mask, wanted=wanted).logps, before)
    apply_lora(policy, LoRAConfig(r=2, target_modules=("q", "wo")))
    assert_close(policy(ids, mask, wanted=wanted).logps, before)
    for name, p in policy.named_parameters():
        if name.endswith(".B"):
            torch.nn.init.normal_(p)
    assert (policy(ids, mask, wanted=wanted).logps - before).abs().max() > 1e-3
    assert_close(reference_of(policy)(ids, mask, wanted=wanted).logps, before)


def test_folders_are_written_and_read(tmp_path):
    policy, (ids, mask, wanted) = random_policy(), batch()
    apply_lora(policy, LoRAConfig(r=2))
    for name, p in policy.named_parameters():
        if name.endswith(".B"):
            torch.nn.init.normal_(p)
    save_seq2seq(policy, tmp_path, {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1})
    loaded = load_seq2seq(tmp_path)
    assert loaded.config == policy.transformer.config
    found = Seq2SeqPolicy(loaded)(ids, mask, wanted=wanted).logps
    assert_close(found, policy(ids, mask, wanted=wanted).logps)
    assert load_seq2seq(tmp_path, dtype=torch.float32).dtype == torch.float32


def test_a_reward_model_of_the_encoder_sees_the_whole_text_and_no_padding():
    model = EncoderRewardModel(tiny()).double()
    ids, mask, _ = batch()
    scores = model(ids, mask)
    assert_close(model(torch.where(mask, ids, 9), mask), scores)
    changed = ids.clone()
    changed[:, 0] = changed[:, 0] % 29 + 1  # the first token, seen by the last
    assert ((model(changed, mask) - scores).abs() > 1e-6).all()


def change(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_other_folders_are_refused_in_one_line(tmp_path):
    save_seq2seq(tiny(), tmp_path / "t5")
    save_pretrained(Transformer(ModelConfig(vocab_size=30)), tmp_path / "llama")
    with pytest.raises(InputError, match="needed an encoder-decoder with model_type t5 or mt5, got 'llama'; a decoder"):
        load_seq2seq(tmp_path / "llama")
    with pytest.raises(InputError, match="model_type must be one of llama.*got 't5'"):
        load_pretrained(tmp_path / "t5")
    for settings, message in {
        ("d_kv", 6): "SelfAttention.*q.weight must be",
        ("d_model", "16"): "d_model must be a whole number",
        ("d_ff", None): "d_ff is missing",
        ("num_layers", 9): "weights are missing",
        ("num_layers", 1000): "too few for the layers",
        ("num_layers", 1): "weights do not belong to the model: encoder.block.1",
        ("feed_forward_proj", "gated-relu6"): "feed_forward_proj must be one of relu, gated-gelu",
        ("architectures", ("T5ForTokenClassification",)): "architectures must be T5ForConditionalGeneration",
        ("relative_attention_num_buckets", 6): "num_buckets must be a multiple of 4",
        ("decoder_start_token_id", 30): "start_id must be an id",
        ("quantization_config", "gptq"): "the weights are quantised",
    }.items():
        save_seq2seq(tiny(), tmp_path / "t5")
        change(tmp_path / "t5", **dict([settings]))
        with pytest.raises(InputError, match=message) as caught:
            load_seq2seq(tmp_path / "t5")
        assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_bad_batches_are_refused():
    policy, (ids, mask, wanted) = random_policy(), batch()
    with pytest.raises(InputError, match="needed `wanted`, the mask of the completions"):
        policy(ids, mask)
    with pytest.raises(InputError, match="got an empty prompt"):
        policy(ids, mask, wanted=mask)
    with pytest.raises(InputError, match="prompt 0 is empty"):
        generate(policy.transformer, [[]], SamplingConfig())
    with pytest.raises(InputError, match="the context holds 8 tokens, got 9"):
        Seq2SeqPolicy(tiny(n_positions=4))(ids, mask, wanted=wanted)
