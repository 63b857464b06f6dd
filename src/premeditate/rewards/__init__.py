"""Verifiers: they look at a finished edit and answer its checklist. `base`: the protocol; `checklist`: the default."""
