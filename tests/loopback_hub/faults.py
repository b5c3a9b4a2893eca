"""Faults that a test requests for the next requests."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

KINDS = (
    "status",  # an error is answered
    "cut_request",  # the connection ends before the whole request is here
    "cut_answer",  # the connection ends before the whole answer is there
    "corrupt",  # what is sent, or a large file that is received, has a wrong bit
    "short",  # the answer lacks its last byte, without a length
)


@dataclass
class Fault:
    """The next `left` requests whose "METHOD /path" matches `pattern` go wrong in one of the `KINDS`."""

    pattern: re.Pattern[str]
    kind: str
    left: int
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)

    def received(self, body: bytes) -> bytes:
        """What of a large file's `body` comes here."""
        return bytes([body[0] ^ 1]) + body[1:] if self.kind == "corrupt" else body

    def announced(self, content: bytes) -> bytes:
        """The answer with a length."""
        return content[:-1] if self.kind == "short" else content

    def sent(self, content: bytes) -> bytes:
        """What goes out of the answer that was announced."""
        if self.kind == "corrupt":
            return content[:-1] + bytes([content[-1] ^ 1])
        return content[: len(content) // 2] if self.kind == "cut_answer" else content


NO_FAULT = Fault(re.compile(r"(?!)"), "none", left=0)


def take_fault(faults: list[Fault], request: str) -> Fault:
    """The first of `faults` that is left for this "METHOD /path", counted down, or `NO_FAULT`."""
    fault = next((fault for fault in faults if fault.left and fault.pattern.search(request)), NO_FAULT)
    if fault is not NO_FAULT:
        fault.left -= 1
    return fault
