"""A small real tokenizer: byte pairs, trained on the licence."""

from pathlib import Path

LICENSE = Path(__file__).parents[1] / "LICENSE"


def licence_tokenizer(folder, single, template=None, **names):
    """A byte-level tokenizer, saved and loaded. single: the form of a text; names: of special tokens."""
    import tokenizers
    import transformers

    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<s>", "</s>"]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([LICENSE.read_text()], trainer)
    made.post_processor = tokenizers.processors.TemplateProcessing(single=single, special_tokens=[("<s>", 1), ("</s>", 2)])
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, chat_template=template, **names).save_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)
