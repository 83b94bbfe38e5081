"""Federated personalisation of LoRA-adapted models in JAX."""
