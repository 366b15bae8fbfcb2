"""cloudjob compare: variants of one configuration, trained on the same data and scored by the same code."""
