"""Pixels of the host: Pillow's and timm's in `exact`, their distributions in `fast`."""

from __future__ import annotations

import io
import random
import warnings

import cv2
import numpy as np
import pytest
from image_files import encoded, photograph
from PIL import Image
from scipy import stats
from timm.data.auto_augment import NAME_TO_OP, rand_augment_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from timm.data.transforms_factory import transforms_imagenet_eval

from mambaout.data.images.augment import ImageDraws, TrainAugment, eval_crop
from mambaout.data.images.decode import DecodedPicture, JpegPicture, PillowPicture, picture
from mambaout.data.images.jpeg import recut
from mambaout.data.images.randaugment import AMOUNTS, COLOURS, FILL, PLACES
from mambaout.data.images.resample import ExactPixels, FastPixels, as_rgb
from mambaout.data.shards.encoded import EncodedImage
from mambaout.recipe import BASELINE, Augment, tuned

RECIPE = tuned(BASELINE, global_batch=64, image_size=64)
TURNED = Image.Exif()
TURNED[0x0112] = 6  # the orientation: a quarter to the right
FILTERS = {True: Image.Resampling.BICUBIC, False: Image.Resampling.BILINEAR}


def keys(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**63, count, dtype=np.uint64)


def file(image: Image.Image, form: str = "jpeg", **options) -> EncodedImage:
    target = io.BytesIO()
    image.save(target, form, **options)
    return EncodedImage(memoryview(target.getvalue()), None)


def recut_file(pixels: np.ndarray, **options) -> EncodedImage:
    done = recut(bytes(file(Image.fromarray(pixels), **options).image))
    assert done is not None
    return EncodedImage(memoryview(done[0]), memoryview(done[1]))


def apart(got: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    assert got.shape == wanted.shape
    assert got.dtype == wanted.dtype == np.uint8
    return np.abs(got.astype(int) - wanted.astype(int))


def chance_of_no_difference(ours, theirs) -> float:
    """Kolmogorov and Smirnov's test of two samples."""
    return float(np.asarray(stats.ks_2samp(ours, theirs, method="asymp"))[1])


def cut(pixels: np.ndarray, box: list[int]) -> np.ndarray:
    left, top, width, height = box
    return DecodedPicture(pixels).crop((left, top, width, height))


def whole(source: EncodedImage) -> np.ndarray:
    found = picture(source)
    return as_rgb(found.crop((0, 0, *found.size)))


# -- decoding -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mode",
    ["RGB", "L", "1", "P", "P+transparency", "LA", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"],
)
def test_every_kind_of_image_becomes_what_pillow_converts_it_to(mode):
    image = Image.fromarray(photograph(30, 40))
    options = {}
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif mode == "P+transparency":
        image, options = image.convert("P"), {"transparency": bytes(range(256))}
    else:
        image = image.convert(mode)
    form = {"CMYK": "jpeg", "YCbCr": "jpeg", "I": "tiff", "F": "tiff"}.get(mode, "png")
    source = file(image, form, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Palette images with Transparency")
        wanted = np.asarray(Image.open(io.BytesIO(source.image)).convert("RGB"))
    np.testing.assert_array_equal(whole(source), wanted)


@pytest.mark.parametrize(
    "options",
    [
        {"quality": 95},
        {"quality": 95, "subsampling": 0},
        {"quality": 80, "progressive": True},
        {"quality": 90, "exif": TURNED.tobytes()},
    ],
    ids=["4:2:0", "4:4:4", "progressive", "turned by EXIF"],
)
def test_a_jpeg_has_pillows_pixels_unturned(options):
    image = Image.fromarray(photograph(97, 130))
    for source in (file(image, **options), file(image.convert("L"), **options)):
        assert isinstance(picture(source), JpegPicture)
        wanted = np.asarray(Image.open(io.BytesIO(source.image)).convert("RGB"))
        np.testing.assert_array_equal(whole(source), wanted)


def test_a_jpeg_that_libjpeg_warns_of_has_pillows_pixels():
    data = bytearray(file(Image.fromarray(photograph(97, 130))).image)
    data[len(data) // 2 : len(data) // 2 + 4] = b"\xff\xd3\xff\xd5"  # markers in the middle
    source = EncodedImage(memoryview(bytes(data)), None)
    wanted = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(whole(source), wanted)


def test_what_is_not_a_jpeg_is_pillows_whatever_its_name():
    assert isinstance(
        picture(EncodedImage(memoryview(encoded(photograph(9, 9))), None)), PillowPicture
    )


@pytest.mark.parametrize("damage", [b"", b"\xff\xd8", b"no image at all"])
def test_what_is_no_image_raises(damage):
    with pytest.raises(Exception, match=r"cannot identify|image file"):
        whole(EncodedImage(memoryview(damage), None))


def test_a_truncated_jpeg_raises_as_in_timm():
    data = bytes(file(Image.fromarray(photograph(97, 130))).image)
    with pytest.raises(OSError, match="truncated"):
        whole(EncodedImage(memoryview(data[: len(data) // 2]), None))


def test_a_crop_of_a_recut_jpeg_is_the_crop_of_the_whole():
    pixels = photograph(300, 280)
    source = recut_file(pixels, quality=93)
    found = picture(source)
    complete = np.asarray(Image.open(io.BytesIO(source.image)))
    drawn = ImageDraws(Augment(), keys(60))
    for left, top, width, height in drawn.boxes(np.tile([[280, 300]], (60, 1))).tolist():
        got = found.crop((left, top, width, height))
        wanted = complete[top : top + height, left : left + width]
        inside = apart(got, wanted)[2:-2, 2:-2]
        assert not inside.any()


def test_fast_decodes_a_large_crop_at_a_half_a_quarter_or_an_eighth():
    pixels = cv2.resize(photograph(400, 300), (1200, 1600), interpolation=cv2.INTER_CUBIC)
    for source in (file(Image.fromarray(pixels)), recut_file(pixels)):
        found = picture(source)
        for box in ((17, 33, 1100, 1400), (160, 320, 300, 280), (3, 5, 130, 500)):
            left, top, width, height = box
            for least in (32, 64, 128):
                got = found.crop(box, least=least)
                shrink = round(width / got.shape[1])
                assert min(got.shape[:2]) >= least
                assert shrink == 8 or min(width, height) < 2 * shrink * least
                area = pixels[top:, left:][: got.shape[0] * shrink, : got.shape[1] * shrink]
                wanted = cv2.resize(area, got.shape[1::-1], interpolation=cv2.INTER_AREA)
                assert np.corrcoef(got.ravel(), wanted.ravel())[0, 1] > 0.96


# -- exact ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["random", "bicubic", "bilinear"])
def test_the_exact_crop_has_pillows_pixels(interpolation):
    recipe = tuned(RECIPE, interpolation=interpolation, randaugment=0.0)
    augment, pixels = TrainAugment(recipe), photograph(120, 180)
    drawn = augment.draw(keys(60))
    boxes = drawn.boxes(np.tile([[180, 120]], (60, 1))).tolist()
    bicubic = {"random": {True, False}, "bicubic": {True}, "bilinear": {False}}[interpolation]
    assert set(drawn.bicubic) == bicubic
    for index, box in enumerate(boxes):
        got = augment(cut(pixels, box), drawn, index)
        wanted = Image.fromarray(cut(pixels, box)).resize((64, 64), FILTERS[drawn.bicubic[index]])
        if drawn.flipped[index]:
            wanted = wanted.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        different = apart(got, np.asarray(wanted))
        assert different.max() <= 4
        assert (different > 1).mean() < 0.002


def timms(name: str, image: Image.Image, amount: float, bicubic: bool) -> np.ndarray:
    """What timm's operation makes of an image."""
    whole_numbers = name in ("PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd")
    arguments = [int(amount) if whole_numbers else amount]
    if name in ("AutoContrast", "Equalize", "Invert"):
        arguments = []
    options = {"resample": FILTERS[bicubic], "fillcolor": FILL} if name in PLACES else {}
    return np.asarray(NAME_TO_OP[name](image, *arguments, **options))


@pytest.mark.parametrize("name", AMOUNTS)
@pytest.mark.parametrize("size", [(96, 96), (17, 17)])
def test_an_exact_operation_is_timms_to_the_bit_or_in_colours_within_a_grey_level(name, size):
    pixels = photograph(*size)
    for level in (0.0, 2.5, 7.0, 9.3, 10.0):
        for sign in (1.0, -1.0):
            for bicubic in (True, False):
                amount = AMOUNTS[name](level, sign)
                wanted = timms(name, Image.fromarray(pixels), amount, bicubic)
                if name in COLOURS:
                    different = apart(COLOURS[name](pixels, amount), wanted)
                    assert different.max() <= 1
                    continue
                moved = ExactPixels(pixels, len(pixels), bicubic=True, flipped=False)
                moved.move(name, amount, bicubic=bicubic)
                np.testing.assert_array_equal(moved.pixels(), wanted)


def test_one_colour_and_two_grey_levels_pass_through_every_colour_operation():
    for pixels in (np.full((9, 9, 3), 77, np.uint8), np.tile([[0], [255]], (9, 9, 3)).astype("u1")):
        for name, operation in COLOURS.items():
            for amount in (AMOUNTS[name](9.0, sign) for sign in (1.0, -1.0)):
                wanted = timms(name, Image.fromarray(pixels), amount, False)
                assert apart(operation(pixels, amount), wanted).max() <= 1


def test_exact_augmentation_is_timms_operations_one_after_the_other():
    augment, pixels = TrainAugment(RECIPE), photograph(300, 260)
    drawn = augment.draw(keys(150, seed=3))
    boxes = drawn.boxes(np.tile([[260, 300]], (150, 1))).tolist()
    within = []
    for index, box in enumerate(boxes):
        got = augment(cut(pixels, box), drawn, index)
        image = Image.fromarray(cut(pixels, box))
        image = image.resize((64, 64), FILTERS[drawn.bicubic[index]])
        if drawn.flipped[index]:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for name, amount, bicubic in drawn.operations[index]:
            image = Image.fromarray(timms(name, image, amount, bicubic))
        within.append((apart(got, np.asarray(image)) <= 1).mean())
    # A threshold or a histogram after a rounding can move a few of an image's pixels far.
    assert np.mean(within) > 0.995
    assert min(within) > 0.8


@pytest.mark.parametrize("size", [(24, 24), (50, 33), (33, 50), (20, 61), (200, 120)])
@pytest.mark.parametrize("crop", [1.0, 0.875])
@pytest.mark.parametrize("pixels", ["exact", "fast"])
def test_the_evaluation_crop_has_timms_pixels(size, crop, pixels):
    image = photograph(*size)
    theirs = transforms_imagenet_eval(
        24, crop_pct=crop, interpolation="bicubic", use_prefetcher=True
    )
    recipe = tuned(RECIPE, image_size=24, eval_crop=crop, pixels=pixels)
    got = eval_crop(image, recipe)
    wanted = np.moveaxis(np.asarray(theirs(Image.fromarray(image))), 0, -1)
    assert apart(got, wanted).max() <= 1


# -- what is drawn --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(500, 375), (60, 90), (40, 200), (300, 30)])
def test_crops_are_distributed_as_timms(size):
    count, image = 3000, Image.new("L", size)
    ours = ImageDraws(Augment(), keys(count)).boxes(np.tile([size], (count, 1)))
    random.seed(1)
    theirs = np.array(
        [
            RandomResizedCropAndInterpolation.get_params(image, (0.08, 1), (3 / 4, 4 / 3))
            for _ in range(count)
        ]
    )[:, [1, 0, 3, 2]]
    for column in range(4):
        assert chance_of_no_difference(ours[:, column], theirs[:, column]) > 1e-3
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= size).all()


def test_a_crop_of_the_smallest_image_has_a_pixel():
    drawn = ImageDraws(Augment(), keys(200))
    for size in ((1, 1), (1, 50), (2, 1)):
        boxes = drawn.boxes(np.tile([size], (200, 1)))
        assert (boxes[:, 2:] >= 1).all()
        assert (boxes[:, :2] + boxes[:, 2:] <= size).all()


def test_operations_and_their_amounts_are_distributed_as_timms():
    theirs: dict[str, list[float]] = {name: [] for name in AMOUNTS}
    chain = rand_augment_transform("rand-m9-mstd0.5-inc1", {"img_mean": FILL})
    for operation in chain.ops:
        found = theirs[operation.name]
        operation.aug_fn = lambda image, amount=0.0, *_, found=found, **__: (
            found.append(float(amount)) or image
        )
    random.seed(0)
    np.random.seed(0)
    image, count = Image.new("RGB", (8, 8)), 20_000
    for _ in range(count):
        chain(image)
    ours: dict[str, list[float]] = {name: [] for name in AMOUNTS}
    drawn = ImageDraws(Augment(), keys(count))
    for operations in drawn.operations:
        for name, amount, _ in operations:
            ours[name].append(amount)
    table = [[len(found[name]) for name in AMOUNTS] for found in (ours, theirs)]
    assert np.asarray(stats.chi2_contingency(table)[1]) > 1e-3
    assert abs(sum(table[0]) - count) < 4 * np.sqrt(count / 2)
    for name in AMOUNTS:
        # timm asks for 0 bits at level 10, and Pillow 13 refuses.
        their = np.maximum(theirs[name], 1) if name == "PosterizeIncreasing" else theirs[name]
        assert chance_of_no_difference(ours[name], their) > 1e-3, name


def test_flips_filters_and_the_number_of_operations_are_drawn_apart():
    drawn = ImageDraws(Augment(), keys(20_000))
    number = [len(operations) for operations in drawn.operations]
    columns = np.column_stack([drawn.flipped, drawn.bicubic, number, drawn.left, drawn.top])
    assert np.abs(np.mean(columns, axis=0) - [0.5, 0.5, 1.0, 0.5, 0.5]).max() < 0.02
    assert np.abs(np.corrcoef(columns.T) - np.eye(5)).max() < 0.03
    np.testing.assert_allclose(np.bincount(number) / 20_000, [0.25, 0.5, 0.25], atol=0.015)


def test_a_draw_follows_its_key_alone():
    every = keys(30)
    sizes = np.tile([[90, 70]], (30, 1))
    together = ImageDraws(tuned(RECIPE, color_jitter=0.4).augment, every)
    for index in (0, 7, 29):
        alone = ImageDraws(tuned(RECIPE, color_jitter=0.4).augment, every[index : index + 1])
        np.testing.assert_array_equal(alone.boxes(sizes[:1])[0], together.boxes(sizes)[index])
        assert alone.operations[0] == together.operations[index]
        assert alone.flipped[0] == together.flipped[index]


@pytest.mark.parametrize("pixels", ["exact", "fast"])
def test_grey_and_colour_files_of_a_grey_picture_give_the_same_pixels(pixels):
    augment = TrainAugment(tuned(RECIPE, image_size=24, color_jitter=0.3, pixels=pixels))
    grey = photograph(30, 31)[..., 0]
    drawn = augment.draw(keys(100))
    boxes = drawn.boxes(np.tile([[31, 30]], (100, 1))).tolist()
    for index, box in enumerate(boxes):
        wanted = augment(cut(np.repeat(grey[..., None], 3, axis=2), box), drawn, index)
        got = augment(cut(grey, box), drawn, index)
        assert got.shape == (24, 24, 3)
        # torch's kernel for one channel rounds otherwise than the one for three, now and then.
        assert (apart(got, wanted) <= 1).mean() > 0.97


@pytest.mark.parametrize("pixels", ["exact", "fast"])
@pytest.mark.parametrize(
    "field", ["hflip", "randaugment", "color_jitter", "crop_scale_min", "crop_ratio_min"]
)
def test_every_host_knob_moves_the_pixels(field, pixels):
    least = 0.5 if field == "crop_ratio_min" else 1.0
    off = tuned(
        RECIPE, hflip=0.0, randaugment=0.0, crop_scale_min=least, crop_ratio_min=1.0, pixels=pixels
    )
    on = tuned(off, **{field: {"randaugment": 9.0}.get(field, 0.5)})
    source, moved = photograph(70, 70), 0
    with_it, without = (TrainAugment(recipe) for recipe in (on, off))
    drawn, plain = with_it.draw(keys(30)), without.draw(keys(30))
    boxes = [each.boxes(np.tile([[70, 70]], (30, 1))).tolist() for each in (drawn, plain)]
    for index in range(30):
        got = with_it(cut(source, boxes[0][index]), drawn, index)
        moved += bool(apart(got, without(cut(source, boxes[1][index]), plain, index)).any())
    assert 5 < moved <= 30


# -- fast -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, *AMOUNTS])
def test_a_fast_operation_is_distributed_as_timms(name):
    """Over random crops and amounts: brightness, contrast, and where things are, are timm's."""
    augment, count = TrainAugment(tuned(RECIPE, randaugment=0.0)), 150
    pixels = photograph(130, 120)  # a decoder leaves at most a factor of two: decode.py
    drawn = augment.draw(keys(count, seed=5))
    boxes = drawn.boxes(np.tile([[120, 130]], (count, 1))).tolist()
    levels = np.random.default_rng(0).normal(9, 0.5, count).clip(0, 10)
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    for index, box in enumerate(boxes):
        crop = cut(pixels, box)
        bicubic, flipped = drawn.bicubic[index], drawn.flipped[index]
        image = Image.fromarray(crop).resize((64, 64), FILTERS[bicubic])
        if flipped:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        fast = FastPixels(crop, 64, bicubic=bicubic, flipped=flipped)
        if name is None:
            seen.append((fast.pixels(), np.asarray(image)))
            continue
        amount = AMOUNTS[name](float(levels[index]), (-1.0) ** index)
        if name in PLACES:
            fast.move(name, amount, bicubic=bicubic)
            got = fast.pixels()
        else:
            got = COLOURS[name](fast.pixels(), amount)
        seen.append((got, timms(name, image, amount, bicubic)))
    ours, theirs = (np.stack(side).astype(np.float64) for side in zip(*seen, strict=True))
    for summary in (np.mean, np.std):
        found, wanted = summary(ours, axis=(1, 2)), summary(theirs, axis=(1, 2))
        assert np.abs(found - wanted).mean() < 2.0  # grey levels, of each image and channel
        tenths = np.linspace(0.1, 0.9, 9)
        np.testing.assert_allclose(np.quantile(found, tenths), np.quantile(wanted, tenths), atol=4)
    alike = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(ours, theirs, strict=True)]
    # A table with steps moves pixels far that were apart by one.
    steps = name in ("PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd")
    assert np.median(alike) > (0.9 if steps else 0.98)


def test_fast_looks_into_the_crop_once_however_many_moves_there_are(monkeypatch):
    looks = []
    for how in ("warpAffine", "resize"):
        real = getattr(cv2, how)
        monkeypatch.setattr(
            cv2, how, lambda *a, real=real, how=how, **k: looks.append(how) or real(*a, **k)
        )
    image = FastPixels(photograph(90, 80), 64, bicubic=True, flipped=True)
    for name in PLACES:
        image.move(name, AMOUNTS[name](5.0, 1.0), bicubic=True)
    image.pixels()
    image.pixels()
    assert looks == ["warpAffine"]
    FastPixels(photograph(90, 80), 64, bicubic=True, flipped=True).pixels()
    assert looks == ["warpAffine", "resize"]


def test_fast_needs_the_part_of_a_crop_that_it_shows_and_no_more():
    augment, pixels = TrainAugment(tuned(RECIPE, pixels="fast")), photograph(300, 260)
    drawn = augment.draw(keys(400, seed=9))
    boxes = drawn.boxes(np.tile([[260, 300]], (400, 1))).tolist()
    smaller = 0
    for index, (left, top, width, height) in enumerate(boxes):
        whole = cut(pixels, boxes[index])
        part = augment.part(boxes[index], drawn, index)
        if part is None:
            continue
        smaller += part.width * part.height < 0.8 * width * height
        seen = cut(pixels, [left + part.left, top + part.top, part.width, part.height])
        different = apart(augment(seen, drawn, index, part), augment(whole, drawn, index))
        assert (different > 1).mean() < 0.002
    assert smaller > 20  # images that are shifted by a fifth and more


def test_fast_does_not_look_past_a_crop_that_was_decoded_smaller():
    augment = TrainAugment(tuned(RECIPE, pixels="fast"))
    for side in (129, 257, 515):
        source = picture(file(Image.new("RGB", (side, side), "white")))
        drawn = augment.draw(keys(1))
        drawn.operations[0] = [("TranslateXRel", -1e-4, True)]
        part = augment.part([0, 0, side, side], drawn, 0)
        assert part is not None
        crop = source.crop((part.left, part.top, part.width, part.height), augment.least)
        assert max(crop.shape) < side
        assert augment(crop, drawn, 0, part).min() > 250


def test_fast_moves_stay_in_order_with_colours():
    pixels = photograph(64, 64)
    fast = FastPixels(pixels, 64, bicubic=True, flipped=False)
    fast.image = COLOURS["Invert"](fast.pixels(), 0)
    fast.move("TranslateXRel", 0.25, bicubic=True)
    got = fast.pixels()
    assert (got[:, 50:] == FILL).all()  # not inverted: it came after
    np.testing.assert_array_equal(got[:, :40], 255 - pixels[:, 16:56])
