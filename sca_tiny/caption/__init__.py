"""The paper's task between the two, frozen, with scenes for data."""
