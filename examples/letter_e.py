"""PPO with every part in the open: a random network learns to write the letter e in seconds.

python examples/letter_e.py
"""

from minirlhf.algorithms import PPOConfig, PPOTrainer
from minirlhf.data import Batches, encode_rows
from minirlhf.model import ModelConfig, Policy, Transformer, copy_of
from minirlhf.runtime import session
from minirlhf.text import Tokenizer


def reward(prompts, completions, rows):
    return [text.count("e") / max(len(text), 1) for text in completions]  # the share of e, between 0 and 1


def main(steps=30):
    rows = [{"prompt": f"write line {n}:"} for n in range(1000)]
    config = PPOConfig(
        steps=steps, batch_size=64, minibatch_size=32, max_tokens=8, lr=3e-3, kl_coef=0.02, missing_eos_penalty=0
    )
    with session(device="cpu", seed=0, threads=1):  # a network this small is slower with two threads
        tokenizer = Tokenizer.train((row["prompt"] for row in rows), vocab_size=300)
        policy = Policy(Transformer(ModelConfig(vocab_size=tokenizer.vocab_size)), value_head=True)
        trainer = PPOTrainer(policy, copy_of(policy), reward, tokenizer, config)
        prompts = encode_rows(tokenizer, rows, (), context=64).rows
        for step, batch in enumerate(Batches.of(prompts, config, stream="ppo")):
            metrics = trainer.step(batch)
            print(f"step {step:2}  share of e {metrics['score_mean']:.3f}  {trainer.samples[0]['completion']!r}")
    return metrics


if __name__ == "__main__":
    main()
