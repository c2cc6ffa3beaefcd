"""Parts of a paper whose methods are trained on images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from studies.folders import subrun
from studies.report import write_pictures
from studies.reproduce.base import Method, Sizes, Sweep, resized
from studies.reproduce.jobs import ImageJob
from studies.reproduce.outcome import Outcome, Summary, summarise
from studies.reproduce.paper import Chosen, Paper, Part, PartReport, Pictures
from studies.reproduce.tables import epochs_table, spread, summary_table, sweep_table
from tasks.images import Scaling, load_images


@dataclass(frozen=True)
class PaperPart(Part):
    """One data set and the methods that are compared on it: one table, and pictures of its own."""

    data: str
    """See ``tasks.load_images``."""
    methods: Callable[[str], Sequence[Method]]
    """Every method at a preset."""
    sizes: Mapping[str, Sizes]
    """By preset; at others the part is left out."""
    reference: str = "bp"
    """The method that the others are compared with, seed by seed."""
    sweep: Callable[[str], Sweep | None] = lambda preset: None
    """By preset."""
    scaling: Scaling = "standard"
    """Of the pixels, see ``tasks.load_images``."""

    def choose(self, name: str, preset: str) -> ChosenImages | None:
        """All of it at a preset, None where the preset has no sizes."""
        if preset not in self.sizes:
            return None
        methods, sweep = tuple(self.methods(preset)), self.sweep(preset)
        return ChosenImages(name, self, self.sizes[preset], methods, sweep)


@dataclass(frozen=True)
class ChosenImages(Chosen):
    """What is to be run of a part with images."""

    of_images: ClassVar[bool] = True
    note: ClassVar[str] = (
        "Test accuracy is that of the epoch with the best validation accuracy where no epoch is "
        "named. ± is the standard deviation over seeds."
    )

    name: str
    part: PaperPart
    sizes: Sizes
    methods: tuple[Method, ...]
    sweep: Sweep | None

    @property
    def every(self) -> tuple[Method, ...]:
        """Those of the table and of the sweep."""
        return (*self.methods, *(self.sweep.methods if self.sweep else ()))

    @property
    def about(self) -> dict[str, str]:
        """Every method by name, and what it is."""
        return {method.name: method.about for method in self.every}

    @property
    def setting(self) -> dict[str, int]:
        """Images and epochs."""
        return {"images": self.sizes.images, "epochs": self.sizes.epochs}

    @property
    def record(self) -> dict[str, Any]:
        """Its sizes."""
        return asdict(self.sizes)

    @property
    def sizes_text(self) -> str:
        """Seeds, images and epochs."""
        sizes = self.sizes
        word = "seeds" if len(sizes.seeds) > 1 else "one seed,"
        seeds = f"{word} {', '.join(map(str, sizes.seeds))}"
        return f"{seeds}; {sizes.images} images, {sizes.epochs} epochs"

    def named(self, names: Sequence[str]) -> ChosenImages:
        """The methods of these names alone, and the sweep where any of them is in it."""

        def keep(some: Sequence[Method]) -> tuple[Method, ...]:
            return tuple(method for method in some if method.name in names)

        kept = () if self.sweep is None else keep(self.sweep.methods)
        sweep = replace(self.sweep, methods=kept) if self.sweep and kept else None
        return replace(self, methods=keep(self.methods), sweep=sweep)

    def resized(
        self, images: int | None, epochs: int | None, seeds: Sequence[int] | None
    ) -> ChosenImages:
        """See ``resized``; a sweep keeps its own sizes."""
        return replace(self, sizes=resized(self.sizes, images, epochs, seeds))

    def check(self, device: str) -> None:
        """Read the images."""
        load_images(self.part.data, images=self.sizes.images)

    def jobs(self, out: Path, device: str) -> dict[str, ImageJob]:
        """All methods with one seed after another, then the sweep."""
        found: dict[str, tuple[Method, Sizes, int, float | None]] = {
            f"{self.name}-{method.name}-{seed}": (method, self.sizes, seed, None)
            for seed in self.sizes.seeds
            for method in self.methods
        }
        if (sweep := self.sweep) is not None:
            found |= {
                f"{self.name}-{m.name}-{sweep.name}-{level:g}-{seed}": (m, sweep.sizes, seed, level)
                for seed in sweep.sizes.seeds
                for m in sweep.methods
                for level in sweep.levels
            }
        images = self.name, self.part.data, self.part.scaling
        return {n: ImageJob(*images, *one, subrun(out, n), device) for n, one in found.items()}

    def report(self, paper: Paper, ended: Sequence[Outcome]) -> PartReport:
        """Accuracies, after some epochs, and of the sweep."""
        published = {method.name: method.published for method in self.methods}
        summaries = summarise(ended, self.part.reference, published, paper.slowness)
        tables = (
            summary_table(self.part.reference, summaries),
            epochs_table(paper.shown_epochs, self.methods, ended),
            sweep_table(ended),
        )
        return PartReport(
            tables=[(top, body) for top, body in tables if body],
            headline=self._headline(summaries, ended),
            summary=[asdict(summary) for summary in summaries],
            notes=[summary.warning for summary in summaries if summary.warning],
        )

    def _headline(self, summaries: Sequence[Summary], ended: Sequence[Outcome]) -> str:
        text, by = ", ".join(f"{s.method} {spread(s.accuracy, s.std)}" for s in summaries), ""
        if not text:
            top, body = sweep_table(ended)
            lines = [
                ", ".join(f"{a}: {b}" for a, b in zip(top[1:], line[1:], strict=True))
                for line in body
            ]
            text = "; ".join(f"{line[0]} {words}" for line, words in zip(body, lines, strict=True))
            by = " by noise"
        spreads = "± standard deviation over " if len(self.sizes.seeds) > 1 else ""
        return f"{self.name}, test accuracy in %{by}: {text} ({spreads}{self.sizes_text})"

    def draw(self, out: Path, paper: Paper, ended: Sequence[Outcome]) -> Pictures:
        """The paper's pictures."""
        return write_pictures(out, self.name, paper.pictures, ended)
