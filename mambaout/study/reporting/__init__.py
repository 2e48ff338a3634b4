"""What a study says, read out of its runs: numbers, charts, the page, files for others."""
