"""Builders of problems: of images and texts, dealt to clients or as the data have them.

vision       a problem of a Vision Transformer        images   from labelled images
language     a problem of a Llama                     texts    from files of texts
federations  one federation for each cell             clients  from one file a client
bases        pre-trained bases, and their cache       suites   from public text tasks
arrays       a problem of any model, on arrays
"""
