"""Builders of problems: of images, texts or arrays, dealt to clients or natural.

vision         a problem of a Vision Transformer    images         labelled images
image_models   the ViT of images, new or loaded     digits         of scikit-learn
language       a problem of a Llama                 suites         public text tasks
texts          the Llama of texts, new or loaded    text_files     a file per task
arrays         a problem of any model               generated      generated text tasks
clients        a problem of natural clients         client_folder  a file per client
federations    a federation for each cell           bases          pre-trained bases
"""
