"""JSON lines: each row as an image's path and its caption, as CapRL-2M has them, or as a conversation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa

from caprl_ray.errors import RecipeError
from caprl_ray.export import encode
from caprl_ray.export.line_files import ROWS, LineFiles
from caprl_ray.export.settings import LINES
from caprl_ray.export.source import Source
from caprl_ray.models.chat import without_any_control_token
from caprl_ray.recipe.prompts import PromptTemplate

CAPRL, LLAVA, DPO = LINES
NEEDED = ["id", "unit", "index", "attempts", "key", "caption"]
IMAGE = "<image>"  # where a conversation has its image; trainers count it
PROMPT = "prompt"
STRIP = without_any_control_token()  # the captioner has removed its model's, and the trained model may have others
# Lines in SQL, over the columns of a row. A token for an image in a text becomes a space, so that its
# surroundings cannot form the token anew.
CAPTION_LINE = "{id: id, image: key, caption: caption}"
CONVERSATION_LINE = f"""{{id: id, image: key, conversations: [
    {{'from': 'human', 'value': '{IMAGE}' || chr(10) || replace({PROMPT}, '{IMAGE}', ' ')}},
    {{'from': 'gpt', 'value': replace(caption, '{IMAGE}', ' ')}}
]}}"""


@dataclass(frozen=True, kw_only=True)
class Lines(LineFiles):
    """The form `jsonl`. `prompts` are the user's turns by the recipe that wrote a row, where lines need them."""

    prompts: Mapping[str, str] | None

    @classmethod
    def of(cls, source: Source, target: str, form: str | None, rows: int | None) -> "Lines":
        """Raises RecipeError for lines that this output cannot give."""
        prompts = _prompts(source) if form == LLAVA else None
        return cls(source=source, target=target, rows=rows or ROWS, prompts=prompts)

    @property
    def schema(self) -> pa.Schema:
        """The columns that lines need: for prompts all of the source's own."""
        own, schema = self.source.own.names, self.source.schema
        templates = map(PromptTemplate, set((self.prompts or {}).values()))
        asked = {name for template in templates for name in template.columns}
        run = ["run"] if self.prompts and "run" in own else []
        return pa.schema([field for field in schema if field.name in {*NEEDED, *run, *(asked - {*own})}])

    def put(self, table: pa.Table, file: BinaryIO) -> int:
        """Each row has a line."""
        told = table.select(["id", "key", "caption"])
        if self.prompts is not None:
            told = told.append_column(PROMPT, pa.array(map(self._asked, table.to_pylist()), pa.string()))
        line = CAPTION_LINE if self.prompts is None else CONVERSATION_LINE
        file.writelines(encode.lines(told, line))
        rows: int = table.num_rows
        return rows

    def _asked(self, row: dict[str, Any]) -> str:
        """The prompt of a row, with its own values."""
        assert self.prompts is not None
        text = self.prompts.get(row.get("run") or "", self.prompts[""])
        return PromptTemplate(text).fill(row, STRIP)


def _prompts(source: Source) -> dict[str, str]:
    """The prompt of each recipe that wrote rows, by its name in the column `run`; "" is the newest."""
    runs = {name: told.get("recipe") or {} for name, told in (source.run.get("runs") or {}).items()}
    prompts = {}
    for name, recipe in {**runs, "": source.recipe}.items():
        several = recipe.get("prompts") or {}
        text = (recipe.get("prompt") or {}).get("user")
        if len(several) > 1 or not isinstance(next(iter(several.values()), text), str):
            raise RecipeError(
                f"--form {LLAVA}: the captions of {source.path} come from several prompts, and a row does not "
                "say which one its caption answers; use the column captions of --to parquet."
            )
        prompts[name] = str(next(iter(several.values()), text))
    return prompts
