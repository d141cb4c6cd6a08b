"""The exceptions that a user can meet, each with the exit code that it ends a command with.

Every message is one sentence that names the field, path or object and says what to do. A fault of a single row is
never an exception that leaves a stage: it is a `RowFailure`, which becomes a row in `failed/`.
"""


class CaprlError(Exception):
    """Base of the errors that end a command with one sentence. Takes the sentence only, so that it pickles."""

    exit_code = 1


class RecipeError(CaprlError):
    """The recipe or the command line is wrong: nothing was started."""

    exit_code = 2


class SystemFailure(CaprlError):
    """Something that every row needs does not work (storage, model, disk): the run stops and can be resumed."""

    exit_code = 1

    @classmethod
    def of(cls, fault: OSError) -> "SystemFailure":
        """The sentence for a path that could not be read or written, and for why not."""
        return cls(f"{fault.filename}: {fault.strerror}; run the same command again to resume.")


class Abandoned(CaprlError):
    """The run has ended for another reason, which is the one to be told."""


class TooManyFailures(CaprlError):
    """So many rows failed that the run was stopped: `failures.max_fraction`."""

    exit_code = 3


class LedgerUnbalanced(CaprlError):
    """The run finished, but some planned rows are missing or stand twice in the output."""

    exit_code = 3


class RowFailure(Exception):
    """A fault of one row: `code` is a key of `rows.codes.FAILURE_CODES`, `detail` is safe to store and show."""

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail
