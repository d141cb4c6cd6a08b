"""The failure codes of the stages that jobs share. A job adds its own (job.py)."""

READ_CODES = {
    "source_missing": "The file is in the plan but no longer exists.",
    "source_changed": "The file or shard has changed since it was planned (size or modification time).",
    "source_unreadable": "The file exists but cannot be read, although its storage works.",
    "source_refused": "The row's path is a web address, or is neither below the table's folder nor below "
    "input.image_roots.",
    "truncated_unit": "From this row on, the shard or parquet file is missing, damaged or inflates without bound; the "
    "row counts as the unit's last.",
    "unit_format": "The shard is not an archive, or the table is not a parquet file; the detail says what it is.",
    "bad_line": "The line of a manifest is not a row: it is not JSON, is not UTF-8, or has more or fewer fields than "
    "the header; the detail has the number of the line.",
    "empty_unit": "The shard holds no sample.",
    "read_crash": "Reading the row kills the process in every attempt. In parquet, all rows from this one to the end "
    "of the row group fail.",
    "no_image": "The sample has no image member, or the row no image.",
    "ambiguous_image": "The sample has images of several kinds, and input.image_key does not say which to caption; the "
    "detail names them.",
    "duplicate_member": "The sample has two members with the same name.",
    "metadata_too_large": "The sample's metadata is larger than input.max_metadata_bytes, and input.long_metadata is "
    "fail; or a shard's sample has too many members, or too long extensions.",
    "metadata_invalid": "The value in the image column is invalid, for instance text that is not UTF-8.",
    "placeholder": "The image's bytes are listed in input.placeholders.",
}
PREPARE_CODES = {
    "image_empty": "The image has no bytes.",
    "image_too_large": "The image has more bytes than prepare.max_bytes.",
    "image_too_many_pixels": "The image has, or makes its decoder read, more pixels than prepare.max_source_pixels.",
    "image_format": "The bytes are not an image of a supported format.",
    "image_mode": "The image has a kind of pixels without a defined conversion to RGB.",
    "image_truncated": "The image ends early.",
    "image_corrupt": "The image cannot be decoded.",
    "image_aspect": "The image is more elongated than the model's processor accepts.",
    "decode_crash": "The image kills the process that decodes it, in every attempt.",
    "decode_timeout": "The image takes longer than prepare.timeout_s, in every attempt.",
}
ENGINE_CODES = {
    "prompt_column": "The prompt names a column that this row does not have.",
    "prompt_too_long": "Prompt and image have more tokens than the model's context.",
    "engine_rejected": "The engine refused the request.",
    "engine_error": "The service answered every attempt of this row with an error, but captioned another picture.",
    "engine_timeout": "The service did not caption this row within model.timeout_s in any attempt, but captioned "
    "another picture.",
    "engine_crash": "The engine or the replica died or hung in every attempt, the last two times with this row alone.",
}
# Unfinished rows of a stopped run. They pass through the stages like failed rows, so that no stage drops any
# (docs/design.md, D4). The commit leaves them out, and the next run processes them. So no output has this code.
UNFINISHED = "unfinished"
# Failures that the user asked for are no sign of a fault: these rows count neither as failed nor as processed in the
# share of failed rows.
NO_QUESTIONS = "no_questions"  # scoring: questions may be about some of the images only
ASKED_FOR = frozenset({"placeholder", NO_QUESTIONS})
NO_KEY = "no_key"  # scoring: the row has no value in the column that joins
NOT_ASKED = frozenset({NO_QUESTIONS, NO_KEY})  # no reader has seen these captions
FAILURE_CODES = READ_CODES | PREPARE_CODES | ENGINE_CODES
