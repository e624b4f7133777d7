"""Errors that users meet. Each names the thing, where it is, and the fix; the command line prints them as one line."""


class DreamgymError(Exception):
    """Base of every error that a user can cause or mend; the CLI prints its text and exits with 1."""


class ConfigError(DreamgymError):
    """A configuration key or value is wrong."""


class DataError(DreamgymError):
    """A file of episodes, tasks or results cannot be read; the text names file and line."""


class MissingExtraError(DreamgymError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; install it with: pip install 'dreamgym[{extra}]'")


class PanelLeakError(DreamgymError):
    """A task of an evaluation panel was about to enter collection, training or retrieval."""


class BatchError(DreamgymError):
    """A batch function that many episodes share failed: no single episode's fault, so the run stops instead of dropping them."""


class TrainingError(DreamgymError):
    """Training cannot go on (a gradient that is not a number); what was saved before is kept."""


class BudgetError(DreamgymError):
    """A budget is used up: of real environment steps, or of an annotator's tokens or dollars."""


class EndpointError(DreamgymError):
    """A model server refuses the calls or is down; the text names it, the cause and what to change."""
