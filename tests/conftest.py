"""Property tests have no deadline: a busy machine would miss one for no reason."""

from hypothesis import settings

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
