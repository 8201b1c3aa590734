"""From a base model to RLHF with adapters alone, merged at the end.

python examples/llama.py --policy DIR --data votes.jsonl
python examples/llama.py --policy DIR --train qlora    # a base in 4 bits
python examples/llama.py      # the embedded task, on a tiny Llama made first

The journey of StackLLaMA (Beeching et al. 2023): SFT, reward model, PPO. Rows
are {question, answers: [{text, votes}, ...]} or pairs. The last model is in
OUTPUT/ppo/model; it loads without adapters.
"""

from minirlhf.algorithms import PPOConfig, PPOTrainer, SFTTrainer
from minirlhf.errors import exits_cleanly
from minirlhf.jobs import Job, open_stage, programs
from minirlhf.jobs.given_models import scorer_of
from minirlhf.jobs.prepare import prepare
from minirlhf.jobs.reward_model import train_reward_model
from minirlhf.pretrained import load_adapter
from minirlhf.training import ADAPTER


@exits_cleanly
def main() -> None:
    options = {"needs": ("sft", "pairs"), "job": programs.LlamaJobConfig, "defaults": programs.LLAMA_DEFAULTS}
    with Job.open("llama", PPOConfig, section="ppo", after=("sft", "reward"), help=__doc__, **options) as job:
        job = job if job.common.policy else programs.with_own_head(job)
        base, folder = programs.first_base(job)  # --policy, or a tiny Llama
        stage = programs.based_on(open_stage(job, "sft", "sft"), folder)
        if not stage.finished:  # 1. an adapter of the base learns the answers
            policy = prepare(base, stage.settings, job.device)
            rows, held_out = job.rows("sft", policy.transformer.config)
            batches = stage.batches(rows)
            trainer = SFTTrainer(policy, job.tokenizer, stage.config, updates=len(batches))
            run = stage.run(trainer, batches, evaluate=lambda: trainer.evaluate(held_out))
            for batch in run:
                run.record(trainer.step(batch))

        models = programs.four_models(job, programs.merged_sft(job).transformer)
        stage = programs.based_on(open_stage(job, "reward", "reward_model"), job.folder / "sft")
        if stage.finished:
            load_adapter(models.reward, stage.folder / ADAPTER, "reward")
        accuracy = train_reward_model(job, stage, models.reward)  # 2. an adapter of the merged model learns the pairs
        reward = scorer_of(job, models.reward)

        stage = programs.based_on(programs.stage_on_one_base(job, models, reward), job.folder / "sft")
        before = stage.evaluate(models.reference)
        if not stage.finished:  # 3. PPO: an adapter of the policy and an adapter of the value model learn
            options = {"value_model": models.value, "seed": job.seed}
            trainer = PPOTrainer(models.policy, models.reference, reward, job.tokenizer, job.config, **options)
            run = stage.train_on(trainer)
            for batch in run:
                run.record(trainer.step(batch))
        job.report("PPO", before, stage.evaluate(models.policy), reward_model_accuracy=accuracy)
        job.say(f"the model, without adapters: {stage.folder / 'model'}")


if __name__ == "__main__":
    main()
