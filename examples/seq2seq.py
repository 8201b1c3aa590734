"""An encoder-decoder rewrites reviews to the opposite sentiment.

python examples/seq2seq.py        # SFT on careless demonstrations, then PPO
python examples/seq2seq.py --seed 1
"""

from dataclasses import dataclass

from minirlhf.algorithms import PPOConfig, PPOTrainer, SFTConfig, SFTTrainer
from minirlhf.data import Batches, encode_rows
from minirlhf.errors import exits_cleanly
from minirlhf.evaluation import evaluate_policy
from minirlhf.extras.seq2seq import Seq2Seq, Seq2SeqConfig, Seq2SeqPolicy, Seq2SeqTokenizer, task
from minirlhf.model import copy_of
from minirlhf.runtime import session
from minirlhf.training import parse_settings


@dataclass(frozen=True)
class ExampleConfig:
    seed: int = 0  # [-] of the rows, the weights and the samples
    rows: int = 8000  # [rows] demonstrations
    sft_steps: int = 800  # [steps] of 32 demonstrations
    ppo_steps: int = 30  # [steps] of 128 completions


@exits_cleanly
def main() -> None:
    config = parse_settings({"job": ExampleConfig}, description=__doc__)["job"]
    sft = SFTConfig(steps=config.sft_steps, batch_size=32, lr=4e-3, max_epochs=100)
    ppo = PPOConfig(steps=config.ppo_steps, batch_size=128, minibatch_size=64, max_tokens=40, lr=1e-3, kl_coef=0.02)
    with session(device="cpu", seed=config.seed, threads=1):
        demonstrations = task.rows(config.rows, config.seed)
        tokenizer = Seq2SeqTokenizer.train((text for row in demonstrations for text in row.values()), vocab_size=600)
        shape = {"num_hidden_layers": 1, "num_decoder_layers": 1, "n_positions": 64}
        model = Seq2Seq(Seq2SeqConfig(vocab_size=tokenizer.vocab_size, **shape))
        rows = encode_rows(tokenizer, demonstrations, ("response",), context=128).rows
        held_out = encode_rows(tokenizer, task.rows(256, config.seed, held_out=True), (), context=128).rows

        def gold(policy: Seq2SeqPolicy) -> float:
            sampling = ppo.sampling(tokenizer.eos_ids)
            report = evaluate_policy(policy, tokenizer, held_out, sampling, gold=task.gold, seed=config.seed)
            print(f"    {report.prompts[0]}\n -> {report.completions[0]}")
            return report.measures["gold_reward"]

        trainer = SFTTrainer(Seq2SeqPolicy(model), tokenizer, sft, updates=sft.steps)
        for step, batch in enumerate(Batches.of(rows, sft, seed=config.seed, stream="sft")):
            loss = trainer.step(batch)["loss"]
            if step % 100 == 0:
                print(f"sft step {step:4}  loss {loss:.3f}")
        before, policy = gold(Seq2SeqPolicy(model)), Seq2SeqPolicy(model, value_head=True)
        trainer = PPOTrainer(policy, copy_of(policy), task.reward, tokenizer, ppo, seed=config.seed)
        for step, batch in enumerate(Batches.of(rows, ppo, seed=config.seed, stream="ppo")):
            metrics = trainer.step(batch)
            print(f"ppo step {step:4}  reward {metrics['score_mean']:.3f}  KL {metrics['kl']:.3f}")
        print(f"gold reward on {len(held_out)} held-out reviews: before PPO {before:.3f}, after {gold(policy):.3f}")


if __name__ == "__main__":
    main()
