"""Runs `sca` from a checkout: `python sca.py caption ./images`."""

from sca_batch.cli import main

if __name__ == "__main__":
    main()
