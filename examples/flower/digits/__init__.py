"""A Flower app: a small ViT on handwritten digits, federated and personalised."""
