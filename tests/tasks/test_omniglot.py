"""Omniglot: a made-up archive in the official layout, what is refused, and the real one."""

import io
import itertools
import os
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from metaplastic.errors import ConfigurationError, DataError, MissingDataError, UnknownNameError
from tasks import SPLITS, Omniglot
from tasks.omniglot import ARCHIVES, split_characters

SMALL = "images_background_small1"
DRAWN = 3


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def png(left: int, top: int, width: int, height: int) -> bytes:
    """A black box on white paper, one bit per pixel as the official drawings."""
    image = Image.new("1", (105, 105), 1)
    ImageDraw.Draw(image).rectangle((left, top, left + width - 1, top + height - 1), fill=0)
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def box(name: str, drawing: int) -> tuple[int, int, int, int]:
    """Where the box of a drawing stands: another place and size for every character."""
    order = [c for split in SPLITS for c in split_characters("small", split)].index(name)
    return 4 + 4 * (order % 12), 4 + 4 * (order // 12), 20 + drawing, 12


def write_archive(path: Path, characters: dict[str, list[bytes]]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"__MACOSX/{path.stem}/Latin/character01/._0001_01.png", b"clutter")
        archive.writestr(f"{path.stem}/", b"")
        for character, drawings in characters.items():
            for i, content in enumerate(drawings):
                archive.writestr(f"{path.stem}/{character}/0001_{i + 1:02d}.png", content)


@pytest.fixture(scope="module")
def characters() -> dict[str, list[bytes]]:
    return {
        name: [png(*box(name, i)) for i in range(DRAWN)]
        for split in SPLITS
        for name in split_characters("small", split)
    }


@pytest.fixture
def root(tmp_path, characters, monkeypatch) -> Path:
    monkeypatch.delenv("METAPLASTIC_DATA", raising=False)
    (tmp_path / "omniglot").mkdir()
    write_archive(tmp_path / "omniglot" / f"{SMALL}.zip", characters)
    return tmp_path


def small(root: Path | None = None, **options) -> Omniglot:
    return Omniglot("continual", **{"ways": 3, "shots": 1, "queries": 1, "root": root, **options})


def test_splits_are_disjoint_and_validation_is_every_fifth_training_character():
    for variant, sizes in (("small", (88, 22, 26)), ("full", (772, 192, 659))):
        names = {split: split_characters(variant, split) for split in SPLITS}
        assert tuple(len(names[split]) for split in SPLITS) == sizes
        assert len({*itertools.chain(*names.values())}) == sum(sizes)
        both = sorted(names["train"] + names["validation"])
        assert names["validation"] == both[4::5]
    assert {name.split("/")[0] for name in split_characters("small", "test")} == {"Latin"}
    background = {*split_characters("full", "train"), *split_characters("full", "validation")}
    for split in SPLITS:
        assert background >= set(split_characters("small", split))


def test_drawings_are_ink_1_on_0_where_they_were_drawn(root):
    # At full size nothing is averaged: each image is the box of one validation character.
    drawn = small(root, size=105, ways=22, shots=2).episodes("validation", 1, seeded())
    expected = {}
    for name in split_characters("small", "validation"):
        for i in range(DRAWN):
            left, top, width, height = box(name, i)
            image = torch.zeros(105, 105)
            image[top : top + height, left : left + width] = 1
            expected[image.numpy().tobytes()] = name
    support = [expected[x.numpy().tobytes()] for x in drawn.support_x[0, :, 0, 0]]
    query = [expected[x.numpy().tobytes()] for x in drawn.query_x[0, :, 0]]
    assert support[0::2] == support[1::2] == query
    assert sorted(query) == split_characters("small", "validation")


@pytest.mark.parametrize("size", [28, 84])
def test_shrinking_averages_so_that_the_ink_stays(root, size):
    drawn = small(root, size=size, ways=22).episodes("validation", 1, seeded())
    images = torch.cat((drawn.support_x[0, :, 0], drawn.query_x[0]))[:, 0]
    boxes = [box(name, i) for name in split_characters("small", "validation") for i in range(DRAWN)]
    least, most = (f(w * h / 105**2 for _, _, w, h in boxes) for f in (min, max))
    assert images.mean((1, 2)).min() > 0.98 * least
    assert images.mean((1, 2)).max() < 1.02 * most
    assert ((images > 0.02) & (images < 0.98)).any()
    assert images.min() == 0
    assert images.max() == 1


def test_rotations_are_classes_in_training_only(root):
    task = small(root, size=21)
    assert [task.pool(split).classes for split in SPLITS] == [4 * 88, 22, 26]
    # The boxes stand left of and above the middle: only training has ink in the lower right.
    for split in SPLITS:
        drawn = task.episodes(split, 60, seeded())
        assert bool(drawn.query_x[..., 15:, 15:].any()) == (split == "train")


def test_unpacked_folders_and_the_data_folder_itself_read_the_same(root, tmp_path, monkeypatch):
    expected = small(root).episodes("test", 2, seeded())
    monkeypatch.setenv("METAPLASTIC_DATA", str(root))
    unpacked = tmp_path / "unpacked" / "omniglot"
    shutil.unpack_archive(root / "omniglot" / f"{SMALL}.zip", unpacked)
    before = sorted(tmp_path.rglob("*"))
    for given in (None, root / "omniglot", unpacked.parent, str(unpacked)):
        drawn = small(given).episodes("test", 2, seeded())
        assert torch.equal(drawn.support_x, expected.support_x)
        assert torch.equal(drawn.query_x, expected.query_x)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_full_set_is_preferred_and_covers_its_lists(root):
    assert small(root).variant == "small"
    blank = [png(10, 10, 30, 30)] * 2
    names = {split: split_characters("full", split) for split in SPLITS}
    background = dict.fromkeys(names["train"] + names["validation"], blank)
    write_archive(root / "omniglot" / "images_background.zip", background)
    with pytest.raises(MissingDataError, match="images_evaluation"):
        small(root)
    write_archive(root / "omniglot" / "images_evaluation.zip", dict.fromkeys(names["test"], blank))
    task = small(root, size=8)
    assert task.variant == "full"
    assert [task.pool(split).classes for split in SPLITS] == [4 * 772, 192, 659]
    assert small(root, variant="small").pool("test").classes == 26


def test_missing_data_says_where_it_looked_and_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(MissingDataError, match="METAPLASTIC_DATA") as caught:
        small(tmp_path)
    assert str(tmp_path / "omniglot") in str(caught.value)
    assert "Brenden Lake" in str(caught.value)
    monkeypatch.delenv("METAPLASTIC_DATA", raising=False)
    with pytest.raises(MissingDataError, match=r"none was named.*METAPLASTIC_DATA.*Brenden Lake"):
        small()


@pytest.mark.parametrize("damage", ["cut", "bits", "text"])
def test_damaged_archives_are_named_with_the_remedy(root, damage):
    path = root / "omniglot" / f"{SMALL}.zip"
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "text":
        content = bytearray(b"404: not found")
    else:
        with zipfile.ZipFile(path) as archive:
            start = archive.getinfo(f"{SMALL}/Latin/character05/0001_02.png").header_offset
        content[start + 120 : start + 130] = bytes(10)
    path.write_bytes(content)
    with pytest.raises(DataError, match="download the official archive again") as caught:
        small(root).pool("test")
    assert str(path) in str(caught.value)


def test_damaged_drawings_and_missing_characters_are_named(root, characters):
    path = root / "omniglot" / f"{SMALL}.zip"
    good = characters["Latin/character02"]
    cut = [good[0], good[1][:60], good[2]]
    write_archive(path, {**characters, "Latin/character02": cut})
    with pytest.raises(DataError, match=r"Latin/character02/0001_02\.png"):
        small(root).pool("test")
    write_archive(path, {k: v for k, v in characters.items() if k != "Latin/character02"})
    with pytest.raises(DataError, match=r"lacks 1 of the 26 .* first Latin/character02"):
        small(root).pool("test")
    assert small(root).pool("validation").classes == 22


def test_options_that_do_not_fit_are_refused(root):
    with pytest.raises(ConfigurationError, match=r"8\.\.105"):
        small(root, size=200)
    with pytest.raises(UnknownNameError, match="Did you mean 'small'"):
        small(root, variant="smal")
    assert set(ARCHIVES) == {"small", "full"}


@pytest.mark.skipif(
    not (Path(os.environ.get("METAPLASTIC_DATA", "")) / "omniglot" / f"{SMALL}.zip").is_file(),
    reason=f"METAPLASTIC_DATA names no folder with omniglot/{SMALL}.zip",
)
def test_the_real_small_set_has_twenty_legible_drawings_of_each_character():
    task = Omniglot("iid", ways=5, shots=15, queries=5, variant="small")
    assert [task.pool(split).classes for split in SPLITS] == [4 * 88, 22, 26]
    drawn = task.episodes("test", 100, seeded())
    ink = torch.cat((drawn.support_x[:, :, 0], drawn.query_x), 1)
    assert ((ink.mean((2, 3, 4)) > 0.005) & (ink.mean((2, 3, 4)) < 0.3)).all()
    # Handwriting, not copies: the nearest image in pixels is right far above chance (0.2).
    distance = torch.cdist(drawn.query_x.flatten(2), drawn.support_x[:, :, 0].flatten(2))
    guess = drawn.support_y[..., 0].gather(1, distance.argmin(-1))
    assert 0.5 < (guess == drawn.query_y).double().mean() < 0.95
    # No drawing is shared between two splits.
    rows = [
        {x.numpy().tobytes() for x in task.episodes(split, 60, seeded()).query_x.flatten(0, 1)}
        for split in ("validation", "test")
    ]
    assert not rows[0] & rows[1]
