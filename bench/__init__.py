"""The benchmark harness: a cell in, a record out."""
