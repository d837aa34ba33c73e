"""One command for each figure; results are JSON records with machine and commit (after pyperf)."""
