"""The trainers take a policy with images in the place of a policy of text: no trainer has a copy of its own."""

import base64
import json

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from minirlhf.adapters import LoRAConfig, apply_lora, reference_of
from minirlhf.algorithms import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    PPOConfig,
    PPOTrainer,
    SFTConfig,
    SFTTrainer,
)
from minirlhf.data import Batches
from minirlhf.errors import InputError
from minirlhf.extras.png import png_bytes
from minirlhf.extras.vision import (
    VisionConfig,
    VisionModel,
    VisionPolicy,
    encode_image_rows,
    files,
    load_vision,
    marked,
    with_image_mark,
)
from minirlhf.generation import SamplingConfig, generate
from minirlhf.model import ModelConfig, copy_of, load_pretrained, save_pretrained
from minirlhf.text import Tokenizer
from minirlhf.training import Run, RunConfig


def square(red, blue, shade):
    """A picture of one colour, as base64."""
    return base64.b64encode(png_bytes(np.full((8, 8, 3), (red, shade, blue), dtype=np.uint8))).decode()


COLOURS = {"red": (255, 0), "blue": (0, 255)}
ROWS = [  # the question is the same, so only the image can tell
    {"image": square(*colour, 8 * shade), "prompt": "which?", "response": name, "answer": name}
    for shade in range(8)
    for name, colour in COLOURS.items()
]


@pytest.fixture(scope="module")
def tokenizer():
    return with_image_mark(Tokenizer.train([row[name] for row in ROWS for name in ("prompt", "response")], 300))


def policy_of(tokenizer, dtype=torch.float32, **options):
    torch.manual_seed(0)
    vision = VisionConfig(8, 4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    shape = ModelConfig(tokenizer.vocab_size, 16, 1, intermediate_size=32, max_position_embeddings=32)
    return VisionPolicy(VisionModel(shape, vision), **options).to(dtype)


def encoded(policy, tokenizer, *responses):
    return encode_image_rows(policy.transformer, tokenizer, [marked(row) for row in ROWS], responses).rows


def share_of_e(prompts, completions, rows):
    return [text.count("e") / max(len(text), 1) for text in completions]


def answers_of(policy, rows, tokenizer, tokens):
    sampling = SamplingConfig(max_tokens=tokens, temperature=0, stop_ids=tokenizer.eos_ids)
    found = generate(policy.transformer, [row.prompt for row in rows], sampling)
    return tokenizer.decode_completions([completion.ids for completion in found])


def test_sft_learns_to_see(tokenizer):
    policy = policy_of(tokenizer)
    rows = encoded(policy, tokenizer, "response")
    config = SFTConfig(steps=120, batch_size=8, lr=1e-2, max_epochs=100)
    trainer = SFTTrainer(policy, tokenizer, config, updates=config.steps)
    before = [p.detach().clone() for p in policy.parameters()]
    for batch in Batches.of(rows, config, stream="sft"):
        trainer.step(batch)
    assert all((p - old).abs().max() > 0 for p, old in zip(policy.parameters(), before, strict=True))
    assert answers_of(policy, rows, tokenizer, 6) == [row["answer"] for row in ROWS]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_number_of_micro_batches_changes_no_update(tokenizer, dtype):
    bound = 1e-9 if dtype == torch.float64 else 1e-4
    found = []
    for microbatch_tokens in (16_384, 120):
        policy = policy_of(tokenizer, dtype)
        config = GRPOConfig(steps=2, batch_size=4, minibatch_size=4, group_size=4, max_tokens=6, kl_coef=0.05)
        config = GRPOConfig(**vars(config) | {"microbatch_tokens": microbatch_tokens})
        trainer = GRPOTrainer(policy, copy_of(policy), share_of_e, tokenizer, config)
        for batch in Batches.of(encoded(policy, tokenizer), config, stream="grpo"):
            metrics = trainer.step(batch)
        assert abs(metrics["kl"]) > 0
        found.append([p.detach() for p in policy.parameters()])
    assert_close(*found, atol=bound, rtol=bound)


def test_grpo_learns_to_see_from_its_reward(tokenizer):
    """A text about a red image must begin with an even byte, about a blue image with an odd one."""

    def fits(prompts, completions, rows):
        parity = {"red": 0, "blue": 1}
        return [
            float(text.encode()[:1] != b"" and text.encode()[0] % 2 == parity[row["answer"]])
            for text, row in zip(completions, rows, strict=True)
        ]

    policy = policy_of(tokenizer)
    options = {"lr": 1e-2, "kl_coef": 0.0, "missing_eos_penalty": 0.0, "epochs": 1}
    config = GRPOConfig(steps=40, batch_size=16, minibatch_size=16, group_size=8, max_tokens=1, **options)
    trainer = GRPOTrainer(policy, None, fits, tokenizer, config)
    batches = Batches.of(encoded(policy, tokenizer), config, stream="grpo")
    scores = [trainer.step(batch)["score_mean"] for batch in batches]
    assert scores[0] < 0.6 and scores[-1] > 0.7, scores


def test_ppo_starts_at_ratio_1_and_trains_the_value_head(tokenizer):
    policy = policy_of(tokenizer, value_head=True)
    config = PPOConfig(steps=1, batch_size=8, minibatch_size=8, max_tokens=6)
    trainer = PPOTrainer(policy, copy_of(policy), share_of_e, tokenizer, config)
    metrics = trainer.step(Batches.of(encoded(policy, tokenizer), config, stream="ppo")[0])
    assert abs(metrics["approx_kl"]) < 1e-2 and abs(metrics["kl"]) < 1e-4
    assert policy.value_head.weight.abs().max() > 0


def test_dpo_prefers_the_colour_of_the_image(tokenizer):
    policy, other = policy_of(tokenizer), {"red": "blue", "blue": "red"}
    pairs = [marked({**row, "chosen": row["answer"], "rejected": other[row["answer"]]}) for row in ROWS]
    rows = encode_image_rows(policy.transformer, tokenizer, pairs, ("chosen", "rejected")).rows
    config = DPOConfig(steps=40, batch_size=16, lr=1e-2, max_epochs=100)
    trainer = DPOTrainer(policy, copy_of(policy), tokenizer, config, updates=config.steps)
    for batch in Batches.of(rows, config, stream="dpo"):
        trainer.step(batch)
    assert trainer.evaluate(rows)["accuracy"] > 0.9


def test_adapters_train_beside_their_base_as_the_reference(tokenizer, tmp_path):
    policy = policy_of(tokenizer)
    base = {name: p.clone() for name, p in policy.named_parameters()}
    apply_lora(policy, LoRAConfig(r=2))
    reference = reference_of(policy)
    config = GRPOConfig(steps=1, batch_size=8, minibatch_size=8, group_size=2, max_tokens=5, kl_coef=0.1)
    trainer = GRPOTrainer(policy, reference, share_of_e, tokenizer, config)
    rows = encoded(policy, tokenizer)
    trainer.step(Batches.of(rows, config, stream="grpo")[0])
    for name, p in reference.named_parameters():
        assert torch.equal(p, base[name])
    files.save_final(policy, tmp_path)  # merged
    ids = torch.tensor([rows[0].prompt])
    loaded = load_vision(tmp_path)
    loaded.transformer.model.embed_tokens.gallery = policy.transformer.model.embed_tokens.gallery
    assert_close(loaded.transformer(ids), policy.transformer(ids), atol=1e-6, rtol=0)


def run_of(folder, tokenizer, resume=False, stop_at=None):
    """Two steps of GRPO in a folder; stop_at: end after this step without finishing."""
    policy = policy_of(tokenizer)
    config = GRPOConfig(steps=2, batch_size=4, minibatch_size=4, group_size=4, max_tokens=5, kl_coef=0.0)
    trainer = GRPOTrainer(policy, None, share_of_e, tokenizer, config)
    batches = Batches.of(encoded(policy, tokenizer), config, stream="grpo")
    run = Run(
        RunConfig(output=str(folder), save_every=1, eval_every=0, resume=resume),
        trainer,
        batches,
        tokenizer=tokenizer,
        files=files,
    )
    for batch in run:
        run.record(trainer.step(batch))
        if run.step == stop_at:
            break
    return policy


def test_a_resumed_run_is_the_whole_run_and_its_folder_is_the_policy(tokenizer, tmp_path):
    whole = run_of(tmp_path / "whole", tokenizer)
    run_of(tmp_path / "cut", tokenizer, stop_at=1)
    resumed = run_of(tmp_path / "cut", tokenizer, resume=True)
    loaded = load_vision(tmp_path / "cut" / "model")
    for (name, p), q, r in zip(whole.named_parameters(), resumed.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(p, q) and torch.equal(p, r), name
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "cut")]
    assert lines[0] == lines[1]
    read = Tokenizer.load(tmp_path / "cut" / "model")
    rows = [encode_image_rows(p.transformer, t, [marked(ROWS[0])], ()) for p, t in ((whole, tokenizer), (loaded, read))]
    ids = [torch.tensor([found.rows[0].prompt]) for found in rows]
    assert torch.equal(loaded.transformer(ids[1])[:, -1], whole.transformer(ids[0])[:, -1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_folder_keeps_the_dtype_and_the_value_head(tokenizer, dtype, tmp_path):
    policy = policy_of(tokenizer, dtype, value_head=True)
    torch.nn.init.normal_(policy.value_head.weight)
    files.save_final(policy, tmp_path)
    loaded = load_vision(tmp_path)
    assert loaded.transformer.model.config == policy.transformer.model.config
    assert loaded.transformer.vision == policy.transformer.vision
    for (name, p), q in zip(policy.named_parameters(), loaded.named_parameters(), strict=True):
        assert name == q[0] and q[1].dtype == dtype and torch.equal(p, q[1]) and q[1].requires_grad


def changed(folder, **values):
    path = folder / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **values}))


BAD_FOLDERS = {
    "llava": ({"model_type": "llava"}, "got the model_type 'llava'; models of other tools are not read"),
    "llama": ({"model_type": "llama"}, "got the model_type 'llama'"),
    "dtype": ({"torch_dtype": "int8"}, "needed the settings of a vision policy .*int8"),
    "no text": ({"text_config": {}}, "vocab_size is missing"),
    "text of another type": ({"text_config": 3}, "text_config must be an object, got 3"),
    "vision": ({"vision_config": {"image_size": 32}}, "vision_config: needed image_size, .*is missing or unknown"),
    "value head": ({"value_head": True}, "got another set, shape or dtype: value_head.bias"),
    "width": ({"torch_dtype": "float64"}, "got another set, shape or dtype: transformer.model"),
}


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_a_bad_folder_is_refused_in_one_line(name, tokenizer, tmp_path):
    files.save_final(policy_of(tokenizer), tmp_path)
    values, words = BAD_FOLDERS[name]
    changed(tmp_path, **values)
    with pytest.raises(InputError, match=words) as error:
        load_vision(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_missing_and_broken_files_are_refused(tokenizer, tmp_path):
    with pytest.raises(InputError, match="needed the settings of a vision policy"):
        load_vision(tmp_path / "nowhere")
    files.save_final(policy_of(tokenizer), tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(InputError, match="needed the weights of a vision policy, got: "):
        load_vision(tmp_path)


def test_the_folder_of_a_vision_language_model_is_refused_by_name(tokenizer, tmp_path):
    """Elsewhere too: the text part of such a folder alone would be another model."""
    files.save_final(policy_of(tokenizer), tmp_path / "ours")
    (tmp_path / "qwen").mkdir()
    (tmp_path / "qwen" / "config.json").write_text(json.dumps({"model_type": "qwen2_vl", "vision_config": {}}))
    for name, model_type in (("ours", "minirlhf_vision"), ("qwen", "qwen2_vl")):
        with pytest.raises(InputError, match=f"model_type '{model_type}': a vision-language model"):
            load_pretrained(tmp_path / name)


def test_a_vision_model_is_never_saved_as_a_decoder(tokenizer, tmp_path):
    with pytest.raises(InputError, match="model_type must be one of .*, got 'minirlhf_vision'"):
        save_pretrained(policy_of(tokenizer), tmp_path / "model")
    assert not (tmp_path / "model").exists()
