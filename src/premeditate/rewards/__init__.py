"""What looks at finished edits. `base`: the protocols; `checklist`: the verifier that asks a reasoner; `function`,
`verified`, `preservation`: rewards; `specs`: how a recipe names them; `panel`: several of them side by side."""
