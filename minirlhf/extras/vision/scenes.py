"""Drawn scenes of 32 x 32 with questions and their answers. Nothing is downloaded.

    question  "how many circles?"                   "which is larger?", about two shapes
    direct    "2"                                    "square"
    listed    "circle, square, circle: 2"            "circle 3, square 6: square"

A listed answer names the shapes in reading order first, for "which is larger?" with half of their size in pixels. Its
question ends with `LIST`. The checked answer is the text after the last colon.
"""

from __future__ import annotations

import base64
import random
from dataclasses import dataclass

import numpy as np

from minirlhf.extras.png import png_bytes
from minirlhf.extras.vision.rows import marked, with_image_mark
from minirlhf.text.tokenizer import Tokenizer

SIZE = 32  # pixels a side
KINDS = ("circle", "square", "triangle")
COLOURS = ((220, 40, 40), (40, 160, 60), (50, 80, 220), (230, 190, 40), (150, 60, 180))
MOST = 4  # shapes of a kind, and of a scene
LIST = " list them first."
LARGER = "which is larger?"
APART = 2  # pixels by which the sizes of two shapes to compare differ


@dataclass(frozen=True)
class Shape:
    kind: str
    x: int  # centre, in pixels
    y: int
    size: int  # pixels from the centre to the sides


def rows(n: int, seed: int, stream: str, *, direct: float = 0.0) -> list[dict]:
    """n rows {images, prompt, answer, response} as `marked` makes them; each image is a PNG in base64.

    direct: the share of the rows that are answered without a list.
    """
    rng = random.Random(f"scenes {seed} {stream}")
    return [marked(_row(rng, listed=rng.random() >= direct)) for _ in range(n)]


def tokenizer(seed: int) -> Tokenizer:
    """A tokenizer of the words of this task, with the token for images."""
    found = rows(500, seed, "sft", direct=0.5)
    return with_image_mark(Tokenizer.train([row[name] for row in found for name in ("prompt", "response")], 300))


def _row(rng: random.Random, listed: bool) -> dict:
    question, shapes = _question(rng)
    answer, image = answer_to(question, shapes), base64.b64encode(png_bytes(draw(shapes, rng))).decode()
    row = {"image": image, "prompt": question, "answer": answer, "response": answer}
    if listed:
        row |= {"prompt": question + LIST, "response": f"{list_of(question, shapes)}: {answer}"}
    return row


def answer_to(question: str, shapes: list[Shape]) -> str:
    if question == LARGER:
        return max(shapes, key=lambda shape: shape.size).kind
    return str(sum(question == _how_many(shape.kind) for shape in shapes))


def list_of(question: str, shapes: list[Shape]) -> str:
    """The shapes in reading order."""
    shapes = sorted(shapes, key=lambda shape: (shape.y, shape.x))
    return ", ".join(f"{shape.kind} {shape.size}" if question == LARGER else shape.kind for shape in shapes)


def gold(prompts: list[str], completions: list[str], rows: list[dict]) -> dict[str, list[float]]:
    """gold_reward: 1 for the right answer, else 0."""
    right = [text.rpartition(":")[2].strip() == row["answer"] for text, row in zip(completions, rows, strict=True)]
    return {"gold_reward": [float(is_right) for is_right in right]}


def reward(prompts: list[str], completions: list[str], rows: list[dict]) -> list[float]:
    """The gold reward, as a reward function."""
    return gold(prompts, completions, rows)["gold_reward"]


def draw(shapes: list[Shape], rng: random.Random) -> np.ndarray:
    """-> picture [32, 32, 3] of bytes: each shape in a colour of its own on a light ground, with a little noise."""
    picture = np.full((SIZE, SIZE, 3), rng.randrange(225, 256), dtype=np.int16)
    y, x = np.mgrid[:SIZE, :SIZE]
    for shape, colour in zip(shapes, rng.sample(COLOURS, len(shapes)), strict=True):
        dx, dy = abs(x - shape.x), y - shape.y
        inside = {
            "circle": dx**2 + dy**2 <= (shape.size + 0.3) ** 2,
            "square": np.maximum(dx, abs(dy)) <= shape.size,
            "triangle": (abs(dy) <= shape.size) & (2 * dx <= dy + shape.size),
        }
        picture[inside[shape.kind]] = colour
    noise = np.frombuffer(rng.randbytes(picture.size), dtype=np.int8).reshape(picture.shape) // 16
    return (picture + noise).clip(0, 255).astype(np.uint8)


def _question(rng: random.Random) -> tuple[str, list[Shape]]:
    """A question and a scene. How-many questions have each answer from 0 to 4 equally often."""
    if rng.random() < 0.5:
        kinds = rng.sample(KINDS, 2)
        small = rng.randint(2, 5)
        sizes = [small, rng.randint(small + APART, 7)]
        rng.shuffle(sizes)
        return LARGER, _placed(kinds, sizes, rng, 16)
    asked, count = rng.choice(KINDS), rng.randint(0, MOST)
    others = rng.randint(0 if count else 1, MOST - count)
    kinds = [asked] * count + [rng.choice([kind for kind in KINDS if kind != asked]) for _ in range(others)]
    return _how_many(asked), _placed(kinds, [rng.randint(2, 3) for _ in kinds], rng, 8)


def _how_many(kind: str) -> str:
    return f"how many {kind}s?"


def _placed(kinds: list[str], sizes: list[int], rng: random.Random, cell: int) -> list[Shape]:
    """Each shape in a cell of its own, of `cell` pixels a side."""
    cells = rng.sample(range((SIZE // cell) ** 2), len(kinds))
    found = []
    for kind, size, at in zip(kinds, sizes, cells, strict=True):
        x, y = (cell * i + rng.randint(size, cell - 1 - size) for i in (at % (SIZE // cell), at // (SIZE // cell)))
        found.append(Shape(kind, x, y, size))
    return found
