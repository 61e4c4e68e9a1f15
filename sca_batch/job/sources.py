"""The sources of a request as a plan, listed for the first time or again."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from sca_batch.errors import ScaError
from sca_batch.images.policy import check_schemes
from sca_batch.job.events import Listener, RetryingFailed, SourcesUnlisted
from sca_batch.job.request import ALL_CODES, CaptionRequest
from sca_batch.job.run import Run, reopened
from sca_batch.job.update import retry_failed, source_changes, update_plan
from sca_batch.manifests.read import STDIN
from sca_batch.plan.plan import Plan, plan_head
from sca_batch.plan.sources import plan_sources

__all__ = ["default_output", "follow_sources", "list_again", "list_sources"]


def default_output(sources: Sequence[str]) -> str:
    """The folder of a run whose output nobody named, after its first source.

    Raises:
        ScaError: for standard input, which has no name.
    """
    first = sources[0]
    if first == STDIN:
        raise ScaError("standard input has no name to call the output after; name a folder with -o")
    name = "images" if glob.has_magic(first) else Path(first).resolve().stem or "images"
    return f"{name}-captions"


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


def follow_sources(run: Run, request: CaptionRequest, listed: Plan | None, listen: Listener) -> Run:
    """The run with its plan as the request wants it: updated, failed images tried again.

    Without an update the listener is told what one would find.
    """
    existing = request.existing
    if existing.update:
        assert listed is not None, "an update lists its sources or fails"
        listen(
            update_plan(
                run.out,
                listed,
                request.batching.shard_size,
                policy=request.source.read,
                verify_content=existing.verify_content,
            )
        )
    elif listed is not None:
        found = source_changes(run.plan, listed)
        if found.new or found.changed or found.gone or found.back:
            listen(found)
    if existing.retry_failed:
        codes = () if ALL_CODES in existing.retry_failed else existing.retry_failed
        listen(RetryingFailed(retry_failed(run.out, codes)))
    return reopened(run)
