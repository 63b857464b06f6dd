"""How good a judge of edits is: pure functions over what it said, and `run.evaluate`, which asks it.

    pairwise      does it prefer what people prefer; ties, both orders
    protocols     the published benchmarks' own counts: both EditReward-Benches, GenAI-Bench
    calibration   are its probabilities right: reliability diagram, expected calibration error
    repeats       does it say the same again; does it agree with the exact checker, per type of question

A missing score is counted and leaves its pair; it is never a wrong answer, unless a protocol is asked to count it so.
Numerators and denominators are kept with every share.
"""
