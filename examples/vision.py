"""Questions about drawn scenes, with the image in the prompt: SFT, then GRPO with checked answers.

python examples/vision.py
python examples/vision.py --seed 1
"""

from dataclasses import dataclass

from minirlhf.algorithms import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from minirlhf.data import Batches, EncodedRow
from minirlhf.errors import exits_cleanly
from minirlhf.evaluation import evaluate_policy
from minirlhf.extras.vision import VisionModel, VisionPolicy, encode_image_rows, marked, scenes, with_image_mark
from minirlhf.model import ModelConfig
from minirlhf.runtime import session
from minirlhf.text import Tokenizer
from minirlhf.training import parse_settings


@dataclass(frozen=True)
class ExampleConfig:
    seed: int = 0  # [-] of the scenes, the weights and the samples
    rows: int = 6000  # [rows] demonstrations: half list the shapes first, half answer directly
    sft_steps: int = 800  # [steps] of 64 demonstrations
    grpo_steps: int = 200  # [steps] of 32 questions with 8 answers each


@exits_cleanly
def main() -> None:
    config = parse_settings({"job": ExampleConfig}, description=__doc__)["job"]
    sft = SFTConfig(steps=config.sft_steps, batch_size=64, lr=2e-3, max_epochs=100)
    grpo = GRPOConfig(
        steps=config.grpo_steps, batch_size=32, minibatch_size=32, group_size=8, max_tokens=24, lr=5e-4, epochs=1
    )
    with session(device="cpu", seed=config.seed, threads=1):
        demonstrations = scenes.rows(config.rows, config.seed, "sft", direct=0.5)
        texts = [row[name] for row in demonstrations for name in ("prompt", "response")]
        tokenizer = with_image_mark(Tokenizer.train(texts, vocab_size=300))
        heads = {"tie_word_embeddings": False, "num_attention_heads": 8, "num_key_value_heads": 8}
        model = VisionModel(ModelConfig(vocab_size=tokenizer.vocab_size, max_position_embeddings=128, **heads))
        policy = VisionPolicy(model)

        def encoded(rows: list[dict], *responses: str) -> list[EncodedRow]:
            return encode_image_rows(model, tokenizer, [marked(row) for row in rows], responses).rows

        held_out = {
            "direct": encoded(scenes.rows(256, config.seed, "held out", direct=1)),
            "listed": encoded(scenes.rows(256, config.seed, "held out")),
        }

        def show(name: str) -> None:
            measures = {}
            for way, rows in held_out.items():
                report = evaluate_policy(policy, tokenizer, rows, grpo.sampling(tokenizer.eos_ids), gold=scenes.gold)
                measures[way] = report.measures["gold_reward"]
            print(f"right answers {name}: direct {measures['direct']:.3f}, listed first {measures['listed']:.3f}")

        show("untrained")
        trainer = SFTTrainer(policy, tokenizer, sft, updates=sft.steps)
        for step, batch in enumerate(Batches.of(encoded(demonstrations, "response"), sft, seed=config.seed)):
            loss = trainer.step(batch)["loss"]
            if step % 100 == 0:
                print(f"sft step {step:4}  loss {loss:.3f}")
        show("after SFT")
        questions = encoded(scenes.rows(config.grpo_steps * grpo.batch_size, config.seed, "grpo"))
        trainer = GRPOTrainer(policy, None, scenes.reward, tokenizer, grpo, seed=config.seed)
        for step, batch in enumerate(Batches.of(questions, grpo, seed=config.seed)):
            metrics = trainer.step(batch)
            if step % 20 == 0:
                print(f"grpo step {step:4}  reward {metrics['score_mean']:.3f}")
        show("after GRPO")


if __name__ == "__main__":
    main()
