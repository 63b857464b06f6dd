"""Benchmarks: one file each, over the same engine as everything else; `stats` has the rates and their intervals."""
