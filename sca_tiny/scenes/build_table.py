"""Builds the table of what scenes show: `python -m sca_tiny.scenes.build_table`.

For whoever edits `sca_tiny/scenes/concept_words.txt`; not a command of `sca`.
"""

from __future__ import annotations

import click


def main() -> None:
    """Writes concepts.json, and says what is in it."""
    from sca_tiny.scenes.concept_table import rebuild_table

    table = rebuild_table()
    styles = ", ".join(f"{style} {count:,}" for style, count in table.per_style.items())
    click.echo(f"{table.num_concepts:,} concepts, {table.num_drawings:,} drawings; {styles}")
    click.echo(f"On no line: {', '.join(table.unused) or 'none'}", err=True)


if __name__ == "__main__":
    main()
