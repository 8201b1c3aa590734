"""Encoder-decoders: T5, Flan-T5 and mT5 folders, and a policy that the trainers take in place of a decoder's."""

from minirlhf.extras.seq2seq.config import Seq2SeqConfig
from minirlhf.extras.seq2seq.folder import load_seq2seq, save_seq2seq
from minirlhf.extras.seq2seq.model import Seq2Seq
from minirlhf.extras.seq2seq.policy import EncoderRewardModel, Seq2SeqPolicy
from minirlhf.extras.seq2seq.tokenizer import Seq2SeqTokenizer
