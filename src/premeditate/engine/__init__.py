"""The engine: `strategies` say what to do next (pure functions of the trace), `runner` does it for many tasks at once,
`batching` makes large batches of single requests, `select` chooses the answer, `memory` is a store that is not kept."""
