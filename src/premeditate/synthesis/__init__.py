"""Making training data with models: edits, judgements of them, and what is kept of these.

`run.make` is the pipeline behind `premeditate data rrm` (Edit-RRM's cold start, arXiv 2604.27505, section 3.2):
instructions, principles, edits, candidates, gold verdicts, selection. `settings`: what shapes the outcome; `parts`: the
models; `forms`: how a judge is asked; `shard`: one portion of work; `tally`, `datasheet`: what came of it.
"""
