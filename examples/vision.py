"""Questions about drawn scenes, the image in the prompt: SFT, then GRPO.

python examples/vision.py        # "how many circles?", "which is larger?"
"""

from dataclasses import dataclass

from minirlhf.algorithms import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from minirlhf.data import Batches, EncodedRow
from minirlhf.errors import exits_cleanly
from minirlhf.evaluation import evaluate_policy
from minirlhf.extras.vision import VisionModel, VisionPolicy, encode_image_rows, scenes
from minirlhf.model import ModelConfig
from minirlhf.runtime import session
from minirlhf.training import parse_settings


@dataclass(frozen=True)
class ExampleConfig:
    seed: int = 0  # [-] of the scenes, the weights and the samples
    sft_steps: int = 600  # [steps] of 64 demonstrations; each second one lists the shapes before it answers
    grpo_steps: int = 80  # [steps] of new questions
    questions: int = 128  # [questions] of a GRPO step, with 8 answers each; an evaluation has 4 times as many


@exits_cleanly
def main() -> None:
    config = parse_settings({"job": ExampleConfig}, description=__doc__)["job"]
    seed, sft = config.seed, SFTConfig(steps=config.sft_steps, batch_size=64, lr=2e-3, max_epochs=100)
    sizes = {"batch_size": config.questions, "minibatch_size": config.questions // 2, "group_size": 8}
    grpo = GRPOConfig(steps=config.grpo_steps, max_tokens=24, **sizes)
    with session(device="cpu", seed=seed, threads=1):
        tokenizer = scenes.tokenizer(seed)
        heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "tie_word_embeddings": False}
        model = VisionModel(ModelConfig(vocab_size=tokenizer.vocab_size, max_position_embeddings=64, **heads))
        policy, sampling = VisionPolicy(model), grpo.sampling(tokenizer.eos_ids)

        def rows(n: int, stream: str, direct: float, *responses: str) -> list[EncodedRow]:
            return encode_image_rows(model, tokenizer, scenes.rows(n, seed, stream, direct=direct), responses).rows

        def show(when: str) -> None:
            for way, direct in (("without", 1), ("with", 0)):
                questions = rows(4 * config.questions, "held out", direct)
                report = evaluate_policy(policy, tokenizer, questions, sampling, gold=scenes.gold, seed=seed)
                print(f"right answers {when}, {way} a list: {report.measures['gold_reward']:.3f}")

        show("untrained")
        trainer = SFTTrainer(policy, tokenizer, sft, updates=sft.steps)
        for batch in Batches.of(rows(10 * sft.steps, "sft", 0.5, "response"), sft, seed=seed):
            trainer.step(batch)
        show("after SFT")
        trainer = GRPOTrainer(policy, None, scenes.reward, tokenizer, grpo, seed=seed)
        for step, batch in enumerate(Batches.of(rows(config.questions * grpo.steps, "grpo", 0), grpo, seed=seed)):
            metrics = trainer.step(batch)
            print(f"grpo step {step:4}  reward {metrics['score_mean']:.3f}")
        show("after GRPO")


if __name__ == "__main__":
    main()
