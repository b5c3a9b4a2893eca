"""Numbers of things in words."""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """``counted(1, "seed")`` is ``"1 seed"``, ``counted(1200, "seed")`` is ``"1,200 seeds"``.

    Args:
        number: How many.
        noun: Of one.
        plural: Of several; None = `noun` with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
