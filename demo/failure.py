"""The one error of the demo: a step that did not do what it should, in words for the reader."""


class DemoFailed(Exception):
    """A step failed; the text says what and why."""
