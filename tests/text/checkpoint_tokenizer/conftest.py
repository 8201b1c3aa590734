"""A machine may be so busy that 1 s of processor time takes a minute."""

import pytest


@pytest.fixture
def patient(monkeypatch):
    """Templates that run without end meet their limit of processor time, however long it takes."""
    monkeypatch.setattr("minirlhf.text.checkpoint_tokenizer.worker.PATIENCE", 600)
