"""`reviews`: short product reviews from a small grammar, so that quality can be computed exactly.

    prompt   := COLOUR ROOM PRODUCT "in" MONTH ":"
    review   := "the" PRODUCT "is" judgement "." (opinion | fact){1, 3}
    opinion  := ("it" | "the" PART) "is" judgement "."  |  "i" FEELING "it" "."
    fact     := "i bought it in" MONTH "."  |  "the" PART "is" COLOUR "."  |  "we use it in the" ROOM "."
    judgement := [DEGREE] ADJECTIVE

A review parses if the grammar derives it and its first sentence has the prompt's product. Its sentiment is the mean
value of its opinions, in [-1, 1]; facts do not count. Gold reward = sentiment if the review parses, else -1.
"""

from __future__ import annotations

import random

COLOURS = ["blue", "green", "red", "black", "white", "brown", "grey", "yellow"]
PRODUCTS = ["kettle", "lamp", "blender", "toaster", "camera", "chair", "speaker", "tent",
            "watch", "jacket", "mixer", "printer", "radio", "desk", "bottle", "heater"]  # fmt: skip
ROOMS = ["kitchen", "office", "garden", "garage", "bedroom", "attic"]
MONTHS = ["january", "february", "march", "april", "may", "june",
          "july", "august", "september", "october", "november", "december"]  # fmt: skip
PARTS = ["lid", "handle", "switch", "cord", "case", "base", "button", "panel", "strap", "box"]
DEGREES = {"slightly": 0.3, "rather": 0.6, "very": 1.5, "not": -0.5}
ADJECTIVES = {
    **dict.fromkeys(["superb", "excellent", "perfect", "wonderful", "brilliant", "lovely"], 1.0),
    **dict.fromkeys(["good", "nice", "solid", "handy", "pleasant"], 0.5),
    **dict.fromkeys(["weak", "dull", "poor", "clumsy", "noisy"], -0.5),
    **dict.fromkeys(["awful", "terrible", "useless", "horrible", "dreadful"], -1.0),
}
FEELINGS = {"love": 1.0, "like": 0.3, "dislike": -0.3, "hate": -1.0}
WORDS = sorted({*COLOURS, *PRODUCTS, *ROOMS, *MONTHS, *PARTS, *DEGREES, *ADJECTIVES, *FEELINGS,
                *["the", "is", "it", "i", "we", "bought", "use", "in"]})  # fmt: skip
CORRUPT_SHARE = 0.3  # of the texts in preference pairs; from them a reward model learns that broken texts are bad
HELD_OUT_EVERY = 9  # every ninth of the 9,216 prompts, 1,024 in all, is never trained on
SMALLEST_GAP = 0.5  # between the gold rewards of a pair, so that no pair is a tie


def all_prompts() -> list[str]:
    return [f"{c} {r} {p} in {m}:" for c in COLOURS for r in ROOMS for p in PRODUCTS for m in MONTHS]


def training_prompts() -> list[dict]:
    return [{"prompt": prompt} for i, prompt in enumerate(all_prompts()) if i % HELD_OUT_EVERY]


def held_out_prompts() -> list[dict]:
    return [{"prompt": prompt} for prompt in all_prompts()[::HELD_OUT_EVERY]]


def product_of(prompt: str) -> str:
    return prompt.split()[2]


def sft_rows(n: int, seed: int) -> list[dict]:
    """n rows {prompt, response}: reviews of every sentiment; every review parses."""
    rng, prompts = random.Random(f"reviews sft {seed}"), training_prompts()
    rows = []
    for _ in range(n):
        prompt = rng.choice(prompts)["prompt"]
        rows.append({"prompt": prompt, "response": write_review(rng, product_of(prompt))})
    return rows


def preference_rows(n: int, seed: int, *, flipped: float = 0.05, held_out: bool = False) -> list[dict]:
    """n rows {prompt, chosen, rejected}: the gold reward of chosen is higher.

    flipped: probability that chosen and rejected are swapped, because human labels are sometimes wrong.
    """
    rng = random.Random(f"reviews pairs {seed} {held_out}")
    prompts = held_out_prompts() if held_out else training_prompts()
    rows = []
    while len(rows) < n:
        prompt = rng.choice(prompts)["prompt"]
        texts = [_maybe_corrupt(rng, write_review(rng, product_of(prompt))) for _ in range(2)]
        worse, better = sorted(texts, key=lambda text: gold_reward(prompt, text))
        if gold_reward(prompt, better) - gold_reward(prompt, worse) < SMALLEST_GAP:
            continue
        if rng.random() < flipped:
            worse, better = better, worse
        rows.append({"prompt": prompt, "chosen": better, "rejected": worse})
    return rows


def write_review(rng: random.Random, product: str) -> str:
    """Derive one review from the grammar."""
    sentences = [f"the {product} is {_judgement(rng)}."]
    for _ in range(rng.randint(1, 3)):
        sentences.append(_opinion(rng) if rng.random() < 0.5 else _fact(rng))
    return " ".join(sentences)


def sentiment(prompt: str, review: str) -> float | None:
    """Mean value of the review's opinions, in [-1, 1]; None if the review does not parse."""
    if not review.endswith("."):
        return None
    sentences = [sentence.split(" ") for sentence in review[:-1].split(". ")]
    if not 2 <= len(sentences) <= 4 or sentences[0][:3] != ["the", product_of(prompt), "is"]:
        return None
    values = [_judgement_value(sentences[0][3:])]
    for words in sentences[1:]:
        if not _is_fact(words):
            values.append(_opinion_value(words))
    return None if None in values else sum(values) / len(values)


def sentence_parses(prompt: str, words: list[str], first: bool) -> bool:
    if first:
        return words[:3] == ["the", product_of(prompt), "is"] and _judgement_value(words[3:]) is not None
    return _is_fact(words) or _opinion_value(words) is not None


def gold_reward(prompt: str, review: str) -> float:
    """The sentiment if the review parses, else -1."""
    value = sentiment(prompt, review)
    return -1.0 if value is None else value


def gold(prompts: list[str], completions: list[str], rows: list[dict]) -> dict[str, list[float]]:
    """The exact measures of each completion: gold_reward in [-1, 1], grammatical 0 or 1."""
    values = [sentiment(p, c) for p, c in zip(prompts, completions, strict=True)]
    return {
        "gold_reward": [-1.0 if value is None else value for value in values],
        "grammatical": [float(value is not None) for value in values],
    }


def _judgement(rng: random.Random) -> str:
    adjective = rng.choice(list(ADJECTIVES))
    return f"{rng.choice(list(DEGREES))} {adjective}" if rng.random() < 0.5 else adjective


def _opinion(rng: random.Random) -> str:
    if rng.random() < 0.25:
        return f"i {rng.choice(list(FEELINGS))} it."
    subject = "it" if rng.random() < 0.3 else f"the {rng.choice(PARTS)}"
    return f"{subject} is {_judgement(rng)}."


def _fact(rng: random.Random) -> str:
    return rng.choice(
        [
            f"i bought it in {rng.choice(MONTHS)}.",
            f"the {rng.choice(PARTS)} is {rng.choice(COLOURS)}.",
            f"we use it in the {rng.choice(ROOMS)}.",
        ]
    )


def _judgement_value(words: list[str]) -> float | None:
    if len(words) == 1:
        return ADJECTIVES.get(words[0])
    if len(words) == 2 and words[0] in DEGREES and words[1] in ADJECTIVES:
        return max(-1.0, min(1.0, DEGREES[words[0]] * ADJECTIVES[words[1]]))
    return None


def _opinion_value(words: list[str]) -> float | None:
    match words:
        case ["i", feeling, "it"]:
            return FEELINGS.get(feeling)
        case ["it", "is", *rest]:
            return _judgement_value(rest)
        case ["the", part, "is", *rest] if part in PARTS:
            return _judgement_value(rest)
    return None


def _is_fact(words: list[str]) -> bool:
    match words:
        case ["i", "bought", "it", "in", month]:
            return month in MONTHS
        case ["the", part, "is", colour]:
            return part in PARTS and colour in COLOURS
        case ["we", "use", "it", "in", "the", room]:
            return room in ROOMS
    return False


def _maybe_corrupt(rng: random.Random, review: str) -> str:
    """With probability CORRUPT_SHARE, add one to three faults, as in the samples of a weak model."""
    if rng.random() < CORRUPT_SHARE:
        for _ in range(rng.randint(1, 3)):
            review = corrupt(rng, review)
    return review


def corrupt(rng: random.Random, review: str) -> str:
    """Delete, double, move or replace one word, or cut off the end."""
    words = review.split(" ")
    i = rng.randrange(len(words))
    match rng.randrange(5):
        case 0:
            del words[i]
        case 1:
            words.insert(i, words[i])
        case 2:
            words.insert(rng.randrange(len(words)), words.pop(i))
        case 3:
            words[i] = rng.choice(WORDS)
        case 4:
            words = words[: max(1, i)]
    return " ".join(words) or rng.choice(WORDS)
