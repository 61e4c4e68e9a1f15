"""What lets `sca caption` be left alone: workers, signals, limits on time and on failures."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sca_batch.errors import ERROR_CODES, EXIT_INTERRUPTED, EXIT_STOPPED, ScaError

if TYPE_CHECKING:
    from sca_batch.images.policy import ReadPolicy
    from sca_batch.job import Run, ShardWorker
    from sca_batch.plan.plan import Plan
    from sca_batch.runners.local import LocalRunner

__all__ = [
    "PRELOAD",
    "Stop",
    "check_codes",
    "follow_sources",
    "list_again",
    "make_runner",
    "policy_of",
    "stop_on_signals",
]

log = logging.getLogger(__name__)

STARTED = time.monotonic()  # about when the process began, which is what --time-limit counts from

# What a worker needs; loaded once by the process that workers are forked from.
PRELOAD = (
    "sca_batch.cli.caption_settings", "sca_batch.job", "sca_batch.captioners.sca",
    "sca_batch.model.zoo", "sca_batch.model.checkpoint", "sca_batch.runners.serve",
)  # fmt: skip


@dataclass(frozen=True)
class _MakeWorker:
    """Loads the model in a worker's process."""

    options: dict[str, Any]
    sources: tuple[str, ...]
    threads: int | None

    def __call__(self, device: str) -> ShardWorker:
        import torch

        from sca_batch.cli.caption_settings import Settings
        from sca_batch.job import ShardWorker

        if self.threads:
            torch.set_num_threads(self.threads)
        settings = Settings({**self.options, "device": device})
        model = settings.load()
        about = (settings.content(model), settings.informative(model, self.sources))
        return ShardWorker(settings.pipeline(model), about)


def make_runner(options: dict[str, Any], sources: tuple[str, ...]) -> LocalRunner:
    """One worker per device, or as many as --workers says, spread over them."""
    import torch

    from sca_batch.runners.local import LocalRunner

    device, workers = options["device"], options["workers"]
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    devices = [f"cuda:{i}" for i in range(gpus)] if gpus > 1 else [device]
    count = workers or len(devices)
    on_cpu = device == "cpu" or (device == "auto" and not gpus)
    # Workers share the processor's cores; more threads than cores would only get in each other's
    # way. Sums depend on how many share them, in their last bits.
    threads = max(1, torch.get_num_threads() // count) if on_cpu else None
    return LocalRunner(
        _MakeWorker(options, sources, threads),
        [devices[i % len(devices)] for i in range(count)],
        item_timeout_s=options["image_timeout"] or None,
        unit_timeout_s=options["shard_timeout"] or None,
        preload=PRELOAD,
    )


def list_again(
    sources: Sequence[str], options: dict[str, Any], make_plan: Callable[[], Plan]
) -> Plan | None:
    """What the sources of a run that is taken up hold now; None where that is not to be known.

    Raises:
        ScaError: when it is needed, for --update, and cannot be listed.
    """
    needed = options["update"] or options["verify_content"]
    if "-" in sources and not needed:
        return None  # nobody may be writing to it
    try:
        return make_plan()
    except ScaError as error:
        if needed:
            raise
        click.echo(f"The sources cannot be listed again: {error}", err=True)
        click.echo("The run goes on with its plan.", err=True)
        return None


def follow_sources(run: Run, options: dict[str, Any], listed: Plan | None) -> Run:
    """The run with its plan as --update and --retry-failed ask for it; says the counts.

    Without --update it says what that would find.
    """
    from sca_batch import job
    from sca_batch.images.decode import content_digest
    from sca_batch.job.update import retry_failed, source_changes, update_plan

    if options["update"] or options["verify_content"]:
        assert listed is not None
        updated = update_plan(
            run.out,
            listed,
            options["shard_size"],
            digest_of=partial(content_digest, policy=policy_of(options)),
            verify_content=options["verify_content"],
        )
        click.echo(
            f"{updated.new:,} new, {updated.changed:,} changed, {updated.gone:,} vanished, "
            f"{updated.back:,} back, {updated.unchanged:,} unchanged",
            err=True,
        )
    elif listed is not None:
        since = source_changes(run.plan, listed)
        if since.new or since.changed or since.gone or since.back:
            click.echo(
                f"The sources have changed since this run was planned: {since.new:,} new, "
                f"{since.changed:,} changed, {since.gone:,} vanished, {since.back:,} back. The "
                "run goes on with its plan; --update follows them.",
                err=True,
            )
    if options["retry_failed"]:
        codes = () if options["retry_failed"] == "all" else options["retry_failed"].split(",")
        tried = retry_failed(run.out, codes)
        click.echo(f"{tried:,} failed images are tried again", err=True)
    return job.reopened(run)


def policy_of(options: dict[str, Any]) -> ReadPolicy:
    """What may be read, as --root and --allow-http say."""
    from sca_batch.images.policy import ReadPolicy

    root = options["root"]
    return ReadPolicy(
        root=None if root is None else Path(root),
        allow_http=options["allow_http"],
        max_pixels=options["max_pixels"],
    )


def check_codes(text: str | None) -> None:
    """Refuses --retry-failed with something else than codes, such as a source.

    Raises:
        ScaError: naming the codes there are.
    """
    unknown = sorted(set((text or "all").split(",")) - {"all", *ERROR_CODES})
    if unknown:
        raise ScaError(
            f"--retry-failed {unknown[0]}: no such code; expected some of {', '.join(ERROR_CODES)}."
            " Without codes the option goes last"
        )


class Stop:
    """Who asked us to stop: a signal, of which the second acts at once, or the clock."""

    def __init__(self, time_limit_s: float | None) -> None:
        self.signal: int | None = None
        self._limit_s = time_limit_s
        self._slowest_s = 0.0
        self._heard_at = time.monotonic()
        self._out_of_time = False

    @property
    def exit_code(self) -> int:
        return EXIT_INTERRUPTED if self.signal == signal.SIGINT else EXIT_STOPPED

    def record(self) -> None:
        """Notes that an image or a step is done: so long before the limit one must stop."""
        now = time.monotonic()
        self._slowest_s = max(self._slowest_s, now - self._heard_at)
        self._heard_at = now

    def requested(self) -> bool:
        if self.signal is None and self._limit_s is not None and not self._out_of_time:
            left = self._limit_s - (time.monotonic() - STARTED)
            self._out_of_time = left < 2 * self._slowest_s
            if self._out_of_time:
                click.echo("Stopping: --time-limit is near.", err=True)
        return self.signal is not None or self._out_of_time

    def __call__(self, number: int, frame: Any) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        click.echo(
            "\nStopping after this batch; what is done is kept. Once more to stop at once.",
            err=True,
        )


@contextmanager
def stop_on_signals(time_limit_s: float | None) -> Iterator[Stop]:
    """SIGINT, SIGTERM and SIGUSR1 ask to stop; the handlers that were there come back."""
    stop = Stop(time_limit_s)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
