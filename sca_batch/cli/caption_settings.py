"""The options of `sca caption` as the dataclasses of the rooms that they are for."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from sca_batch.cli.caption_options import CAPTION_OPTIONS, CONTENT_OPTIONS, REGION_OPTIONS
from sca_batch.cli.nightly import policy_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sca_batch.pipeline import BatchSettings, Pipeline, RegionSettings

__all__ = ["Settings", "domain_of"]

log = logging.getLogger(__name__)


class Settings:
    """The command's options as the dataclasses of the rooms that they are for."""

    def __init__(self, options: dict[str, Any]) -> None:
        from sca_batch.captioners.sca import CaptionSettings

        self.options = options
        self.engine_label = self.engine_why = "torch"
        self.plans: tuple[str, ...] = ()
        self.regions = self._region_settings()
        self.captions = CaptionSettings(**{name: options[name] for name in CAPTION_OPTIONS})

    def _region_settings(self) -> RegionSettings:
        from dataclasses import fields

        from sca_batch.pipeline import RegionSettings
        from sca_batch.regions.automatic import AutomaticMaskSettings
        from sca_batch.regions.select import RegionLimits

        options = self.options
        names = [field.name for field in fields(AutomaticMaskSettings)]
        return RegionSettings(
            source=options["regions"],
            automatic=AutomaticMaskSettings(**{name: options[name] for name in names}),
            limits=RegionLimits(options["min_area"], options["max_area"], options["max_regions"]),
            keep_crop_embeddings=options["prompt"] == "point",
            min_caption_score=options["min_caption_score"],
        )

    def load(self) -> Any:
        from sca_batch.engines import plan_precisions, use_engines
        from sca_batch.model.zoo import load_model

        options = self.options
        model = load_model(options["model"], device=options["device"], dtype=options["dtype"])
        chosen = use_engines(
            model,
            options["engine"],
            options["engine_dir"],
            precisions=plan_precisions(model, options["dtype"]),
            int8=options["int8"],
            only=options.get("plans"),
            model_name=options["model"],
            trusted=options["trust_engine"],
        )
        for reason in chosen.refused:
            log.warning("Not used: %s", reason)
        # The run keeps what was found, so that a plan built tonight does not change it tomorrow.
        options["engine"], self.plans = chosen.engine, chosen.plans
        self.engine_label, self.engine_why = chosen.label, chosen.why
        return model

    def batches(self, on_cpu: bool) -> BatchSettings:
        import torch

        from sca_batch.pipeline import BatchSettings

        return BatchSettings(
            encoder_batch=self.options["encoder_batch"] or (1 if on_cpu else 4),
            caption_batch=self.options["caption_batch"] or (32 if on_cpu else 128),
            mask_memory_bytes=int(self.options["mask_memory"] * 2**30),
            # On a CPU the model's own threads are busy already.
            decode_threads=1 if on_cpu else max(1, min(8, torch.get_num_threads() // 2)),
            decode_ahead=2 if on_cpu else 16,
        )

    def pipeline(self, model: Any) -> Pipeline:
        from sca_batch.captioners.sca import ScaCaptioner
        from sca_batch.pipeline import Pipeline

        batches = self.batches(model.device.type == "cpu")
        captioner = ScaCaptioner(model, self.captions, batch_size=batches.caption_batch)
        return Pipeline(model, captioner, self.regions, batches, policy_of(self.options))

    def content(self, model: Any) -> dict[str, Any]:
        """Everything that records depend on, for the fingerprint."""
        from sca_batch.model.checkpoint import weights_digest

        dtype = model.autocast_dtype
        return {
            "weights": weights_digest(model),
            "dtype": "float32" if dtype is None else str(dtype).removeprefix("torch."),
            "engine": self.engine_label,
            **{name: self.options[name] for name in (*CAPTION_OPTIONS, *REGION_OPTIONS)},
        }

    def informative(self, model: Any, sources: Sequence[str]) -> dict[str, Any]:
        import torch
        import transformers

        from sca_batch import __version__

        batching = ("encoder_batch", "points_per_batch", "caption_batch", "mask_memory")
        return {
            "model": self.options["model"],
            "domain": domain_of(model),
            "sources": list(sources),
            "device": str(model.device),
            "engine": self.engine_why,
            "plans": list(self.plans),
            "versions": {
                "sca": __version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
            "batching": {name: self.options[name] for name in batching},
            # As they were typed, so that a run can be taken up without repeating them.
            "options": {name: self.options[name] for name in CONTENT_OPTIONS},
        }


def domain_of(model: Any) -> dict[str, Any] | None:
    """What the model was made for, as JSON holds it; None where it does not say."""
    from dataclasses import asdict

    return None if model.config.domain is None else asdict(model.config.domain)
