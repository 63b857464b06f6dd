"""The training of a reasoning reward model on pairs of edits of which people prefer one."""
