"""Training: composed scenes and their art, recipes, examples, and the loop."""
