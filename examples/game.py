"""A game of several turns, with credit for each turn: guess a number.

python examples/game.py            # 49/15 = 3.267 turns are the best average
python examples/game.py --grpo.turn_advantages false    # judge whole games
python examples/game.py --policy DIR                    # your model plays
python examples/game.py --policy DIR --data FILE --environment my.py:Game

docs/environments.md shows how to write your own game.
"""

from minirlhf.algorithms import GRPOConfig, GRPOTrainer
from minirlhf.errors import exits_cleanly
from minirlhf.jobs import Job
from minirlhf.jobs.played import GAME_DEFAULTS, GameJobConfig, load_game
from minirlhf.rewards import parts_of


@exits_cleanly
def main() -> None:
    options = {"section": "grpo", "after": ("sft",), "job": GameJobConfig, "task": load_game}
    with Job.open("game", GRPOConfig, help=__doc__, defaults=GAME_DEFAULTS, **options) as job:
        stage = job.stage(job.policy(), "prompts")
        before = stage.evaluate(stage.reference)
        if not stage.finished:
            options = {"seed": job.seed, "environment": job.environment}
            trainer = GRPOTrainer(stage.policy, None, parts_of(job.given_reward), job.tokenizer, job.config, **options)
            run = stage.train_on(trainer, prompts=255)
            for batch in run:
                run.record(trainer.step(batch))
        job.report(job.config.algorithm, before, stage.evaluate(stage.policy))


if __name__ == "__main__":
    main()
