"""The example programs, called in this process, with sizes that take a second."""

import importlib
import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from minirlhf.tasks import embedded_task

EXAMPLES = Path(__file__).parents[2] / "examples"

TINY = """
vocab_size = 280
[model]
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
intermediate_size = 32
max_position_embeddings = 96
"""
STAGES = {
    "sft": "[sft]\nsteps = 4\nbatch_size = 8\n",
    "reward_model": "[reward_model]\nsteps = 4\nbatch_size = 8\n",
    "ppo": "[ppo]\nsteps = 2\nbatch_size = 8\nminibatch_size = 4\nepochs = 1\nmax_tokens = 8\n",
}
ON_POLICY = "steps = 2\nbatch_size = 4\nminibatch_size = 4\nmax_tokens = 8\n"
MORE = {
    "grpo": f"[grpo]\n{ON_POLICY}group_size = 4\n" + STAGES["reward_model"],
    "dpo": "[dpo]\nsteps = 3\nbatch_size = 8\n",
    "unpaired": "[unpaired]\nsteps = 3\nbatch_size = 8\n",
    "online_dpo": f"[online_dpo]\n{ON_POLICY}" + STAGES["reward_model"],
    "distillation": "[distillation]\nsteps = 3\nbatch_size = 8\nmax_tokens = 8\n",
}
STAGES["ppo"] += STAGES["sft"] + STAGES["reward_model"]
STAGES |= {name: text + STAGES["sft"] for name, text in MORE.items()}
STAGES["multi_adapter"] = STAGES["best_of_n"] = STAGES["ppo"]
STAGES |= dict.fromkeys(("sentiment", "detoxify", "llama"), STAGES["ppo"])
STAGES["tools"] = STAGES["game"] = f"[grpo]\n{ON_POLICY}group_size = 2\n" + STAGES["sft"]
STAGES["process_reward"] = "[process_reward]\nsteps = 3\nbatch_size = 8\n"


def small_task(name, seed):
    """An embedded task with few rows of each kind."""
    task = embedded_task(name, seed, sft_rows=200, pair_rows=200)
    held_out = {part: getattr(task, part)[:32] for part in ("held_out_sft", "held_out_pairs", "held_out_prompts")}
    return replace(task, prompts=task.prompts[:300], **held_out)


def make_pairs(n=60):
    rng, words = random.Random(0), ["red", "blue", "green", "lamp", "desk", "chair", "good", "bad"]
    texts = [[" ".join(rng.choices(words, k=rng.randint(1, 4))) for _ in range(2)] for _ in range(n)]
    return [{"prompt": f"{i} {a}:", "chosen": f"{b} good", "rejected": f"{b} bad"} for i, (a, b) in enumerate(texts)]


@pytest.fixture
def pairs():
    return make_pairs


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """A folder with pairs.jsonl and, per program, its tiny settings."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_pairs()))
    for name, text in STAGES.items():
        (folder / f"{name}.toml").write_text(TINY + text)
    return folder


@pytest.fixture(scope="session")
def call(inputs):
    """call(program, cwd, *argv): its main(), in this process, in that folder, tiny settings unless argv has others."""

    def call(program, cwd, *argv):
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(EXAMPLES))
            patch.chdir(cwd)
            settings = [] if "--config" in argv else ["--config", inputs / f"{program}.toml"]
            patch.setattr(sys, "argv", [f"{program}.py", *map(str, [*settings, *argv])])
            importlib.import_module(program).main()

    return call


@pytest.fixture(scope="session")
def finished(call, inputs, tmp_path_factory):
    """A folder of a finished job: sft/, reward/, ppo/, tokenizer/ and summary.json."""
    folder = tmp_path_factory.mktemp("finished")
    call("ppo", folder, "--data", inputs / "pairs.jsonl", "--output", folder / "job")
    return folder / "job"
