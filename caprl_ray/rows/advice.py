"""Usual causes of failure codes and of flags of the input, and what to do.

`caprl_ray.explain` reads it for the command `explain`, the documentation and the report. A check on captions has its
own advice in its class (quality/check.py), and a job that of its own codes.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Usual causes, and what to do. `meaning` is only for flags of the input; rows/codes.py has that of codes."""

    causes: str
    remedy: str
    meaning: str = ""


CODE_ADVICE = {
    "source_missing": Advice(
        causes="The file was moved or deleted after the plan was made, or a mount is gone.",
        remedy="Put the file back and use `--retry-failed`, or leave the row failed.",
    ),
    "source_changed": Advice(
        causes="Somebody wrote the file or shard again, or copied it without its modification time.",
        remedy="Use `--retry-failed=source_changed`. A file is captioned as it is now; a shard is captioned if its "
        "finished rows are still in it.",
    ),
    "source_unreadable": Advice(
        causes="The run's user or role may not read the object, or it lies in an archive class of storage.",
        remedy="Give read permission, or repair the file, and use `--retry-failed`.",
    ),
    "source_refused": Advice(
        causes="The table holds web addresses, or paths outside of the folders that the recipe allows.",
        remedy="Add the folder that the detail names to `input.image_roots` and use `--retry-failed`. Download images "
        "from the web first.",
    ),
    "truncated_unit": Advice(
        causes="The download or the upload of the shard or file was cut off, or its bytes are damaged.",
        remedy="Replace the shard or file by a complete one and use `--retry-failed=truncated_unit`.",
    ),
    "unit_format": Advice(
        causes="A web page, an error message or a Git LFS pointer was stored under the name of a shard or table.",
        remedy="Download the shard or file again, or fetch it from Git LFS, into the input of the next dataset.",
    ),
    "bad_line": Advice(
        causes="A row with more or fewer fields than the header, a quotation mark that is not closed, or a line that "
        "is not a JSON object.",
        remedy="Repair the line, and caption the list into a new output.",
    ),
    "empty_unit": Advice(
        causes="The tool that packed the shards wrote a last shard without samples.",
        remedy="Nothing, or remove the shard from the input of the next dataset.",
    ),
    "read_crash": Advice(
        causes="A damaged page that crashes its decoder, or one that needs more memory than there is.",
        remedy="Write the shard or file again, and caption it into a new output; report it to Arrow's authors.",
    ),
    "no_image": Advice(
        causes="The sample has text only, its members are not adjacent in the shard, or its image has another "
        "extension than `input.image_key`.",
        remedy="Nothing if the sample has text only. Pack a sample's members together; set `input.image_key` to the "
        "extension of the images.",
    ),
    "ambiguous_image": Advice(
        causes="Samples hold a photo and its mask, or several sizes of it.",
        remedy="Set `input.image_key`, and caption into a new output.",
    ),
    "duplicate_member": Advice(
        causes="A shard was appended to, or two samples were packed under one key.",
        remedy="Repack the shard.",
    ),
    "metadata_too_large": Advice(
        causes="Samples carry embeddings, whole web pages or other large values beside the image.",
        remedy="Raise `input.max_metadata_bytes`, or set `input.long_metadata` to `drop`. Repack a shard whose samples "
        "have that many members.",
    ),
    "metadata_invalid": Advice(
        causes="A tool wrote text in another encoding than UTF-8, or the file is damaged.",
        remedy="Repair the value at its source.",
    ),
    "placeholder": Advice(
        causes='A site sent an image such as "not available" in place of one that it lost.',
        remedy="Nothing; or take its SHA-256 out of the list and use `--retry-failed=placeholder`.",
    ),
    "image_empty": Advice(
        causes="A download failed and left an empty file.",
        remedy="Download the image again.",
    ),
    "image_too_large": Advice(
        causes="A scan or an archive master among smaller pictures.",
        remedy="Raise `prepare.max_bytes` and use `--retry-failed`.",
    ),
    "image_too_many_pixels": Advice(
        causes="A panorama, a scan, or a small file that inflates to a huge picture to fill memory.",
        remedy="Raise `prepare.max_source_pixels` and use `--retry-failed`, or reduce the image; above 178,956,970 "
        "pixels the limit is Pillow's own.",
    ),
    "image_format": Advice(
        causes="A web page or an error message was saved under an image's name, or the format needs an extra package.",
        remedy="Convert the file, or download it again. HEIC and JPEG XL need `pip install 'caprl_ray[formats]'`.",
    ),
    "image_mode": Advice(
        causes="Scientific data: floating point or 32-bit pixels, or colour spaces without a defined conversion.",
        remedy="Convert the image to RGB.",
    ),
    "image_truncated": Advice(
        causes="The download was cut off.",
        remedy="Download the image again.",
    ),
    "image_corrupt": Advice(
        causes="Bytes were damaged on disk or on the way, or the file was never a valid image.",
        remedy="Download the image again.",
    ),
    "image_aspect": Advice(
        causes="A banner, a divider line or a strip of film.",
        remedy="Crop the image: its sides differ more than the model's processor accepts.",
    ),
    "decode_crash": Advice(
        causes="A damaged or hostile file that crashes its decoder.",
        remedy="Leave it failed.",
    ),
    "decode_timeout": Advice(
        causes="A file that was made to decode slowly, or a very large one on a busy node.",
        remedy="Raise `prepare.timeout_s`, or leave it failed.",
    ),
    "prompt_column": Advice(
        causes="Only some rows have the column, or an earlier prompt wrote no caption for this row.",
        remedy="Use a column that every row has, or fill the gaps.",
    ),
    "prompt_too_long": Advice(
        causes="A long alt text is filled into the prompt, or large images take most of the context.",
        remedy="Shorten the prompt, lower `prepare.max_pixels`, or raise `model.engine.max_model_len`.",
    ),
    "engine_rejected": Advice(
        causes="The model or the service does not accept the request's size, parameters or content.",
        remedy="See the detail; `preflight --debug` shows the engine's log.",
    ),
    "engine_error": Advice(
        causes="A fault of the service that only this picture or prompt triggers.",
        remedy="See the service's log; use `--retry-failed` when its fault is repaired.",
    ),
    "engine_timeout": Advice(
        causes="A caption that never ends, or a service that is busy with others' requests.",
        remedy="Raise `model.timeout_s`, or lower `sampling.max_tokens`, and use `--retry-failed`.",
    ),
    "engine_crash": Advice(
        causes="A picture whose size or shape crashes the engine's kernels.",
        remedy="Leave it failed; report the image to the engine's authors.",
    ),
}

# Flags that do not come from checks, but from reading, prepare and repair.
FLAG_ADVICE = {
    "blank": Advice(
        meaning="The picture has a single colour, apart from noise.",
        causes="A placeholder for a lost image, a failed render, or a photo taken in the dark.",
        remedy="Look at some. `caprl-ray plan --duplicates` finds placeholders; leave the others out when you train.",
    ),
    "metadata_undecoded": Advice(
        meaning="A text beside the image is not UTF-8, so its column is null.",
        causes="A crawler stored pages in their own encoding.",
        remedy="Convert the text at its source if you need it. The caption is not affected.",
    ),
    "metadata_recoded": Advice(
        meaning="A text beside the image had a byte order mark, and was converted to UTF-8.",
        causes="A tool on Windows wrote it.",
        remedy="Nothing.",
    ),
    "metadata_invalid": Advice(
        meaning="A text beside the image does not have its column's type, such as JSON or a number.",
        causes="A cut or hand-written file, or tables whose columns have several types.",
        remedy="Repair the value at its source if you need it. The caption is not affected.",
    ),
    "metadata_too_large": Advice(
        meaning="A text beside the image is larger than `input.max_metadata_bytes`, so it was left out.",
        causes="Samples carry whole web pages or embeddings.",
        remedy="Raise `input.max_metadata_bytes` in the next dataset if you need it.",
    ),
    "trimmed": Advice(
        meaning="Every caption of the image had a fault, so the best one was cut before its fault.",
        causes="The model loops on this picture with every sampling that was tried.",
        remedy="Read some. `quality.at_end` decides whether such captions are trimmed, kept or failed.",
    ),
}
