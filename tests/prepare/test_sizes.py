"""The size rule is compared with its original. The model's own processor leaves prepared pixels as they are."""

import io
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from caprl_ray.errors import RecipeError, RowFailure
from caprl_ray.prepare.decode import Limits, Prepared, prepare
from caprl_ray.prepare.sizes import SizeRule, size_rule

CAPRL_3B = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "merge_size": 2,
}
BUDGETS = [(28, 3136, 1003520), (28, 3136, 12845056), (28, 784, 9408), (32, 65536, 16777216), (28, 1000000, 1003520)]
SIDES = [1, 5, 13, 14, 15, 27, 28, 29, 41, 42, 43, 55, 56, 70, 98, 126, 199, 200, 640, 1001, 1002, 1003, 5600, 12345]


def qwen_rule(factor: int, low: int, high: int) -> SizeRule:
    return SizeRule(factor=factor, min_pixels=low, max_pixels=high, max_aspect=200)


def some_sizes(count: int) -> Iterator[tuple[int, int]]:
    """Every pair of awkward sides (half steps, thin strips), then `count` random ones from 1 to 30,000."""
    yield from ((width, height) for width in SIDES for height in SIDES)
    rng = random.Random(0)
    for _ in range(count):
        yield int(10 ** rng.uniform(0, 4.48)), int(10 ** rng.uniform(0, 4.48))


@pytest.mark.parametrize(("factor", "low", "high"), BUDGETS)
def test_target_equals_the_original(factor: int, low: int, high: int) -> None:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    rule, refused = qwen_rule(factor, low, high), 0
    for width, height in some_sizes(3000):
        try:
            expected_height, expected_width = smart_resize(height, width, factor, low, high)
        except ValueError:
            refused += 1
            with pytest.raises(RowFailure, match="image_aspect"):
                rule.target(width, height)
        else:
            assert rule.target(width, height) == (expected_width, expected_height), (width, height)
    assert refused > 100


@pytest.mark.parametrize(("factor", "low", "high"), BUDGETS[:4])
def test_settled_sizes_stay_and_differ_from_target_only_for_extreme_aspects(factor: int, low: int, high: int) -> None:
    rule = qwen_rule(factor, low, high)
    for width, height in some_sizes(3000):
        aspect = max(width, height) / min(width, height)
        try:
            size = rule.settled(width, height)
        except RowFailure:  # image_aspect, the only possible code
            assert aspect > 100
            continue
        assert rule.target(*size) == size
        assert low <= size[0] * size[1] <= high
        if aspect < 5:
            assert size == rule.target(width, height)


def test_settled_ends_where_no_size_settles() -> None:
    rule = qwen_rule(28, 3000, 3000)
    assert rule.settled(40, 40) == rule.target(40, 40)


def test_settled_refuses_what_rounding_makes_too_elongated() -> None:
    assert qwen_rule(28, 3136, 1003520).target(6000, 30) == (5992, 28)
    with pytest.raises(RowFailure, match="image_aspect"):
        qwen_rule(28, 3136, 1003520).settled(6000, 30)


def test_recipe_narrows_the_models_limits() -> None:
    assert size_rule(CAPRL_3B, min_pixels=1, max_pixels=10**9) == qwen_rule(28, 3136, 12845056)
    assert size_rule(CAPRL_3B, min_pixels=5000, max_pixels=1003520) == qwen_rule(28, 5000, 1003520)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"image_processor_type": "Qwen2VLImageProcessor"}, (28, 3136, 1003520)),
        ({"image_processor_type": "Qwen2VLImageProcessorFast", "min_pixels": None}, (28, 3136, 1003520)),
        ({"image_processor_type": "Qwen2VLImageProcessor", "size": {"longest_edge": 50176}}, (28, 3136, 50176)),
        (
            {"image_processor_type": "Qwen2_5_VLImageProcessor", "size": {"shortest_edge": 784, "longest_edge": 50176}},
            (28, 784, 50176),
        ),
        (
            {
                "image_processor_type": "Qwen2VLImageProcessor",
                "min_pixels": 1568,
                "max_pixels": 9408,
                "size": {"shortest_edge": 784, "longest_edge": 50176},
            },
            (28, 1568, 9408),
        ),
        (
            {
                "image_processor_type": "Qwen2VLImageProcessorFast",
                "size": {"shortest_edge": 65536, "longest_edge": 16777216},
                "patch_size": 16,
                "merge_size": 2,
            },
            (32, 65536, 16777216),
        ),
        ({"image_processor_type": "Qwen3VLImageProcessorFast"}, (32, 65536, 16777216)),
    ],
)
def test_limits_are_read_from_the_models_file(config: dict[str, Any], expected: tuple[int, int, int]) -> None:
    assert size_rule(config, min_pixels=1, max_pixels=10**9) == qwen_rule(*expected)


def test_defaults_are_those_of_the_installed_class() -> None:
    from transformers import Qwen2VLImageProcessor

    own = Qwen2VLImageProcessor()
    rule = size_rule({"image_processor_type": "Qwen2VLImageProcessor"}, min_pixels=1, max_pixels=10**9)
    assert rule.factor == own.patch_size * own.merge_size
    assert (rule.min_pixels, rule.max_pixels) == (own.size["shortest_edge"], own.size["longest_edge"])


@pytest.mark.parametrize(("low", "high"), [(1, 3000), (13_000_000, 20_000_000), (9000, 5000)])
def test_an_empty_range_is_refused_in_one_sentence(low: int, high: int) -> None:
    with pytest.raises(RecipeError) as caught:
        size_rule(CAPRL_3B, min_pixels=low, max_pixels=high)
    message = str(caught.value)
    for part in ("prepare.min_pixels", "prepare.max_pixels", str(low), str(high), "3136", "12845056"):
        assert part in message
    assert "\n" not in message
    assert message.count(".") == message.count("prepare.") + 1


def test_a_range_below_one_step_is_refused() -> None:
    config = {"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 100}
    with pytest.raises(RecipeError, match="28 x 28"):
        size_rule(config, min_pixels=100, max_pixels=783)


@pytest.mark.parametrize("config", [{}, {"image_processor_type": "CLIPImageProcessor", "size": 224}])
def test_other_processors_get_only_the_cap(config: dict[str, Any]) -> None:
    rule = size_rule(config, min_pixels=3136, max_pixels=10_000)
    assert rule.factor is None
    assert rule.target(37, 11) == (37, 11)
    assert rule.target(400, 100) == (200, 50)
    assert rule.target(100, 400) == (50, 200)
    for width, height in some_sizes(500):
        target = rule.target(width, height)
        assert target[0] * target[1] <= 10_000
        assert min(target) >= 1
        assert rule.settled(width, height) == target


def noise_png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    rng = np.random.default_rng(width * height)
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def seen_by_model(processor: Any, prepared: Prepared) -> np.ndarray:
    """The uint8 pixels, put together from the patches in `pixel_values`."""
    image = Image.frombytes("RGB", (prepared.pixel_width, prepared.pixel_height), prepared.pixels)
    out = processor(images=[image], return_tensors="np")
    patch, merge, frames = processor.patch_size, processor.merge_size, processor.temporal_patch_size
    _, rows, columns = out["image_grid_thw"][0].tolist()
    assert (columns * patch, rows * patch) == image.size
    patches = np.asarray(out["pixel_values"]).reshape(
        rows // merge, columns // merge, merge, merge, 3, frames, patch, patch
    )
    assert np.array_equal(patches[:, :, :, :, :, 0], patches[:, :, :, :, :, 1])
    values = patches[:, :, :, :, :, 0].transpose(0, 2, 5, 1, 3, 6, 4).reshape(image.height, image.width, 3)
    exact = (values * np.array(processor.image_std) + np.array(processor.image_mean)) * 255
    assert np.abs(exact - exact.round()).max() < 0.01
    pixels: np.ndarray = exact.round().astype(np.uint8)
    return pixels


@pytest.mark.parametrize("size", [(640, 480), (333, 77), (13, 9), (31, 1999), (1501, 1007), (28, 56), (5, 700)])
@pytest.mark.parametrize("recipe", [(3136, 1003520), (784, 9408)])
def test_the_processor_sees_exactly_the_prepared_pixels(size: tuple[int, int], recipe: tuple[int, int]) -> None:
    """The processor resizes nothing, even if it has the recipe's narrow limits itself."""
    from transformers import Qwen2VLImageProcessor

    low, high = recipe
    rule = size_rule(CAPRL_3B | {"min_pixels": low}, min_pixels=low, max_pixels=high)
    prepared = prepare(noise_png(*size), rule, Limits(max_bytes=10**8, max_source_pixels=10**8))
    pixels = np.frombuffer(prepared.pixels, np.uint8).reshape(prepared.pixel_height, prepared.pixel_width, 3)
    for limits in (recipe, (low, 12845056)):
        processor = Qwen2VLImageProcessor(min_pixels=limits[0], max_pixels=limits[1])
        assert np.array_equal(seen_by_model(processor, prepared), pixels)
