"""The exceptions. Each message is one line: what is wrong, which value, and what to do."""


class VidupError(Exception):
    """The base of all exceptions of vidup."""

    def __str__(self) -> str:
        # Names and contents of files may contain anything, but a message is one line.
        text = super().__str__()
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class ConfigError(VidupError):
    """A setting, an option or a preset that cannot be used."""


class MediaError(VidupError):
    """An input that cannot be read, or an output that cannot be written."""


class EngineError(VidupError):
    """A model that cannot be loaded or run."""


class ResumeError(VidupError):
    """A job on disk that does not belong to this command."""


class VerifyError(VidupError):
    """What was written is not what was requested."""


class Stopped(VidupError):
    """The work was stopped before its end, on request; what a job has done is kept."""

    def __init__(self, message: str = "stopped on request") -> None:
        super().__init__(message)


def first_line(error: BaseException) -> str:
    """The first line of a library's error message, at most 200 characters."""
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


def system_words(error: OSError, subject: object = None) -> str:
    """A system error in one line: the file that it names, or else the subject, and the reason."""
    reason = error.strerror or str(error) or type(error).__name__
    subject = error.filename or subject
    return f"{subject}: {reason}" if subject else reason
