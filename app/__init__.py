"""The control plane: identity, models, pipelines, deployments and everything around them, on Postgres."""
