"""What a LoRA step of the published editors needs, predicted without weights or a GPU: a markdown table.

    python bench/editor_memory.py

One row in a forward, bfloat16, the transformer on one device. A step is a forward and a backward of one row: with
checkpointing 4 forwards' work, else 3.
"""

from __future__ import annotations

from premeditate.training.flow.memory import GIB, predict

RANKS = {"flux-kontext": 32, "qwen-image-edit-2511": 64}


def main() -> None:
    columns = ("editor, LoRA rank", "pixels", "tokens", "checkpointing", "peak, GiB", "of it weights", "update",
               "sampling or decoding", "TFLOP a step", "before training, GiB")  # fmt: skip
    print(f"| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|")
    for name, rank in RANKS.items():
        for size in (512, 1024):
            for checkpointing in (True, False):
                m = predict(name, size, rank, 1, checkpointing)
                held, phases = m.held, m.phases
                work = m.flops * (4 if checkpointing else 3) / 1e12
                other = max(phases["sampling"], phases["decoding"])
                print(
                    f"| {name}, {rank} | {size} | {m.tokens:,} | {'yes' if checkpointing else 'no'} "
                    f"| {m.peak / GIB:.1f} | {held['weights'] / GIB:.1f} | {phases['update'] / GIB:.1f} "
                    f"| {other / GIB:.1f} | {work:,.0f} | {(m.encoding or 0) / GIB:.1f} |"
                )


if __name__ == "__main__":
    main()
