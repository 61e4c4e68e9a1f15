"""Recordings of a model's stages, and the comparison of a model with one of them.

A recording is a folder with `inputs.safetensors`, `stages.safetensors`, `generate.safetensors`
and `info.json`. Anyone can make one, with any implementation; a recording may hold any subset of
the stages. `tests/golden/README.md` describes the format.
"""

from sca_batch.checks.compare import StageResult, check, verdict
from sca_batch.checks.record import record
from sca_batch.checks.recordings import Recording, read_recording

__all__ = ["Recording", "StageResult", "check", "read_recording", "record", "verdict"]
