"""Limits on what is read of the files and URLs that a manifest names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sca_batch.errors import ScaError
from sca_batch.options import check_options, option
from sca_batch.storage.stores import STORE_URLS, STORES, require_package

__all__ = ["DEFAULT_MAX_PIXELS", "ReadPolicy", "check_schemes"]

DEFAULT_MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs


@dataclass(frozen=True, slots=True)
class ReadPolicy:
    """The limits on what is read.

    `root` keeps files inside one folder, wherever links and dots lead. `timeout_s` is for one
    image from a store or the web, tries and redirects included. `trusted_hosts`, entries as
    "host:port", are exempt from the refusal of private addresses.
    """

    root: Path | None = option(
        None,
        "Read no file outside this folder, wherever a manifest's paths and links lead.",
        content=True,
    )
    allow_http: bool = option(
        False, "Read http(s) images; never from private addresses.", content=True
    )
    max_pixels: int = option(
        DEFAULT_MAX_PIXELS, "Larger images fail as too_large.", content=True, least=1
    )
    max_bytes: int = 1 << 30
    timeout_s: float = 60.0
    trusted_hosts: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        check_options(self)


def check_schemes(schemes: Iterable[str], policy: ReadPolicy) -> None:
    """Refuses a request that names URLs which cannot be read at all.

    Raises:
        ScaError: for http without permission, a scheme that is none, a package that is missing.
    """
    for scheme in sorted(set(schemes)):
        if scheme in ("http", "https") and not policy.allow_http:
            raise ScaError(
                f"the sources name {scheme}:// images; add --allow-http to read them from the web"
            )
        if scheme in STORES:
            require_package(scheme)
        elif scheme not in ("", "file", "http", "https"):
            raise ScaError(
                f"{scheme}:// is not a place images are read from; expected paths, "
                f"{STORE_URLS} or http(s)://"
            )
