"""The words of INFless as frozen values: units, model, labels, errors, clock. Standard library only."""
