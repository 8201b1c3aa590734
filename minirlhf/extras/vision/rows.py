"""Rows with images -> rows of ids. In texts `MARK` stands for an image, so templates, rewards and reports see its place.

    {"image": "a.png", "prompt": "how many?", "answer": "2"}
    {"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "how many?"}]}]}

Both become rows with "images", a list, and a prompt with a MARK for each image.
"""  # noqa: E501

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Literal

import tokenizers

from minirlhf.data.batches import TURNS
from minirlhf.data.columns import Columns, names_of
from minirlhf.data.encoding import Encoded, EncodedRow, encode_rows
from minirlhf.data.formats.convert import Wishes
from minirlhf.data.formats.dataset import Dataset, Reading
from minirlhf.data.formats.layouts import PROMPT
from minirlhf.data.reading import Source, Values, open_values
from minirlhf.errors import InputError, shown
from minirlhf.extras.vision.images import read_image
from minirlhf.extras.vision.model import VisionModel
from minirlhf.text.tokenizer import Tokenizer

MARK = "\ufffc"  # U+FFFC, "object replacement character": Unicode's letter for an object inside a text
IMAGES = "images"  # key of a row: its images, in the order of the marks


def with_image_mark(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer, in which MARK is a token of its own wherever it stands."""
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    backend.add_tokens([tokenizers.AddedToken(MARK, normalized=False)])
    return type(tokenizer).of(replace(tokenizer.parts, backend=backend))


def marked(row: Any) -> Any:
    """The row with a MARK for each image, and the list "images".

    An image beside a prompt of text stands before the text. Raises: InputError for a row without an image.
    """
    if not isinstance(row, dict):
        return row  # `read_rows` has the words to refuse it
    if MARK in json.dumps(row, ensure_ascii=False, default=str):
        raise InputError("the letter U+FFFC stands for images; remove it from the texts")
    columns: dict[str, list[Any]] = {name: [] for name in row if name not in ("image", IMAGES)}
    found = {name: _without_images(row[name], images) for name, images in columns.items()}
    images = _of_columns(columns)
    if beside := [row[name] for name in ("image", IMAGES) if name in row]:
        prompt = next((name for name in PROMPT.split("|") if isinstance(row.get(name), str)), None)
        if images or len(beside) > 1 or prompt is None:
            raise InputError("needed the image beside a prompt of text, or as parts of turns, got another mixture")
        images = beside[0] if isinstance(beside[0], list) else beside
        found[prompt] = MARK * len(images) + found[prompt]
    if not images:
        raise InputError("needed a row with an image, got none; name it image, or write it as a part of a turn")
    return found | {IMAGES: images}


def _of_columns(columns: dict[str, list[Any]]) -> list[Any]:
    """The images of a row. Several columns may have them, as dialogues with one prompt do.

    Raises: InputError for different images: as images are matched with marks from the left, some would change places.
    """
    filled = {name: images for name, images in columns.items() if images}
    if len({json.dumps(images, default=str) for images in filled.values()}) > 1:
        raise InputError(
            f"needed equal images in each column that has images, got others in {names_of([*filled])}; "
            "write the images as parts of the prompt"
        )
    return next(iter(filled.values()), [])


def _without_images(value: Any, images: list[Any]) -> Any:
    """Turns with text parts in the place of image parts; each image joins the list."""
    if isinstance(value, list):
        return [_without_images(part, images) for part in value]
    if not isinstance(value, dict):
        return value
    if (kind := value.get("type")) in ("image", "image_url"):
        image = value.get(kind)
        inner = image if kind == "image_url" and isinstance(image, dict) else {"url": image}
        if more := [name for name in (*value, *inner) if name not in ("type", kind, "url")]:
            raise InputError(f"needed image parts with type and {kind}, got {names_of(more)} too; remove it")
        images.append(inner.get("url"))
        return {"type": "text", "text": MARK}
    return {name: _without_images(part, images) for name, part in value.items()}


def read_image_rows(path: str, *, max_refused: float = 0.01) -> Dataset:
    """`read_rows` for a file of rows with images. The images are not opened.

    Raises: InputError as `read_rows`; rows without an image are refused.
    """
    columns = Columns()
    reading = Reading(_Marked(open_values(path)), Wishes(None, {}, (IMAGES,), False), columns, None)
    columns.check(path)
    reading.check(path, max_refused)
    return Dataset(path, reading.kind, reading.layout, reading.rows, reading.refused, reading.notes(), reading.unit)


class _Marked:
    """The values of a file, marked."""

    size = 0  # the rows stay in memory

    def __init__(self, values: Values) -> None:
        self.values = values

    def __getattr__(self, name: str) -> Any:
        return getattr(self.values, name)

    def __iter__(self) -> Iterator[Source]:
        for source in self.values:
            try:
                yield source._replace(value=marked(source.value))
            except InputError as error:
                yield source._replace(value=error)


def encode_image_rows(
    model: VisionModel,
    tokenizer: Tokenizer,
    rows: Sequence[dict],
    responses: tuple[str, ...],
    *,
    folder: str = ".",
    reserve: int = 1,
    max_refused: float = 0.01,
    train_on: Literal["last", "all_turns"] = "all_turns",
) -> Encoded:
    """`encode_rows` for rows of `marked` or `read_image_rows`. The images join the gallery of the model.

    folder: of relative paths.   reserve: tokens that must remain after the prompt.
    Raises: InputError as `encode_rows`, for an image that cannot be read, and for a chat template that leaves an image
    out or repeats it.
    """
    mark, P = tokenizer.backend.token_to_id(MARK), model.vision.patches
    if mark is None:
        raise InputError("encode_image_rows: the tokenizer has no token for images; use with_image_mark(tokenizer)")
    if wrong := next((row for row in rows if not _is_marked(row)), None):
        raise InputError(f"encode_image_rows: needed rows of `marked` or `read_image_rows`, got {shown(wrong)}")
    most = max((len(row[IMAGES]) for row in rows), default=0)
    context = model.config.max_position_embeddings - (P - 1) * most  # a mark becomes P tokens
    if context <= reserve:
        raise InputError(f"encode_image_rows: {most} images alone have {P * most:,} tokens, too many for the context")
    options = {"context": context, "reserve": reserve, "max_refused": max_refused, "train_on": train_on}
    encoded = encode_rows(tokenizer, rows, responses, **options)
    _check_marks(mark, encoded.rows, responses)
    return replace(encoded, rows=[_expanded(model, mark, row, folder) for row in encoded.rows])


def _is_marked(row: Any) -> bool:
    return isinstance(row, dict) and IMAGES in row and str(list(row.values())).count(MARK) >= len(row[IMAGES])


def _check_marks(mark: int, rows: list[EncodedRow], responses: tuple[str, ...]) -> None:
    """Raise InputError unless the longest row of ids of each source has a mark for each image of its turns.

    Images are matched with marks from the left, so a template that drops early turns would shift them.
    """
    found: dict[str, tuple[dict, int]] = {}  # of each source: itself and the marks of its longest row
    for row in rows:
        key, marks = json.dumps(row.source, default=str), sum(i == mark for i in chain(row.prompt, *row.responses[:1]))
        found[key] = row.source, max(marks, found[key][1] if key in found else 0)
    for source, got in found.values():
        texts = [source.get(TURNS) or source["prompt"], *(source[name] for name in responses[:1])]
        wanted = str(texts).count(MARK)
        if got != wanted:
            where = f"line {source['line']}: " if "line" in source else ""
            raise InputError(
                f"{where}chat template: needed {wanted} images in the rendered turns, got {got}; a template must keep "
                "all turns and write each image once; use another template"
            )


def _expanded(model: VisionModel, mark: int, row: EncodedRow, folder: str) -> EncodedRow:
    """The row with the ids of its images in the place of the marks."""
    source = row.source
    try:
        images = [model.ids_of(read_image(image, model.vision.image_size, folder)) for image in source[IMAGES]]
    except InputError as error:
        raise InputError(f"line {source['line']}: {error}" if "line" in source else error) from None

    def expand(ids: list[int], first: int) -> list[list[int]]:
        """For each id, the ids in its place."""
        following = iter(images[first:])
        return [next(following) if id == mark else [id] for id in ids]

    prompt, before = expand(row.prompt, 0), row.prompt.count(mark)
    answers = [expand(ids, before) for ids in row.responses]
    learned = row.learned and tuple(
        [is_learned for part, is_learned in zip(answer, mask, strict=True) for _ in part]
        for answer, mask in zip(answers, row.learned, strict=True)
    )
    return EncodedRow(source, [*chain(*prompt)], tuple([*chain(*answer)] for answer in answers), learned)
