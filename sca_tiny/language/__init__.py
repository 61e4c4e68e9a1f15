"""A small GPT-2 on what scenes say."""
