"""Rows with images: their forms, the ids that they become, and the bad ones, each refused in one line."""

import base64
import builtins
import io
import json
import re

import numpy as np
import pytest
import torch

from minirlhf.errors import InputError
from minirlhf.extras.png import png_bytes
from minirlhf.extras.vision import (
    VisionConfig,
    VisionModel,
    encode_image_rows,
    images,
    marked,
    read_image,
    read_image_rows,
    with_image_mark,
)
from minirlhf.model import ModelConfig
from minirlhf.text import Tokenizer

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
OTHER = 255 - PIXELS
PNG, MARK = png_bytes(PIXELS), "\ufffc"
BASE64 = base64.b64encode(PNG).decode()
IDS = {False: [300, 301, 302, 303], True: [304, 305, 306, 307]}  # of a.png and of b.png, behind the 300 of text


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "b.png").write_bytes(png_bytes(OTHER))
    return tmp_path


@pytest.fixture(scope="module")
def tokenizer():
    return with_image_mark(Tokenizer.train(["how many circles? two"] * 3, 300))


@pytest.fixture
def model():
    vision = VisionConfig(image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=1)
    shape = ModelConfig(vocab_size=300, hidden_size=16, intermediate_size=16, max_position_embeddings=64)
    return VisionModel(shape, vision)


def written(folder, *rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


def turns(*contents, role="user"):
    return [{"role": role, "content": list(contents)}]


TEXT, IMAGE = {"type": "text", "text": "how many?"}, {"type": "image", "image": "a.png"}


def test_an_image_is_read_from_a_path_a_data_url_and_base64(folder):
    expected = torch.from_numpy(PIXELS).permute(2, 0, 1)
    for value in ("a.png", str(folder / "a.png"), BASE64, f"data:image/png;base64,{BASE64}"):
        assert torch.equal(read_image(value, 8, folder), expected)


def test_pillow_reads_the_other_formats_and_the_direction_of_a_photo(folder):
    image = pytest.importorskip("PIL.Image")
    image.fromarray(PIXELS).save(folder / "a.bmp")
    assert torch.equal(read_image("a.bmp", 8, folder), read_image("a.png", 8, folder))
    exif = image.Exif()
    exif[0x0112] = 3  # upside down
    image.fromarray(PIXELS).save(folder / "a.tiff", exif=exif)
    assert torch.equal(read_image("a.tiff", 8, folder), read_image("a.png", 8, folder).flip(1, 2))
    image.fromarray(PIXELS[..., 0]).save(folder / "grey.jpg", quality=100)
    assert (read_image("grey.jpg", 8, folder).int() - torch.tensor(PIXELS[..., 0].astype(int))).abs().max() < 8


def pillow_bytes(mode, form, **options):
    image = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    image.new(mode, options.pop("size", (8, 8))).save(file, form, **options)
    return file.getvalue()


BAD_IMAGES = {
    "missing.png": "needed a file, got none under this path",
    "a\0b": "needed a file, got none under this path",
    "": "needed a file, got none under this path",
    "https://example.com/a.png": "needed a file, got an address; images are not downloaded",
    "data:image/png,abc": "needed a data URL in base64",
    "data:image/png;base64,!!!": "broken base64",
    BASE64[:40]: "broken PNG: the file is cut short",
    BASE64[:41]: "broken base64",
    base64.b64encode(png_bytes(PIXELS[:, :4])).decode(): "needed 8 x 8 pixels, got 4 x 8; resize the picture",
    "text.txt": "broken, or of an unknown format",
    "folder": "needed a file, got none under this path",
    "/9j/4AAQ" * 600: "needed a readable file, got: File name too long",  # a JPEG in base64
    None: "needed a path, a data URL or a PNG in base64",
    3: "needed a path, a data URL or a PNG in base64",
}


@pytest.mark.parametrize("value", BAD_IMAGES, ids=lambda value: str(value)[-20:])
def test_a_bad_image_is_refused_in_one_line(value, folder):
    (folder / "text.txt").write_text("no image")
    (folder / "folder").mkdir()
    if value == "text.txt":
        pytest.importorskip("PIL.Image")
    with pytest.raises(InputError, match=BAD_IMAGES[value]) as error:
        read_image(value, 8, folder)
    assert str(error.value).startswith("image ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("mode", "form", "options", "words"),
    [
        ("CMYK", "JPEG", {}, "opaque, got the mode CMYK; convert it"),
        ("F", "TIFF", {}, "opaque, got the mode F; convert it"),
        ("RGBA", "WEBP", {"lossless": True}, "opaque, got the mode RGBA; convert it"),
        ("P", "GIF", {"transparency": 0}, "opaque, got the mode P; convert it"),
        ("RGB", "JPEG", {"size": (9, 8)}, "needed 8 x 8 pixels, got 9 x 8; resize it"),
        ("RGB", "PPM", {}, "broken, or of an unknown format"),
    ],
)
def test_pillow_refuses_another_mode_size_or_format(mode, form, options, words, folder):
    (folder / "image").write_bytes(pillow_bytes(mode, form, **options))
    with pytest.raises(InputError, match=words):
        read_image("image", 8, folder)


def test_broken_and_animated_files_of_pillow_are_refused(folder):
    data = pillow_bytes("RGB", "JPEG")
    for end in range(2, len(data) - 2, 37):
        with pytest.raises(InputError, match="broken, or of an unknown format"):
            read_image(f"data:;base64,{base64.b64encode(data[:end]).decode()}", 8)
    image = pytest.importorskip("PIL.Image")
    frames = [image.new("L", (8, 8), shade) for shade in (0, 99)]
    frames[0].save(folder / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match="needed one picture, got 2"):
        read_image("a.gif", 8, folder)


def test_without_pillow_a_png_is_read_and_another_format_names_the_package(folder, monkeypatch):
    real = builtins.__import__

    def without_pillow(name, *rest):
        if name == "PIL":
            raise ImportError
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_pillow)
    read_image("a.png", 8, folder)
    (folder / "a.bmp").write_bytes(b"BM")
    with pytest.raises(InputError, match=re.escape("need the package Pillow: pip install 'minirlhf[vision]'")):
        read_image("a.bmp", 8, folder)


def test_a_file_that_is_too_large_is_refused(folder, monkeypatch):
    monkeypatch.setattr(images, "MOST_BYTES", len(PNG) - 1)
    with pytest.raises(InputError, match=f"needed at most {len(PNG) - 1} bytes, got more"):
        read_image("a.png", 8, folder)


# Rows


def test_an_image_beside_a_prompt_stands_before_it(folder, model, tokenizer):
    rows = read_image_rows(written(folder, {"image": "a.png", "prompt": "how many?", "response": "2"}))
    assert rows.kind == "sft" and rows.refused == []
    (row,) = encode_image_rows(model, tokenizer, rows.rows, ("response",), folder=folder).rows
    assert row.source["prompt"] == f"{MARK}how many?" and row.source["images"] == ["a.png"]
    assert row.prompt == [tokenizer.bos_id, *IDS[False], *tokenizer.encode("how many?")]
    assert row.responses == ([*tokenizer.encode("2"), tokenizer.eos_id],)
    assert row.learned is None
    prompts = read_image_rows(written(folder, {"image": "a.png", "prompt": "how many?", "answer": "2"}))
    assert prompts.kind == "prompt" and prompts.rows[0]["answer"] == "2"


def test_rows_in_memory_are_read_as_those_of_a_file(folder, model, tokenizer):
    rows = [{"image": ["a.png", BASE64, "b.png"], "prompt": "how many?"}]
    (row,) = encode_image_rows(model, tokenizer, [marked(row) for row in rows], (), folder=folder).rows
    assert row.prompt == [tokenizer.bos_id, *IDS[False] * 2, *IDS[True], *tokenizer.encode("how many?")]


def test_image_parts_stand_where_the_turn_has_them(folder, model, tokenizer):
    url = {"type": "image_url", "image_url": {"url": "b.png"}}
    messages = [*turns(TEXT, IMAGE, TEXT, url), {"role": "assistant", "content": "2"}]
    rows = read_image_rows(written(folder, {"messages": messages})).rows
    assert rows[0]["prompt"] == f"User:\nhow many?{MARK}how many?{MARK}\n\nAssistant:\n"
    (row,) = encode_image_rows(model, tokenizer, rows, ("response",), folder=folder).rows
    parts = [tokenizer.encode(text) for text in ("User:\nhow many?", "how many?", "\n\nAssistant:\n")]
    assert row.prompt == [tokenizer.bos_id, *parts[0], *IDS[False], *parts[1], *IDS[True], *parts[2]]


def test_a_chat_template_places_the_image(folder, model, tokenizer):
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"  # noqa: E501
    chat = tokenizer.with_template(template)
    rows = [{"messages": [*turns(IMAGE, TEXT), {"role": "assistant", "content": "2"}]}]
    rows += [{"image": "b.png", "prompt": "how many?", "response": "3"}]
    first, second = (read_image_rows(written(folder, row)).rows for row in rows)
    found = encode_image_rows(model, chat, [*first, *second], ("response",), folder=folder).rows
    text = chat.encode_rendered(f"<user>{MARK}how many?<|eos|><assistant>")
    mark = text.index(chat.backend.token_to_id(MARK))
    for row, ids, answer in zip(found, IDS.values(), "23", strict=True):
        assert row.prompt == [*text[:mark], *ids, *text[mark + 1 :]]
        assert row.responses[0] == chat.encode_rendered(f"{answer}<|eos|>")


def test_images_of_a_later_turn_are_not_learned(folder, model, tokenizer):
    answer = {"role": "assistant", "content": "2"}
    messages = [*turns(IMAGE, TEXT), answer, *turns({"type": "image", "image": "b.png"}), answer]
    rows = read_image_rows(written(folder, {"messages": messages})).rows
    (row,) = encode_image_rows(model, tokenizer, rows, ("response",), folder=folder).rows
    assert len(row.learned[0]) == len(row.responses[0])
    at = row.responses[0].index(IDS[True][0])
    assert row.responses[0][at : at + 4] == IDS[True] and not any(row.learned[0][at : at + 4])
    learned = [id for id, is_learned in zip(row.responses[0], row.learned[0], strict=True) if is_learned]
    assert tokenizer.decode(learned).replace("\n", "") == "22"


def test_the_prompt_may_stand_in_whole_dialogues_too(folder, model, tokenizer):
    ask = turns(IMAGE, TEXT)
    sides = {
        name: [*ask, {"role": "assistant", "content": text}] for name, text in {"chosen": "2", "rejected": "3"}.items()
    }
    for row in ({"prompt": ask, **sides}, sides):
        rows = read_image_rows(written(folder, row)).rows
        (row,) = encode_image_rows(model, tokenizer, rows, ("chosen", "rejected"), folder=folder).rows
        assert [id for id in row.prompt if id >= 300] == IDS[False]
        assert [tokenizer.decode(ids[:1]) for ids in row.responses] == ["2", "3"]


def test_the_images_count_in_the_context(folder, model, tokenizer):
    rows = [marked({"image": ["a.png"] * 14, "prompt": "?"})]  # BOS, 56 patches, "?": 58 of 64
    assert len(encode_image_rows(model, tokenizer, rows, (), folder=folder, reserve=6).rows[0].prompt) == 58
    with pytest.raises(InputError, match="rows cannot be used"):
        encode_image_rows(model, tokenizer, rows, (), folder=folder, reserve=7)
    with pytest.raises(InputError, match="30 images alone have 120 tokens, too many for the context"):
        encode_image_rows(model, tokenizer, [marked({"image": ["a.png"] * 30, "prompt": "?"})], (), folder=folder)


BAD_ROWS = {
    "no image": ({"prompt": "how many?", "answer": "2"}, "needed a row with an image, got none"),
    "no turn with an image": ({"messages": turns(TEXT)}, "needed a row with an image, got none"),
    "empty list": ({"image": [], "prompt": "?"}, "needed a row with an image, got none"),
    "no prompt": ({"image": "a.png", "answer": "2"}, "needed the image beside a prompt of text"),
    "beside turns": ({"image": "a.png", "messages": turns(TEXT)}, "needed the image beside a prompt of text"),
    "both": ({"image": "a.png", "prompt": "?", "messages": turns(IMAGE)}, "needed the image beside a prompt of text"),
    "two columns": ({"image": "a.png", "images": ["a.png"], "prompt": "?"}, "needed the image beside a prompt"),
    "the letter": ({"image": "a.png", "prompt": f"what is {MARK}?"}, r"the letter U\+FFFC stands for images"),
    "video": ({"messages": turns(IMAGE, {"type": "video", "video": "a.mp4"})}, "needed text as content"),
    "detail": (
        {"messages": turns({"type": "image_url", "image_url": {"url": "a.png", "detail": "high"}})},
        "needed image parts with type and image_url, got detail too",
    ),
    "size": ({"messages": turns({**IMAGE, "min_pixels": 4})}, "with type and image, got min_pixels too"),
    "images of two columns": (
        {"chosen": turns({**IMAGE, "image": "b.png"}), "rejected": turns(TEXT), "prompt": turns(IMAGE)},
        "needed equal images in each column that has images, got others in chosen, prompt;",
    ),
    "other images of the rejected answer": (
        {"chosen": turns(IMAGE), "rejected": turns({**IMAGE, "image": "b.png"})},
        "needed equal images in each column that has images, got others in chosen, rejected;",
    ),
    "another column": ({"image": "a.png", "prompt": "?", "audio": "a.wav"}, "got audio; remove it"),
    "no object": (3, "needed an object with named keys"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_refused_in_one_line(name, folder):
    row, words = BAD_ROWS[name]
    with pytest.raises(InputError, match=words) as error:
        read_image_rows(written(folder, row))
    assert "rows.jsonl" in str(error.value) and "1" in str(error.value) and "\n" not in str(error.value)


def test_a_bad_image_names_the_line_of_its_row(folder, model, tokenizer):
    good = {"image": "a.png", "prompt": "?"}
    rows = read_image_rows(written(folder, good, {"image": "c.png", "prompt": "?"})).rows
    with pytest.raises(InputError, match="^line 2: image 'c.png': needed a file, got none"):
        encode_image_rows(model, tokenizer, rows, (), folder=folder)


def test_a_tokenizer_without_the_mark_is_refused_and_the_mark_is_kept_in_its_folder(folder, model, tokenizer, tmp_path):
    rows = [marked({"image": "a.png", "prompt": "?"})]
    plain = Tokenizer.train(["how many circles?"] * 3, 300)
    with pytest.raises(InputError, match="use with_image_mark"):
        encode_image_rows(model, plain, rows, (), folder=folder)
    tokenizer.save(tmp_path / "tokenizer")
    loaded = Tokenizer.load(tmp_path / "tokenizer")
    for again in (loaded, with_image_mark(loaded)):
        (row,) = encode_image_rows(model, again, rows, (), folder=folder).rows
        assert row.prompt == [tokenizer.bos_id, *IDS[False], *tokenizer.encode("?")]


def test_rows_without_marks_and_templates_that_repeat_an_image_are_refused(folder, model, tokenizer):
    for row in ({"image": "a.png", "prompt": "?"}, {"images": ["a.png"], "prompt": "?"}, "?"):
        with pytest.raises(InputError, match="needed rows of `marked` or `read_image_rows`, got "):
            encode_image_rows(model, tokenizer, [row], (), folder=folder)
    twice = tokenizer.with_template(
        "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}<{{ eos_token }}>"
    )
    with pytest.raises(InputError, match="needed 1 images in the rendered turns, got 2"):
        encode_image_rows(model, twice, [marked({"image": "a.png", "prompt": "?"})], (), folder=folder)
    ask = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "?"}]
    dialogue = [
        {"role": "user", "content": ask},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": ask},
    ]
    answer = {"role": "assistant", "content": "2"}
    rows = read_image_rows(written(folder, {"messages": [*dialogue, answer]})).rows
    last = tokenizer.with_template(
        "{% set n = 2 if messages[-1].role == 'assistant' else 1 %}"
        "{% for m in messages[-n:] %}{{ m.content }}<{{ eos_token }}>{% endfor %}"
    )
    for responses in ((), ("response",)):
        with pytest.raises(InputError, match="line 1: chat template: needed 2 images in the rendered turns, got 1"):
            encode_image_rows(model, last, rows, responses, folder=folder)
