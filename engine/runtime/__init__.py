"""Run pipelines: models, steps, and the engine that answers with them."""
