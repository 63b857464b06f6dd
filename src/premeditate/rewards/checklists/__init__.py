"""Checklists: `builder` has them written, with examples from the `pool`, sifted by `validation` and kept in `files`;
`canary` and `controls` expose a judge that does not look. `premeditate.rewards.checklist` answers them."""
