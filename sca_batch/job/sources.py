"""The sources of a request as a plan, listed for the first time or again."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from sca_batch.dataset.shards import read_run, write_run
from sca_batch.errors import ScaError
from sca_batch.images.policy import check_schemes
from sca_batch.job.events import Listener, RetryingFailed, SourcesUnlisted
from sca_batch.job.request import ALL_CODES, CaptionRequest
from sca_batch.job.run import Run, reopened
from sca_batch.job.update import retry_failed, source_changes, update_plan
from sca_batch.manifests.read import STDIN
from sca_batch.plan.plan import Plan, plan_head
from sca_batch.plan.sources import plan_sources
from sca_batch.records import redacted
from sca_batch.storage.stores import AnyPath

__all__ = [
    "addresses", "default_output", "follow_sources", "list_again", "list_sources",
    "refuse_other_sources",
]  # fmt: skip


def default_output(sources: Sequence[str]) -> str:
    """The folder of a run whose output nobody named, after its first source.

    Raises:
        ScaError: for standard input, which has no name.
    """
    first = sources[0]
    if first == STDIN:
        raise ScaError("standard input has no name to call the output after; name a folder with -o")
    if glob.has_magic(first):  # the folder in which the pattern begins
        first = os.path.dirname(re.split(r"[*?[]", first, maxsplit=1)[0]) or "."
    path = Path(os.path.abspath(first.rstrip("/")))
    name = path.name if path.is_dir() else path.stem
    return f"{name or 'images'}-captions"


def addresses(sources: Sequence[str]) -> list[str]:
    """Sources as a run keeps them: the same wherever it goes on, and without secrets."""
    return [
        redacted(name) if "://" in name or name == STDIN else os.path.abspath(name)
        for name in sources
    ]


def refuse_other_sources(out: AnyPath, before: Sequence[str], request: CaptionRequest) -> None:
    """Keeps a request from being answered with a run over something else.

    Raises:
        ScaError: naming both.
    """
    now, was = addresses(request.source.names), addresses(before)
    if now != was and not request.existing.update:
        raise ScaError(
            f"{out} holds a run over {_few(was)}, and this is about {_few(now)}. Name another "
            "output with -o; or have that run follow its sources: --update"
        )


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def list_sources(request: CaptionRequest) -> Plan:
    """Every image of the request, numbered.

    Raises:
        ScaError: for sources that are missing, empty or wrong, that name what may not be read, or
            that lack the regions which are asked for.
    """
    plan = plan_sources(request.source.names, box_format=request.source.box_format)
    if request.source.limit is not None:
        plan = plan_head(plan, request.source.limit)
    check_schemes(plan.survey.schemes, request.source.read)
    without = len(plan) - plan.survey.with_regions
    if request.regions.source == "given" and without:
        raise ScaError(
            f"--regions given: {plan.survey.first_without_regions} and {without - 1:,} more have "
            "no boxes, points or masks; add them to the manifest, or leave --regions out"
        )
    return plan


def list_again(request: CaptionRequest, listen: Listener) -> Plan | None:
    """The sources of a run that is resumed, as they are now; None where that is not to be known.

    Raises:
        ScaError: when it is needed, for an update, and cannot be listed.
    """
    if STDIN in request.source.names and not request.existing.update:
        return None  # nobody may be writing to it
    try:
        return list_sources(request)
    except ScaError as error:
        if request.existing.update:
            raise
        listen(SourcesUnlisted(str(error)))
        return None


def follow_sources(
    run: Run, request: CaptionRequest, listed: Plan | None, listen: Listener
) -> tuple[Run, int]:
    """The run with its plan as the request wants it, and how many listed images that leaves out.

    Updated, and failed images marked to be tried again, where that is asked for. Without an update
    the listener is told what one would find.

    Raises:
        ScaError: for an update in which most images vanish, unless that is accepted.
    """
    existing = request.existing
    found = None if listed is None else source_changes(run.plan, listed)
    if existing.update:
        assert listed is not None, "an update lists its sources or fails"
        assert found is not None, "and so it is known what has changed"
        present = len(run.plan) - len(run.plan.gone_rows)
        if 2 * found.gone > present and not existing.accept_vanished:
            raise ScaError(
                f"{found.gone:,} of {present:,} images of {run.out} are not in the sources any "
                "more; is a disk missing, or a folder another one? If they are meant to go: "
                "--accept-vanished"
            )
        listen(
            update_plan(
                run.out,
                listed,
                request.batching.shard_size,
                policy=request.source.read,
                verify_content=existing.verify_content,
            )
        )
        _note_sources(run, addresses(request.source.names))
    elif found is not None and (found.new or found.changed or found.gone or found.back):
        listen(found)
    if existing.retry_failed:
        codes = () if ALL_CODES in existing.retry_failed else existing.retry_failed
        listen(RetryingFailed(retry_failed(run.out, codes)))
    left_out = 0 if found is None or existing.update else found.new
    return reopened(run), left_out


def _note_sources(run: Run, sources: list[str]) -> None:
    """Writes into run.json which sources the run is over, when they are others than before."""
    before = read_run(run.out)
    settings = before.get("settings", {})
    if settings.get("sources") != sources:
        write_run(run.out, {**before, "settings": {**settings, "sources": sources}})
