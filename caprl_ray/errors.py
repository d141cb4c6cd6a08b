"""The exceptions that a user can meet, each with its exit code.

Every message is one sentence that names the field, path or object and says what to do. A fault of a single row does not
leave a stage as an exception. It is a `RowFailure`, which becomes a row in `failed/`.
"""


class CaprlError(Exception):
    """Base of the errors that end a command with one sentence. The sentence is the only argument, so it pickles."""

    exit_code = 1


class RecipeError(CaprlError):
    """The recipe or the command line is wrong: nothing was started."""

    exit_code = 2


class SystemFailure(CaprlError):
    """Something that every row needs does not work (storage, model, disk). The run stops and can be resumed."""

    exit_code = 1

    @classmethod
    def of(cls, fault: OSError) -> "SystemFailure":
        """The sentence for a path that cannot be read or written."""
        return cls(f"{fault.filename}: {fault.strerror}; run the same command again to resume.")


class Stopped(CaprlError):
    """Ctrl-C (SIGINT) asked the run to end; what was finished is committed. The same command resumes."""

    exit_code = 130


class StoppedByTerm(Stopped):
    """SIGTERM asked the run to end, as `ray job stop` and Kubernetes send it, or SIGHUP of a closed terminal."""

    exit_code = 143


class Abandoned(CaprlError):
    """The run has already ended for another reason. That reason is reported."""


class TooManyFailures(CaprlError):
    """So many rows failed that the run stopped: `failures.max_fraction`."""

    exit_code = 3


class LedgerUnbalanced(CaprlError):
    """The run finished, but some planned rows are missing or duplicate."""

    exit_code = 3


class RowFailure(Exception):
    """A fault of one row: `code` is one of the job's failure codes, `detail` is safe to store and show."""

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail
