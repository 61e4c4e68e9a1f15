"""Makes `sca-tiny`, the model that is bundled with `sca_batch`: `python -m sca_tiny --help`.

Not part of the distribution, and never imported by `sca_batch`.
"""
