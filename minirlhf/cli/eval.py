"""`minirlhf eval`: measure models on the rows of a file, side by side.

minirlhf eval MODEL [MODEL ...] --data rows.jsonl               # texts, and the likelihood of the file's answers
minirlhf eval A B --data rows.jsonl --reward DIR --baseline A   # rewards, and how often B beats A
minirlhf eval A B --data rows.jsonl --judge judge.py:function   # pairs, asked in both orders
minirlhf eval --data pairs.jsonl --reward DIR                   # the reward model alone, on pairs
minirlhf eval human samples.jsonl --output page.html            # ask people

docs/evaluation.md explains each measure.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from minirlhf.data.formats import Dataset
from minirlhf.data.tools.sources import Reading
from minirlhf.errors import InputError, check_range, shown
from minirlhf.evaluation.bleu import Words, letters, words_13a, words_for, words_zh
from minirlhf.evaluation.generated import answers_right, reward_measures, text_measures
from minirlhf.evaluation.pairwise import position_bias, verdict, win_by_score, win_rates
from minirlhf.evaluation.shown import (
    bias_table,
    measures_table,
    pairs_table,
    sample_lines,
    side_by_side_text,
    wins_table,
)
from minirlhf.generation.engine import SamplingConfig
from minirlhf.jobs import measuring
from minirlhf.jobs.data_flags import Documents, Kind, read_options
from minirlhf.jobs.folder import check_empty, make_empty
from minirlhf.jobs.given_judges import open_judge, open_reward
from minirlhf.jobs.measuring import Entrant, Rows
from minirlhf.model.policy import Policy
from minirlhf.pretrained.weights import load_policy
from minirlhf.rewards.judges import Judge
from minirlhf.runtime.device import resolve_precision, session
from minirlhf.runtime.distributed import is_main, say
from minirlhf.training.checkpoint import write_whole
from minirlhf.training.home import at_home
from minirlhf.training.lock import unlocked_at_end
from minirlhf.training.settings import parse_settings, settings_to_toml

WORDS: dict[str, Words] = {"13a": words_13a, "zh": words_zh, "char": letters}


@dataclass(frozen=True)
class EvalConfig:
    table: ClassVar[str] = "eval"  # its table in a --config file that serves several commands

    data: str  # [files] prompts, and answers to compare with: files or folders, with commas
    output: str | None = None  # [folder] everything is written here; default: a fresh runs/eval-001
    reward: str | None = None  # [folder or FILE.py:FUNCTION] a reward model or function that scores the completions;
    #                            exact_match compares with `answer`; or several, with commas
    reward_weights: tuple[float, ...] | None = None  # [-] a weight for each reward; default: 1 each
    judge: str | None = None  # [right, longer, shorter, folder or FILE.py:FUNCTION] compares models with the baseline
    baseline: str | None = None  # [model] the others are compared with it; default: the first of several models
    reference: str | None = None  # [model] measure the KL of each model to this model
    samples: int = 1  # [completions] of each prompt
    max_tokens: int = 128  # [tokens] longest completion
    temperature: float = 1.0  # [-] divides the logits; 0 takes the likeliest token
    top_k: int = 0  # [tokens] sample among the k likeliest tokens; 0: among all
    top_p: float = 1.0  # [probability] sample among the likeliest tokens of this mass; 1: among all
    greedy: bool = False  # [-] the same as --temperature 0
    seed: int = 0  # [-] of sampling and of the bootstrap
    overlap: int = 1  # [tokens] least context of a token in a text that is longer than the model's context
    words: Literal["auto", "13a", "zh", "char"] = "auto"  # [-] how BLEU splits texts, by sacrebleu's names
    template: str | None = None  # [-] built-in chat template, such as chatml; none: the template of each model
    template_variables: str | None = None  # [JSON] values of the template: '{"enable_thinking": false}'
    wrap: Literal["turns", "plain"] = "turns"  # [-] beside a chat template, a prompt of text is a user turn, or text
    map: tuple[str, ...] = ()  # [-] known names for your own columns: prompt=ask,response=answer
    as_: Kind | None = None  # [-] read the rows as this kind, if they fit several
    encoding: str | None = None  # [-] of your files, such as gb18030; none: UTF-8 or UTF-16, recognised
    documents: Documents = "line"  # [-] of plain text: each line is a row, each part up to a blank line, or each file
    max_rows: int | None = None  # [rows] of each file, from its beginning
    max_refused: float = 0.01  # [share] of the rows that may be unusable
    ignore_columns: tuple[str, ...] = ()  # [-] columns to leave unused, although they have a meaning
    batch_size: int = 256  # [rows] completions in progress at a time
    microbatch_tokens: int = 16_384  # [tokens] one forward, padding included
    device: str = "auto"  # [-] cuda, mps, cpu or auto
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # [-] auto: bf16 if the GPU supports it, else fp32

    def __post_init__(self) -> None:
        check_range(self, "samples", "max_rows", "overlap", least=1)
        if self.greedy and self.temperature not in (0, 1):
            raise InputError(f"--greedy: needed no --temperature beside it, got {self.temperature}; drop one of them")
        if self.samples > 1 and (self.greedy or not self.temperature):
            raise InputError(f"--samples {self.samples}: greedy samples of a prompt are all equal; raise --temperature")
        if self.reference and (self.greedy or not self.temperature):
            raise InputError("--reference: greedy samples have no KL; raise --temperature, or drop --reference")
        self.sampling(())

    def sampling(self, stop_ids: tuple[int, ...]) -> SamplingConfig:
        return SamplingConfig(
            max_tokens=self.max_tokens,
            temperature=0.0 if self.greedy else self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            stop_ids=stop_ids,
            batch_size=self.batch_size,
            microbatch_tokens=self.microbatch_tokens,
        )


def main(argv: list[str]) -> None:
    if argv[:1] == ["human"]:
        from minirlhf.cli import eval_human

        return eval_human.main(argv[1:])
    count = next((i for i, word in enumerate(argv) if word.startswith("-")), len(argv))
    config = parse_settings({"job": EvalConfig}, argv[count:], description=__doc__)["job"]
    check_empty(config.output)
    options = {"device": config.device, "precision": config.precision, "seed": config.seed}
    with session(**options) as device, unlocked_at_end():
        evaluate(named_models(argv[:count]), config, device)


def named_models(words: list[str]) -> list[str]:
    """The models of the words. A word with commas names several, unless a folder has this very name."""
    names = [name.strip() for word in words for name in ([word] if Path(word).exists() else word.split(","))]
    if not all(names):  # Path("") is the current folder
        raise InputError(
            f"eval: needed a model before and after each comma, got {shown(' '.join(words))}; drop a comma"
        )
    return [at_home(name) for name in names]


def evaluate(models: list[str], config: EvalConfig, device: torch.device) -> None:
    """Measure all models on the rows, print the tables, write the folder."""
    rows = measuring.rows_of(read(config))
    entrants, baseline = open_all(models, config)
    if not entrants and not (rows.pairs and config.reward):
        raise InputError("eval: needed a model first, or rows of pairs and --reward, got neither; see --help")
    reward = config.reward and open_reward(config, rows.prompts, device)
    judge = config.judge and open_judge(config, rows.prompts, device)
    found: dict[str, Any] = {"data": config.data, "baseline": baseline, "models": {}}
    tables, lines, folder = [], [], None
    if entrants:
        prompts, samples, measures = measure_all(entrants, rows, config, device)
        # scoring may take hours, or be stopped: the samples are kept
        folder = begun(config, sample_lines(prompts, samples, {}), rows.unit)
        scores = {name: measuring.scored(reward, rows, prompts, samples[name], name) for name in samples if reward}
        for name, own in scores.items():
            measures[name] |= reward_measures(own, config.seed)
        for name in [name for name in samples if baseline in samples and name != baseline]:
            measures[name] |= compared(name, baseline, samples, scores, judge, rows, prompts, config.seed)
        found["models"], lines = measures, sample_lines(prompts, samples, scores)
        tables = tables_of(measures, baseline, config.judge)
    if rows.pairs and reward and (pairs := measuring.measured_pairs(reward, rows)):
        found["reward_model"] = pairs
        tables.append(pairs_table(measuring.short_names([config.reward])[0], pairs))
    if not tables:
        raise InputError(f"eval: nothing could be measured: {rows.left_out[0]}")
    found["left_out"] = len(rows.left_out)
    if rows.left_out:
        say(f"left out: {len(rows.left_out):,}, such as {rows.left_out[0]}")
    say("\n\n".join(["", *tables]))
    folder = folder or begun(config, [], rows.unit)
    write(folder, files_of_samples(lines, rows.unit))
    left_out = "".join(f"{line}\n" for line in rows.left_out)
    numbers = json.dumps(found, ensure_ascii=False, indent=1) + "\n"
    write(folder, {"left_out.txt": left_out, "table.txt": "\n\n".join(tables) + "\n", "eval.json": numbers})
    say(f"\n{folder}: " + ", ".join(sorted(path.name for path in folder.glob("[!.]*"))))


def read(config: EvalConfig) -> list[Dataset]:
    """The rows of each file of --data. The counts, and the columns that nothing reads, are printed."""
    datasets = Reading(read_options(config)).sources([name.strip() for name in config.data.split(",")])
    for dataset in datasets:
        say(dataset.summary())
    return datasets


def open_all(models: list[str], config: EvalConfig) -> tuple[list[Entrant], str | None]:
    """-> (the models and the baseline, each once; the baseline's name, None for a single model)."""
    paths = [str(Path(name)) for name in models]
    if len(set(paths)) < len(paths):
        raise InputError(f"eval: needed each model once, got {', '.join(models)}")
    baseline = str(Path(config.baseline)) if config.baseline else paths[0] if len(paths) > 1 else None
    if baseline and baseline not in paths:
        paths.append(baseline)
    if config.judge and len(paths) < 2:
        raise InputError("--judge: needed two models to compare, got one; name another model, or --baseline")
    labels = measuring.short_names(paths)
    entrants = [
        measuring.open_entrant(path, label, config.template, config.template_variables)
        for path, label in zip(paths, labels, strict=True)
    ]
    for entrant in entrants:
        if config.overlap > entrant.context:
            raise InputError(f"--overlap: {entrant.name} has a context of {entrant.context}, got {config.overlap}")
    return entrants, labels[paths.index(baseline)] if len(paths) > 1 else None


def measure_all(
    entrants: list[Entrant], rows: Rows, config: EvalConfig, device: torch.device
) -> tuple[list[dict], dict[str, list[list[str]]], dict[str, dict[str, Any]]]:
    """-> (the measured prompts; model -> completions of each prompt; model -> measures)."""
    kept, prompts = measuring.readable_by_all(entrants, rows, rows.prompts, measuring.encode_prompts, config.wrap)
    known, answers = measuring.readable_by_all(entrants, rows, rows.texts, measuring.encode_answers, config.wrap)
    if not kept and not known:
        raise InputError(f"{config.data}: needed a row that all models can read, got none: {rows.left_out[0]}")
    sources, references = [rows.prompts[i] for i in kept], [rows.references[i] for i in kept]
    texts = [text for own in references for text in own] or [row["prompt"] for row in sources]
    words = WORDS.get(config.words) or words_for(texts)
    reference = open_reference(config, device)
    samples, measures = {}, {}
    for entrant, own_prompts, own_answers in zip(entrants, prompts, answers, strict=True):
        own = measures[entrant.name] = {"folder": str(entrant.folder)}
        try:
            policy = load(entrant, config, device)
            if kept:
                sampling = config.sampling(entrant.tokenizer.eos_ids)
                found = measuring.sampled(
                    entrant, policy, own_prompts, sampling, config.samples, config.seed, reference
                )
                samples[entrant.name], sampling_measures = found
                own |= {"prompts": len(kept), **sampling_measures}
                own |= text_measures(samples[entrant.name], references, words)
                own |= answers_right(sources, samples[entrant.name])
            if known:
                own |= measuring.likelihood_of(policy, own_answers, config.overlap, config.microbatch_tokens)
            say(f"{entrant.name}: measured on {len(kept):,} prompts and {len(known):,} answers of the file")
        except InputError as error:  # such as broken weights; the other models are measured
            samples.pop(entrant.name, None)
            own |= {"error": str(error)}
            say(f"{entrant.name}: not measured: {error}")
    if all("error" in own for own in measures.values()):
        raise InputError(f"eval: no model could be measured: {next(iter(measures.values()))['error']}")
    return sources, samples, measures


def load(entrant: Entrant, config: EvalConfig, device: torch.device) -> Policy:
    in_bf16 = resolve_precision(config.precision, device) == torch.bfloat16
    return load_policy(entrant.folder, dtype=None if in_bf16 else torch.float32).eval().to(device)


def open_reference(config: EvalConfig, device: torch.device) -> tuple[Entrant, Policy] | None:
    """The model of --reference."""
    if not config.reference:
        return None
    entrant = measuring.open_entrant(config.reference, config.reference, config.template, config.template_variables)
    return entrant, load(entrant, config, device)


def compared(
    name: str,
    baseline: str,
    samples: dict[str, list[list[str]]],
    scores: dict[str, list[list[float]]],
    judge: Judge | None,
    rows: Rows,
    prompts: list[dict],
    seed: int,
) -> dict[str, Any]:
    """The win rates of a model against the baseline: sample k of a prompt against sample k. Lengths in characters."""
    ours, theirs = samples[name], samples[baseline]
    sizes = paired(lambda a, b: (len(a), len(b)), ours, theirs)
    found = {}
    if scores:
        found["reward_wins"] = win_rates(paired(win_by_score, scores[name], scores[baseline]), sizes, seed)
    if judge:
        asked = measuring.judged(judge, rows, prompts, ours, theirs, name)
        wins = [[math.nan if pair is None else verdict(pair) for pair in group] for group in asked]
        found["judge_wins"] = win_rates(wins, sizes, seed)
        found["judge_bias"] = position_bias([pair for group in asked for pair in group if pair is not None])
    return {key: value for key, value in found.items() if value is not None}


def paired(function: Callable, ours: list[list], theirs: list[list]) -> list[list]:
    """The function of each sample of ours and the sample of theirs with the same number, prompt by prompt."""
    return [[function(a, b) for a, b in zip(*two, strict=True)] for two in zip(ours, theirs, strict=True)]


def tables_of(models: dict[str, dict[str, Any]], baseline: str | None, judge: str | None) -> list[str]:
    tables = [measures_table(models)]
    for key, title in (("reward_wins", "by reward"), ("judge_wins", f"by judge {judge}")):
        if wins := {name: own[key] for name, own in models.items() if key in own}:
            tables.append(wins_table(title, baseline, wins))
    if biases := {name: own["judge_bias"] for name, own in models.items() if "judge_bias" in own}:
        tables.append(bias_table(biases))
    return tables


def begun(config: EvalConfig, lines: list[dict], unit: str) -> Path:
    """Make the folder, with the settings and the samples without their rewards."""
    folder = make_empty(config.output, "eval")
    write(folder, {"config.toml": settings_to_toml({"job": config}), **files_of_samples(lines, unit)})
    return folder


def files_of_samples(lines: list[dict], unit: str) -> dict[str, str]:
    samples = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    return {"samples.jsonl": samples, "side_by_side.txt": side_by_side_text(lines, unit)}


def write(folder: Path, files: dict[str, str]) -> None:
    """Write the texts, each whole or not at all; an empty text makes no file."""
    for name, text in files.items():
        if text and is_main():
            write_whole(folder / name, text)
