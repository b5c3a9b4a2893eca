"""Model cards: Jinja templates, one per method."""
