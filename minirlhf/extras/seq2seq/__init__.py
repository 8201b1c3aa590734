"""Encoder-decoders: T5, Flan-T5 and mT5 folders, and a policy that the trainers take in place of a decoder's."""
