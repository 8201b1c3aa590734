"""The PNG files of a job on its page, within bounds."""

import base64

import numpy as np

from minirlhf.extras.png import png_bytes
from minirlhf.seeing import images
from minirlhf.seeing.images import images_of
from minirlhf.seeing.page import page_of
from minirlhf.seeing.reading import read_job

from ..html import data_of
from .made import make_pipeline


def drawn(path, value):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(png_bytes(np.full((2, 2), value, np.uint8)))
    return base64.b64encode(path.read_bytes()).decode()


def test_the_page_shows_the_images_in_the_order_of_the_steps(tmp_path):
    job = make_pipeline(tmp_path / "job")
    last, first, whole = (
        drawn(job / name, k) for k, name in enumerate(("pictures/step-10.png", "pictures/step-9.png", "pictures.png"))
    )
    (shown,) = data_of(page_of([read_job(job)]))["jobs"]
    assert shown["images"] == [["pictures.png", whole], ["pictures/step-9.png", first], ["pictures/step-10.png", last]]
    assert shown["notes"] == [] and last != first


def test_files_that_are_no_images_too_large_or_too_many_are_named(tmp_path, monkeypatch):
    assert images_of(tmp_path, []) == []
    for step in range(30):
        drawn(tmp_path / "pictures" / f"step-{step}.png", step)
    (tmp_path / "pictures" / "step-0.png").write_text("<script>")
    (tmp_path / "pictures.png").mkdir()
    notes: list[str] = []
    found = images_of(tmp_path, notes)
    assert [name for name, _ in found][-1] == "pictures/step-29.png" and len(found) == images.MOST_FILES - 1
    assert [note.split(" ")[0] for note in notes] == ["pictures/", "pictures.png", "pictures/step-0.png"]
    assert "30 files: 12 of them" in notes[0] and "is no PNG" in notes[2]
    monkeypatch.setattr(images, "MOST_BYTES", 20)
    assert images_of(tmp_path, []) == []
