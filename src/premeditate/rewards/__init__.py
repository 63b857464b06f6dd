"""Verifiers: who looks at a finished edit and answers its checklist. `base` has the protocol, `checklist` the default."""
