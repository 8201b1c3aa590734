"""BLEU, chrF and ROUGE equal those of sacrebleu and rouge-score."""

import random

import pytest

from minirlhf.evaluation.bleu import bleu, chrf, letters, words_13a, words_zh
from minirlhf.evaluation.rouge import rouge

pytestmark = pytest.mark.parity

LINE = """the cat sat on a mat , "quoted" (a) 3.5% 1,000 e.g. it's well-known 5-6 U.S. &amp; <b> x/y a_b @you #tag $5.00
end. No! why? [1] {2} ~ ` ^ = + * ; : ... -- caf\u00e9 na\u00efve \u201cquote\u201d \u2014 5. .5 , 10,000.5 I'll 2nd"""
ENGLISH = LINE.split()
CHINESE = list("我你他的是了在不有这，。！？（）“”…—　：；") + ["hello", "3.5", "100%", "GPT-4", "A,B"]
JAPANESE = list("これはペンですか。日本語「テスト」") + ["Python", "3"]


def corpus(words, joiner, seed, n=40, references=1):
    """Texts, and references that share words with them; some are empty or very short."""
    rng = random.Random(seed)
    texts, refs = [], []
    for _ in range(n):
        base = rng.choices(words, k=rng.choice([0, 1, 3, 8, 20]))
        text = [word if rng.random() < 0.8 else rng.choice(words) for word in base]
        texts.append(joiner.join(text) + rng.choice(["", " ", "\n", "."]))
        own = [base, *(rng.choices(words, k=rng.choice([1, 9])) + base for _ in range(references - 1))]
        refs.append([joiner.join(ref) for ref in own])
    return texts, refs


CORPORA = [(ENGLISH, " ", words_13a, "13a"), (CHINESE, "", words_zh, "zh"), (JAPANESE, "", letters, "char")]


@pytest.mark.parametrize("references", [1, 3])
@pytest.mark.parametrize(("words", "joiner", "ours", "theirs"), CORPORA, ids=["english", "chinese", "japanese"])
def test_bleu_and_chrf_equal_sacrebleu(words, joiner, ours, theirs, references):
    import sacrebleu

    for seed in range(8):
        texts, refs = corpus(words, joiner, seed, references=references)
        columns = list(zip(*refs, strict=True))
        assert bleu(texts, refs, ours) == pytest.approx(
            sacrebleu.corpus_bleu(texts, columns, tokenize=theirs).score, abs=1e-6
        )
        assert chrf(texts, refs) == pytest.approx(sacrebleu.corpus_chrf(texts, columns).score, abs=1e-6)
        for text, own in zip(texts[:5], refs[:5], strict=True):  # a single text, where zeros are smoothed
            columns = [[ref] for ref in own]
            assert bleu([text], [own], ours) == pytest.approx(
                sacrebleu.corpus_bleu([text], columns, tokenize=theirs).score, abs=1e-6
            )


def test_chinese_letters_are_those_of_sacrebleu():
    from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh

    split = TokenizerZh()
    text = [chr(code) for code in range(0x20, 0x30000) if not 0xD800 <= code < 0xE000]
    for start in range(0, len(text), 97):
        line = "a".join(text[start : start + 97])
        assert words_zh(line) == split(line).split()


@pytest.mark.parametrize("references", [1, 3])
def test_rouge_equals_rouge_score(references):
    from rouge_score.rouge_scorer import RougeScorer

    names = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
    scorer = RougeScorer(list(names.values()))
    for seed in range(8):
        texts, refs = corpus(ENGLISH, " ", seed, references=references)
        theirs = [scorer.score_multi(own, text) for text, own in zip(texts, refs, strict=True)]
        for ours, name in names.items():
            mean = sum(score[name].fmeasure for score in theirs) / len(theirs)
            assert rouge(texts, refs)[ours] == pytest.approx(mean, abs=1e-6)


def test_chinese_rouge_equals_rouge_score_on_separated_letters():
    from rouge_score.rouge_scorer import RougeScorer

    from minirlhf.evaluation.rouge import words

    class ByLetters:
        def tokenize(self, text):
            return words(text)

    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=ByLetters())
    texts, refs = corpus(CHINESE, "", 0)
    scores = [scorer.score(own[0], text) for text, own in zip(texts, refs, strict=True)]
    for ours, name in {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}.items():
        assert rouge(texts, refs)[ours] == pytest.approx(sum(s[name].fmeasure for s in scores) / len(scores), abs=1e-6)
