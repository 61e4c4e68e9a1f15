"""A training run as it is asked for: every option with its default. Nothing slow is loaded."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sca_batch.errors import ScaError
from sca_batch.options import check_options, option
from sca_batch.overrides import with_settings
from sca_batch.train.recipes import CAPTION_RECIPES, CaptionRecipe

__all__ = ["RunRequest", "TrainRequest"]


@dataclass(frozen=True, slots=True)
class RunRequest:
    """The options of every training, whatever its recipe."""

    output: Path | None = option(
        None,
        "Folder for the log, the checkpoints, and at the end the model.",
        short="-o",
        metavar="DIRECTORY",
    )
    settings: tuple[str, ...] = option(
        (),
        "Change one number of the recipe, checked against its type; may be repeated.",
        name="set",
        form="repeated",
        metavar="KEY=VALUE",
    )
    resume: bool = option(False, "Go on from the last checkpoint in the folder.")
    time_limit: float | None = option(
        None,
        "Stop, with a checkpoint, before this much time has passed since the start: 7h45m.",
        form="duration",
        least=0,
    )
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = option(
        (), "Beside log.jsonl, write there too; may be repeated.", name="track", form="repeated"
    )
    cpu: bool = option(False, "Leave the GPUs alone.")
    workers: int | None = option(
        None,
        "Processes that make batches ahead; 0 makes them in this one.",
        least=0,
        shown="the recipe's",
    )

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def folder(self) -> Path:
        """The folder of the run.

        Raises:
            ScaError: where none is named, or it is a file.
        """
        if self.output is None:
            raise ScaError("no folder for the run; name one: -o runs/NAME")
        if self.output.is_file():
            raise ScaError(f"-o {self.output}: a file is there; expected a folder for the run")
        return self.output


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """A run of one of the paper's recipes."""

    recipe: str = ""
    data: tuple[str, ...] = option(
        (),
        "Manifest with boxes and references for a data set of the recipe; once for each.",
        form="repeated",
        metavar="[NAME=]MANIFEST",
        group="Data",
    )
    validation: Path | None = option(
        None, "Manifest to caption and score every N steps.", metavar="FILE", group="Data"
    )
    cache_embeddings: Path | None = option(
        None,
        "Keep image embeddings there, 4 MiB an image (2 in half precision): the encoder then runs "
        "once per image. For recipes without jitter.",
        metavar="DIR",
        group="Data",
    )
    run: RunRequest = field(default_factory=RunRequest, metadata={"group": "Running"})
    export: Literal["last", "best"] = option(
        "last",
        "Which weights OUTPUT/model gets: the last step's, or those of the validation with the "
        "best CIDEr-D. With --resume, a run that is finished is exported again.",
        group="Running",
    )

    def __post_init__(self) -> None:
        check_options(self)

    def resolved(self) -> CaptionRecipe:
        """The recipe by its name, with the numbers that are changed.

        Raises:
            ScaError: for a recipe that there is not, and a number that it does not take.
        """
        if self.recipe not in CAPTION_RECIPES:
            if self.recipe == "tiny" or self.recipe.startswith("tiny-"):
                raise ScaError(
                    f"{self.recipe} makes the bundled model, in a clone of the repository: "
                    f"python -m sca_tiny train {self.recipe}"
                )
            what = f"no recipe {self.recipe!r}" if self.recipe else "no recipe"
            raise ScaError(f"{what}; expected one of {', '.join(CAPTION_RECIPES)}")
        recipe = with_settings(CAPTION_RECIPES[self.recipe], self.run.settings)
        if self.run.workers is not None:
            recipe = dataclasses.replace(recipe, workers=self.run.workers)
        return recipe

    def manifests(self, recipe: CaptionRecipe) -> dict[str, Path]:
        """The manifest of each data set by its name, which may be left out where there is one."""
        names = [part.name for part in recipe.data]
        found: dict[str, Path] = {}
        for item in self.data:
            name, separator, value = item.partition("=")
            if not separator or name not in names:
                if len(names) > 1:
                    raise ScaError(f"--data {item}: expected NAME=MANIFEST with {', '.join(names)}")
                name, value = names[0], item
            if name in found:
                raise ScaError(f"--data {item}: there is a manifest for {name} already")
            if not Path(value).is_file():
                raise ScaError(f"--data {item}: no file {value}")
            found[name] = Path(value)
        if self.validation is not None and not self.validation.is_file():
            raise ScaError(f"--validation {self.validation}: no such file")
        return found
