"""The captions that the stub engine must write: the tests' measure of a right caption."""

import io
import tarfile

from caprl_ray.engines.stub import stub_caption
from caprl_ray.models.resolve import resolve
from caprl_ray.prepare.decode import Limits, prepare
from caprl_ray.recipe.prompts import PromptTemplate
from caprl_ray.recipe.sections import Recipe


def expected_caption(image: bytes, recipe: Recipe, **columns: str) -> str:
    """The stub's caption of an image's bytes as stored; `columns` are those that the prompt names."""
    limits = Limits(max_bytes=recipe.prepare.max_bytes, max_source_pixels=recipe.prepare.max_source_pixels)
    seen = prepare(image, resolve(recipe).size_rule, limits)
    prompt = PromptTemplate(recipe.prompt.user).fill(columns, str)
    return stub_caption(bytes(seen.pixels), seen.pixel_width, seen.pixel_height, prompt)


def image_in_shard(shard: bytes, key: str) -> bytes:
    """The image of one sample of a shard."""
    with tarfile.open(fileobj=io.BytesIO(shard)) as tar:
        name = next(n for n in tar.getnames() if n.startswith(key + ".") and not n.endswith(".json"))
        member = tar.extractfile(name)
        assert member
        return member.read()
