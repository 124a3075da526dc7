"""What many tests share."""

import pytest
from hypothesis import settings

from onnxq.graph.model import Model

# A busy machine would miss a deadline for no reason.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture
def long_names(monkeypatch):
    """Files name tensors as the passes do, by which a test finds them."""
    monkeypatch.setattr(Model, "shorten", lambda self, kept: None)
