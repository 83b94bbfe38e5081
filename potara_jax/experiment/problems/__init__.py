"""Builders of problems: of images, texts or arrays, dealt to clients or natural.

vision       a problem of a Vision Transformer       images   from labelled images
language     a problem of a Llama                    texts    from files of texts
arrays       a problem of any model                  clients  from a file per client
federations  a federation for each cell              suites   from public text tasks
bases        bases that are pre-trained, or cached
"""
